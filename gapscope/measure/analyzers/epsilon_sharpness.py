"""Keskar et al. 2017, metric 2.1."""

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from gapscope.results import CHUNKS, Array, Quantity, Result, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.ascent import Maximum

SOLVERS = ("keskar", "ascent")
JUDGED: dict[str, Any] = {"unit": "%", "better": "lower", "higher_is": "sharper"}
KESKAR, ASCENT = 11, 7  # gradients for a box, about: 6 to 11 in the full space of digits, 6 or 7 on manifolds


@dataclass(frozen=True, kw_only=True)
class EpsilonSharpnessResult(Result):
    """What `epsilon-sharpness` measures; the manifold's value is the mean over the draws of A."""

    full: Quantity
    manifold: Quantity | None = None
    manifold_draws: Quantity | None = None
    full_evaluations: Quantity
    full_iterations: Quantity
    manifold_evaluations: Quantity | None = None


@dataclass(frozen=True)
class EpsilonSharpness:
    """Keskar's epsilon-sharpness (metric 2.1), in the full space and on random manifolds.

    100 (max f(x + A y) - f(x)) / (1 + f(x)) over the box |y_i| <= epsilon (|(A+ x)_i| + 1), f the mean loss.
    Solver `keskar`: 10 iterations of L-BFGS-B, which is the published metric by definition.
    Solver `ascent`: a stronger maximizer, a quantity of its own, never below `keskar` where both run.  Gradients alone
    are asked for, no second derivatives.  Not invariant to rescaling the layers.
    """

    name: ClassVar[str] = "epsilon-sharpness"
    version: ClassVar[str] = "2"  # "1": `ascent` began at a Ritz vector, and ended lower
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    second_order: ClassVar[bool] = False

    epsilons: Annotated[tuple[float, ...], "half-widths of the box, relative to |x| + 1"] = (1e-3, 5e-4)
    solvers: Annotated[tuple[str, ...], "`keskar`, `ascent` or both"] = SOLVERS
    manifold: Annotated[int, "dimension p of the random manifold; 0 leaves it out"] = 100
    draws: Annotated[int, "draws of the random matrix A, N(0, 1) entries"] = 3

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data this takes, and how many numbers of the manifolds are used."""
        from gapscope.measure import manifold

        draws, spaces = self._draws(problem), 1 + self._draws(problem)
        boxes = len(self.epsilons) * len(self.solvers)
        each = KESKAR * ("keskar" in self.solvers) + ASCENT * ("ascent" in self.solvers)
        steps = len(self.epsilons) * each
        found = {"gradient": steps * spaces + 1, "outcomes": boxes * spaces + 1}
        return found | manifold.uses(problem, self.manifold, draws, 2 * steps + boxes + 2)

    def memory(self, problem: "Problem") -> int:
        """Return about how many bytes this takes above the loaded model, the graph of a micro-batch included.

        L-BFGS-B works on 31 vectors in float64 on the host, `ascent` on 11; a gradient takes 5 and is of the same size
        in any of them.  A manifold's matrix is kept where a quarter of the budget holds it, and counted in float64 in
        blocks.
        """
        from gapscope.measure import manifold

        vector = problem.size * problem.theta.element_size()
        host = 31 * 8 * problem.size if "keskar" in self.solvers else 0
        drawn = manifold.memory(problem, self.manifold) if self._draws(problem) else 0
        graph = problem.micro_batch * problem.graph_bytes_per_sample
        return max(host + 5 * vector, 16 * vector, 8 * vector + drawn) + graph

    def _draws(self, problem: "Problem") -> int:
        return self.draws if 0 < self.manifold < problem.size else 0

    def __call__(self, context: "Context") -> EpsilonSharpnessResult:
        """Maximize the loss over every box."""
        self._refuse_nonsense()
        problem = context.problem()
        draws = self._draws(problem)
        context.monitor.begin("epsilon-sharpness", 9 * len(self.epsilons) * len(self.solvers) * (1 + draws))
        base = problem.losses()
        _refuse_negative(float(base.mean()))
        search = _Search(self, context, problem, base, float(base.mean()))
        slope, start = search.slope()
        full = search.maximize("full", lambda y: y, lambda g: g, problem.theta, [start], slope)
        # the maximum's gradient less that at x is the Hessian times a vertex, about: a step of the power iteration
        bends = (maximum.slope - slope for maximum in full.maxima if maximum.slope is not None)
        bend = next((one for one in bends if bool(one.any())), start)  # none where the maximum is x itself
        drawn = [search.on_manifold(draw, bend) for draw in range(draws)]
        return EpsilonSharpnessResult(
            status=_worst([maximum.status for found in (full, *drawn) for maximum in found.maxima]),
            notes=tuple(self._notes(problem, full, drawn)),
            full=self._quantity(
                full.value,
                "100 (max f - f(x)) / (1 + f(x)) in the full space; numerical error: rounding, and for `ascent` what a "
                "first-order step adds; `keskar` also moves with its random start (another `--seed`)",
                numerical_error=full.error,
                sampling_error=full.sampling,
                chunks=full.chunks,
                **JUDGED,
            ),
            full_evaluations=self._quantity(full.count("evaluations"), "gradients of the loss that each maximum took"),
            full_iterations=self._quantity(full.count("iterations"), "iterations of the solver"),
            **self._manifolds(drawn),
        )

    def _manifolds(self, drawn: "list[_Found]") -> dict[str, Any]:
        from gapscope.measure.solvers.hutchinson import caution

        if not drawn:
            return {}
        values = np.stack([found.value for found in drawn])
        chunks = [found.chunks for found in drawn if found.chunks is not None]
        return {
            "manifold": self._quantity(
                values.mean(axis=0),
                f"the same on random manifolds of dimension {self.manifold}, mean over draws of A",
                # the spread over draws shrinks with more draws on the same data
                numerical_error=np.hypot(
                    caution(len(drawn) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(drawn)),
                    np.mean([found.error for found in drawn], axis=0),
                )
                if len(drawn) > 1
                else None,
                sampling_error=np.mean([found.sampling for found in drawn], axis=0),
                chunks=np.mean(chunks, axis=0) if chunks else None,
                **JUDGED,
            ),
            "manifold_draws": Quantity(
                value=values,
                dims=("draw", *self._axes()),
                labels={"draw": tuple(map(str, range(len(drawn)))), **self._axes()},
                unit="%",
                doc="epsilon-sharpness for every draw of A",
            ),
            "manifold_evaluations": self._quantity(
                np.sum([found.count("evaluations") for found in drawn], axis=0), "gradients of the loss, all draws"
            ),
        }

    def _axes(self) -> dict[str, tuple[str, ...]]:
        return {"solver": self.solvers, "epsilon": tuple(label(epsilon) for epsilon in self.epsilons)}

    def _quantity(self, value: Array, doc: str, **more: Any) -> Quantity:
        return Quantity(value=value, doc=doc, dims=tuple(self._axes()), labels=self._axes(), **more)

    def _notes(self, problem: "Problem", full: "_Found", drawn: "list[_Found]") -> "Iterator[str]":
        if drawn:
            yield (
                f"random manifold p = {self.manifold}: {len(drawn)} draws of A with N(0, 1) entries "
                "(the paper does not give their distribution)"
            )
        elif self.manifold:
            yield f"no random manifold: theta has {problem.size} entries, and p = {self.manifold} is no less"
        if problem.samples < problem.data.total:
            yield f"measured on {problem.samples:,} of {problem.data.total:,} samples"
        if "keskar" in self.solvers:
            first = self.solvers.index("keskar") * len(self.epsilons)
            ended = [m.message for found in (full, *drawn) for m in found.maxima[first : first + len(self.epsilons)]]
            spent = sum("limit" in message.lower() for message in ended)
            rest = f" and earlier in {len(ended) - spent}, where no step led up" if spent < len(ended) else ""
            yield f"keskar ended at its iteration limit in {spent} of {len(ended)} maximizations{rest}"

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError, did_you_mean

        for solver in self.solvers:
            if solver not in SOLVERS:
                raise UsageError(
                    f"There is no solver `{solver}`. Expected {' or '.join(SOLVERS)}.{did_you_mean(solver, SOLVERS)}"
                )
        if not self.solvers or not self.epsilons or min(self.epsilons) <= 0 or self.draws < 1 or self.manifold < 0:
            raise UsageError(
                f"epsilon-sharpness got epsilons={list(self.epsilons)}, solvers={list(self.solvers)}, "
                f"draws={self.draws}, manifold={self.manifold}. Expected positive epsilons, at least one solver, "
                "draws >= 1, manifold >= 0."
            )


@dataclass(frozen=True)
class _Found:
    """The maxima of one space, solvers first, then epsilons; arrays have the shape (solvers, epsilons)."""

    maxima: "list[Maximum]"
    value: Array
    error: Array
    sampling: Array
    chunks: Array | None

    def count(self, what: str) -> Array:
        """Return a count of every maximum, in the shape of the values."""
        return np.array([float(getattr(maximum, what)) for maximum in self.maxima]).reshape(self.value.shape)


@dataclass(frozen=True)
class _Search:
    """Everything that the maximizations of one problem share."""

    settings: EpsilonSharpness
    context: "Context"
    problem: "Problem"
    base: Array  # (N,) losses at x
    start: float

    def slope(self) -> "tuple[Tensor, Tensor]":
        """Return the gradient at x, and where `ascent` starts: along it, or at random where it is exactly 0."""
        import torch

        if "ascent" not in self.settings.solvers:
            return torch.zeros(0), torch.zeros(0)
        slope = self.problem.gradient()
        if bool(slope.any()):
            return slope, slope
        rng = self.context.generator("epsilon-sharpness/start")
        return slope, torch.randn(self.problem.size, generator=rng).to(slope)

    def on_manifold(self, draw: int, bend: "Tensor") -> _Found:
        from gapscope.measure.manifold import RandomManifold

        problem, dimension = self.problem, self.settings.manifold
        seed = int(self.context.generator(f"epsilon-sharpness/manifold/{draw}").initial_seed())
        matrix = RandomManifold(
            problem.size, dimension, seed, problem.device, problem.dtype, problem.memory_budget // 4
        )
        starts = [matrix.project(sign * bend) for sign in (1, -1) if len(bend)]
        return self.maximize(f"manifold/{draw}", matrix.lift, matrix.project, matrix.coordinates(problem.theta), starts)

    def maximize(
        self,
        purpose: str,
        lift: "Callable[[Tensor], Tensor]",
        project: "Callable[[Tensor], Tensor]",
        center: "Tensor",
        starts: "list[Tensor]",
        slope: "Tensor | None" = None,
    ) -> _Found:
        """Maximize over x + lift(y) for every solver and epsilon; `center` is A+ x, `starts` are for `ascent`.

        `slope` is the gradient at x where there is one start.
        """
        import torch

        from gapscope.measure.operators import rounded
        from gapscope.measure.shares import evened
        from gapscope.measure.solvers import ascent

        eps = float(torch.finfo(self.problem.dtype).eps)
        moved = dict[float, float]()  # by the value there: what rounding of theta + y, or inside the model, does to it

        def objective(y: "Tensor") -> "tuple[float, Tensor]":
            there = self.problem.theta + lift(y)
            value, gradient = self.problem.loss_and_gradient(there)
            moved[value] = rounded(gradient, there)
            self.context.monitor.say(f"{purpose}  loss {value:.4g} (at x: {self.start:.4g})")
            return value, project(gradient)

        found: dict[tuple[str, float], Maximum] = {}
        for solver in (
            solver for solver in SOLVERS if solver in self.settings.solvers
        ):  # `ascent` knows what came first
            for epsilon in self.settings.epsilons:
                radius = epsilon * (center.abs() + 1)
                if solver == "keskar":
                    rng = self.context.generator(f"epsilon-sharpness/keskar/{purpose}/{epsilon}")
                    found[solver, epsilon] = ascent.keskar(objective, radius, self.start, rng)
                else:
                    known = found.get(("keskar", epsilon))
                    found[solver, epsilon] = ascent.ascent(
                        objective, radius, self.start, starts, slope=slope, known=known
                    )
        # a loss is good to some ten eps of its size, at random over the samples
        squares, here = float((self.base**2).mean()) + 1, rounded(self.problem.gradient(), self.problem.theta)
        maxima, value, error, sampling, chunks = [], [], [], [], []
        for solver, epsilon in itertools.product(self.settings.solvers, self.settings.epsilons):
            maximum = found[solver, epsilon]
            there = self.problem.losses(self.problem.theta + lift(maximum.point))
            base, there = (evened(self.problem, losses) for losses in (self.base, there))
            rounding = 10 * eps * math.sqrt((squares + float((there**2).mean())) / len(there))
            phi, spread, parts = _phi(base, there, self.problem.chunk_means)
            maxima.append(maximum)
            value.append(phi)
            sampling.append(spread)
            missing = 0.0 if solver == "keskar" else max(maximum.gap, 0.0)
            lost = math.hypot(rounding, here + moved.get(maximum.value, 0.0))
            error.append(100 * (missing + lost) / (1 + self.base.mean()))
            chunks.append(parts)
        shape = (len(self.settings.solvers), len(self.settings.epsilons))
        parted = [part for part in chunks if part is not None]  # too few samples leave all of them out
        return _Found(
            maxima,
            np.array(value).reshape(shape),
            np.array(error).reshape(shape),
            np.array(sampling).reshape(shape),
            np.stack(parted, axis=1).reshape(CHUNKS, *shape) if parted else None,
        )


def _refuse_negative(loss: float) -> None:
    from gapscope.errors import ProblemError

    if loss <= -0.5:
        raise ProblemError(
            f"The loss at the checkpoint is {loss:.4g}, and epsilon-sharpness divides by 1 + loss. Expected a loss "
            "that is bounded below by 0. Add a constant to it, or leave this analyzer out."
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
