"""A training that goes on after it was killed: its whole state beside the checkpoint, until that is written.

The state belongs to a digest of everything that the weights depend on, so other settings never pick it up.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gapscope
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss
from gapscope.training.recipe import Recipe


def settings_digest(recipe: Recipe, model: nn.Module, data: Data, loss: Loss, **others: Any) -> str:
    """Return the sha256 of what a training's outcome depends on, `model` being as it was built.

    Of the model's code only what its layers and initial weights show is seen.
    """
    plain = {
        "gapscope": gapscope.__version__,
        "recipe": {**vars(recipe), "options": dict(recipe.options)},
        "model": str(model),
        "data": data.fingerprint,
        "loss": loss.name,
        **others,
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_digest(*names: str | None) -> str:
    """Return the sha256 of the files in which the user's models and losses stand, `FILE.py:NAME`.

    What such a file imports is not seen.
    """
    found = hashlib.sha256()
    for name in names:
        path = Path((name or "").rpartition(":")[0])
        if path.suffix == ".py" and path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


@dataclass
class Kept:
    """The file of a training's state, written every so many seconds; without a path nowhere."""

    path: Path | None
    digest: str
    seconds: float

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.monotonic() - self._written >= self.seconds

    def read(self) -> Mapping[str, Any] | None:
        """Return the state of these settings, None where there is none that can be read."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # whatever damage raises: the training starts anew
            return None
        return found if found.get("digest") == self.digest else None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file in one step: a kill at any moment leaves a whole one.

        A full disk must not end the work that the file was to protect.
        """
        assert self.path is not None
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError, RuntimeError):  # torch reports a full disk as a RuntimeError
            with temporary.open("wb") as file:
                torch.save({"digest": self.digest, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        self._written = time.monotonic()

    def forget(self) -> None:
        """Remove the file: the training is over."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
