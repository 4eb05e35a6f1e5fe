"""A name and arguments give a model, or a message that names the argument."""

import re
import sys

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


def test_a_file_imports_what_lies_beside_it(folder):
    (folder / "layers.py").write_text("from torch import nn\nclass Wide(nn.Linear): pass\nWIDTH = 7\n")
    (folder / "model.py").write_text(
        "from . import layers\nfrom .layers import Wide\ndef build(): return Wide(layers.WIDTH, 2)\n"
    )
    assert build("model.py:build")[0].in_features == 7
    (folder / "model.py").write_text("from .layers import Wide\ndef build(): return Wide(3, 2)\n")
    assert build("model.py:build")[0].in_features == 3  # an edited file is another module


def test_a_file_of_a_package_imports_from_all_of_it(folder):
    (folder / "lib" / "nets").mkdir(parents=True)
    (folder / "lib" / "__init__.py").write_text("")
    (folder / "lib" / "common.py").write_text("WIDTH = 5\n")
    (folder / "lib" / "nets" / "__init__.py").write_text("KIND = 'linear'\n")
    (folder / "lib" / "nets" / "v1.2.py").write_text(
        "from torch import nn\nfrom . import KIND\nfrom ..common import WIDTH\n"
        "def build(): return nn.Linear(WIDTH, len(KIND))\n"
    )
    assert (build("lib/nets/v1.2.py:build")[0].weight.shape) == (6, 5)
    assert build("lib/nets/v1.2.py:build", recorded=True, trust=Trust(("lib/nets/v1.2.py:*",)))[0].in_features == 5


def test_a_file_that_fails_leaves_no_module_behind(folder):
    (folder / "half.py").write_text("from . import zoo\nraise ValueError('later')\n")
    before = set(sys.modules)
    with pytest.raises(LoadError, match=r"Importing `half.py` raised ValueError: later. Fix that file first."):
        build("half.py:build")
    assert not {name for name in set(sys.modules) - before if name.startswith("gapscope_file_")}


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("mpl", {}, "There is no built-in model `mpl`. Did you mean `mlp`? Expected one of mlp, f1, f2, c1, "),
        ("mlp", {"hiden": 3}, "Did you mean `hidden`? It takes inputs: int = 64, hidden"),
        ("mlp", {"outputs": 3, "hiden": 3}, "Did you mean `hidden`?"),
        ("zoo:broken", {}, "`zoo:broken` called with () raised ValueError: no such width. Check its arguments"),
        ("mlp", {"inputs": "x", "outputs": 3}, "`mlp` called with (inputs='x', outputs=3) raised TypeError"),
        ("zoo:broken", {"width": 3}, "It takes no arguments. Set them with `-a NAME=VALUE`"),
        ("torch.nn:Linear", {"in_features": 3}, "missing a required argument: 'out_features'. It takes in_features"),
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
        ("bias=True", "is Python's spelling. Write `-a bias=true`."),
        ("bias=False", "is Python's spelling. Write `-a bias=false`."),
    ],
)
def test_a_malformed_argument_says_what_was_expected(text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_args([text])


def test_a_factory_whose_signature_python_does_not_know_has_the_given_arguments(folder):
    assert all_arguments(dict, {"hidden": [3]}) == {"hidden": [3]}
    with (folder / "zoo.py").open("a") as file:
        file.write("\nclass Unknown(Net):\n    __signature__ = '(width)'\n")
    assert build("zoo:Unknown", width=6)[0].fc1.out_features == 6


def test_defaults_count_among_all_arguments():
    assert all_arguments(lambda width, depth=1: None, {}) == {"depth": 1}
    assert all_arguments(mlp, {"hidden": [3]}) == {"inputs": 64, "hidden": [3], "outputs": 10, "activation": "relu"}
