"""A training that goes on after it was killed: its whole state beside the checkpoint, until that is written.

The state belongs to everything that the steps depend on, so other settings never pick it up.  What only ends a training
does not count: a longer one goes on from a shorter one.
"""

import contextlib
import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gapscope
from gapscope.errors import UsageError
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss
from gapscope.replacing import replacing
from gapscope.training.recipe import Recipe

ELSEWHERE = "name another `--output`, or delete that file to start anew."
_ZIP = b"PK\3\4"  # with which a state begins


def plain_settings(recipe: Recipe, model: nn.Module, data: Data, loss: Loss, **others: Any) -> dict[str, Any]:
    """Return what a training's outcome depends on beside the numbers that it starts from, by name."""
    return {
        **vars(recipe),
        "options": dict(recipe.options),
        "gapscope": gapscope.__version__,
        "model": str(model),
        "data": data.fingerprint,
        "loss": loss.name,
        **others,
    }


def settings_digest(recipe: Recipe, model: nn.Module, data: Data, loss: Loss, **others: Any) -> str:
    """Return the sha256 of what a training's outcome depends on, `model` being as it was built.

    Of the model's code only what its layers and initial weights show is seen.
    """
    plain = plain_settings(recipe, model, data, loss, **others)
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
    """The file of a training's state, written every so many seconds; without a path nowhere.

    `settings`: what `digest` is of, as far as it has names.
    """

    path: Path | None
    digest: str
    seconds: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.monotonic() - self._written >= self.seconds

    def read(self) -> Mapping[str, Any] | None:
        """Return the state of these settings, None where there is none, or a damaged one.

        Raises: UsageError where it is of other settings, or none at all: it may be hours of work, so nothing
        overwrites it; nor what a link leads to.
        """
        if self.path is None:
            return None
        if self.path.is_symlink():
            raise self._other("is a link")
        if not self.path.is_file():
            return None
        try:
            with self.path.open("rb") as file:
                whole = file.read(len(_ZIP)) in (b"", _ZIP)
            found: Any = torch.load(self.path, map_location="cpu", weights_only=True) if whole else None
        except Exception:  # whatever damage raises: the training starts anew
            return None
        if not isinstance(found, dict) or not isinstance(found.get("settings"), dict):
            raise self._other("is not the state of a training")
        if found.get("digest") != self.digest:
            theirs, ours = found["settings"], self.settings
            other = sorted(name.replace("_", " ") for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
            raise UsageError(
                f"{self.path} is the state of a training of other settings: {', '.join(other) or 'initial weights'}. "
                f"Expected one of these settings. Give the earlier ones, {ELSEWHERE}"
            )
        return found

    def _other(self, what: str) -> UsageError:
        return UsageError(
            f"{self.path} {what}. Expected nothing there, or what `gapscope train` keeps. Move it away, {ELSEWHERE}"
        )

    def write(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Replace the file in one step: a kill at any moment leaves a whole one.

        A full disk or memory must not end the work that the file was to protect.
        """
        assert self.path is not None
        with contextlib.suppress(OSError, RuntimeError, MemoryError):  # torch reports both as a RuntimeError
            content = {"digest": self.digest, "settings": dict(self.settings), **state()}
            with replacing(self.path) as file:
                torch.save(content, file)
        self._written = time.monotonic()

    def forget(self) -> None:
        """Remove the file: the training is over."""
        if self.path is not None:
            forget(self.path)


def forget(path: Path) -> None:
    """Remove the state of a training that is over; one that stays is refused by the next, or gone on from."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@contextlib.contextmanager
def held_interrupt() -> Iterator[threading.Event]:
    """Hold the first Ctrl-C back as an event, for a state is whole only between steps; a second one ends at once.

    Only the main thread hears of Ctrl-C; elsewhere the event is never set.
    """
    event = threading.Event()

    def hear(*_: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, hear)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
