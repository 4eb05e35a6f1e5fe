"""The open set of analyzers: one file each, found by name; nothing else is edited to add one.

A file `near_rank.py` here holds the frozen dataclass whose `name` is `near-rank`.  Another package adds its own
through the entry-point group `gapscope.analyzers` (name = "package.module:Class").  A file is imported when its
class is asked for, which the command line does of all of them to offer their commands and to read a gate's selectors.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
from typing import Any

from gapscope.errors import UsageError, did_you_mean

ENTRY_POINTS = "gapscope.analyzers"


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of all analyzers, without importing any."""
    own = {module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(own)) + tuple(sorted(set(_entry_points()) - own))


@functools.cache
def analyzer_class(name: str) -> type[Any]:
    """Return the dataclass of an analyzer; raises UsageError for an unknown name."""
    if name in _entry_points():
        loaded: type[Any] = _entry_points()[name].load()
        return loaded
    if name not in names():
        raise UsageError(
            f"There is no analyzer `{name}`. Expected one of {', '.join(names())}.{did_you_mean(name, names())}"
        )
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return next(
        value for value in vars(module).values() if isinstance(value, type) and getattr(value, "name", None) == name
    )


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    own = {module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)}
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS) if point.name not in own}
