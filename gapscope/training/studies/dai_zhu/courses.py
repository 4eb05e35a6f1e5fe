"""How flat a network is along training, for several ratios of learning rate to batch size from the same weights.

The runs are compared where each ended, at equal diffusion time eta k / (1 - m), and at equal training loss: a run that
is less far trained is flatter or sharper by that alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.analyzers.trace import Trace
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.trust import Trust
from gapscope.report.records import Report
from gapscope.results import Array
from gapscope.training.recipe import Recipe
from gapscope.training.studies.lab import Lab, Run, Spec
from gapscope.training.studies.numbers import numbers
from gapscope.training.studies.plan import batch

if TYPE_CHECKING:
    from gapscope.training.studies.dai_zhu import Plan

MATCHED = 1.25  # training losses further apart than this factor are not equal
TINY = 1e-150  # a loss may be 0
TOP, TRACE, LOSS, ACCURACY = "eigenvalues/top", "trace/trace", "gap/train_loss", "gap/test_accuracy"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A learning rate and a batch size, by the noise scale eta / ((1 - m) B) that they have together."""

    scale: float
    batch_size: int
    momentum: float = 0.0

    @property
    def rate(self) -> float:
        """The learning rate eta = scale (1 - m) B."""
        return self.scale * (1 - self.momentum) * self.batch_size


@dataclass(frozen=True)
class Point:
    """A checkpoint along a run."""

    epoch: int
    path: Path
    loss: float


@dataclass(frozen=True)
class Course:
    """A run with what it saved on the way, by epoch."""

    run: Run
    points: tuple[Point, ...]

    def nearest(self, epoch: float) -> Point:
        """Return the checkpoint whose epoch is nearest, as a ratio."""
        return min(self.points, key=lambda point: abs(math.log(point.epoch / epoch)))

    def at_loss(self, loss: float) -> Point:
        """Return the checkpoint whose training loss is nearest, as a ratio."""
        return min(self.points, key=lambda point: _apart(point.loss, loss))


Courses = Mapping[Setting, Sequence[Course]]  # one course per seed
Chosen = Mapping[Setting, Sequence[Point]]


@dataclass(frozen=True)
class Trained:
    """What was trained, without the settings of which a run diverged, and what was measured along the way."""

    lab: Lab
    plan: "Plan"
    courses: Courses
    diverged: Mapping[Setting, int]  # how many runs of it

    @property
    def plain(self) -> list[Setting]:
        """The settings without momentum."""
        return [setting for setting in self.courses if not setting.momentum]

    @cached_property
    def ends(self) -> Chosen:
        """The last weights of every run."""
        return {setting: [course.points[-1] for course in several] for setting, several in self.courses.items()}

    @cached_property
    def equal_time(self) -> Chosen:
        """The weights where eta k / (1 - m) is what the smallest noise scale comes to in all of its epochs."""
        least = min((setting.scale for setting in self.courses), default=math.nan)
        return self._each(lambda setting, course, _: course.nearest(self.plan.epochs * least / setting.scale))

    @cached_property
    def targets(self) -> list[float]:
        """The training loss for each seed to which all of its runs come: the highest in which one of them ends."""
        return [max(point.loss for point in points) for points in zip(*self.ends.values(), strict=True)]

    @cached_property
    def equal_loss(self) -> Chosen:
        """The weights whose training loss is nearest to the seed's; settings that never come near are left out."""
        chosen = self._each(lambda _, course, seed: course.at_loss(self.targets[seed]))
        return {setting: points for setting, points in chosen.items() if self.mismatch(points) <= MATCHED}

    def mismatch(self, points: Sequence[Point]) -> float:
        """Return the factor by which the losses of a setting are off at most."""
        return max(_apart(point.loss, target) for point, target in zip(points, self.targets, strict=True))

    def _each(self, choose: Callable[[Setting, Course, int], Point]) -> Chosen:
        return {
            setting: [choose(setting, course, seed) for seed, course in enumerate(several)]
            for setting, several in self.courses.items()
        }

    @cached_property
    def epochs(self) -> list[int]:
        """The epochs at which everything is measured: the last, half of it, a quarter, and so on."""
        saved = {point.epoch for several in self.courses.values() for course in several for point in course.points}
        last = max(saved, default=0)
        return sorted(epoch for epoch in saved if math.log2(last / epoch).is_integer())

    def at_epoch(self, epoch: int) -> Chosen:
        """Return the weights of one epoch."""
        return self._each(lambda _, course, __: course.nearest(epoch))

    @cached_property
    def reports(self) -> Mapping[Path, Report]:
        """Every checkpoint of interest, measured, by its path."""
        every = [self.ends, self.equal_time, self.equal_loss, *map(self.at_epoch, self.epochs)]
        specs = {
            point.path: self.courses[setting][seed].run.spec
            for chosen in every
            for setting, points in chosen.items()
            for seed, point in enumerate(points)
        }
        files = [(spec, path) for path, spec in specs.items()]
        made = self.lab.measure_files(files, (Gap(), Eigenvalues(), Trace()), "flatness along training")
        return dict(zip(specs, made, strict=True))

    def values(self, chosen: Chosen, path: str) -> dict[Setting, Array]:
        """Return one number at the chosen checkpoints, (seeds,) of each setting; NaN where there is no such number."""
        return {
            setting: np.array([_number(self.reports[point.path], path) for point in points])
            for setting, points in chosen.items()
        }


def _apart(loss: float, other: float) -> float:
    """Return the larger of two losses over the smaller, 1 where both are 0."""
    low, high = sorted((max(loss, TINY), max(other, TINY)))
    return high / low


def train(lab: Lab, plan: "Plan") -> Trained:
    """Train every setting with every seed; runs of one seed start from the same weights."""
    samples = lab.samples(plan.data)
    sizes = [batch(size, samples) for size in plan.batch_sizes]
    settings = [Setting(scale=scale, batch_size=size) for size in sizes for scale in plan.rates_over_batch]
    middle = plan.rates_over_batch[len(plan.rates_over_batch) // 2]
    if plan.momentum:
        settings.append(Setting(scale=middle, batch_size=sizes[-1], momentum=plan.momentum))
    settings = list(dict.fromkeys(settings))
    runs = iter(lab.train([_spec(plan, one, seed) for one in settings for seed in range(plan.seeds)], "courses"))
    made = {setting: [next(runs) for _ in range(plan.seeds)] for setting in settings}
    failed = {setting: sum(run.diverged for run in several) for setting, several in made.items()}
    courses = {
        setting: [Course(run, _points(run)) for run in several]
        for setting, several in made.items()
        if not failed[setting]
    }
    return Trained(lab, plan, courses, {setting: often for setting, often in failed.items() if often})


def _spec(plan: "Plan", setting: Setting, seed: int) -> Spec:
    recipe = Recipe(
        batch_size=setting.batch_size, lr=setting.rate, momentum=setting.momentum, epochs=plan.epochs, seed=seed
    )
    spec = Spec(recipe=recipe, model=plan.model, model_args=plan.model_args, data=plan.data)
    return replace(spec, save_every=plan.saved_every)


def _points(run: Run) -> tuple[Point, ...]:
    """Return what a run saved, and its end, with the training losses that the checkpoints record."""
    paths = {**dict(run.saved), run.epochs: run.path}
    losses = {path: float(read_checkpoint(path, Trust()).training["train_loss"]) for path in paths.values()}
    return tuple(Point(epoch, path, losses[path]) for epoch, path in sorted(paths.items()))


def _number(report: Report, path: str) -> float:
    analyzer, name = path.split("/")
    return float(numbers([report], path)[0]) if name in report.results[analyzer].quantities else math.nan
