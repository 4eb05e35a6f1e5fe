"""A function of the user's makes the whole problem."""

import hashlib
import re
from pathlib import Path

import pytest

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading import Reading, Request
from gapscope.measure.setup import setup_problem

SOURCE = """
import torch, gapscope
from pathlib import Path

def build(path=Path("none")):
    torch.manual_seed(0)
    x, y = torch.randn(12, 3), torch.tensor([0, 1, 1] * 4)
    model = torch.nn.Linear(3, 2)
    if path.is_file():
        model.load_state_dict(torch.load(path))
    return gapscope.problem(model, (x, y), training={"lr": 0.5})

def alone():
    return build()

def nothing(path):
    return 3

def broken(path):
    raise KeyError("weights")

def refused(path):
    raise gapscope.GapscopeError("as it is")

number = 3
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(SOURCE)


def ask(name="build", path="own.bin", **more):
    return setup_problem(Request(checkpoint=Path(path), setup=f"own.py:{name}", **more))


def test_the_function_gets_the_path_and_makes_the_problem():
    import torch

    torch.save(torch.nn.Linear(3, 2).state_dict(), "own.bin")
    problem = ask()
    assert problem.samples == 12
    assert problem.origin.training == {"lr": 0.5}
    assert dict(problem.origin.identity) == {
        "checkpoint": "own.bin",
        "setup": "own.py:build",
        "sha256": hashlib.sha256(Path("own.bin").read_bytes()).hexdigest(),
    }
    assert problem.loss() == pytest.approx(ask().loss())
    assert problem.loss() != pytest.approx(ask("alone").loss())
    assert "sha256" not in ask("alone", path="no-such-file").origin.identity


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ({"model": "mlp"}, "-m"),
        ({"model_args": {"a": 1}}, "-a"),
        ({"data": "digits"}, "-d"),
        ({"loss": "mse"}, "--loss"),
        ({"reading": Reading(reshape="3,3")}, "--x-key, --y-key, --reshape and --normalize"),
        ({"limit": 3}, "--limit"),
    ],
)
def test_what_the_function_decides_is_not_said_twice(option, flag):
    with pytest.raises(UsageError, match=re.escape(f"was given together with {flag}. Expected one of them")):
        ask(**option)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "`own.py:nothing` returned int. Expected a problem. Return `gapscope.problem(model, data)`"),
        ("broken", "`own.py:broken` called with the path own.bin raised KeyError: 'weights'. Expected a problem."),
        ("number", "`own.py:number` is an object of class int. Expected a function of the checkpoint's path"),
        ("absent", "`own.py` has no `absent`."),
        ("refused", "as it is"),
    ],
)
def test_a_function_that_makes_no_problem_is_named(name, message):
    from gapscope.errors import GapscopeError

    with pytest.raises(GapscopeError, match=re.escape(message)) as caught:
        ask(name)
    assert isinstance(caught.value, LoadError) or name == "refused"
