"""Trace and Frobenius norm of the Hessian."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.operators import Operator
    from gapscope.measure.problem import Problem

PAIRED = 4  # probes that are also asked sample by sample


@dataclass(frozen=True, kw_only=True)
class TraceResult(Result):
    """What `trace` measures."""

    trace: Quantity
    frobenius: Quantity
    blocks_trace: Quantity
    probes: Quantity


@dataclass(frozen=True)
class Trace:
    """Trace and Frobenius norm of the Hessian of the loss, and the trace of every layer's block, from random signs.

    Starts as Hutchinson's estimator and goes on as Hutch++ where the probes so far promise the tolerance sooner that
    way.  Stops when the standard error of the trace is within the tolerance of the larger of |trace| and |H|_F.
    The first 4 probes cost about twice a plain product each: they also give the error over the data.
    Not invariant to rescaling the layers.
    """

    name: ClassVar[str] = "trace"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    tolerance: Annotated[float, "standard error of the trace, relative to the larger of |trace| and |H|_F"] = 0.05
    max_matvecs: Annotated[int, "budget of Hessian-vector products"] = 200
    gauss_newton: Annotated[bool, "measure the Gauss-Newton matrix instead of the Hessian"] = False

    def gradients(self, problem: object) -> float:  # noqa: ARG002  (other analyzers ask it)
        """Return about how many gradients this costs, if 50 products are enough."""
        return 3.3 * min(self.max_matvecs, 50) + 8

    def __call__(self, context: "Context") -> TraceResult:
        """Probe the measured split."""
        from gapscope.errors import UsageError
        from gapscope.measure.shares import evened
        from gapscope.measure.solvers.hutchinson import PILOT, estimate_trace

        if not 0 < self.tolerance < 1 or self.max_matvecs < PILOT:
            raise UsageError(
                f"trace got tolerance={self.tolerance}, max_matvecs={self.max_matvecs}. Expected 0 < tolerance < 1 and "
                f"max_matvecs of {PILOT} or more: with fewer probes no error is known."
            )
        problem, monitor = context.problem(), context.monitor
        along: list[Array] = []
        every = problem.size <= PILOT  # entry by entry then, and exact
        operator = problem.gauss_newton() if self.gauss_newton else problem.hessian()
        if not self.gauss_newton:
            operator = _listening(operator, problem, along, problem.size if every else PAIRED)
        blocks = problem.parameters.blocks()
        monitor.begin("trace", 20)
        found = estimate_trace(
            operator,
            context.generator("trace"),
            blocks=blocks,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            sketch_bytes=problem.memory_budget // 2,
            watch=lambda spent, value, error: monitor.say(f"product {spent}  trace {value:.4g} ± {error:.1g}"),
        )
        del operator  # with it go the kept graphs
        finite = found.status is not Status.NONFINITE
        # of differences: a sign probe is sqrt(n) long, and their errors point anywhere
        rounding = np.hypot(found.rounding, problem.size**0.5 * problem.derivatives.error)
        along = [evened(problem, one) for one in along]
        per_sample, sampling_error = _over_samples(along, exact=every) if along and finite else (None, None)
        chunks = problem.chunk_means(per_sample + found.trace - per_sample.mean()) if per_sample is not None else None
        return TraceResult(
            status=found.status,
            matvecs=found.matvecs,
            notes=self._notes(problem, found),
            trace=Quantity(
                value=scalar(found.trace),
                numerical_error=np.hypot(found.trace_error, rounding) if finite else None,
                sampling_error=sampling_error,
                chunks=chunks,
                better="lower",
                higher_is="sharper",
                doc="trace of the Hessian; numerical error: standard error over probes, and rounding"
                + (f"; error over the data and chunks from z'H_i z of {len(along)} probes" if along else ""),
            ),
            frobenius=Quantity(
                value=scalar(found.frobenius),
                numerical_error=np.hypot(found.frobenius_error, rounding) if finite else None,
                better="lower",
                higher_is="sharper",
                doc="Frobenius norm, root of the mean of |Hz|^2; standard error over probes by the delta method",
            ),
            blocks_trace=Quantity(
                value=found.blocks,
                numerical_error=np.hypot(found.blocks_error, rounding) if finite else None,
                dims=("layer",),
                labels={"layer": tuple(blocks)},
                doc="trace of each layer's diagonal block, from the same probes; they add up to the trace",
            ),
            probes=Quantity(value=scalar(found.probes), drawn="detail", doc="probes that the means are over"),
        )

    def _notes(self, problem: "Problem", found: Any) -> tuple[str, ...]:
        method = {
            "exact": "method: entry by entry, exact",
            "hutchinson": f"method: Hutchinson, {found.probes} sign probes",
            "hutch++": f"method: Hutch++, {found.sketch} directions deflated, {found.probes} sign probes",
        }
        notes = [method[found.method]]
        if found.status is Status.BUDGET_SPENT:
            notes.append("not converged: the products ran out; raise `--max-matvecs`; the error stated still holds")
        if self.gauss_newton:
            notes.append("operator: Gauss-Newton, not the Hessian; no sampling error is measured for it")
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return tuple(notes)


def _listening(operator: "Operator", problem: "Problem", along: list[Array], probes: int) -> "Operator":
    """Return the same operator, whose first products also write v'H_i v of every sample to `along`."""
    from gapscope.measure.operators import Operator

    def matvec(v: Any) -> Any:
        if len(along) >= probes:
            return operator.matvec(v)
        product, curvature = problem.curvature_along(v)
        along.append(curvature)
        return product

    return Operator(operator.size, matvec, operator.dtype, operator.device)


def _over_samples(along: list[Array], *, exact: bool) -> tuple[Array, Any]:
    """Return tr(H_i) of every sample (N,) and the standard error of their mean over the data.

    c_ip = z_p'H_i z_p = tr(H_i) + noise.  The same probe serves all samples, so columns are centred; the spread of the
    row means over samples is then Var tr(H_i) + Var(noise) / p, and the spread within rows says Var(noise).
    """
    table = np.asarray(along)  # (p, N)
    probes, samples = table.shape
    per_sample: Array = table.sum(0) if exact else table.mean(0)
    if samples < 2:
        return per_sample, None
    spread = float(per_sample.var(ddof=1))
    if not exact and probes > 1:
        rest = table - table.mean(1, keepdims=True)
        noise = float(((rest - rest.mean(0)) ** 2).sum()) / ((probes - 1) * (samples - 1))
        if spread > noise / probes:  # else too few samples to tell them apart: the larger one is stated
            spread -= noise / probes
    return per_sample, np.sqrt(spread / samples)
