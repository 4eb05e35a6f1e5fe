"""Curvature of every layer and SGD's steps in it (after Gao and Zhong 2020; the definitions are gapscope's own)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, one_sided

if TYPE_CHECKING:
    from torch import Tensor

    from gapscope.measure.blocks import Blocks
    from gapscope.measure.context import Context
    from gapscope.measure.entries import Entries, Way
    from gapscope.measure.problem import Problem

TOP_TOLERANCE = 0.05
TOP_PRODUCTS = 10  # that the top eigenvalue of a layer takes, mostly
LONG_WORK = 10_000_000_000  # products x samples x parameters


@dataclass(frozen=True, kw_only=True)
class CurvatureResult(Result):
    """What `curvature` measures, each by layer."""

    median: Quantity
    top: Quantity | None
    step_length: Quantity | None
    loss_step: Quantity | None
    zero_fraction: Quantity
    trace: Quantity | None
    lower_quartile: Quantity
    upper_quartile: Quantity
    noise_share: Quantity | None
    gradient_norm: Quantity


@dataclass(frozen=True)
class Curvature:
    """Curvature per parameter in every layer: median and quartiles of |h_i|, the top eigenvalue of the layer's block of
    the Hessian, and the length and effect of an SGD step.

    The quantities are those of Gao and Zhong (2020), whose equations are not public: the definitions are gapscope's
    own. h_i is the diagonal of the Hessian: without noise for networks that are piecewise linear in every parameter
    (exact), by random probes (hutchinson), or whichever of the two, or both together, the network asks for (auto);
    |change of the gradient| / |change of the weight| on a step of stated length along the negative gradient, which
    mixes in what the step changes elsewhere (secant); or |gradient| / |weight| (ratio). Medians are over non-zero
    entries: dead units have none. Not invariant to rescaling the layers. The noise of probes lifts the median, so its
    error says how much, and the status where the noise is larger.
    """

    # Cost in gradients on ResNet-20, 256 random images: 1 to ask which parameters bend, 13 for the exact diagonal (100
    # products of 2.4 left all 39 layers noise-dominated); 226 for the top eigenvalues (917 by whole products); 198 for
    # the loss step.  Multilayer perceptrons: up to 30 an output for the exact part, as N x n numbers are written.
    # Source: abstract of Gao and Zhong 2020 (arXiv 2012.08795); definitions.md, 2; SGD's noise as in step_length's doc.

    name: ClassVar[str] = "curvature"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    estimator: Annotated[
        Literal["auto", "exact", "hutchinson", "secant", "ratio"], "how curvature per parameter is found"
    ] = "auto"
    tolerance: Annotated[float, "error of every layer's median, relative to it, where probes are used"] = 0.25
    max_matvecs: Annotated[int, "budget of products for the diagonal, where probes are used"] = 100
    directions: Annotated[int, "hutchinson: Lanczos directions whose share of the diagonal is exact; 0 for none"] = 40
    top_matvecs: Annotated[int, "budget of products for each layer's top eigenvalue; 0 for none"] = 14
    secant_length: Annotated[float, "length of the secant's step, relative to |theta|"] = 1e-3

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data this takes: 10 products for every layer's top eigenvalue."""
        from gapscope.measure.entries import way_for
        from gapscope.measure.steps import probes_for, recorded_recipe

        way = way_for(problem, self.estimator).name
        steps = probes_for(len(problem.parameters.blocks())) if recorded_recipe(problem.origin.training)[0] else 0
        return {
            "gradient": 1 + 2 * (way == "secant"),
            "gauss_newton_diagonal": int(way in ("exact", "corrected")),
            "product": self.max_matvecs * (way in ("hutchinson", "corrected")),
            "gradient_squares": int(steps > 0),
            "weighted_gradient": steps,
            "blocks": steps + min(TOP_PRODUCTS, self.top_matvecs),
        }

    def __call__(self, context: "Context") -> CurvatureResult:
        """Measure every layer on the measured split."""
        from gapscope.measure.entries import way_for
        from gapscope.measure.operators import length
        from gapscope.measure.steps import recorded_recipe, sgd_steps

        self._refuse_nonsense()
        problem = context.problem()
        blocks = problem.parameters.blocks()
        names = tuple(blocks)
        way = way_for(problem, self.estimator)
        self._announce(context, problem, way.name)
        gradient = problem.gradient()
        hessian = problem.hessian_blocks()  # one for everything: its graphs are kept once
        measured = self._entries(context, hessian, gradient, way)
        tops = self._tops(context, problem, hessian) if self.top_matvecs else None
        recipe, said = recorded_recipe(context.training())
        steps, refused = sgd_steps(context, hessian.apart(), gradient, recipe) if recipe else (None, ())
        del hessian  # with it go the kept graphs
        said += refused
        spent = measured.matvecs + (tops.matvecs if tops else 0) + (steps.matvecs if steps else 0)
        norms = np.asarray([float(length(gradient[where])) for where in blocks.values()])
        finite = np.isfinite(norms).all() and (tops is None or np.isfinite(tops.values).all())

        def each(value: Array, doc: str, **more: Any) -> Quantity:
            return Quantity(value=value, doc=doc, dims=("layer",), labels={"layer": names}, **more)

        def quartile(i: int, doc: str, **more: Any) -> Quantity:
            error, spread = (
                None if errors is None else _known(errors[:, i]) for errors in (measured.errors, measured.sampling)
            )
            doc = f"{doc}; {measured.doc}"
            return each(measured.quartiles[:, i], doc, numerical_error=error, sampling_error=spread, **more)

        return CurvatureResult(
            status=_status(measured.status, tops) if finite else Status.NONFINITE,
            matvecs=spent,
            notes=(*measured.notes, *self._notes(problem, measured, tops, names), *said),
            median=quartile(1, "median over the layer's non-zero entries", drawn="strip", higher_is="more curved"),
            zero_fraction=each(measured.zeros, "fraction of entries left out as exactly zero", contrast="difference"),
            top=each(
                tops.values,
                "largest eigenvalue of the layer's diagonal block of the Hessian; numerical error: the distance "
                "to a bound that holds with probability 0.999",
                numerical_error=_known(tops.errors),
                bound=one_sided("lower", tops.values, problem.derivatives.error),
            )
            if tops
            else None,
            lower_quartile=quartile(0, "lower quartile"),
            upper_quartile=quartile(2, "upper quartile"),
            noise_share=each(
                measured.noise_share,
                "median error of an entry over the median of |h_i|: above 1 the probes' noise dominates",
                contrast="difference",
            )
            if measured.noise_share is not None
            else None,
            trace=each(
                measured.traces,
                f"trace of the layer's diagonal block; {measured.trace_doc}",
                numerical_error=None if measured.trace_errors is None else _known(measured.trace_errors),
                sampling_error=measured.trace_sampling,
                contrast="difference",
            )
            if measured.traces is not None
            else None,
            gradient_norm=each(norms, "norm of the layer's part of the full gradient"),
            step_length=each(
                steps.length,
                "eta sqrt(|G|^2 + tr(Sigma) / B): root mean square of the layer's SGD step at the recorded learning "
                "rate eta and batch size B; Sigma is the covariance of the samples' gradients",
            )
            if steps
            else None,
            loss_step=each(
                steps.loss,
                "-eta |G|^2 + eta^2 / 2 (G'HG + tr(H Sigma) / B), H the layer's block: expected change of the loss by "
                "the layer's step, to second order; numerical error: standard error over random signs",
                numerical_error=_known(steps.loss_error),
                contrast="difference",
            )
            if steps
            else None,
        )

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError

        sound = 0 < self.tolerance < 1 and self.max_matvecs >= 1 and self.directions >= 0
        if not sound or 0 < self.top_matvecs < 3 or self.top_matvecs < 0 or not 0 < self.secant_length < math.inf:
            raise UsageError(
                f"curvature got tolerance={self.tolerance}, max_matvecs={self.max_matvecs}, "
                f"directions={self.directions}, top_matvecs={self.top_matvecs}, secant_length={self.secant_length}. "
                "Expected 0 < tolerance < 1, max_matvecs of 1 or more, directions of 0 or more, top_matvecs of 0 or of "
                "3 or more (two products verify what the others find), and a positive secant_length. Mend the first "
                "that is not."
            )

    def _announce(self, context: "Context", problem: "Problem", way: str) -> None:
        from gapscope.measure.steps import probes_for

        layers = len(problem.parameters.blocks())
        diagonal = self.max_matvecs if way in ("hutchinson", "corrected") else 0
        probes = probes_for(layers)
        products = diagonal + self.top_matvecs * layers + probes
        context.monitor.begin("curvature", products)
        beside = " beside a pass for every output" if way in ("exact", "corrected") else ""
        if products * problem.samples * problem.size > LONG_WORK:
            context.monitor.plan(
                f"curvature: up to {products:,} Hessian-vector products: {diagonal} for the diagonal{beside}, "
                f"{self.top_matvecs} for the top eigenvalue of each of {layers} layers (`--top-matvecs 0` leaves them "
                f"out), {probes} for the loss step"
            )

    def _entries(self, context: "Context", hessian: "Blocks", gradient: "Tensor", way: "Way") -> "Entries":
        from gapscope.measure import entries

        probing = entries.Probing(self.tolerance, self.max_matvecs, self.directions)
        if way.name == "exact":
            return entries.exact(context.problem())
        if way.name == "corrected":
            return entries.corrected(context, probing, way.bent)
        if way.name == "hutchinson":
            return entries.hutchinson(context, hessian.whole(), probing, way.why)
        if way.name == "ratio":
            return entries.ratio(context.problem(), gradient)
        return entries.secant(context.problem(), gradient, self.secant_length)

    def _tops(self, context: "Context", problem: "Problem", hessian: "Blocks") -> "_Tops":
        from gapscope.measure.solvers.lanczos import Room, Stopping, extreme_eigenpairs

        stopping = Stopping(TOP_TOLERANCE, 1e-3, self.top_matvecs)
        blocks = problem.parameters.blocks()
        rows = []
        for number, name in enumerate(blocks, 1):
            pairs = extreme_eigenpairs(
                hessian.layer(name),
                1,
                context.generator(f"curvature/{name}"),
                stopping=stopping,
                room=Room(problem.memory_budget // 2, host=problem.memory_budget),
            )
            top = float(pairs.values[0])
            # products of a layer's block are off by no more than those of the whole
            rows.append((top, pairs.upper - top + problem.derivatives.error, pairs.matvecs))
            context.monitor.say(f"top eigenvalue of {name} {top:.3g}, layer {number} of {len(blocks)}")
        table = np.asarray(rows)
        return _Tops(table[:, 0], table[:, 1], int(table[:, 2].sum()))

    def _notes(
        self, problem: "Problem", measured: "Entries", tops: "_Tops | None", names: Sequence[str]
    ) -> tuple[str, ...]:
        from gapscope.measure.entries import few

        notes = []
        empty = [name for name, fraction in zip(names, measured.zeros, strict=True) if fraction == 1]
        if empty:
            notes.append(f"no entry is left, so there is no median: {few(empty)}")
        if tops is not None:
            loose = [name for name, wide in zip(names, tops.loose, strict=True) if wide]
            if loose:
                notes.append(
                    f"top eigenvalue not known to {200 * TOP_TOLERANCE:.0f} %: {few(loose)}; raise `--top-matvecs`"
                )
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return tuple(notes)


@dataclass(frozen=True)
class _Tops:
    values: Array  # (layers,)
    errors: Array  # (layers,)
    matvecs: int

    @property
    def loose(self) -> list[bool]:
        """Say which are not known to twice the tolerance (layers,)."""
        return [bool(wide) for wide in self.errors > 2 * TOP_TOLERANCE * np.abs(self.values)]


def _status(of_entries: Status, tops: "_Tops | None") -> Status:
    """Return how the whole ended: no better than the eigenvalues, which are iterated."""
    if tops is None or of_entries not in (Status.EXACT, Status.CONVERGED):
        return of_entries
    return Status.BUDGET_SPENT if any(tops.loose) else Status.CONVERGED


def _known(error: Array) -> Array | None:
    """Return an error, or None where it is nowhere known."""
    return None if np.isnan(error).all() else error
