"""Runs of several recipes and seeds, brought to one training loss, or to as many samples or steps.

A finished run is not trained again: its checkpoint says from which settings it was made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

import gapscope
from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss
from gapscope.measure.loading.trust import Trust
from gapscope.training.recipe import Recipe
from gapscope.training.state import code_digest, forget, settings_digest
from gapscope.training.trainer import QUIETLY, Running, Trained, save, train

Equal = Literal["loss", "samples", "steps"]
LONGEST = 100  # times the passes of the reference: what another may take at most to come to its loss


class Reached(Protocol):
    """How far a run came."""

    @property
    def epochs(self) -> int:
        """Whole passes over the data."""

    @property
    def steps(self) -> int:
        """Updates."""

    @property
    def train_loss(self) -> float:
        """The loss over all training data at the end."""


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained: a model, by the name and arguments under which it is recorded, on data with a loss."""

    build: Callable[[], nn.Module]
    data: Data
    loss: Loss
    factory: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The digest of the user's files that model and loss come from."""
        return code_digest(self.factory, self.loss.name)

    def save(self, trained: Trained, path: Path, made: Mapping[str, Any] = {}) -> None:
        """Write a checkpoint that needs no flag later."""
        save(
            trained,
            path,
            factory=self.factory,
            model_args=self.arguments,
            data=self.data.name,
            loss=self.loss.name,
            made=made,
        )


@dataclass(frozen=True)
class Run:
    """A run of a regime; `reached`: whether it came to the loss that it was to have, True where that was not asked."""

    path: Path
    trained: Trained
    reached: bool = True


def state_path(path: Path) -> Path:
    """Return where the state of an unfinished training lies, by a name that no search for checkpoints finds."""
    return path.with_name(f"{path.name}.state")


def make_run(
    recipe: Recipe, task: Task, path: Path, *, check_every: int | None = None, running: Running = QUIETLY
) -> Trained:
    """Train and save, or read what the same settings made already; an interrupted run goes on where it was.

    Where the run is `interrupted`, at its very end, raise KeyboardInterrupt after what is to be done with it.
    The settings are recipe, data, loss, gapscope's version, and the model as far as its layers, initial weights, name
    and arguments show it.  Other software or another machine may round differently.
    """
    code = task.code
    settings = {"check_every": check_every, "factory": task.factory, "arguments": dict(task.arguments), "code": code}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = task.build()
    digest = settings_digest(recipe, model, task.data, task.loss, **settings)
    found = running.ranks.first(lambda: _read(path, digest))  # others may not see that file, or see it later
    if found is not None:
        model.load_state_dict(found["model"])
        return Trained(model=model.eval(), initial=found["initial"], recipe=recipe, digest=digest, **found["ended"])
    running = replace(running, state=state_path(path))
    trained = train(task.build, task.data, task.loss, recipe, check_every=check_every, code=code, running=running)
    if running.ranks.rank == 0:
        task.save(trained, path, made={"digest": digest, "gapscope": gapscope.__version__})
        forget(state_path(path))
    return trained


def _read(path: Path, digest: str) -> dict[str, Any] | None:
    """Return weights, initial weights and the end of the run in a file, None where it is of other settings or no run.

    Plain values, which can be sent to other processes.
    """
    if not path.is_file():
        return None
    try:
        found = read_checkpoint(path, Trust())
    except LoadError:
        return None
    training = found.training
    made = training.get("made")
    if not isinstance(made, Mapping) or made.get("digest") != digest or found.initial is None:
        return None
    ended = {key: training[key] for key in ("epochs", "steps", "train_loss", "stopped")}
    ended["last_lr"] = training.get("last_lr", training["lr"])
    return {"model": dict(found.tensors["model"]), "initial": dict(found.initial), "ended": ended}


def matched(recipe: Recipe, reference: Reached, equal: Equal, max_epochs: int | None = None) -> Recipe:
    """Return a recipe that stops where it has come as far as another run, whatever stopped it before.

    loss: at the other's training loss, or after `max_epochs` (default: `LONGEST` times the other's) without it.
    samples: after as many whole passes over the data, at least one.  steps: after as many steps.
    """
    stops: dict[Equal, dict[str, Any]] = {
        "loss": {"until_loss": reference.train_loss, "epochs": max_epochs or LONGEST * (reference.epochs + 1)},
        "samples": {"epochs": max(1, reference.epochs)},
        "steps": {"steps": reference.steps},
    }
    return replace(recipe, **{"epochs": None, "steps": None, "until_loss": None, "patience": None, **stops[equal]})


def make_regimes(
    recipes: Sequence[Recipe],
    make: Callable[[Recipe], Run | None],
    *,
    seeds: Sequence[int],
    equal: Equal = "loss",
    max_epochs: int | None = None,
) -> Iterator[Run]:
    """Yield the runs, seed by seed: the first recipe by its own stops, then every other as far as that came.

    A run that does not come to the loss says so; comparing it with the others would compare training progress.  Where
    `make` returns None, as of a run that diverged, it is left out; without the first, so are the others of its seed.
    """
    first, *others = recipes
    if equal == "loss" and max_epochs is None and any(one.schedule != "constant" for one in others):
        raise UsageError(
            f"The schedule `{first.schedule}` has no length in regimes that train to a loss: the rate would hardly "
            "fall. Expected one. Give `--max-epochs`, `--equal samples`, or a constant rate."
        )
    for seed in seeds:
        reference = make(replace(first, seed=seed))
        if reference is None:
            continue
        yield reference
        for recipe in others:
            run = make(matched(replace(recipe, seed=seed), reference.trained, equal, max_epochs))
            if run is not None:
                yield replace(run, reached=equal != "loss" or run.trained.train_loss <= reference.trained.train_loss)
