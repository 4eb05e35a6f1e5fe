"""Callbacks that measure a model while it is trained: one report every k steps, and its numbers in the framework's log.

    from gapscope.callbacks import LightningSharpness   # for `lightning.Trainer(callbacks=[...])`
    from gapscope.callbacks import TrainerSharpness     # for `transformers.Trainer.add_callback(...)`

A framework is imported when its callback is first named.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapscope.callbacks.hugging_face import TrainerSharpness as TrainerSharpness
    from gapscope.callbacks.lightning import LightningSharpness as LightningSharpness

_HOMES = {
    "LightningSharpness": "gapscope.callbacks.lightning",
    "TrainerSharpness": "gapscope.callbacks.hugging_face",
}

__all__ = ["LightningSharpness", "TrainerSharpness"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapscope.callbacks' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
