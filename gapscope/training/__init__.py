"""Making checkpoints: optimizers, rates and remedies for any training loop, and a small trainer of its own.

The public names are loaded when they are first used.
"""

import importlib
from typing import Any

_HOMES = {
    "LAMB": "optimizers.lamb",
    "LayerCurvature": "layer_curvature",
    "LayerwiseSGD": "optimizers.layerwise",
    "Proximal": "remedies",
    "SAM": "optimizers.sam",
    "SNGM": "optimizers.sngm",
    "adversarial": "remedies",
    "augmented": "remedies",
    "discarded_mean": "remedies",
    "make_optimizer": "optimizers",
    "parse_batch_schedule": "schedules",
    "parse_schedule": "schedules",
    "scaled_rate": "schedules",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapscope.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gapscope.training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
