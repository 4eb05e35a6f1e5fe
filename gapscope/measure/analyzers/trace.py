"""Trace and Frobenius norm of the Hessian."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.operators import Operator
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.hutchinson import TraceEstimate
    from gapscope.measure.traces import Traces

PAIRED = 4  # probes that are also asked sample by sample
PILOTS = 10  # as many as hutchinson.PILOT


@dataclass(frozen=True, kw_only=True)
class TraceResult(Result):
    """What `trace` measures."""

    trace: Quantity
    frobenius: Quantity | None
    blocks_trace: Quantity
    probes: Quantity


@dataclass(frozen=True)
class Trace:
    """Trace and Frobenius norm of the Hessian of the loss, and the trace of every layer's block, from random signs.

    Where the network is piecewise linear in every parameter the trace is that of the Gauss-Newton matrix, and comes
    from random gradients of pieces of the data; 10 products with random vectors give the Frobenius norm.  Elsewhere
    Hutchinson's estimator, going on as Hutch++ where the probes so far promise the tolerance sooner that way; the first
    4 probes cost about twice a plain product each, because they also give the error over the data.  Stops when the
    standard error of the trace is within the tolerance of the larger of |trace| and |H|_F (of |trace| where that norm
    is not measured).  Not invariant to rescaling the layers.
    """

    name: ClassVar[str] = "trace"
    version: ClassVar[str] = "2"  # "1": the Frobenius norm was from as many probes as the trace
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    tolerance: Annotated[float, "standard error of the trace, relative to the larger of |trace| and |H|_F"] = 0.05
    max_matvecs: Annotated[int, "budget of Hessian-vector products"] = 200
    gauss_newton: Annotated[bool, "measure the Gauss-Newton matrix instead of the Hessian"] = False
    frobenius: Annotated[bool, "the Frobenius norm, too: 10 products where the trace needs none"] = True

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data this takes: 50 products where they are needed."""
        if self._from_pieces(problem):
            return {"product": PILOTS * self.frobenius, "gradient": 10}
        products = min(self.max_matvecs, 50)
        along = 0 if self.gauss_newton else min(PAIRED, products)
        return {"product": products - along, "curvature_along": along}

    def _from_pieces(self, problem: "Problem") -> bool:
        from gapscope.measure import traces

        return problem.size > PILOTS and (self.gauss_newton or traces.applies(problem))

    def memory(self, problem: "Problem") -> int:
        """Return about how many bytes this takes above the loaded model: kept graphs, that of a micro-batch, vectors.

        A third of the products at most are deflated, four vectors each, within half the budget.
        """
        from gapscope.measure.allocation import idle_beside

        vector = problem.size * problem.theta.element_size()
        graphs = min(problem.memory_budget // 2, problem.samples * problem.graph_bytes_per_sample)
        graphs *= self.frobenius or not self._from_pieces(problem)
        sketch = 0 if self._from_pieces(problem) else min(problem.memory_budget // 2, 4 * 20 * vector)
        graphs += idle_beside(graphs) if problem.device.type == "cpu" else 0
        return graphs + problem.micro_batch * problem.graph_bytes_per_sample + sketch + 8 * vector

    def __call__(self, context: "Context") -> TraceResult:
        """Probe the measured split."""
        from gapscope.errors import UsageError
        from gapscope.measure.shares import evened
        from gapscope.measure.solvers.hutchinson import PILOT

        if not 0 < self.tolerance < 1 or self.max_matvecs < PILOT:
            raise UsageError(
                f"trace got tolerance={self.tolerance}, max_matvecs={self.max_matvecs}. Expected 0 < tolerance < 1 and "
                f"max_matvecs of {PILOT} or more: with fewer probes no error is known."
            )
        problem, monitor = context.problem(), context.monitor
        every = problem.size <= PILOT  # entry by entry then, and exact
        blocks = problem.parameters.blocks()
        monitor.begin("trace", 20)
        found, along = self._found(context, problem)
        finite = found.status is not Status.NONFINITE
        # of differences: a sign probe is sqrt(n) long, and their errors point anywhere
        rounding = np.hypot(found.rounding, problem.size**0.5 * problem.derivatives.error)
        along = [evened(problem, one) for one in along]
        per_sample, sampling_error = _over_samples(along, exact=every) if along and finite else (None, None)
        chunks = problem.chunk_means(per_sample + found.trace - per_sample.mean()) if per_sample is not None else None
        return TraceResult(
            status=found.status,
            matvecs=found.matvecs,
            notes=self._notes(problem, found, along),
            trace=Quantity(
                value=scalar(found.trace),
                numerical_error=np.hypot(found.trace_error, rounding) if finite else None,
                sampling_error=sampling_error,
                chunks=chunks,
                better="lower",
                higher_is="sharper",
                doc="trace of the Hessian; numerical error: standard error over probes, and rounding"
                + (
                    f"; error over the data and chunks from the samples' shares in {len(along)} probes" if along else ""
                ),
            ),
            frobenius=Quantity(
                value=scalar(found.frobenius),
                numerical_error=np.hypot(found.frobenius_error, rounding) if finite else None,
                better="lower",
                higher_is="sharper",
                doc="Frobenius norm, root of the mean of |Hz|^2; standard error over probes by the delta method",
            )
            if self.frobenius
            else None,
            blocks_trace=Quantity(
                value=found.blocks,
                numerical_error=np.hypot(found.blocks_error, rounding) if finite else None,
                dims=("layer",),
                labels={"layer": tuple(blocks)},
                doc="trace of each layer's diagonal block, from the same probes; they add up to the trace",
            ),
            probes=Quantity(value=scalar(found.probes), drawn="detail", doc="probes that the means are over"),
        )

    def _found(self, context: "Context", problem: "Problem") -> "tuple[TraceEstimate, list[Array]]":
        """Return the estimates, and tr(H_i) of every sample as single probes have it."""
        from gapscope.errors import ProblemError
        from gapscope.measure import traces
        from gapscope.measure.solvers.hutchinson import PILOT, estimate_trace

        along: list[Array] = []
        every, rng, say = problem.size <= PILOT, context.generator("trace"), context.monitor.say
        operator = problem.gauss_newton() if self.gauss_newton else problem.hessian()

        def watch(spent: int, value: float, error: float) -> None:
            say(f"product {spent}  trace {value:.4g} ± {error:.1g}")

        if not every and (self.gauss_newton or traces.applies(problem)):
            pilot = None
            if self.frobenius:
                pilot = estimate_trace(operator, rng, tolerance=1.0, max_matvecs=PILOT, sketch_bytes=0, watch=watch)
            del operator  # with it go the kept graphs
            least = 0.0 if pilot is None else pilot.frobenius
            try:
                summed = traces.estimate(
                    problem,
                    rng,
                    tolerance=self.tolerance,
                    least=least,
                    most=self.max_matvecs,
                    watch=lambda spent, value, error: say(f"pass {spent}  trace {value:.4g} ± {error:.1g}"),
                )
                close = summed.error <= self.tolerance * max(abs(summed.trace), least)
                return _joined(pilot, summed, problem, close=close)
            except ProblemError:  # the loss is not convex in the outputs, or samples have none of their own
                operator = problem.gauss_newton() if self.gauss_newton else problem.hessian()
        if not self.gauss_newton:
            operator = _listening(operator, problem, along, problem.size if every else PAIRED)
        found = estimate_trace(
            operator,
            rng,
            blocks=problem.parameters.blocks(),
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            sketch_bytes=problem.memory_budget // 2,
            watch=watch,
        )
        return found, along

    def _notes(self, problem: "Problem", found: Any, along: list[Array]) -> tuple[str, ...]:
        method = {
            "exact": "method: entry by entry, exact",
            "gradients": f"method: {found.probes} random gradients of every piece of the data",
            "hutchinson": f"method: Hutchinson, {found.probes} sign probes",
            "hutch++": f"method: Hutch++, {found.sketch} directions deflated, {found.probes} sign probes",
        }
        notes = [method[found.method]]
        if found.method == "gradients" and not self.gauss_newton:
            notes.append("the network is piecewise linear in every parameter: the trace is that of Gauss-Newton")
        if found.status is Status.BUDGET_SPENT:
            notes.append("not converged: the products ran out; raise `--max-matvecs`; the error stated still holds")
        if self.gauss_newton:
            unknown = "" if along else "; no sampling error is measured for it"
            notes.append("operator: Gauss-Newton, not the Hessian" + unknown)
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return tuple(notes)


def _joined(
    pilot: "TraceEstimate | None", found: "Traces", problem: "Problem", *, close: bool
) -> "tuple[TraceEstimate, list[Array]]":
    """Return the Frobenius norm of the one, if there is one, and the traces of the other."""
    import torch

    from gapscope.measure.solvers.hutchinson import TraceEstimate

    finite = np.isfinite(found.trace) and (pilot is None or pilot.status is not Status.NONFINITE)
    converged = Status.CONVERGED if close else Status.BUDGET_SPENT
    joined = TraceEstimate(
        trace=found.trace if finite else np.nan,
        trace_error=found.error,
        frobenius=np.nan if pilot is None else pilot.frobenius,
        frobenius_error=np.nan if pilot is None else pilot.frobenius_error,
        blocks=found.blocks if finite else np.full(len(found.blocks), np.nan),
        blocks_error=found.blocks_error,
        probes=2 * found.passes,
        sketch=0,
        matvecs=0 if pilot is None else pilot.matvecs,
        method="gradients",
        status=converged if finite else Status.NONFINITE,
        # squares of entries, each off by some epsilons, of which none is taken away from another
        rounding=10 * torch.finfo(problem.dtype).eps * found.trace if pilot is None else pilot.rounding,
    )
    return joined, list(found.shares) if finite else []


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
