"""A run to make, and how it is made, or found where it is whole and of the same settings and data."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gapscope
from gapscope.errors import LoadError
from gapscope.measure.loading import Loss, build_loss, check_fit, infer_loss
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.datasets.arrays import Split
from gapscope.measure.loading.datasets.data import Data, load_data
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.networks import NETWORKS, sizes_for
from gapscope.measure.loading.trust import Trust
from gapscope.report.atomic import replace
from gapscope.training.recipe import Recipe
from gapscope.training.regimes import Task, make_run
from gapscope.training.state import code_digest
from gapscope.training.trainer import DivergedError, Running, Trained

DIGITS = 8  # of a digest, in file names


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A run to make: what is trained, on what, how, and from which weights (default: those of the recipe's seed).

    With `save_every` epochs the weights along the way are saved too.
    """

    recipe: Recipe
    model: str
    data: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    loss: str | None = None
    start: Path | None = None
    save_every: int | None = None

    @property
    def stem(self) -> str:
        """Its name in the folder: what people look for, and a digest of everything."""
        recipe = self.recipe
        plain = {**vars(self), "recipe": vars(recipe), "start": digest(self.start), "version": gapscope.__version__}
        plain["code"] = code_digest(self.model, self.loss)
        model = re.sub(r"[^\w.-]+", "-", Path(self.model).name)  # `net.py:Net`: not every file system has colons
        said = f"{model}-{recipe.optimizer}-b{recipe.batch_size}-s{recipe.seed}"
        return f"{said}-{short(plain)}"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its checkpoint, how far it came, and the weights saved along the way, by epoch.

    `diverged` ones have a training loss that is not finite, and no checkpoint to measure.  The last of those along the
    way is the checkpoint itself where training ended with an epoch that was to be saved.
    """

    spec: Spec
    path: Path
    epochs: int
    steps: int
    train_loss: float
    stopped: str
    saved: tuple[tuple[int, Path], ...] = ()

    @property
    def diverged(self) -> bool:
        """Whether training ended in no number."""
        return not math.isfinite(self.train_loss)


@functools.lru_cache(maxsize=8)
def loaded(name: str, split: Split) -> Data | None:
    """Return one split of data that the user named, None where there is none."""
    return load_data(name, split, recorded=False, trust=Trust())


def training_data(name: str) -> Data:
    """Return the data to train on; raises LoadError where there are none."""
    data = loaded(name, "train")
    if data is None:
        raise LoadError(f"`{name}` has no training split. Expected some data to train on. Mend `--data`.")
    return data


def unasked(name: str) -> list[str]:
    """Return a sentence where nothing can be said of test accuracy, and why."""
    why = ["There are no test data"] * (loaded(name, "test") is None)
    why = why or ["The loss knows no right answers"] * (infer_loss(training_data(name).targets).correct is None)
    return [f"{one}: nothing can be said of test accuracy." for one in why]


def fitted(spec: Spec) -> Spec:
    """Return a run whose built-in network takes these data: a plan need not say their sizes."""
    if spec.model not in NETWORKS:
        return spec
    data = training_data(spec.data)
    sizes = sizes_for(NETWORKS[spec.model], data.inputs, data.targets)
    return dataclasses.replace(spec, model_args={**sizes, **spec.model_args})


def _task(spec: Spec) -> Task:
    data, trust = training_data(spec.data), Trust()

    def build() -> nn.Module:
        model = build_model(spec.model, dict(spec.model_args), recorded=False, trust=trust)[0]
        if spec.start is not None:
            model.load_state_dict(read_checkpoint(spec.start, trust).tensors["model"])
        return model

    loss: Loss = build_loss(spec.loss, recorded=False, trust=trust) if spec.loss else infer_loss(data.targets)
    with torch.random.fork_rng(devices=[]):
        check_fit(build(), spec.model, data, loss)
    return Task(build, data, loss, factory=spec.model, arguments=spec.model_args)


def make(spec: Spec, stem: str, folder: Path, device: torch.device) -> Run:
    """Train, or find the run that is there, one that diverged too.

    Raises: LoadError where model, data and starting weights do not fit.
    """
    path, task = folder / f"{stem}.pt", _task(spec)
    failure = folder / f"{stem}-{task.data.fingerprint[:DIGITS]}.diverged.json"
    with contextlib.suppress(OSError, ValueError, TypeError):  # there is none, or it is damaged
        return Run(spec=spec, path=path, train_loss=math.nan, **json.loads(failure.read_text(encoding="utf-8")))

    ends: list[Trained] = []

    def kept(trained: Trained) -> None:
        if math.isfinite(trained.train_loss):
            task.save(trained, _along(path, trained.epochs))
        else:
            ends.append(trained)

    running = Running(device=device, save_every=spec.save_every, kept=kept)
    try:
        trained = make_run(spec.recipe, task, path, running=running)
        if not all(_is_whole(one) for _, one in _saved(spec, path, trained, task)):  # removed or damaged since
            path.unlink()
            trained = make_run(spec.recipe, task, path, running=running)
    except DivergedError:
        facts = {name: getattr(ends[-1], name) for name in ("epochs", "steps", "stopped")}
        replace(failure, json.dumps(facts).encode())
        return Run(spec=spec, path=path, train_loss=math.nan, **facts)
    if trained.interrupted:
        raise KeyboardInterrupt
    return Run(
        spec=spec,
        path=path,
        epochs=trained.epochs,
        steps=trained.steps,
        train_loss=trained.train_loss,
        stopped=trained.stopped,
        saved=_saved(spec, path, trained, task),
    )


def _along(path: Path, epoch: int) -> Path:
    return path.with_name(f"{path.stem}-epoch{epoch}.pt")


def _saved(spec: Spec, path: Path, trained: Trained, task: Task) -> tuple[tuple[int, Path], ...]:
    """Return the weights along the way; those of an epoch with which training ended are the run's own."""
    if not spec.save_every or not trained.epochs:
        return ()
    whole = dataclasses.replace(spec.recipe, epochs=trained.epochs, steps=None).bound(len(task.data)) == trained.steps
    epochs = range(spec.save_every, trained.epochs + 1, spec.save_every)
    return tuple((epoch, path if whole and epoch == trained.epochs else _along(path, epoch)) for epoch in epochs)


def _is_whole(path: Path) -> bool:
    try:
        read_checkpoint(path, Trust())
    except LoadError:
        return False
    return True


def digest(path: Path | None) -> str:
    """Return the sha256 of a file.

    Raises: LoadError where there is none.
    """
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LoadError(
            f"{path} cannot be read: {error.strerror}. Expected weights that a run has saved. Run the study again."
        ) from error


def short(plain: Any) -> str:
    """Return the digest of plain values that stands in file names."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:DIGITS]
