"""Loss and accuracy between two checkpoints, and the barrier on the way."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.landscape import Landscape
    from gapscope.measure.problem import Problem

SHAPES = ("linear", "curved")
STEP = 0.01  # of the grid's step: how closely the top of the barrier is placed


@dataclass(frozen=True, kw_only=True)
class PathResult(Result):
    """What `path` measures; `rise` is what an escape from either end has to climb along the straight line."""

    barrier: Quantity
    barrier_curved: Quantity | None
    rise: Quantity
    distance: Quantity
    distance_ratio: Quantity | None
    loss: Quantity
    accuracy: Quantity | None


@dataclass(frozen=True)
class Path:
    """Loss on the way between two checkpoints, straight and curved, with accuracy and the barrier.

    Straight: a x_1 + (1 - a) x_0; curved: sin(a pi/2) x_1 + cos(a pi/2) x_0; a = 0 is the first (small-batch)
    checkpoint, 1 the second (Keskar et al. 2017).  Barrier: the most by which the loss on [0, 1] exceeds the line
    between its ends.  It bounds the lowest pass between the two from above along that path only: another path may
    have none.
    """

    name: ClassVar[str] = "path"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 2
    incidental: ClassVar[tuple[str, ...]] = ()
    second_order: ClassVar[bool] = False

    points: Annotated[int, "points of the grid"] = 25
    start: Annotated[float, "first a"] = -1.0
    stop: Annotated[float, "last a"] = 2.0
    curved: Annotated[bool, "measure the curved path, too"] = True
    statistics: Annotated[
        Literal["re-estimated", "interpolated", "frozen"], "what BatchNorm uses between the checkpoints"
    ] = "re-estimated"

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return how many passes over the data this takes; re-estimated statistics take another for each."""
        from gapscope.measure import landscape

        return landscape.passes(problem, (self.points + 12) * (1 + self.curved), self.statistics)

    def __call__(self, context: "Context") -> PathResult:
        """Evaluate both splits at every point."""
        from gapscope.measure.landscape import Landscape
        from gapscope.measure.operators import length

        self._refuse_nonsense()
        scape = Landscape.of(context, self.statistics)
        grid = np.linspace(self.start, self.stop, self.points)
        shapes = SHAPES[: 1 + self.curved]
        places = [(shape, float(a)) for shape in shapes for a in (*grid, 0.0, 1.0)]
        context.monitor.begin("path", len(places) * len(scape.splits))
        measured = context.parts.rows(
            scape.digest(analyzer=self.name, places=places),
            len(places),
            lambda index: scape.evaluate(*_place(scape, *places[index])),
        )
        table = measured.reshape(len(shapes), len(places) // len(shapes), len(scape.splits), 2)
        found = [self._barrier(scape, shape, grid, table[i, :, 0, 0]) for i, shape in enumerate(shapes)]
        labels = {"path": shapes, "split": scape.splits, "a": tuple(f"{a:.12g}" for a in grid)}
        curves = np.moveaxis(table[:, : self.points], 1, 2)  # (path, split, a, 2)
        judged = not np.isnan(curves[..., 1]).all()
        distance = float(length(scape.ends[1] - scape.ends[0]))
        finite = all(np.isfinite(one.value) for one in found)
        return PathResult(
            status=Status.CONVERGED if finite else Status.NONFINITE,
            notes=self._notes(scape),
            barrier=_quantity(found[0], "straight"),
            barrier_curved=_quantity(found[1], "curved") if self.curved else None,
            rise=Quantity(
                value=found[0].top - found[0].ends,
                numerical_error=np.full(2, found[0].missed),
                sampling_error=found[0].rise_sampling,
                dims=("subject",),
                labels={"subject": ("first", "second")},
                contrast="difference",
                doc="largest loss on the straight path between them less the loss of either checkpoint",
            ),
            distance=Quantity(
                value=scalar(distance), drawn="detail", doc="norm(x_1 - x_0), not invariant to rescaling the layers"
            ),
            distance_ratio=_distance_ratio(context, scape),
            loss=Quantity(
                value=curves[..., 0],
                dims=tuple(labels),
                labels=labels,
                drawn="line",
                contrast="difference",
                doc="mean loss; a = 0 is the first checkpoint, 1 the second",
            ),
            accuracy=Quantity(
                value=curves[..., 1],
                dims=tuple(labels),
                labels=labels,
                drawn="line",
                unit="%",
                contrast="difference",
                doc="samples whose largest output is the right class",
            )
            if judged
            else None,
        )

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError

        if self.points < 5 or not self.start <= 0 or not self.stop >= 1:
            raise UsageError(
                f"path got points={self.points}, start={self.start}, stop={self.stop}. "
                "Expected 5 points or more from start <= 0 to stop >= 1: both checkpoints must lie on the path."
            )

    def _barrier(self, scape: "Landscape", shape: str, grid: Array, losses: Array) -> "_Barrier":
        """Find the barrier on the grid, and its errors from the samples' losses at its top and at both ends."""
        from gapscope.measure.shares import evened

        ends = losses[-2:]
        inside = (grid > 0) & (grid < 1)
        at, values = grid[inside], losses[:-2][inside]
        excess = values - ((1 - at) * ends[0] + at * ends[1])
        if not np.isfinite(losses[:-2][(grid >= 0) & (grid <= 1)]).all() or not np.isfinite(ends).all():
            return _Barrier(float("nan"), 0.0, 0.0, ends, float("nan"), None, None, None)
        best = int(np.argmax(excess))
        each = {a: _losses(scape, shape, a) for a in (0.0, 1.0)}
        rounding, step = _rounding(scape.first, losses), float(grid[1] - grid[0])

        def height(a: float) -> float:
            each[a] = _losses(scape, shape, a)
            return float((each[a] - (1 - a) * each[0.0] - a * each[1.0]).mean())

        place, value = float(at[best]), float(excess[best])
        if value <= 0:  # a hump before the first point of the grid, or behind the last, rises from an end
            rises = {end: height(abs(end - STEP * step)) for end in (0.0, 1.0)}
            end = max(rises, key=lambda end: rises[end])
            if rises[end] > 0:
                place, value = end, 0.0
            elif values.max() <= ends.max():
                hidden = _between(np.r_[0.0, excess, 0.0]) + rounding
                return _Barrier(0.0, 0.0, hidden, ends, float(ends.max()), None, None, _rise_errors(each))
        place, value, missed = _refined(height, place, value, step)
        if place not in each:
            height(place)
        problem, top = scape.first, each[place]
        difference = evened(problem, top - (1 - place) * each[0.0] - place * each[1.0])
        highest = float(at[np.argmax(values)])  # the highest loss stands beside the top of the excess, or at an end
        each.setdefault(highest, _losses(scape, shape, highest))
        return _Barrier(
            max(0.0, value),
            place,
            missed + rounding,
            ends,
            max(float(one.mean()) for one in each.values()),
            _standard_error(difference),
            problem.chunk_means(difference),
            _rise_errors(each),
        )

    def _notes(self, scape: "Landscape") -> tuple[str, ...]:
        notes = [scape.note()] if scape.note() else []
        if scape.first.samples < scape.first.data.total:
            notes.append(f"measured on {scape.first.samples:,} of {scape.first.data.total:,} samples")
        return (*notes, "along these paths only: a barrier here does not prove that another path has one")


@dataclass(frozen=True)
class _Barrier:
    """The height of one path's barrier, where it stands, and what the grid may have missed of it."""

    value: float
    where: float
    missed: float
    ends: Array  # (2,) losses of the checkpoints
    top: float
    sampling: Any
    chunks: Array | None
    rise_sampling: Array | None  # (2,)


def _rounding(problem: "Problem", losses: Array) -> float:
    """Return what rounding does to a difference of mean losses: some ten eps of scores about 1 or of the losses."""
    import torch

    return 10 * torch.finfo(problem.dtype).eps * (1 + float(np.abs(losses).max())) / float(np.sqrt(problem.samples))


def _between(heights: Array) -> float:
    """Return how far above 0 a parabola through three neighbours on the grid rises."""
    before, here, after = heights[:-2], heights[1:-1], heights[2:]
    bend, slope = before - 2 * here + after, (after - before) / 2
    top = np.where(bend < 0, here + slope**2 / np.where(bend < 0, -2 * bend, 1.0), 0.0)
    inside = np.abs(slope) < -bend
    return float(np.where(inside, top, 0.0).max(initial=0.0))


def _place(scape: "Landscape", shape: str, a: float) -> tuple[Any, tuple[float, float]]:
    """Return theta at a, and how the ends are mixed there."""
    weights = (1 - a, a)
    if shape == "curved":  # cos(pi/2) is 6e-17: the ends are to be the checkpoints themselves
        weights = {0.0: (1.0, 0.0), 1.0: (0.0, 1.0)}.get(
            a, (float(np.cos(a * np.pi / 2)), float(np.sin(a * np.pi / 2)))
        )
    first, last = scape.ends
    return weights[0] * first + weights[1] * last, weights


def _losses(scape: "Landscape", shape: str, a: float) -> Array:
    """Return the loss of every sample at a, on the split that is measured."""
    return next(iter(scape.at(*_place(scape, shape, a)).values())).losses()


def _rise_errors(each: dict[float, Array]) -> Array | None:
    """Return the standard errors of the highest mean of samples' losses less those of both ends, (2,)."""
    summit = max(each.values(), key=lambda found: float(found.mean()))
    if len(summit) < 2:
        return None
    return np.array([_standard_error(summit - each[end]) for end in (0.0, 1.0)])


def _refined(height: Any, place: float, value: float, step: float) -> tuple[float, float, float]:
    """Climb from the highest point of the grid between its neighbours; return place, height and what is left.

    Brent's method to a hundredth of the grid's step, 12 evaluations at most; what is left is that of a parabola.
    """
    from scipy.optimize import minimize_scalar

    bounds = (max(0.0, place - step), min(1.0, place + step))
    tried: dict[float, float] = {place: value}

    def fall(a: float) -> float:
        tried[float(a)] = found = height(float(a))
        return -found if np.isfinite(found) else np.inf

    minimize_scalar(fall, bounds=bounds, method="bounded", options={"xatol": STEP * step, "maxiter": 12})
    best = max(tried, key=lambda a: tried[a] if np.isfinite(tried[a]) else -np.inf)
    bend = max(abs(value - tried[a]) / (a - place) ** 2 for a in tried if abs(a - place) > STEP * step)
    return best, tried[best], bend * (STEP * step) ** 2


def _standard_error(values: Array) -> Any:
    return values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None


def _quantity(found: _Barrier, which: str) -> Quantity:
    at = f"; its top is at a = {found.where:.4g}" if found.value > 0 else ""
    return Quantity(
        value=scalar(found.value),
        numerical_error=np.asarray(found.missed),
        sampling_error=found.sampling,
        chunks=found.chunks,
        bound="lower",
        contrast="difference",
        doc=f"max over [0, 1] of L(a) - (1 - a) L(0) - a L(1) on the {which} path, 0 where it is below{at}; climbed "
        "from the highest point of the grid, so a bound from below where the grid steps over a higher one",
    )


def _distance_ratio(context: "Context", scape: "Landscape") -> Quantity | None:
    """Return |x_0 - start| / |x_1 - start|, each from its own recorded initial weights."""
    from gapscope.measure.operators import length

    starts = [context.initial(which) for which in (0, 1)]
    lengths = [
        float(length(end - start.to(end))) for end, start in zip(scape.ends, starts, strict=True) if start is not None
    ]
    if len(lengths) < 2 or not lengths[1] > 0:
        return None
    return Quantity(
        value=scalar(lengths[0] / lengths[1]),
        doc="distance of the first checkpoint from its initial weights over that of the second; "
        "Keskar et al. found 3 to 10",
    )
