"""Top and bottom eigenvalues of the Hessian."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.measure.edge import formula, sgd_edge
from gapscope.results import Quantity, Result, Status, one_sided, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.lanczos import Eigenpairs

TOP_SAMPLES = 10
REMEDIES = {
    "matvecs": "the products ran out; raise `--max-matvecs`",
    "tf32": "products in TF32 allow no smaller error; leave out `--precision` or take a larger `--tolerance`",
    "bf16": "products in bfloat16 allow no smaller error; leave out `--precision` or take a larger `--tolerance`",
    "precision": "rounding allows no smaller residual; take `--dtype float64` or a larger `--tolerance`",
}
NAMES = {"tf32": "TF32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class EigenvaluesResult(Result):
    """What `eigenvalues` measures."""

    top: Quantity
    bottom: Quantity
    gradient_norm: Quantity
    negative_ratio: Quantity
    stability: Quantity | None
    effective_samples: Quantity
    top_ten_share: Quantity
    values: Quantity
    residuals: Quantity
    referee: Quantity | None


@dataclass(frozen=True)
class Eigenvalues:
    """Top eigenvalues of the Hessian of the loss, by Lanczos, with an upper bound that holds with probability 1 -
    delta.

    Largest algebraic, not largest in magnitude.  The iteration stops when that bound, and for the lower of several
    their recomputed residuals, are within the tolerance.  Where the bound fails, the value may be that of a lower
    eigenvalue; one off by more than the tolerance is rarer than delta, about delta tolerance / gap where the top two
    are a fraction gap apart.  Not invariant to rescaling the layers: read it beside the loss level.
    """

    name: ClassVar[str] = "eigenvalues"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ("referee", "disk")

    k: Annotated[int, "how many of the largest eigenvalues"] = 1
    tolerance: Annotated[float, "relative tolerance on the upper bound, and on the residuals below the top"] = 1e-3
    delta: Annotated[float, "probability that the top eigenvalue lies above the bound"] = 1e-2
    max_matvecs: Annotated[int, "budget of Hessian-vector products, verification included"] = 200
    gauss_newton: Annotated[bool, "measure the Gauss-Newton matrix instead of the Hessian"] = False
    preconditioned: Annotated[bool, "of P^-1/2 H P^-1/2, with Adam's P from the checkpoint's optimizer state"] = False
    precision: Annotated[
        Literal["full", "tf32", "bf16"],
        "of the products that search the spectrum; what is found is checked and valued in full",
    ] = "full"
    disk: Annotated[float, "GB that a temporary file may take for a Krylov basis too large for the memory"] = 0.0
    referee: Annotated[Literal["none", "pyhessian", "scipy"], "also ask another tool, on the same problem"] = "none"

    @property
    def sharded(self) -> bool:
        """Return whether this does with shares of vectors: the Hessian alone."""
        return not (self.gauss_newton or self.preconditioned or self.referee != "none")

    def passes(self, problem: Any) -> dict[str, float]:  # noqa: ARG002  (other analyzers ask it)
        """Return about how many passes over the data this takes: 9 to 14 products for one eigenvalue."""
        return {"gradient": 1, "product": min(self.max_matvecs, 6 + 6 * self.k), "curvature_along": self.k}

    def __call__(self, context: "Context") -> EigenvaluesResult:
        """Run Lanczos on the measured split."""
        from gapscope.errors import UsageError
        from gapscope.measure.shares import evened
        from gapscope.measure.solvers.lanczos import Room, Stopping, extreme_eigenpairs

        if self.k < 1 or not 0 < self.tolerance < 1 or not 0 < self.delta < 1 or self.max_matvecs < self.k + 1:
            raise UsageError(
                f"eigenvalues got k={self.k}, tolerance={self.tolerance}, delta={self.delta}, "
                f"max_matvecs={self.max_matvecs}. Expected k >= 1, 0 < tolerance < 1, 0 < delta < 1, and max_matvecs "
                "of k + 1 or more: k products verify what the others find."
            )
        from gapscope.measure.operators import length, scaled, shifted
        from gapscope.measure.preconditioner import adam_preconditioner

        problem, monitor = context.problem(), context.monitor
        if self.precision != "full":
            self._refuse_precision(problem)
        recorded = str(context.training().get("optimizer") or "")
        adam = adam_preconditioner(problem, context.optimizer(), recorded=recorded) if self.preconditioned else None
        opinion = self._second_opinion(problem)  # first: it may refuse the problem
        operator = problem.gauss_newton() if self.gauss_newton else problem.hessian()
        searching = operator if self.precision == "full" else problem.hessian(self.precision)
        scale: Any = 1.0 if adam is None else adam.diagonal.rsqrt()
        decay: Any = 0.0 if adam is None else adam.decay
        if adam is not None:
            operator, searching = (scaled(shifted(one, decay), scale) for one in (operator, searching))
        along: list[Any] = []

        def verify(u: Any) -> Any:
            direction = scale * u
            product, curvature = problem.curvature_along(direction)
            along[:] = [curvature + float((decay * direction.square()).sum())]
            return scale * (product + decay * direction)

        monitor.begin("eigenvalues", 20)
        pairs = extreme_eigenpairs(
            searching,
            self.k,
            context.generator("eigenvalues"),
            stopping=Stopping(self.tolerance, self.delta, self.max_matvecs),
            room=Room(problem.memory_budget // 2, host=problem.memory_budget, disk=int(1e9 * self.disk)),
            verify=None if self.gauss_newton else verify,
            exact=None if self.precision == "full" else operator,
            watch=lambda step, value, error: monitor.say(f"step {step}  Ritz value {value:.4g} ± {error:.1g}"),
        )
        del operator, searching  # with them go the kept graphs
        top, nan = float(pairs.values[0]), float("nan")
        above = pairs.upper - top
        inexact = problem.derivatives.error  # no residual shows it: the same products verify
        if adam is not None:
            inexact *= float((scale**2).max())
        if pairs.status is Status.CONVERGED and inexact > self.tolerance * abs(top):
            pairs = replace(pairs, status=Status.BUDGET_SPENT, spent_on="precision")
        curvature = along[0] if along else np.full(problem.samples, nan)
        spread = evened(problem, curvature)  # for errors over the data
        gradient_norm = float(length(problem.gradient(), problem.share))
        ranks = tuple(str(i + 1) for i in range(len(pairs.values)))
        return EigenvaluesResult(
            status=pairs.status,
            matvecs=pairs.matvecs,
            notes=self._notes(context, problem, pairs, adam),
            top=Quantity(
                value=scalar(top),
                numerical_error=_known(above + inexact),
                sampling_error=_standard_error(spread) if along else None,
                chunks=problem.chunk_means(spread) if along else None,
                unit="in Adam's metric" if self.preconditioned else "",
                bound=one_sided("lower", top, inexact),
                better="lower",
                higher_is="sharper",
                doc=f"largest algebraic eigenvalue{' of P^-1/2 H P^-1/2' * self.preconditioned}; numerical error: the "
                f"distance to an upper bound that holds with probability 1 - {self.delta:g}",
            ),
            bottom=Quantity(
                value=scalar(pairs.bottom),
                numerical_error=_known(pairs.bottom - pairs.lower + inexact),
                contrast="difference",
                bound=one_sided("upper", pairs.bottom, inexact) if self.precision == "full" else "none",
                drawn="detail",
                doc="smallest Ritz value, a by-product: "
                + ("an upper bound on the smallest eigenvalue" if self.precision == "full" else "of rounded products"),
            ),
            gradient_norm=Quantity(value=scalar(gradient_norm), doc="norm of the full gradient: 0 at a minimum"),
            negative_ratio=Quantity(
                value=scalar(max(0.0, -pairs.bottom) / top if top > 0 else nan),
                contrast="difference",
                doc="|most negative Ritz value| / top eigenvalue: 0 at a minimum",
            ),
            stability=_stability(context.training(), top, above + inexact, spread, self.gauss_newton)
            if adam is None
            else _adam_stability(adam.limit, top, above + inexact, spread),
            effective_samples=Quantity(
                value=scalar(_effective_number(curvature)),
                doc="(sum |c_i|)^2 / sum c_i^2 of the samples' shares c_i = u'H_i u of the top eigenvalue",
            ),
            top_ten_share=Quantity(
                value=scalar(_share(curvature)),
                unit="%",
                contrast="difference",
                drawn="detail",
                doc=f"share of the top eigenvalue that the {TOP_SAMPLES} samples of largest u'H_i u carry",
            ),
            values=Quantity(
                value=pairs.values,
                numerical_error=_known(np.maximum(pairs.residuals, pairs.rounding) + inexact),
                dims=("rank",),
                labels={"rank": ranks},
                doc="the largest eigenvalues: one lies within the error of each; copies of one eigenvalue count once",
            ),
            residuals=Quantity(
                value=pairs.residuals, dims=("rank",), labels={"rank": ranks}, doc="recomputed norm(A u - lambda u)"
            ),
            referee=opinion,
        )

    def _refuse_precision(self, problem: "Problem") -> None:
        import torch

        from gapscope.errors import UsageError

        asked = f"`--precision {self.precision}` was given"
        if self.gauss_newton:
            raise UsageError(
                f"{asked}, with `--gauss-newton`. Expected the Hessian: products of both precisions share its graphs. "
                "Leave one of the two out."
            )
        if self.precision == "tf32" and problem.device.type != "cuda":
            raise UsageError(
                f"{asked}, and the problem is on {problem.device.type}. Expected `--device cuda`: TF32 is of NVIDIA's "
                "GPUs. Take `--precision bf16` or `full`."
            )
        if problem.dtype == torch.float64:
            raise UsageError(
                f"{asked}, and the problem is in float64. Expected float32, of which products in fewer bits are an "
                "approximation. Leave one of the two out."
            )
        if problem.derivatives.method == "differences":
            raise UsageError(
                f"{asked}, and second derivatives are taken by differences of the gradient, which fewer bits would "
                "round away. Expected second derivatives by autograd. Leave out `--precision`."
            )

    def _notes(self, context: "Context", problem: "Problem", pairs: "Eigenpairs", adam: Any) -> tuple[str, ...]:
        notes = []
        if pairs.spent_on:
            rounded = pairs.spent_on == "precision" and self.precision != "full"
            notes.append(f"not converged: {REMEDIES[self.precision if rounded else pairs.spent_on]}")
        if self.precision != "full":
            notes.append(
                f"searched with products in {NAMES[self.precision]}, checked with products in "
                f"{str(problem.dtype)[6:]}: along the vectors found the two are {pairs.apart:.2g} apart"
            )
        if self.gauss_newton:
            notes.append("operator: Gauss-Newton, not the Hessian; no sampling error is measured for it")
        if problem.samples < problem.data.total:
            notes.append(
                f"measured on {problem.samples:,} of {problem.data.total:,} samples: "
                "a subset overstates the top eigenvalue on average"
            )
        if adam is not None:
            limit = "no single rate and beta is recorded" if adam.limit is None else f"{adam.limit:.4g}"
            notes.append(
                f"preconditioned by Adam's second moments; its limit of stability (2 + 2 b1)/((1 - b1) eta): {limit}"
            )
            if adam.unsaid and not context.training().get("optimizer"):
                notes.append(
                    "the file does not say whether Adam or AdamW wrote its optimizer state; Adam's, whose weight decay "
                    "is part of the gradient, was assumed: record `optimizer` in the checkpoint's training"
                )
        elif "adam" in str(context.training().get("optimizer", "")).lower():
            notes.append(
                "trained with Adam: its stability limit needs its preconditioner, so none is shown; "
                "take `--preconditioned` where the file holds the optimizer's state"
            )
        return tuple(notes)

    def _second_opinion(self, problem: "Problem") -> Quantity | None:
        if self.referee == "none":
            return None
        from gapscope.errors import UsageError
        from gapscope.measure import referee

        if self.preconditioned:
            raise UsageError("The referees know no preconditioner. Expected `--referee none` with `--preconditioned`.")
        if self.gauss_newton and self.referee == "pyhessian":
            raise UsageError("PyHessian knows only the Hessian. Expected `--referee scipy` with `--gauss-newton`.")
        opinion = (
            referee.pyhessian_top(problem)
            if self.referee == "pyhessian"
            else referee.scipy_top(problem.gauss_newton() if self.gauss_newton else problem.hessian())
        )
        return Quantity(
            value=scalar(opinion),
            doc=f"the top eigenvalue by {self.referee} on the same problem"
            + (" (largest in magnitude; its iteration may stall below the top)" if self.referee == "pyhessian" else ""),
        )


def _known(error: Any) -> Any:
    """Return an error, or None where it is not a number: a report has no place for one that is not known."""
    return np.asarray(error) if np.isfinite(error).all() else None


def _standard_error(values: np.ndarray) -> Any:
    """Return the standard error over samples: by first-order perturbation lambda moves with the mean of u'H_i u."""
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None


def _effective_number(values: np.ndarray) -> float:
    total = float((values**2).sum())
    return float(np.abs(values).sum() ** 2 / total) if total > 0 else float("nan")


def _share(values: np.ndarray) -> float:
    """Return how many percent the largest few carry of a positive sum; of another there are no shares."""
    total = float(values.sum())
    return 100 * float(np.sort(values)[-TOP_SAMPLES:].sum()) / total if total > 0 else float("nan")


def _stability(training: Any, top: float, above: float, curvature: np.ndarray, gauss_newton: bool) -> Quantity | None:
    """Return eta (lambda_max + weight decay) over its value at the edge: above 1, (full-batch) SGD is unstable."""
    rate, decay, most = training.get("lr"), training.get("weight_decay") or 0.0, sgd_edge(training)
    numbers = all(isinstance(x, int | float) for x in (rate, decay))  # what a checkpoint recorded may be anything
    if str(training.get("optimizer", "")).lower() != "sgd" or gauss_newton or not numbers or most is None:
        return None
    return Quantity(
        value=scalar(rate * (top + decay) / most),
        numerical_error=_known(rate * above / most),
        sampling_error=_standard_error(curvature * rate / most),
        doc=f"recorded rate x (top eigenvalue + weight decay) / {formula(training)}; "
        "1 is the edge of stability of full-batch gradient descent",
    )


def _adam_stability(limit: float | None, top: float, above: float, curvature: np.ndarray) -> Quantity | None:
    """Return the top eigenvalue over Adam's limit: above 1, full-batch Adam is linearly unstable there."""
    if limit is None:
        return None
    return Quantity(
        value=scalar(top / limit),
        numerical_error=_known(above / limit),
        sampling_error=_standard_error(curvature / limit),
        doc="top eigenvalue of P^-1/2 H P^-1/2 over (2 + 2 b1) / ((1 - b1) rate); 1 is the edge of stability of "
        "full-batch Adam with its preconditioner held",
    )
