"""A name and arguments give a model, or a message that names the argument."""

import re

import pytest

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.models import all_arguments, build_model, parse_args
from gapscope.measure.loading.networks import mlp
from gapscope.measure.loading.trust import Trust


def build(spec, recorded=False, trust=Trust(), **args):  # noqa: B008
    return build_model(spec, args, recorded=recorded, trust=trust)


def test_builtins_modules_and_files_build_models(folder):
    assert build("mlp", hidden=[5])[0].fc1.out_features == 5
    assert build("zoo:Net", width=6)[0].fc1.out_features == 6
    assert build("zoo.py:Net")[1] == "zoo.py:Net"
    assert build("mlp", recorded=True)[1] == "mlp"
    assert build("zoo:Net", recorded=True, trust=Trust(("zoo:*",)))[1] == "zoo:Net"


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("mpl", {}, "There is no built-in model `mpl`. Did you mean `mlp`? Expected one of mlp, f1, lenet5, resnet20"),
        ("mlp", {"hiden": 3}, "Did you mean `hidden`? It takes inputs: int = 64, hidden"),
        ("zoo:broken", {}, "`zoo:broken` called with () raised ValueError: no such width. Check its arguments"),
        ("mlp", {"inputs": "x"}, "`mlp` called with (inputs='x') raised TypeError"),
        ("zoo:not_a_module", {}, "`zoo:not_a_module` returned int. Expected a `torch.nn.Module`"),
        ("zoo:instance", {}, "`zoo:instance` is an object of class Net. Expected a class or function"),
        ("math:pi", {}, "`math:pi` is an object of class float"),
        ("mlp", {"activation": "x"}, "`mlp` knows no activation `x`"),
    ],
)
def test_what_builds_no_model_says_why(folder, spec, args, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec, **args)


def test_a_recorded_model_that_is_not_trusted_is_not_imported(folder):
    with pytest.raises(LoadError, match="records the model `canary:build`"):
        build("canary:build", recorded=True)
    assert not (folder / "sang").exists()


def test_arguments_are_toml_values_and_bare_words():
    texts = ["hidden=[32, 16]", "lr=1e-3", "wide=true", "activation=relu", "path=a/b.c", 'text="two words"', "n = 3"]
    assert parse_args(texts) == {
        "hidden": [32, 16],
        "lr": 1e-3,
        "wide": True,
        "activation": "relu",
        "path": "a/b.c",
        "text": "two words",
        "n": 3,
    }
    assert parse_args(["day=2020-01-02"]) == {"day": "2020-01-02"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hidden", "`-a hidden` is no argument. Expected `-a NAME=VALUE`"),
        ("a-b=3", "is no argument"),
        ("hidden=[32", "'[32' is not a TOML value"),
        ("x=1\ny=2", "is not a TOML value"),
        ("bias=False", "is Python's spelling. Write `-a bias=false`."),
    ],
)
def test_a_malformed_argument_says_what_was_expected(text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_args([text])


def test_defaults_count_among_all_arguments():
    assert all_arguments(mlp, {"hidden": [3]}) == {"inputs": 64, "hidden": [3], "outputs": 10, "activation": "relu"}
