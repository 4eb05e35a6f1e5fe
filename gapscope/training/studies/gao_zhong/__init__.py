"""Gao and Zhong 2020: steps shrink as the batch grows; two remedies, and rates fitted to the curvature.

Steps of every batch size are taken from the same weights and set beside the formulas; layer curvature is measured where
every batch size has come to one training loss.  Remedies and optimizers train for equal epochs, at rates tuned on the
training loss with seeds of their own.  The paper's equations are not public: the definitions are gapscope's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from gapscope.errors import UsageError
from gapscope.report.figures import number
from gapscope.report.outcome import Outcome
from gapscope.training.recipe import counted
from gapscope.training.studies.gao_zhong.layers import layers
from gapscope.training.studies.gao_zhong.rates import rates
from gapscope.training.studies.gao_zhong.remedies import remedies
from gapscope.training.studies.gao_zhong.runs import Bench
from gapscope.training.studies.gao_zhong.steps import steps
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import Plan as Base
from gapscope.training.studies.plan import Size, batch
from gapscope.training.studies.runs import unasked


@dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """Batch sizes, stops, remedies and grids of rates; the smallest and the largest size are small and large batch."""

    batch_sizes: tuple[Size, ...]
    lr: float
    until_loss: float
    max_epochs: int
    early_epochs: int
    draws: int
    epochs: int
    momentum: float
    schedule: str
    discards: tuple[float, ...]
    doublings: tuple[int, ...]
    tuning_seeds: int
    curvature_times: int
    sgd_rates: tuple[float, ...]
    lars_rates: tuple[float, ...]
    mclr_rates: tuple[float, ...]
    cblr_rates: tuple[float, ...]

    @property
    def grid(self) -> Mapping[str, tuple[float, ...]]:
        """The rates to choose from, by optimizer."""
        return {"sgd": self.sgd_rates, "lars": self.lars_rates, "mclr": self.mclr_rates, "cblr": self.cblr_rates}


def study(lab: Lab, plan: Plan) -> Outcome:
    """Measure steps and curvature, train remedies and optimizers, and judge the paper's claims."""
    bench = _bench(lab, plan)
    seeds = range(plan.seeds)
    plain = {"lr": plan.lr, "until_loss": plan.until_loss, "epochs": plan.max_epochs}
    every = {f"batch {size}": [bench.spec(seed, size, **plain) for seed in seeds] for size in bench.sizes}
    first = {"early": [bench.spec(seed, bench.small, lr=plan.lr, epochs=plan.early_epochs) for seed in seeds]}
    begun, unbegun = bench.train(first, "early weights")
    ended, left = bench.train(every, "batch sizes, to the loss", plan.until_loss)
    ends = {size: ended[name] for size, name in zip(bench.sizes, every, strict=True) if name in ended}
    parts_and_claims = (
        steps(bench, begun.get("early", []), ends.get(bench.small, []), (*unbegun, *left)),
        layers(bench, ends, left),
        remedies(bench),
        rates(bench),
    )
    return Outcome(
        study="gao-zhong",
        title="Gao and Zhong 2020: steps, remedies and rates of large batches",
        source="Gao and Zhong 2020",
        about=(
            f"{plan.data}, {bench.samples:,} training samples · {plan.model} · batches of "
            f"{', '.join(map(str, bench.sizes))} · {counted(plan.seeds, 'seed')}.",
            f"Steps and layers: SGD, rate {number(plan.lr)}, without momentum, to a training loss of "
            f"{number(plan.until_loss)}.",
            "Runs of one seed start from the same weights, whatever else differs: contrasts and slopes are by seed, "
            "with Student's 95 % interval over seeds; nothing is corrected for the number of claims. Only the paper's "
            "abstract was read: formulas and definitions are gapscope's own, and no figure of the paper stands beside "
            "these. That parameters center on their minima is not judged.",
            *unasked(plan.data),
        ),
        claims=tuple(claim for _, claims in parts_and_claims for claim in claims),
        parts=tuple(part for part, _ in parts_and_claims),
        analyzers=("noise", "curvature", "gap"),
        conditions=lab.conditions(plan.data),
        environment=lab.environment(),
    )


def _bench(lab: Lab, plan: Plan) -> Bench:
    """Return the bench; raises UsageError for a single batch size and for grids that are not of one length."""
    samples = lab.samples(plan.data)
    sizes = sorted({batch(size, samples) for size in plan.batch_sizes})
    if len(sizes) < 2:
        raise UsageError(
            f"The batch sizes are {', '.join(map(str, sizes)) or 'none'}. Expected two or more. Mend `batch_sizes` in "
            "the plan."
        )
    counts = {name: len(rates) for name, rates in plan.grid.items()}
    if len(set(counts.values())) > 1 or not counts["sgd"] or plan.tuning_seeds < 1 or plan.curvature_times < 1:
        said = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UsageError(
            f"There are {said} rates to choose from, {plan.tuning_seeds} tuning seeds and {plan.curvature_times} "
            "measurements of the curvature. Expected one or more of everything, and as many rates for each: more to "
            "choose from is an advantage. Mend the plan."
        )
    return Bench(lab, plan, samples, tuple(sizes))
