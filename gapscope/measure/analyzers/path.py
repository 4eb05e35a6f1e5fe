"""Loss and accuracy between two checkpoints, and the barrier on the way."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.landscape import Landscape
    from gapscope.measure.problem import Problem

SHAPES = ("linear", "curved")


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

        found = landscape.passes(problem, (self.points + 12) * (1 + self.curved) + 12, self.statistics)
        return {**found, "gradient": 4.0 + 3 * self.curved}

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
                numerical_error=np.full(2, found[0].top_missed),
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
        from gapscope.measure.solvers.summit import Summit, climbed

        ends, within = losses[-2:], (grid >= 0) & (grid <= 1)
        if not np.isfinite(losses[:-2][within]).all() or not np.isfinite(ends).all():
            return _Barrier(float("nan"), 0.0, 0.0, ends, float("nan"), 0.0, None, None, None)
        step, rounding = float(grid[1] - grid[0]), _rounding(scape.first, np.r_[losses[:-2][within], ends])
        each = {a: _losses(scape, shape, a) for a in (0.0, 1.0)}

        def level(a: float) -> float:
            if a not in each:
                each[a] = _losses(scape, shape, a)
            return float(each[a].mean())

        def height(a: float) -> float:
            level(a)
            return float((each[a] - (1 - a) * each[0.0] - a * each[1.0]).mean())

        around = (grid > -1.5 * step) & (grid < 1 + 1.5 * step)  # a neighbour beyond each end bends a parabola
        known = dict(zip(grid[around].tolist(), losses[:-2][around].tolist(), strict=True)) | {
            0.0: ends[0],
            1.0: ends[1],
        }
        over = climbed(height, {a: v - (1 - a) * ends[0] - a * ends[1] for a, v in known.items()}, step, rounding)
        known |= {a: float(found.mean()) for a, found in each.items()}
        top = climbed(level, known, step, rounding) if shape == "linear" else Summit(0.0, math.nan, 0.0)
        problem, difference = scape.first, None
        barrier = over.height if over.height > rounding else 0.0
        if barrier:
            height(over.place)
            difference = evened(problem, each[over.place] - (1 - over.place) * each[0.0] - over.place * each[1.0])
        level(top.place)
        moved = {a: _moved(scape, shape, a) for a in (0.0, 1.0, over.place, top.place)}
        both = max(moved[0.0], moved[1.0])
        return _Barrier(
            barrier,
            over.place,
            over.missed + rounding + moved[over.place] + both,
            ends,
            top.height,
            top.missed + rounding + moved[top.place] + both,
            None if difference is None else _standard_error(difference),
            None if difference is None else problem.chunk_means(difference),
            _rise_errors(problem, each),
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
    top: float  # the highest loss, of the straight path alone
    top_missed: float
    sampling: Any
    chunks: Array | None
    rise_sampling: Array | None  # (2,)


def _rounding(problem: "Problem", losses: Array) -> float:
    """Return what rounding does to a difference of mean losses: some ten eps of scores about 1 or of the losses."""
    import torch

    return 10 * torch.finfo(problem.dtype).eps * (1 + float(np.abs(losses).max())) / float(np.sqrt(problem.samples))


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


def _moved(scape: "Landscape", shape: str, a: float) -> float:
    """Return what rounding theta at a, each of its two terms and their sum, does to the loss there.

    And about what rounding inside the model does, of the products with theta: all there is of it at a checkpoint.
    """
    from gapscope.measure.operators import rounded

    theta, mixed = _place(scape, shape, a)
    squares = sum(((weight * end) ** 2 for weight, end in zip(mixed, scape.ends, strict=True)), theta**2)
    found = rounded(next(iter(scape.at(theta, mixed).values())).gradient(), squares.sqrt())
    return found if np.isfinite(found) else 0.0  # where it has no slope nothing is known of that


def _rise_errors(problem: "Problem", each: dict[float, Array]) -> Array | None:
    """Return the standard errors of the highest mean of samples' losses less those of both ends, (2,)."""
    from gapscope.measure.shares import evened

    summit = max(each.values(), key=lambda found: float(found.mean()))
    if len(summit) < 2:
        return None
    return np.array([_standard_error(evened(problem, summit - each[end])) for end in (0.0, 1.0)])


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
