"""Runs of a study in groups, and what is said of those that are left out; slopes over doublings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gapscope.report.contrasts import Contrasted, deviation, slope_over
from gapscope.report.document import Column
from gapscope.report.figures import NONE, spread
from gapscope.report.outcome import Claim, Part
from gapscope.results import Array, Quantity
from gapscope.training.recipe import Recipe
from gapscope.training.studies.lab import Lab, Run, Spec
from gapscope.training.studies.numbers import averaged_doc

if TYPE_CHECKING:
    from gapscope.training.studies.gao_zhong import Plan

Made = tuple[Part, tuple[Claim, ...]]
ACCURACY, TEST_LOSS = "gap/test_accuracy", "gap/test_loss"
UNKNOWN: Contrasted = (math.nan, (math.nan, math.nan))


@dataclass(frozen=True)
class Bench:
    """The lab, the plan, how many samples there are, and the batch sizes, rising; the ends are small and large."""

    lab: Lab
    plan: "Plan"
    samples: int
    sizes: tuple[int, ...]

    @property
    def small(self) -> int:
        """The smallest batch size."""
        return self.sizes[0]

    @property
    def large(self) -> int:
        """The largest batch size."""
        return self.sizes[-1]

    def spec(self, seed: int, size: int, **recipe: Any) -> Spec:
        """Return a run of a seed and a batch size, and what else is to be."""
        whole = Recipe(**{"seed": seed, "batch_size": size, **recipe})
        return Spec(recipe=whole, model=self.plan.model, model_args=self.plan.model_args, data=self.plan.data)

    def train(
        self, groups: Mapping[str, Sequence[Spec]], what: str, until: float | None = None
    ) -> tuple[dict[str, list[Run]], tuple[str, ...]]:
        """Return the groups of which every run came to a number, and to the loss if one is asked; notes on others."""
        runs = iter(self.lab.train([spec for specs in groups.values() for spec in specs], what))
        made = {name: [next(runs) for _ in specs] for name, specs in groups.items()}
        reasons = {name: _why_not(several, until) for name, several in made.items()}
        kept = {name: several for name, several in made.items() if not reasons[name]}
        left = tuple(f"Left out: {name}: {reason}." for name, reason in reasons.items() if reason)
        return kept, left


def _why_not(runs: Sequence[Run], until: float | None) -> str:
    """Return why a group is left out, or an empty string: it stands with all of its seeds or not at all."""
    diverged = sum(run.diverged for run in runs)
    short = [run for run in runs if until is not None and not run.train_loss <= until]
    if diverged:
        return f"{diverged} of {len(runs)} runs diverged"
    if short:
        return f"{len(short)} of {len(runs)} runs did not come to the loss {until:g} in {short[0].epochs} epochs"
    return ""


# Contrasts


def per_doubling(sizes: Sequence[int], values: Array) -> Contrasted:
    """Return by what a number (seeds, sizes) is multiplied per doubling of the batch size: a geometric mean over seeds.

    The slope of log2 over log2, by seed.  NaN for fewer than two sizes, and where a value is not positive.
    """
    values = np.asarray(values, dtype=np.float64)
    logs = np.log2(values, out=np.full(values.shape, math.nan), where=values > 0)
    middle, (low, high) = change_per_doubling(sizes, logs)
    return 2**middle, (2**low, 2**high)


def change_per_doubling(sizes: Sequence[int], values: Array) -> Contrasted:
    """Return by how much a number (seeds, sizes) changes per doubling of the batch size; NaN for fewer than two."""
    return slope_over(np.log2(sizes).tolist(), values) if len(sizes) > 1 else UNKNOWN


# Showing


def told(contrast: Contrasted) -> str:
    """Return "0.71 (0.69 to 0.73)"."""
    estimate, interval = spread(*contrast)
    return estimate if interval == NONE else f"{estimate} ({interval})"


def tens(values: Array) -> int:
    """Return the power of ten of the largest size, 0 where there is none."""
    largest = float(np.nan_to_num(np.abs(values)).max(initial=0.0))
    return math.floor(math.log10(largest)) if largest else 0


def headed(first: str, *others: str) -> tuple[Column, ...]:
    """Return columns: words, then numbers."""
    return (Column(header=first, numeric=False, wraps=True), *(Column(header=header) for header in others))


def over_seeds(values: Array, doc: str, dims: Mapping[str, Sequence[str]], **more: Any) -> Quantity:
    """Return the mean over seeds, the first axis, with its standard error, NaN of a single seed."""
    seeds, flat = len(values), values.reshape(len(values), -1)
    errors = [deviation(column) / math.sqrt(seeds) if seeds > 1 else math.nan for column in flat.T]
    return Quantity(
        value=values.mean(axis=0),
        sampling_error=np.reshape(errors, values.shape[1:]),
        doc=averaged_doc(doc, seeds),
        dims=tuple(dims),
        labels={name: tuple(labels) for name, labels in dims.items()},
        **more,
    )
