"""Losses, accuracies and both generalization gaps."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gapscope.results import Array, Better, Contrast, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem


@dataclass(frozen=True, kw_only=True)
class GapResult(Result):
    """What `gap` measures; accuracies and their gap are absent where the loss has no notion of a right answer."""

    loss_gap: Quantity
    accuracy_gap: Quantity | None
    train_loss: Quantity
    test_loss: Quantity
    train_accuracy: Quantity | None
    test_accuracy: Quantity | None


@dataclass(frozen=True)
class Gap:
    """Training and test loss and accuracy, and both generalization gaps, with standard errors over samples.

    Loss gap: test loss - train loss.  Accuracy gap: train accuracy - test accuracy.
    """

    name: ClassVar[str] = "gap"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    second_order: ClassVar[bool] = False
    sharded: ClassVar[bool] = True

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return how many passes over the data this takes, those over the other split as parts of one."""
        other = problem.origin.other
        return {"outcomes": 1 + (other.samples / problem.samples if other is not None else 0)}

    def __call__(self, context: "Context") -> GapResult:
        """Evaluate both splits once, or one where there is only one."""
        context.monitor.begin("gap", 1 + context.has("test"))
        problems = {split: context.problem(split) for split in ("train", "test") if context.has(split)}
        outcomes = {split: p.outcomes() for split, p in problems.items()}
        losses = {split: _mean(problems[split], each, "loss") for split, (each, _) in outcomes.items()}
        rights = {split: right for split, (_, right) in outcomes.items()}
        rates = {
            s: _mean(problems[s], 100 * right, "accuracy", right) for s, right in rights.items() if right is not None
        }
        judged = problems and next(iter(problems.values())).loss_function.correct is not None
        missing = {kind: _quantity(kind) for kind in ("loss", "accuracy")}
        status = Status.EXACT if "train" in problems and "test" in problems else Status.NO_TEST_DATA
        if not all(np.isfinite(q.value) for q in losses.values()):
            status = Status.NONFINITE
        train_loss, test_loss = (losses.get(split, missing["loss"]) for split in ("train", "test"))
        train_rate, test_rate = (rates.get(split, missing["accuracy"]) for split in ("train", "test"))
        return GapResult(
            status=status,
            loss_gap=_difference(test_loss, train_loss, "test loss - train loss", ""),
            accuracy_gap=_difference(train_rate, test_rate, "train accuracy - test accuracy", "points")
            if judged
            else None,
            train_loss=train_loss,
            test_loss=test_loss,
            train_accuracy=train_rate if judged else None,
            test_accuracy=test_rate if judged else None,
        )


_ASPECTS: dict[str, tuple[Contrast, Better, str, str]] = {
    "loss": ("ratio", "lower", "", "mean loss over the samples"),
    "accuracy": ("difference", "higher", "%", "samples whose largest output is the right class"),
}


def _quantity(kind: str, value: float = float("nan"), error: float | None = None, **more: object) -> Quantity:
    contrast, better, unit, doc = _ASPECTS[kind]
    sampling = None if error is None else scalar(error)
    return Quantity(
        value=scalar(value),
        sampling_error=sampling,
        contrast=contrast,
        better=better,
        unit=unit,
        doc=doc,
        **more,  # type: ignore[arg-type]
    )


def _mean(problem: "Problem", values: Array, kind: str, outcomes: Array | None = None) -> Quantity:
    from gapscope.measure.shares import evened

    values = evened(problem, values, problem.loss_function.counts if outcomes is not None else None)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    # a share of right tokens is no yes or no: those samples are compared by chunks
    binary = outcomes is not None and bool(np.isin(outcomes, (0, 1)).all())
    samples = outcomes.astype(np.uint8) if outcomes is not None and binary else None
    return _quantity(kind, float(values.mean()), error, chunks=problem.chunk_means(values), samples=samples)


def _difference(minuend: Quantity, subtrahend: Quantity, doc: str, unit: str) -> Quantity:
    """Subtract two means over different samples: errors add in squares, chunks pair one to one."""
    parts = (minuend.sampling_error, subtrahend.sampling_error)
    both = minuend.chunks is not None and subtrahend.chunks is not None
    return Quantity(
        value=minuend.value - subtrahend.value,
        sampling_error=None if None in parts else np.sqrt(sum(np.square(part) for part in parts if part is not None)),
        chunks=minuend.chunks - subtrahend.chunks if both else None,  # type: ignore[operator]
        contrast="difference",
        better="lower",
        unit=unit,
        doc=doc,
    )
