"""The runs of the SNGM study: grids of rates on seeds apart, the best rates on the judged seeds, and untuned ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gapscope.measure.analyzers.gap import Gap
from gapscope.report.records import Report
from gapscope.results import Array
from gapscope.training.recipe import Recipe
from gapscope.training.schedules import scaled_rate
from gapscope.training.studies.lab import Lab, Run, Spec

if TYPE_CHECKING:
    from gapscope.training.studies.sngm import Plan

APART = 10_000  # the first tuning seed
WITH_BETAS = ("adam", "lamb")  # their first mean takes the place of momentum
Cell = tuple[str, int]  # optimizer, batch size


@dataclass(frozen=True)
class Bench:
    """The lab, the plan, how many samples there are, and the batch sizes, smallest first."""

    lab: Lab
    plan: "Plan"
    samples: int
    sizes: tuple[int, ...]

    @property
    def optimizers(self) -> tuple[str, ...]:
        """Their names, as in the plan."""
        return tuple(self.plan.scales)

    @property
    def multiples(self) -> Array:
        """The rates of every grid, in units of the optimizer's scale, rising, (points,)."""
        half = self.plan.decades / 2
        return np.asarray(10 ** np.linspace(-half, half, self.plan.points))

    def steps(self, size: int) -> int:
        """Return how many steps a run of this batch size has."""
        return self.plan.epochs * math.ceil(self.samples / size)

    def spec(self, optimizer: str, size: int, rate: float, seed: int) -> Spec:
        """Return a run; the weights on the way are saved where the lengths of steps are judged by them."""
        plan = self.plan
        betas = optimizer in WITH_BETAS
        recipe = Recipe(
            optimizer=optimizer,
            options={"beta1": plan.momentum} if betas else {},
            momentum=0.0 if betas else plan.momentum,
            lr=rate,
            batch_size=size,
            weight_decay=plan.weight_decay,
            schedule=plan.schedule,
            augment=plan.augment,
            epochs=plan.epochs,
            seed=seed,
        )
        stepping = optimizer == "sngm" and size == self.sizes[-1] and seed < plan.step_seeds
        return Spec(
            recipe=recipe,
            model=plan.model,
            model_args=plan.model_args,
            data=plan.data,
            save_every=1 if stepping else None,
        )


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a grid of rates came to: training losses (rates, tuning seeds), not finite where a run diverged."""

    rates: Array  # (rates,), rising
    losses: Array  # (rates, seeds)

    @property
    def best(self) -> int | None:
        """Which rate has the lowest mean loss, None where each diverged; one that diverged once is not taken."""
        mean = self.losses.mean(axis=1)
        return int(np.nanargmin(mean)) if np.isfinite(mean).any() else None

    @property
    def rate(self) -> float | None:
        """The best rate."""
        return None if self.best is None else float(self.rates[self.best])

    @property
    def edge(self) -> str:
        """Say "lowest" or "highest" where the best rate is an end of the grid, beyond which a better one may lie."""
        return {0: "lowest", len(self.rates) - 1: "highest"}.get(self.best, "") if self.best is not None else ""


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one optimizer, batch size and rate: those that came to an end, measured, and how many diverged.

    `edge`: of a rate that was tuned, at which end of its grid it is, as in `Tuned`.
    """

    rate: float | None
    runs: tuple[Run, ...] = ()
    reports: tuple[Report, ...] = ()
    diverged: int = 0
    edge: str = ""


def tune(bench: Bench) -> dict[Cell, Tuned]:
    """Try every rate of its grid for each optimizer and batch size, on seeds that are not judged; no test data."""
    plan = bench.plan
    seeds = range(APART, APART + plan.tuning_seeds)
    cells = [(optimizer, size) for optimizer in bench.optimizers for size in bench.sizes]
    grids = {name: scale * bench.multiples for name, scale in plan.scales.items()}
    specs = [bench.spec(*cell, float(rate), seed) for cell in cells for rate in grids[cell[0]] for seed in seeds]
    losses = np.array([run.train_loss for run in bench.lab.train(specs, "rates to choose from")])
    shaped = losses.reshape(len(cells), plan.points, plan.tuning_seeds)
    return {cell: Tuned(grids[cell[0]], one) for cell, one in zip(cells, shaped, strict=True)}


def judge(bench: Bench, tuned: Mapping[Cell, Tuned]) -> dict[Cell, Group]:
    """Train every optimizer and batch size at its best rate with the judged seeds."""
    groups = _ran(bench, {cell: one.rate for cell, one in tuned.items()}, "judged runs")
    return {cell: replace(group, edge=tuned[cell].edge) for cell, group in groups.items()}


def untuned(bench: Bench, tuned: Mapping[Cell, Tuned], rule: str) -> dict[Cell, Group]:
    """Train every batch size but the smallest at the rate of the smallest, scaled by a rule."""
    least, rates = bench.sizes[0], dict[Cell, float | None]()
    for name in bench.optimizers:
        base = tuned[name, least].rate
        rates |= {(name, size): base and scaled_rate(base, size, least, rule) for size in bench.sizes[1:]}
    return _ran(bench, rates, f"rates scaled by {rule}")


def _ran(bench: Bench, rates: Mapping[Cell, float | None], what: str) -> dict[Cell, Group]:
    """Train each cell at its rate with the judged seeds, and measure losses and accuracies of what came to an end."""
    seeds = range(bench.plan.seeds)
    asked = [(cell, bench.spec(*cell, rate, seed)) for cell, rate in rates.items() if rate for seed in seeds]
    runs = bench.lab.train([spec for _, spec in asked], what)
    sound = [run for run in runs if not run.diverged]
    measured = bench.lab.measure(sound, (Gap(),), what)
    reports = {run.path: report for run, report in zip(sound, measured, strict=True)}
    groups = {}
    for cell, rate in rates.items():
        own = [run for (place, _), run in zip(asked, runs, strict=True) if place == cell]
        kept = tuple(run for run in own if not run.diverged)
        found = tuple(reports[run.path] for run in kept)
        groups[cell] = Group(rate=rate, runs=kept, reports=found, diverged=len(own) - len(kept))
    return groups
