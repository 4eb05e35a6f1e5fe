"""Dai and Zhu 2018: learning rate over batch size decides how soon SGD finds flat minima, and not which it ends in.

First where theory can be checked: SGD is simulated on landscapes with two minima, and its escape times and the share of
each minimum stand beside the formulas.  Then on a network: how flat it is along training for several eta / B at several
batch sizes, where training ends, at equal eta x steps, and at equal training loss.
"""

from dataclasses import dataclass

from gapscope.errors import UsageError
from gapscope.report.outcome import Outcome
from gapscope.training.recipe import counted
from gapscope.training.studies.dai_zhu.agreement import WITHIN
from gapscope.training.studies.dai_zhu.courses import train
from gapscope.training.studies.dai_zhu.escape import escape
from gapscope.training.studies.dai_zhu.flatness import barrier, flatness, pairs
from gapscope.training.studies.dai_zhu.odds import odds
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import Plan as Base
from gapscope.training.studies.plan import Size


@dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """The network's settings, and those of the walks on landscapes.

    Every batch size runs at every `rates_over_batch`, at the rate that is their product; with `momentum` above 0, the
    largest batch also runs with it at the middle one.  Walks: gradients of single samples have the variance
    `noise_variance`, `sharp` and `flat` are the curvatures across the valley at its minima, and the share of each
    is followed for `relaxations` times that in which the slowest walk forgets its start.
    """

    rates_over_batch: tuple[float, ...]
    batch_sizes: tuple[Size, ...]
    momentum: float
    epochs: int
    saved_every: int
    noise_variance: float
    walk_rate: float
    walk_rate_factor: int
    walk_batch_sizes: tuple[int, ...]
    walk_momenta: tuple[float, ...]
    settled_batch_sizes: tuple[int, ...]
    sharp: float
    flat: float
    relaxations: float
    walkers: int
    most_iterations: int


def study(lab: Lab, plan: Plan) -> Outcome:
    """Simulate, train and measure, and judge the paper's claims."""
    _check(plan)
    walked = escape(lab, plan), odds(lab, plan)
    trained = train(lab, plan)
    made = (*walked, flatness(trained), pairs(trained))
    return Outcome(
        study="dai-zhu",
        title="Dai and Zhu 2018: SGD as diffusion between minima",
        source="Dai and Zhu 2018 and the theory of escape",
        about=(
            f"{plan.data}, {lab.samples(plan.data):,} training samples · {plan.model} · SGD at a constant rate, "
            f"{plan.epochs} epochs · {counted(plan.seeds, 'seed')}.",
            f"Simulations: two landscapes, {plan.seeds} x {plan.walkers} walkers with Gaussian gradient noise. The "
            "formulas beside them are those of Eyring and Kramers; figures of the paper are not restated.",
            f"Two numbers are alike here where the whole 95 % interval of their ratio lies within {WITHIN}. Intervals "
            "are over seeds; nothing is corrected for the number of claims.",
        ),
        claims=tuple(claim for _, claims in made for claim in claims),
        parts=(*(part for part, _ in made), barrier(trained)),
        analyzers=("eigenvalues", "trace", "gap", "escape"),
        conditions=lab.conditions(plan.data),
        environment=lab.environment(),
    )


def _check(plan: Plan) -> None:
    """Refuse what no number of walks or runs could answer."""
    if not plan.sharp > plan.flat > 0:
        raise UsageError(
            f"`sharp` is {plan.sharp:g} and `flat` is {plan.flat:g}. Expected curvatures above 0, `sharp` the larger. "
            "Mend the plan."
        )
    ones = ("walkers", "most_iterations", "epochs", "saved_every")
    if none := [name for name in ones if getattr(plan, name) < 1]:
        raise UsageError(f"`{none[0]}` is {getattr(plan, none[0])}. Expected 1 or more. Mend the plan.")
    few = [name for name in ("walk_batch_sizes", "settled_batch_sizes") if len(set(getattr(plan, name))) < 2]
    if few:
        raise UsageError(
            f"`{few[0]}` has fewer than two sizes. Expected several, as slopes are taken over them. Mend the plan."
        )
    rates = plan.rates_over_batch
    if len(set(rates)) < 2 or min(rates) <= 0 or not plan.batch_sizes:
        raise UsageError(
            f"`rates_over_batch` is {list(rates)} at {len(plan.batch_sizes)} batch sizes. Expected two or more above "
            "0, at one size or more. Mend the plan."
        )
