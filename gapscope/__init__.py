"""gapscope: sharpness and generalization-gap analysis of PyTorch checkpoints, with the error of every number.

The public names are loaded when they are first used, so that `import gapscope` imports no torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapscope.measure.interface import load as load
    from gapscope.measure.interface import measure as measure
    from gapscope.measure.interface import problem as problem

__version__ = "0.1.0"

_HOMES = {
    "AdaptiveSharpness": "gapscope.measure.analyzers.adaptive_sharpness",
    "Comparison": "gapscope.report.file",
    "Curvature": "gapscope.measure.analyzers.curvature",
    "Density": "gapscope.measure.analyzers.density",
    "Eigenvalues": "gapscope.measure.analyzers.eigenvalues",
    "EpsilonSharpness": "gapscope.measure.analyzers.epsilon_sharpness",
    "Escape": "gapscope.measure.analyzers.escape",
    "Gap": "gapscope.measure.analyzers.gap",
    "GapscopeError": "gapscope.errors",
    "NearRank": "gapscope.measure.analyzers.near_rank",
    "Noise": "gapscope.measure.analyzers.noise",
    "Path": "gapscope.measure.analyzers.path",
    "Plane": "gapscope.measure.analyzers.plane",
    "Problem": "gapscope.measure.problem",
    "Quantity": "gapscope.results",
    "Report": "gapscope.report.file",
    "Result": "gapscope.results",
    "Status": "gapscope.results",
    "Trace": "gapscope.measure.analyzers.trace",
    "compare": "gapscope.report.comparison",
    "escape_iterations": "gapscope.measure.solvers.landscape",
    "load": "gapscope.measure.interface",
    "problem": "gapscope.measure.interface",
    "read": "gapscope.report.file",
    "save_checkpoint": "gapscope.measure.loading.checkpoints.checkpoint",
    "write": "gapscope.report.file",
}

__all__ = [
    "AdaptiveSharpness",
    "Comparison",
    "Curvature",
    "Density",
    "Eigenvalues",
    "EpsilonSharpness",
    "Escape",
    "Gap",
    "GapscopeError",
    "NearRank",
    "Noise",
    "Path",
    "Plane",
    "Problem",
    "Quantity",
    "Report",
    "Result",
    "Status",
    "Trace",
    "__version__",
    "compare",
    "escape_iterations",
    "load",
    "measure",
    "problem",
    "read",
    "save_checkpoint",
    "write",
]

if os.path.isdir(os.path.join(os.path.dirname(__file__), "training")):  # a leaf: all else works without it
    _HOMES |= {
        "LAMB": "gapscope.training.optimizers.lamb",
        "LayerwiseSGD": "gapscope.training.optimizers.layerwise",
        "SAM": "gapscope.training.optimizers.sam",
        "SNGM": "gapscope.training.optimizers.sngm",
    }
    __all__ += ["LAMB", "SAM", "SNGM", "LayerwiseSGD"]


def __getattr__(name: str) -> Any:
    if name == "measure":  # a package that can be called
        return importlib.import_module("gapscope.measure")
    if name not in _HOMES:
        raise AttributeError(f"module 'gapscope' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
