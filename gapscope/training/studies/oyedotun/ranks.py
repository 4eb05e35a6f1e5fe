"""Near-ranks of the hidden layers of every run: on the same samples, each on its own batch, and the control.

The control is one network that is shown more and more samples.  Where its near-rank falls, the number of columns has
made it fall, and not training.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from gapscope.errors import UsageError
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.analyzers.near_rank import NearRank
from gapscope.measure.context import Analyzer
from gapscope.report.records import Report
from gapscope.results import Array
from gapscope.training.studies.lab import Lab, Run
from gapscope.training.studies.oyedotun.runs import Grid, Trained

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem

Reports = Mapping[Path, Report]
NEAR = "near-rank"


@dataclass(frozen=True)
class AsBatch(NearRank):
    """Near-rank in own-batch mode, as if the training batch had been of another size."""

    as_batch: Annotated[int, "samples to take in the place of the training batch"] = 1

    def _own_batch_size(self, context: "Context", problem: "Problem") -> int:
        super()._own_batch_size(context, problem)  # for what it refuses
        return self.as_batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """One number of every hidden layer, of every seed and batch size.

    Shares are in percent of the largest near-rank that there can be, min(units, columns).
    """

    name: str
    layers: Array  # (seeds, batch sizes, layers)
    steps: Array  # (batch sizes, layers): what one singular value more would add; 0 of what is no count

    @property
    def mean(self) -> Array:
        """Return the mean over the hidden layers, (seeds, batch sizes)."""
        return np.asarray(self.layers.mean(axis=2), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was measured of one network; the first of each group of measures is the one that is judged."""

    trained: Trained
    layers: tuple[str, ...]
    own: tuple[Measure, ...]  # by cut
    same: tuple[Measure, ...]
    control: tuple[Measure, ...]
    at_epochs: tuple[Measure, ...]  # own and same at their first cuts, after as many epochs
    without_cut: tuple[Measure, ...]
    loss: Array  # (seeds, batch sizes)
    accuracy: Array

    @property
    def name(self) -> str:
        """The network's name."""
        return self.trained.network.name

    @property
    def doublings(self) -> list[float]:
        """Return the batch sizes' logarithms to base 2, in which slopes are per doubling."""
        return [float(one) for one in np.log2(self.trained.network.sizes)]


def measure(
    lab: Lab, trained: Sequence[Trained], *, samples: int, own_cuts: tuple[str, ...], same_cuts: tuple[str, ...]
) -> tuple[Found, ...]:
    """Measure every run both ways, and the smallest batch's networks on every number of samples."""
    runs = {run.path: run for one in trained for grid in (one.loss, one.epochs) for row in grid for run in row}
    same = _reports(lab, runs.values(), (NearRank(cuts=same_cuts, samples=samples), Gap()), "on the same samples")
    own = _reports(lab, runs.values(), (NearRank(cuts=own_cuts, own_batch=True),), "on their own batches")
    smallest, *others = trained[0].network.sizes
    firsts = [row[0] for one in trained for row in one.loss]
    control = {smallest: own}
    for size in others:
        as_batch = AsBatch(cuts=own_cuts, own_batch=True, as_batch=size)
        control[size] = _reports(lab, firsts, (as_batch,), f"the control on {size} samples")
    return tuple(_found(one, same, own, control, own_cuts, same_cuts) for one in trained if one.loss)


def _reports(lab: Lab, runs: Iterable[Run], analyzers: Sequence[Analyzer], what: str) -> Reports:
    listed = list(runs)
    return dict(zip((run.path for run in listed), lab.measure(listed, analyzers, what), strict=True))


def _found(
    trained: Trained,
    same: Reports,
    own: Reports,
    control: Mapping[int, Reports],
    own_cuts: Sequence[str],
    same_cuts: Sequence[str],
) -> Found:
    at_loss = _grid(trained.loss, same)
    own_at_loss = _grid(trained.loss, own)
    as_batches = [[control[size][row[0].path] for size in trained.network.sizes] for row in trained.loss]
    layers = at_loss[0][0].results[NEAR].quantities["near_rank"].labels["layer"][:-1]
    if not layers:
        raise UsageError(
            f"The network `{trained.network.name}` has one layer, its output. Expected hidden layers, for their "
            "near-rank is what the paper is about. Take another network."
        )

    def share(name: str, reports: Sequence[Sequence[Report]], cut: int = 0) -> Measure:
        most = np.minimum(_each(reports, "units"), _each(reports, "columns"))
        return Measure(name=name, layers=_shares(reports, cut, most), steps=100 / most[0])

    def by_cut(name: str, reports: Sequence[Sequence[Report]], cuts: Sequence[str]) -> tuple[Measure, ...]:
        return tuple(share(f"{name}, {cut}", reports, i) for i, cut in enumerate(cuts))

    def without_cut(title: str, quantity: str, scale: float = 1.0) -> Measure:
        values = scale * _each(at_loss, quantity)
        return Measure(name=title, layers=values, steps=np.zeros(values.shape[1:]))

    return Found(
        trained=trained,
        layers=layers,
        own=by_cut("own", own_at_loss, own_cuts),
        same=by_cut("same", at_loss, same_cuts),
        control=by_cut("control", as_batches, own_cuts),
        at_epochs=(
            share("own, equal epochs", _grid(trained.epochs, own)),
            share("same, equal epochs", _grid(trained.epochs, same)),
        ),
        without_cut=(
            without_cut("effective rank", "effective_rank"),
            without_cut("stable rank", "stable_rank"),
            without_cut("dead units %", "dead_units", 100),
        ),
        loss=_numbers(at_loss, "train_loss"),
        accuracy=_numbers(at_loss, "test_accuracy"),
    )


def _grid(grid: Grid, reports: Reports) -> list[list[Report]]:
    return [[reports[run.path] for run in row] for row in grid]


def _each(reports: Sequence[Sequence[Report]], name: str) -> Array:
    """Return a quantity of every hidden layer, (seeds, batch sizes, layers, ...): the last layer is the output."""
    return np.array([[one.results[NEAR].quantities[name].value[:-1] for one in row] for row in reports])


def _shares(reports: Sequence[Sequence[Report]], cut: int, most: Array) -> Array:
    """Return the near-rank at a cut in percent of the largest; in own-batch mode it is a share already."""
    counts = _each(reports, "near_rank")[..., cut]
    shares = counts if reports[0][0].results[NEAR].settings["own_batch"] else counts / most
    return np.asarray(100 * shares)


def _numbers(reports: Sequence[Sequence[Report]], name: str) -> Array:
    """Return a number of every run, (seeds, batch sizes); NaN where the data or the loss have none such."""
    found = [[one.results["gap"].quantities.get(name) for one in row] for row in reports]
    return np.array([[math.nan if one is None else float(one.value) for one in row] for row in found])
