"""The one escape hatch: a function of the user's that makes the whole problem from a checkpoint's path."""

import dataclasses
import hashlib

from gapscope.errors import GapscopeError, LoadError, UsageError
from gapscope.measure.loading import Request
from gapscope.measure.loading.trust import importable, one_line, resolve, signature
from gapscope.measure.problem import Problem

_FLAGS = {
    "model": "-m",
    "model_args": "-a",
    "data": "-d",
    "test_data": "--test-data",
    "loss": "--loss",
    "weights": "--weights",
    "parameters": "--parameters",
    "reading": "--x-key, --y-key, --reshape and --normalize",
    "limit": "--limit",
}


def setup_problem(request: Request) -> Problem:
    """Return the problem that `request.setup` makes, with the checkpoint's name and digest in its identity.

    The function takes the checkpoint's path (a `pathlib.Path`) or nothing, and returns what `gapscope.problem` returns.
    Raises: UsageError where another option says what the function already decides; LoadError where it fails.
    """
    spec = request.setup
    assert spec is not None
    unset = Request(checkpoint=request.checkpoint)
    for name, flag in _FLAGS.items():
        if getattr(request, name) != getattr(unset, name):
            raise UsageError(
                f"`--setup {spec}` was given together with {flag}. Expected one of them: the function makes model, "
                f"data and loss itself. Leave out {flag}."
            )
    function, path = resolve(spec), request.checkpoint
    known = signature(function)
    if not callable(function) or known is None:
        raise LoadError(
            f"`{spec}` is an object of class {type(function).__name__}. Expected a function of the checkpoint's path "
            "that returns `gapscope.problem(...)`. Name one: `--setup path/file.py:function`."
        )
    try:
        with importable(spec):
            made = function(path) if known.parameters else function()
    except GapscopeError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"`{spec}` called with the path {path} raised {one_line(error)}. Expected a problem. Mend that function."
        ) from error
    if not isinstance(made, Problem):
        raise LoadError(
            f"`{spec}` returned {type(made).__name__}. Expected a problem. Return `gapscope.problem(model, data)` or "
            "`gapscope.load(...)`."
        )
    identity: dict[str, str | int | float | bool] = {"checkpoint": path.name, "setup": spec}
    if path.is_file():
        with path.open("rb") as file:
            identity["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    origin = dataclasses.replace(made.origin, identity={**made.origin.identity, **identity})
    return dataclasses.replace(made, origin=origin)
