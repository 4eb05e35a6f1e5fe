"""The loss on a plane through one, two or three checkpoints."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from gapscope.measure.context import Context
    from gapscope.measure.landscape import Landscape
    from gapscope.measure.parameters import Parameters
    from gapscope.measure.problem import Problem

MARGIN = 0.25  # of the checkpoints' extent, on every side


@dataclass(frozen=True, kw_only=True)
class PlaneResult(Result):
    """What `plane` measures."""

    loss: Quantity
    accuracy: Quantity | None
    points: Quantity | None
    lowest: Quantity
    lengths: Quantity


@dataclass(frozen=True)
class Plane:
    """Loss and accuracy on a plane of weights: random around one checkpoint, or through two or three.

    One: x + a d + b e with Gaussian directions whose filters have the norms of the checkpoint's (Li et al. 2018; biases
    and BatchNorm stay).  Two: the line between them and a random direction across it.  Three: the plane through them.
    A plane shows two of many directions: that no barrier is seen does not mean that there is none.
    """

    name: ClassVar[str] = "plane"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 3
    least: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    second_order: ClassVar[bool] = False

    points: Annotated[int, "points along each side of the grid"] = 21
    reach: Annotated[float, "half side of a random plane, in norms of the filters"] = 1.0
    statistics: Annotated[
        Literal["re-estimated", "interpolated", "frozen"], "what BatchNorm uses away from the checkpoints"
    ] = "re-estimated"

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return how many passes over the data this takes; re-estimated statistics take another for each."""
        from gapscope.measure import landscape

        return landscape.passes(problem, self.points**2, self.statistics)

    def __call__(self, context: "Context") -> PlaneResult:
        """Evaluate every split at every point."""
        from gapscope.errors import UsageError
        from gapscope.measure.landscape import Landscape
        from gapscope.measure.operators import length

        if self.points < 3 or not 0 < self.reach < np.inf:
            raise UsageError(
                f"plane got points={self.points}, reach={self.reach}. Expected 3 points or more and a reach above 0."
            )
        scape = Landscape.of(context, self.statistics)
        frame = self._frame(scape, context.generator("plane"))
        first, second = (np.linspace(low, high, self.points) for low, high in frame.extent)
        places = [(float(a), float(b)) for b in second for a in first]
        context.monitor.begin("plane", len(places) * len(scape.splits))

        def evaluate(index: int) -> Array:
            a, b = places[index]
            return scape.evaluate(scape.ends[0] + a * frame.axes[0] + b * frame.axes[1], frame.mixture(a, b))

        measured = context.parts.rows(
            scape.digest(analyzer=self.name, seed=context.seed, places=places),
            len(places),
            evaluate,
        )
        table = measured.reshape(self.points, self.points, len(scape.splits), 2).transpose(3, 2, 0, 1)
        labels = {
            "split": scape.splits,
            "second": tuple(f"{b:.12g}" for b in second),
            "first": tuple(f"{a:.12g}" for a in first),
        }
        judged = not np.isnan(table[1]).all()
        losses = table[0, 0]
        return PlaneResult(
            status=Status.EXACT if np.isfinite(losses).all() else Status.NONFINITE,
            notes=self._notes(scape, frame),
            loss=Quantity(
                value=table[0], dims=tuple(labels), labels=labels, drawn="map", contrast="difference", doc="mean loss"
            ),
            accuracy=Quantity(
                value=table[1],
                dims=tuple(labels),
                labels=labels,
                drawn="map",
                unit="%",
                contrast="difference",
                doc="samples whose largest output is the right class",
            )
            if judged
            else None,
            points=Quantity(
                value=frame.points,
                dims=("subject", "axis"),
                labels={"subject": tuple(map(str, range(len(frame.points)))), "axis": ("first", "second")},
                doc="where the checkpoints lie on the plane",
            ),
            lowest=Quantity(
                value=scalar(float(np.nanmin(losses)) if np.isfinite(losses).any() else float("nan")),
                bound="upper",
                doc=f"lowest {scape.splits[0]} loss on the grid",
            ),
            lengths=Quantity(
                value=np.array([float(length(axis)) for axis in frame.axes]),
                dims=("axis",),
                labels={"axis": ("first", "second")},
                doc="norm of one unit of each axis, in weights",
            ),
        )

    def _frame(self, scape: "Landscape", rng: "Generator") -> "_Frame":
        """Return the axes and the extent of the plane through these checkpoints."""
        from gapscope.errors import UsageError

        origin, layout = scape.ends[0], scape.first.parameters
        if len(scape.ends) == 1:
            axes = tuple(_filter_normalized(origin, layout, rng) for _ in range(2))
            reach = (-self.reach, self.reach)
            return _Frame(axes, np.zeros((1, 2)), (reach, reach), "two random filter-normalized directions")
        across = scape.ends[1] - origin
        if len(scape.ends) == 2:
            up, what = _filter_normalized(origin, layout, rng), "a random filter-normalized direction across the line"
        else:
            up, what = scape.ends[2] - origin, "the plane through three checkpoints"
        length = across.norm()
        rest = up - (up @ across) / (length * length).clamp_min(1e-300) * across
        if not float(length) > 0 or not float(rest.norm()) > 1e-6 * float(up.norm()):
            raise UsageError(
                "The checkpoints coincide or lie on one line. Expected checkpoints that span a plane. "
                "For two, the line is `gapscope path A B`."
            )
        rest = rest * (length / rest.norm())  # both axes in units of the first distance
        points = np.array([[0.0, 0.0], [1.0, 0.0]])
        if len(scape.ends) == 3:
            third = [float((scape.ends[2] - origin) @ axis / (length * length)) for axis in (across, rest)]
            points = np.vstack([points, third])
        low, high = points.min(0), points.max(0)
        if len(scape.ends) == 2:
            low[1], high[1] = -0.5, 0.5
        margin = MARGIN * (high - low)
        extent = tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))
        return _Frame((across, rest), points, extent, what)

    def _notes(self, scape: "Landscape", frame: "_Frame") -> tuple[str, ...]:
        notes = [f"plane: {frame.what}"]
        if scape.note():
            notes.append(scape.note())
        if scape.first.samples < scape.first.data.total:
            notes.append(f"measured on {scape.first.samples:,} of {scape.first.data.total:,} samples")
        return tuple(notes)


@dataclass(frozen=True, eq=False)
class _Frame:
    """Two axes (n,) from the first checkpoint, the checkpoints' coordinates (subjects, 2), and the grid's extent."""

    axes: "tuple[Tensor, ...]"
    points: Array
    extent: tuple[tuple[float, float], ...]
    what: str

    def mixture(self, a: float, b: float) -> tuple[float, ...]:
        """Return how the subjects' buffers are mixed at a point; a random direction leaves them."""
        if len(self.points) == 1:
            return (1.0,)
        if len(self.points) == 2:
            return 1 - a, a
        (x, y) = self.points[2]
        third = b / y
        second = a - third * x
        return 1 - second - third, second, third


def _filter_normalized(theta: "Tensor", layout: "Parameters", rng: "Generator") -> "Tensor":
    """Return a Gaussian direction whose filters (first dimension) have the norms of theta's; vectors get zero."""
    import torch

    if all(len(shape) < 2 for shape in layout.shapes):  # no filters: one of theta's own length
        alone = torch.randn(theta.shape, generator=rng).to(theta)
        return alone.mul_(theta.norm() / alone.norm())
    parts = []
    for part in layout.split(theta):
        drawn = torch.randn(part.shape, generator=rng).to(part)
        if part.ndim < 2:
            parts.append(torch.zeros_like(part))
            continue
        rows, own = drawn.flatten(1), part.flatten(1)
        parts.append((rows * (own.norm(dim=1) / rows.norm(dim=1).clamp_min(1e-30))[:, None]).view(part.shape))
    return layout.flatten(parts)
