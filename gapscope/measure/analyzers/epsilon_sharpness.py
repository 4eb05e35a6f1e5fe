"""Keskar et al. 2017, metric 2.1."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from gapscope.results import CHUNKS, Array, Quantity, Result, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.ascent import Maximum

SOLVERS = ("keskar", "ascent")
RITZ_STEPS = 4  # products for a start vector when `eigenvalues` did not run: its sign pattern is all that matters


@dataclass(frozen=True, kw_only=True)
class EpsilonSharpnessResult(Result):
    """What `epsilon-sharpness` measures; the manifold's value is the mean over the draws of A."""

    full: Quantity
    manifold: Quantity | None
    manifold_draws: Quantity | None
    full_evaluations: Quantity
    full_iterations: Quantity
    manifold_evaluations: Quantity | None


@dataclass(frozen=True)
class EpsilonSharpness:
    """Keskar's epsilon-sharpness (metric 2.1), in the full space and on random manifolds.

    100 (max f(x + A y) - f(x)) / (1 + f(x)) over the box |y_i| <= epsilon (|(A+ x)_i| + 1), f the mean loss.
    Solver `keskar`: 10 iterations of L-BFGS-B, which is the published metric by definition.
    Solver `ascent`: a stronger maximizer, a quantity of its own.  Not invariant to rescaling the layers.
    """

    name: ClassVar[str] = "epsilon-sharpness"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    epsilons: Annotated[tuple[float, ...], "half-widths of the box, relative to |x| + 1"] = (1e-3, 5e-4)
    solvers: Annotated[tuple[str, ...], "`keskar`, `ascent` or both"] = SOLVERS
    manifold: Annotated[int, "dimension p of the random manifold; 0 leaves it out"] = 100
    draws: Annotated[int, "draws of the random matrix A, N(0, 1) entries"] = 3

    def __call__(self, context: "Context") -> EpsilonSharpnessResult:
        """Maximize the loss over every box."""
        self._refuse_nonsense()
        problem = context.problem()
        dimension = self.manifold if problem.size > self.manifold else 0
        spaces = 1 + (self.draws if dimension else 0)
        context.monitor.begin("epsilon-sharpness", 11 * len(self.epsilons) * len(self.solvers) * spaces)
        base = problem.losses()
        vector, matvecs = self._start_vector(context, problem)
        search = _Search(self, context, problem, base, float(base.mean()), vector)
        full = search.maximize("full", lambda y: y, lambda g: g, problem.theta)
        drawn = [search.on_manifold(dimension, draw) for draw in range(self.draws)] if dimension else []
        dims, labels = ("solver", "epsilon"), {"solver": self.solvers, "epsilon": tuple(map(label, self.epsilons))}
        notes = [
            f"random manifold p = {dimension}: {self.draws} draws of A with N(0, 1) entries "
            "(the paper does not give their distribution)"
            if dimension
            else "no random manifold" + (f": theta has {problem.size} entries, no more than p" if self.manifold else "")
        ]
        if self.manifold and not dimension:
            notes.append("the random manifold was left out")
        statuses = [m.status for found in (full, *drawn) for m in found.maxima]
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        notes += sorted({f"keskar, L-BFGS-B: {m.message}" for f in (full, *drawn) for m in f.maxima if m.status is Status.EXACT})

        def counts(found: "_Found", what: str) -> Array:
            return np.array([float(getattr(m, what)) for m in found.maxima]).reshape(len(self.solvers), len(self.epsilons))

        def quantity(value: Array, doc: str, **more: Any) -> Quantity:
            return Quantity(value=value, doc=doc, dims=dims, labels=labels, **more)

        shown: dict[str, Any] = {"unit": "%", "better": "lower", "higher_is": "sharper"}
        values = np.stack([found.value for found in drawn]) if drawn else None
        return EpsilonSharpnessResult(
            status=_worst(statuses),
            matvecs=matvecs,
            notes=tuple(notes),
            full=quantity(
                full.value,
                "100 (max f - f(x)) / (1 + f(x)) in the full space; the error of `ascent` is what a first-order step still adds",
                numerical_error=full.error,
                sampling_error=full.sampling,
                chunks=full.chunks,
                **shown,
            ),
            manifold=None
            if values is None
            else quantity(
                values.mean(axis=0),
                f"the same on random manifolds of dimension {dimension}, mean over draws of A",
                # the spread over draws shrinks with more draws on the same data
                numerical_error=values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None,
                sampling_error=np.mean([f.sampling for f in drawn], axis=0),
                chunks=None if drawn[0].chunks is None else np.mean([f.chunks for f in drawn if f.chunks is not None], axis=0),
                **shown,
            ),
            manifold_draws=None
            if values is None
            else Quantity(
                value=values,
                dims=("draw", *dims),
                labels={"draw": tuple(map(str, range(self.draws))), **labels},
                unit="%",
                doc="epsilon-sharpness for every draw of A",
            ),
            full_evaluations=quantity(counts(full, "evaluations"), "gradients of the loss that the maximum took"),
            full_iterations=quantity(counts(full, "iterations"), "iterations of the solver"),
            manifold_evaluations=quantity(sum((counts(f, "evaluations") for f in drawn), np.zeros(())), "the same, all draws")
            if drawn
            else None,
        )

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError, did_you_mean

        for solver in self.solvers:
            if solver not in SOLVERS:
                raise UsageError(f"There is no solver `{solver}`. Expected {' or '.join(SOLVERS)}.{did_you_mean(solver, SOLVERS)}")
        if not self.solvers or not self.epsilons or min(self.epsilons) <= 0 or self.draws < 1 or self.manifold < 0:
            raise UsageError(
                f"epsilon-sharpness got epsilons={list(self.epsilons)}, solvers={list(self.solvers)}, draws={self.draws}, "
                f"manifold={self.manifold}. Expected positive epsilons, at least one solver, draws >= 1, manifold >= 0."
            )

    def _start_vector(self, context: "Context", problem: "Problem") -> "tuple[Tensor | None, int]":
        """Return a top Ritz vector and the products it took: none where `eigenvalues` ran in the same call."""
        if "ascent" not in self.solvers:
            return None, 0
        from gapscope.measure.solvers.lanczos import decompose, gaussian_start

        ready = context.finished("eigenvalues")
        if ready is not None and ready.status is not Status.NONFINITE:
            return getattr(ready, "vector"), 0  # noqa: B009  (only Results of `eigenvalues` have one)
        operator = problem.hessian()
        krylov = decompose(operator, gaussian_start(operator, context.generator("epsilon-sharpness/start")), RITZ_STEPS)
        return krylov.top_vector(), krylov.matvecs


@dataclass(frozen=True)
class _Found:
    """The maxima of one space, solvers first, then epsilons; arrays have the shape (solvers, epsilons)."""

    maxima: "list[Maximum]"
    value: Array
    error: Array
    sampling: Array
    chunks: Array | None


@dataclass(frozen=True)
class _Search:
    """Everything that the maximizations of one problem share."""

    settings: EpsilonSharpness
    context: "Context"
    problem: "Problem"
    base: Array  # (N,) losses at x
    start: float
    vector: "Tensor | None"

    def on_manifold(self, dimension: int, draw: int) -> _Found:
        from gapscope.measure.manifold import RandomManifold

        problem = self.problem
        seed = int(self.context.generator(f"epsilon-sharpness/manifold/{draw}").initial_seed())
        matrix = RandomManifold(problem.size, dimension, seed, problem.device, problem.dtype, problem.memory_budget // 4)
        return self.maximize(f"manifold/{draw}", matrix.lift, matrix.project, matrix.coordinates(problem.theta))

    def maximize(
        self, purpose: str, lift: "Callable[[Tensor], Tensor]", project: "Callable[[Tensor], Tensor]", center: "Tensor"
    ) -> _Found:
        """Maximize over x + lift(y) for every solver and epsilon; `center` is A+ x."""
        from gapscope.measure.solvers import ascent

        def objective(y: "Tensor") -> "tuple[float, Tensor]":
            value, gradient = self.problem.loss_and_gradient(self.problem.theta + lift(y))
            self.context.monitor.say(f"{purpose}  loss {value:.4g} (at x: {self.start:.4g})")
            return value, project(gradient)

        maxima, value, error, sampling, chunks = [], [], [], [], []
        for solver in self.settings.solvers:
            for epsilon in self.settings.epsilons:
                radius = epsilon * (center.abs() + 1)
                if solver == "keskar":
                    rng = self.context.generator(f"epsilon-sharpness/keskar/{purpose}/{epsilon}")
                    found = ascent.keskar(objective, radius, self.start, rng)
                else:
                    assert self.vector is not None
                    found = ascent.ascent(objective, radius, self.start, project(self.vector))
                there = self.problem.losses(self.problem.theta + lift(found.point))
                phi, spread, parts = _phi(self.base, there, self.problem.chunk_means)
                maxima.append(found)
                value.append(phi)
                sampling.append(spread)
                error.append(0.0 if solver == "keskar" else 100 * max(found.gap, 0.0) / (1 + self.base.mean()))
                chunks.append(parts)
        shape = (len(self.settings.solvers), len(self.settings.epsilons))
        stacked = None if any(part is None for part in chunks) else np.stack(chunks, axis=1)  # type: ignore[arg-type]
        return _Found(
            maxima,
            np.array(value).reshape(shape),
            np.array(error).reshape(shape),
            np.array(sampling).reshape(shape),
            None if stacked is None else stacked.reshape(CHUNKS, *shape),
        )


def label(epsilon: float) -> str:
    """Write 0.001 as `1e-3`."""
    return np.format_float_scientific(epsilon, trim="-", exp_digits=1)


def _phi(
    base: Array, there: Array, chunk_means: "Callable[[Array], Array | None]"
) -> tuple[float, float, Array | None]:
    """Return the metric from the losses at x and at the maximizer, its standard error over samples, and per chunk.

    phi = 100 mean(d) / (1 + mean(l)), d the differences; the error is that of the linearized ratio.
    """
    difference, scale = there - base, 1 + base.mean()
    phi = 100 * float(difference.mean()) / scale
    linear = 100 * (difference - difference.mean()) / scale - phi * (base - base.mean()) / scale
    error = float(linear.std(ddof=1) / np.sqrt(len(base))) if len(base) > 1 else float("nan")
    return phi, error, chunk_means(phi + linear)


def _worst(statuses: list[Status]) -> Status:
    for status in (Status.NONFINITE, Status.BUDGET_SPENT):
        if status in statuses:
            return status
    return Status.CONVERGED
