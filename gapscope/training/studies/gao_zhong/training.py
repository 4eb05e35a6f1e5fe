"""Runs of stated optimizers at rates tuned on the training loss, and what they came to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gapscope.measure.analyzers.gap import Gap
from gapscope.report.contrasts import Contrasted, mean_over
from gapscope.results import Array, Quantity
from gapscope.training.optimizers.layerwise import CURVED
from gapscope.training.studies.gao_zhong.runs import UNKNOWN, Bench
from gapscope.training.studies.lab import Run, Spec
from gapscope.training.studies.numbers import numbers

TUNING = 1000  # added to the seeds that tune: no other run has them
SMALL, LARGE = "small batch", "large batch"
MEASURES = ("train_loss", "test_loss", "test_accuracy")


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """An optimizer and a batch size, and what else of the recipe is not as usual."""

    name: str
    optimizer: str
    size: int
    change: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """Settings with their mean training losses by rate, (rates,), infinite where a run diverged."""

    grid: Mapping[str, tuple[float, ...]]
    losses: Mapping[Setting, Array]

    def rate(self, setting: Setting) -> float | None:
        """Return the rate of the lowest loss, None where all diverged."""
        losses = self.losses[setting]
        return self.grid[setting.optimizer][int(losses.argmin())] if np.isfinite(losses).any() else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What cannot be tuned, and where the best rate is at an end of its grid: a better one may lie beyond."""
        lost = [setting.name for setting in self.losses if self.rate(setting) is None]
        last = [one.name for one in self.losses if self.rate(one) in {f(self.grid[one.optimizer]) for f in (min, max)}]
        return (
            *(f"Left out: {'; '.join(lost)}: diverged at every rate." for _ in lost[:1]),
            *(f"At an end of its grid, so that a better rate may lie beyond: {'; '.join(last)}." for _ in last[:1]),
        )


def tune(bench: Bench, settings: Sequence[Setting]) -> Tuned:
    """Train every setting at every rate of its optimizer's grid, on seeds that nothing else has."""
    grid, seeds = bench.plan.grid, range(TUNING, TUNING + bench.plan.tuning_seeds)
    specs = [fitted(bench, one, rate, seed) for one in settings for rate in grid[one.optimizer] for seed in seeds]
    losses = np.array([run.train_loss for run in bench.lab.train(specs, "rates to choose from")])
    table = np.nan_to_num(losses, nan=math.inf).reshape(len(settings), -1, len(seeds)).mean(axis=2)
    return Tuned(grid, dict(zip(settings, table, strict=True)))


def fitted(bench: Bench, setting: Setting, rate: float, seed: int) -> Spec:
    """Return a run of the plan's epochs; its curvature is measured as often whatever the batch size."""
    plan = bench.plan
    steps = plan.epochs * math.ceil(bench.samples / setting.size)
    curved = {"curvature_every": max(1, steps // plan.curvature_times)} if setting.optimizer in CURVED else {}
    usual = {"optimizer": setting.optimizer, "lr": rate, "momentum": plan.momentum, "epochs": plan.epochs}
    return bench.spec(seed, setting.size, **{**usual, **curved, **setting.change})


def at_best(bench: Bench, tuned: Tuned) -> dict[str, list[Spec]]:
    """Return the runs of every setting at its best rate; one without has none."""
    rates = {setting: tuned.rate(setting) for setting in tuned.losses}
    return {
        setting.name: [fitted(bench, setting, rate, seed) for seed in range(bench.plan.seeds)]
        for setting, rate in rates.items()
        if rate is not None
    }


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one setting, one per seed, and what they came to, (seeds,)."""

    epochs: Array
    train_loss: Array
    test_loss: Array
    test_accuracy: Array


Groups = Mapping[str, Group]


def measured(bench: Bench, groups: Mapping[str, Sequence[Run]], what: str) -> dict[str, Group]:
    """Return training loss, test loss and test accuracy of every run."""
    reports = iter(bench.lab.measure([run for runs in groups.values() for run in runs], (Gap(),), what))
    made = {}
    for name, runs in groups.items():
        own = [next(reports) for _ in runs]
        found = {measure: numbers(own, f"gap/{measure}") for measure in MEASURES}
        made[name] = Group(epochs=np.array([float(run.epochs) for run in runs]), **found)
    return made


def gained(groups: Groups, name: str, over: str) -> Contrasted:
    """Return by how many points of test accuracy one group exceeds another, by seed."""
    if name not in groups or over not in groups:
        return UNKNOWN
    return mean_over(groups[name].test_accuracy - groups[over].test_accuracy)


def lowered(groups: Groups, name: str, over: str) -> Contrasted:
    """Return the ratio of one group's training loss to another's, by seed."""
    if name not in groups or over not in groups:
        return UNKNOWN
    return mean_over(groups[name].train_loss / groups[over].train_loss, "ratio")


def kept(groups: Groups) -> dict[str, Quantity]:
    """Return every number of every run."""
    if not groups:
        return {}
    first, *_ = groups.values()
    value = [[getattr(one, measure) for measure in ("epochs", *MEASURES)] for one in groups.values()]
    numbers = Quantity(
        value=np.array(value),
        doc="each number of each run",
        drawn="detail",
        dims=("setting", "measure", "seed"),
        labels={
            "setting": tuple(groups),
            "measure": ("epochs", *MEASURES),
            "seed": tuple(map(str, range(len(first.epochs)))),
        },
    )
    return {"numbers": numbers}
