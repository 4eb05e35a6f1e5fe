import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest

import gapscope
from gapscope.errors import UsageError
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.trust import Trust
from gapscope.training.recipe import Recipe
from gapscope.training.studies.plan import Plan, batch, read_plan
from gapscope.training.studies.runs import Spec, fitted, training_data

STUDIES = Path(gapscope.__file__).parent / "training" / "studies"


@dataclass(frozen=True, kw_only=True)
class Toy(Plan):
    """A plan with a field of every kind."""

    lr: float
    rates: tuple[float, ...] = ()
    pairs: tuple[tuple[int, ...], ...] = ()
    size: int | str = 32
    augment: bool = False
    until: float | None = None
    equal: Literal["loss", "steps"] = "loss"
    shares: Mapping[str, float] = field(default_factory=dict)


@pytest.fixture
def toy(tmp_path):
    """Read a plan written as TOML."""

    def toy(text, table="quick", **changes: Any):
        path = tmp_path / "toy.toml"
        path.write_text(text)
        return read_plan(Toy, path, table, changes)

    return toy


WHOLE = '[quick]\ndata = "digits"\nmodel = "mlp"\nmodel_args = { hidden = [64], inputs = 64 }\nlr = 1\n'


def test_a_plan_is_its_table_with_the_user_s_changes(toy):
    plan = toy(WHOLE + "pairs = [[1, 2], [3]]\n", rates=[0.1, 1], size="10 %", shares={"a": 1}, equal="steps")
    assert (plan.data, plan.model, plan.seeds, plan.pairs) == ("digits", "mlp", 1, ((1, 2), (3,)))
    assert (plan.rates, plan.size, plan.shares, plan.equal) == ((0.1, 1), "10 %", {"a": 1}, "steps")
    assert type(plan.lr) is float  # 1 and 1.0 are one run
    assert toy(WHOLE, until=0.5).until == 0.5


def test_arguments_of_the_model_add_up_but_another_model_takes_its_own(toy):
    assert toy(WHOLE, model_args={"hidden": [8]}).model_args == {"hidden": [8], "inputs": 64}
    assert toy(WHOLE, model="c1", model_args={"size": 8}).model_args == {"size": 8}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": "fast"}, "`lr` is 'fast'. Expected a number. Mend the plan, or `--set lr=...`."),
        ({"seeds": 1.5}, "`seeds` is 1.5. Expected a whole number. Mend"),
        ({"seeds": True}, "`seeds` is True. Expected a whole number. Mend"),
        ({"rates": [1, "a"]}, "`rates` is [1, 'a']. Expected a list, each a number. Mend"),
        ({"rates": 1}, "`rates` is 1. Expected a list, each a number. Mend"),
        ({"size": 1.5}, "`size` is 1.5. Expected a whole number or a text. Mend"),
        ({"augment": 1}, "`augment` is 1. Expected true or false. Mend"),
        ({"until": "low"}, "`until` is 'low'. Expected a number. Mend"),
        ({"equal": "time"}, '`equal` is \'time\'. Expected "loss" or "steps". Mend'),
        ({"shares": {"a": "b"}}, "`shares` is {'a': 'b'}. Expected a table. Mend"),
        ({"rate": 1}, "A plan of this study has no `rate`. Did you mean `rates`? Expected one of data, model, "),
        ({"seeds": 0}, "There are 0 seeds. Expected 1 or more. Mend `--seeds`."),
    ],
)
def test_what_a_plan_cannot_hold_is_refused(toy, changes, said):
    with pytest.raises(UsageError) as refused:
        toy(WHOLE, **changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "table", "said"),
    [
        (
            WHOLE,
            "quik",
            "toy.toml has no table [quik]. Did you mean `quick`? Expected it beside what is there: quick.",
        ),
        ("", "full", "toy.toml has no table [full]. Expected it beside what is there: nothing. Write it, or"),
        ("quick = 1", "quick", "toy.toml has no table [quick]."),
        ("[quick", "quick", "Expected tables of a plan. Mend `--plan`."),
        ('[quick]\nmodel = "mlp"\nlr = 1', "quick", "names none. Expected `--data`. Name them, or take the digits"),
        ('[quick]\ndata = "x"', "quick", "The plan lacks model, lr. Expected all of the study's keys. Write them, or"),
    ],
)
def test_a_plan_that_is_not_whole_is_refused(toy, text, table, said):
    with pytest.raises(UsageError) as refused:
        toy(text, table)
    assert said in str(refused.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read: No such file or directory. Expected a plan. Mend `--plan`."):
        read_plan(Toy, tmp_path / "none.toml", "full", {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"is no TOML: .* Expected tables of a plan. Mend `--plan`."):
        read_plan(Toy, tmp_path / "bytes.toml", "full", {})


@pytest.mark.parametrize(("size", "count"), [(8, 8), ("10 %", 130), ("10%", 130), ("64", 64), ("100 %", 1300)])
def test_a_batch_is_a_number_or_a_share(size, count):
    assert batch(size, 1300) == count


@pytest.mark.parametrize("size", [0, -1, 1301, "0.01 %", "101 %", "many", "inf %", "nan %", "%"])
def test_a_batch_outside_of_the_data_is_refused(size):
    with pytest.raises(UsageError) as refused:
        batch(size, 1300)
    said = (
        f'The batch size is `{size}` of 1,300 samples. Expected 1 to 1,300, or a share such as "10 %". Mend the plan.'
    )
    assert str(refused.value) == said


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*/plan.toml")), ids=lambda path: path.parent.name)
def test_every_study_has_three_plans_that_fit_it(path):
    module = import_module(f"gapscope.training.studies.{path.parent.name}")
    assert module.__doc__
    assert sorted(tomllib.loads(path.read_text())) == ["full", "quick", "smoke"]
    for table in ("quick", "smoke"):
        assert read_plan(module.Plan, path, table, {}).seeds >= 1
    with pytest.raises(UsageError, match="This plan is for data of your own, and names none"):
        read_plan(module.Plan, path, "full", {})
    assert read_plan(module.Plan, path, "full", {"data": "mine.npz"}).data == "mine.npz"


@pytest.mark.parametrize("image", ["1x28x28", "3x32x32"])
@pytest.mark.parametrize("name", ["keskar", "dai_zhu", "gao_zhong", "sngm"])
def test_the_networks_of_full_plans_take_mnist_and_cifar(name, image):
    module = import_module(f"gapscope.training.studies.{name}")
    data = f"teacher:samples=40,image={image},outputs=10"
    plan = read_plan(module.Plan, STUDIES / name / "plan.toml", "full", {"data": data})
    whole = fitted(Spec(recipe=Recipe(steps=1), model=plan.model, model_args=plan.model_args, data=data))
    model = build_model(whole.model, dict(whole.model_args), recorded=False, trust=Trust())[0].eval()
    assert model(training_data(data).inputs[:2]).shape == (2, 10)
