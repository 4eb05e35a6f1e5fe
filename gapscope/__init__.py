"""gapscope: sharpness and generalization-gap analysis of PyTorch checkpoints, with the error of every number.

The public names are loaded when they are first used, so that `import gapscope` imports no torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "GapscopeError": "gapscope.errors",
    "Quantity": "gapscope.results",
    "Result": "gapscope.results",
    "Status": "gapscope.results",
    "Report": "gapscope.report.file",
    "read": "gapscope.report.file",
    "compare": "gapscope.report.comparison",
    "save_checkpoint": "gapscope.measure.loading.checkpoint",
}

__all__ = [
    "GapscopeError",
    "Quantity",
    "Report",
    "Result",
    "Status",
    "__version__",
    "compare",
    "read",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapscope' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
