"""Keskar et al. 2017: large batches end in sharper minima, which generalize worse.

Both regimes start from the same weights and take Adam at one rate, as in the paper.  The small batch trains to a stated
loss; the large one to the same loss, and, beside it, for the same epochs: at equal epochs it is less far trained, which
changes sharpness by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gapscope.errors import UsageError, did_you_mean
from gapscope.report.outcome import Outcome
from gapscope.training.recipe import Recipe, counted
from gapscope.training.regimes import Equal, matched
from gapscope.training.studies.keskar.courses import against_loss, warm_start
from gapscope.training.studies.keskar.diverged import sound
from gapscope.training.studies.keskar.minima import PAPER, Minima, minima, paths
from gapscope.training.studies.keskar.recipes import remedies, sweep
from gapscope.training.studies.lab import Lab, Run, Spec, files_of
from gapscope.training.studies.plan import Plan as Base
from gapscope.training.studies.plan import Size, batch
from gapscope.training.studies.runs import training_data, unasked

REMEDIES: Mapping[str, Mapping[str, Any]] = {  # what the paper tries for large batches: Appendix E
    "augmentation": {"augment": True},
    "conservative": {"conservative": 1e-3},
    "adversarial": {"adversarial": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """Sizes, stops and how many runs each part has; `paper` names the row of the paper's tables to stand beside."""

    paper: str
    small_batch: Size
    large_batch: Size
    lr: float
    until_loss: float
    max_epochs: int
    epsilons: tuple[float, ...]
    sweep: tuple[Size, ...]
    switches: tuple[int, ...]
    warm_epochs: int
    saved_every: tuple[int, ...]
    course_epochs: tuple[int, ...]
    remedies: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """The lab, the plan, and the two batch sizes in samples."""

    lab: Lab
    plan: Plan
    small: int
    large: int

    def spec(self, seed: int, size: int, **recipe: object) -> Spec:
        """Return a run of the small batch's stops, with what is to be otherwise."""
        plan = self.plan
        stops = {"until_loss": plan.until_loss, "epochs": plan.max_epochs}
        known = {"optimizer": "adam", "lr": plan.lr, "batch_size": size, "seed": seed, **stops, **recipe}
        whole = Recipe(**known)  # type: ignore[arg-type]  # a dict of several types, which Recipe checks
        return Spec(recipe=whole, model=plan.model, model_args=plan.model_args, data=plan.data)

    def like(self, reference: Run, size: int, equal: Equal, **recipe: object) -> Spec:
        """Return a run of another batch size that goes as far as a reference."""
        spec = self.spec(reference.spec.recipe.seed, size, **recipe)
        return replace(spec, recipe=matched(spec.recipe, reference, equal, self.plan.max_epochs))


def study(lab: Lab, plan: Plan) -> Outcome:
    """Train every regime, measure the minima, and judge the paper's claims."""
    samples = lab.samples(plan.data)
    _check(plan)
    bench = Bench(lab, plan, batch(plan.small_batch, samples), batch(plan.large_batch, samples))
    first = lab.train([bench.spec(seed, bench.small) for seed in range(plan.seeds)], "small batches")
    kinds: tuple[Equal, ...] = ("loss", "samples")
    asked = [bench.like(run, bench.large, equal) for equal in kinds for run in first if not run.diverged]
    trained = lab.train(asked, "large batches")
    (small, large), left = sound(first, trained)
    if not small:
        files_of([*first, *trained])  # refuses them: there is nothing to study
    found = Minima(small=small, loss=large[: len(small)], epochs=large[len(small) :])
    images, unasked = _left(plan)
    sizes = sorted({batch(size, samples) for size in plan.sweep})
    parts_and_claims = (
        minima(bench, found),
        paths(bench, found),
        sweep(bench, sizes),
        warm_start(bench),
        against_loss(bench),
        remedies(bench, found, {name: REMEDIES[name] for name in plan.remedies if images or name != "augmentation"}),
    )
    reached = _reached([*found.small, *found.loss], plan)
    return Outcome(
        study="keskar",
        title="Keskar et al. 2017: sharp minima of large batches",
        source="Keskar et al. 2017",
        about=(
            f"{plan.data}, {samples:,} training samples · {plan.model} · Adam, rate {plan.lr:g} · batches of "
            f"{bench.small} (small) and {bench.large} (large) · {counted(plan.seeds, 'seed')}, {reached}.",
            "A ratio is large over small, of geometric means over seeds, with Welch's 95 % interval; nothing is "
            "corrected for the number of claims.",
            *unasked,
            *left,
        ),
        claims=tuple(claim for _, claims in parts_and_claims for claim in claims),
        parts=tuple(part for part, _ in parts_and_claims),
        analyzers=("epsilon-sharpness", "eigenvalues", "adaptive-sharpness", "gap"),
        conditions=lab.conditions(plan.data),
        environment=lab.environment(),
    )


def _left(plan: Plan) -> tuple[bool, list[str]]:
    """Return whether the samples are images, and sentences on what these data cannot be asked."""
    inputs = training_data(plan.data).inputs
    images = isinstance(inputs, Tensor) and inputs.ndim == 4
    said = (
        [] if images or "augmentation" not in plan.remedies else ["Augmentation is left out: the data are no images."]
    )
    return images, [*said, *unasked(plan.data)]


def _check(plan: Plan) -> None:
    """Refuse what makes no sense before any work."""
    if plan.paper not in PAPER:
        raise UsageError(
            f"The paper has no network `{plan.paper}`.{did_you_mean(plan.paper, PAPER)} Expected one of "
            f"{', '.join(PAPER)}, to stand beside. Mend the plan."
        )
    for key in ("saved_every", "course_epochs"):
        if len(getattr(plan, key)) != 2:
            raise UsageError(
                f"`{key}` is {list(getattr(plan, key))}. Expected two numbers of epochs, for the small and the large "
                "batch. Mend the plan."
            )
    if any(not 1 <= every <= epochs for every, epochs in zip(plan.saved_every, plan.course_epochs, strict=True)):
        raise UsageError(
            f"Weights are saved every {list(plan.saved_every)} of {list(plan.course_epochs)} epochs. Expected 1 or "
            "more, and no more than there are. Mend `saved_every` of the plan."
        )
    if unknown := [name for name in plan.remedies if name not in REMEDIES]:
        raise UsageError(
            f"`{unknown[0]}` is no remedy.{did_you_mean(unknown[0], REMEDIES)} Expected {', '.join(REMEDIES)}. Mend "
            "the plan."
        )
    counts = ("warm_epochs", "max_epochs")
    few = [name for name in counts if getattr(plan, name) < 1]
    few += [name for name in ("sweep", "switches", "epsilons") if not getattr(plan, name)]
    if few or min(plan.switches) < 0:
        raise UsageError(
            f"The plan has {', '.join(f'{name} {getattr(plan, name)}' for name in few or ['switches'])}. Expected "
            "counts of 1 or more, lists that are not empty, and epochs of 0 or more. Mend it."
        )


def _reached(runs: Sequence[Run], plan: Plan) -> str:
    reached = sum("reached" in run.stopped for run in runs)
    return f"each to a training loss of {plan.until_loss:g} (reached by {reached} of {len(runs)} runs)"
