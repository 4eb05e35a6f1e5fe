"""Zhao et al. 2020: SNGM, momentum over gradients of length one, keeps its test accuracy at large batch sizes.

Every optimizer trains for the same epochs, so with as many gradient computations, at every batch size.  Its rate is
tuned for each size by the training loss alone, over a grid of the same length for all, on seeds apart from the judged
ones.  Beside it stands what the rate of the smallest batch comes to when it is only scaled: tuning hides sensitivity.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gapscope.errors import UsageError
from gapscope.report.figures import count, number
from gapscope.report.outcome import Outcome
from gapscope.training.recipe import counted
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import Plan as Base
from gapscope.training.studies.plan import Size, batch
from gapscope.training.studies.runs import unasked
from gapscope.training.studies.sngm.parts import accuracy, rivals, scaled, sharpness, tuning
from gapscope.training.studies.sngm.runs import Bench, Cell, Group, judge, tune, untuned
from gapscope.training.studies.sngm.steps import steps


@dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """Batch sizes, the length of training, the grid of rates, and how the untuned rates are scaled.

    `scales` is the middle of each optimizer's grid: `points` rates, evenly over so many `decades`.  The step lengths of
    `step_seeds` runs of SNGM are measured.
    """

    batches: tuple[Size, ...]
    epochs: int
    augment: bool = False
    momentum: float
    weight_decay: float
    schedule: str
    scales: Mapping[str, float]
    points: int
    decades: float
    tuning_seeds: int
    rules: tuple[Literal["linear", "sqrt"], ...]
    step_seeds: int


def study(lab: Lab, plan: Plan) -> Outcome:
    """Tune and train every optimizer at every batch size, measure them, and judge the paper's claims."""
    bench = _bench(lab, plan)
    tuned = tune(bench)
    judged = judge(bench, tuned)
    by_rule: dict[str, dict[Cell, Group]] = {rule: untuned(bench, tuned, rule) for rule in plan.rules}
    parts_and_claims = (
        tuning(bench, tuned),
        accuracy(bench, judged),
        rivals(bench, judged),
        *((scaled(bench, judged, by_rule),) if by_rule else ()),
        sharpness(bench, judged),
        steps(bench, judged["sngm", bench.sizes[-1]]),
    )
    return Outcome(
        study="sngm",
        title="Zhao et al. 2020: normalized momentum for large batches",
        source="Zhao et al. 2020",
        about=_about(bench),
        claims=tuple(claim for _, claims in parts_and_claims for claim in claims),
        parts=tuple(part for part, _ in parts_and_claims),
        analyzers=("gap", "eigenvalues", "epsilon-sharpness"),
        conditions=lab.conditions(plan.data),
        environment=lab.environment(),
    )


def _bench(lab: Lab, plan: Plan) -> Bench:
    """Return the bench; raises UsageError for a plan that leaves nothing to choose or to compare."""
    samples = lab.samples(plan.data)
    sizes = tuple(sorted({batch(size, samples) for size in plan.batches}))
    if len(sizes) < 2:
        raise UsageError(
            f"The batch sizes are {', '.join(map(str, sizes)) or 'none'}. Expected two or more. Mend `batches` in the "
            "plan."
        )
    if "sngm" not in plan.scales or len(plan.scales) < 2:
        raise UsageError(
            f"The plan has scales for {', '.join(plan.scales) or 'no optimizer'}. Expected `sngm`, and one or more to "
            "compare it with. Mend `scales` in the plan."
        )
    if plan.points < 2 or plan.decades <= 0 or plan.tuning_seeds < 1 or min(plan.scales.values()) <= 0:
        raise UsageError(
            f"The grids have {plan.points} points over {number(plan.decades)} decades around "
            f"{', '.join(number(scale) for scale in plan.scales.values())}, on {plan.tuning_seeds} tuning seeds. "
            "Expected 2 points or more, decades and scales above 0, and a tuning seed. Mend the plan."
        )
    return Bench(lab, plan, samples, sizes)


def _about(bench: Bench) -> tuple[str, ...]:
    plan, least, most = bench.plan, bench.sizes[0], bench.sizes[-1]
    arguments = "".join(f" {key}={value}" for key, value in plan.model_args.items())
    scales = ", ".join(f"{name} {number(scale)}" for name, scale in plan.scales.items())
    several = "s" * (plan.tuning_seeds > 1)
    return (
        f"{plan.data}, {count(bench.samples)} training samples · {plan.model}{arguments} · {plan.epochs} epochs: "
        f"{count(bench.steps(least))} steps at batch {count(least)}, {count(bench.steps(most))} at {count(most)} · "
        f"momentum {number(plan.momentum)}, weight decay {number(plan.weight_decay)}, rates by `{plan.schedule}`, no "
        "warm-up.",
        f"For each optimizer and batch size the rate is the one of {plan.points} with the lowest training loss on "
        f"{plan.tuning_seeds} tuning seed{several}, spread over a factor of {number(10**plan.decades)} around the "
        f"optimizer's scale ({scales}). No test data are looked at.",
        f"All that is judged is of {counted(plan.seeds, 'other seed')}. Runs of one seed start from the same weights; "
        "the 95 % intervals are Welch's over seeds and make no use of it. Nothing is corrected for the number of "
        "claims.",
        *unasked(plan.data),
    )
