"""The measuring half: checkpoints and data in, numbers out.  Calling the package measures: `gapscope.measure(...)`."""

import sys
import types
from typing import Any


class _Measure(types.ModuleType):
    """A package that can be called: its own name is the verb."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """See `gapscope.measure.interface.measure`."""
        from gapscope.measure.interface import measure

        return measure(*arguments, **options)


sys.modules[__name__].__class__ = _Measure
