"""A function of parameters on a micro-batch, asked whether its derivatives are what autograd says."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapscope.errors import out_of_memory
from gapscope.measure import products
from gapscope.measure.batches import Batch

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

SAMPLES, FEWEST = 32, 4
BYTES = 200_000_000  # that the probe may take: fewer samples of large graphs
HELD = 4.7  # graphs in float64 that are held at once: 914 MB for 32 images of ResNet-20
Side = tuple[Tensor, float]  # gradient (n,) and loss on one side of the point
UNKNOWN = (RuntimeError, TypeError, NotImplementedError)  # what autograd raises for a derivative that it has not


class Tried:
    """A block that is left where autograd or the model says that it cannot; that memory ran out is no such answer."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        return isinstance(error, UNKNOWN) and not out_of_memory(error)


class Slopes(ABC):
    """A function near a point theta, of which the gradient and the value can be asked."""

    theta: Tensor  # (n,), in the dtype that everything is evaluated in

    @abstractmethod
    def _slope_and_loss(self, point: Tensor) -> Side:
        """Return the gradient and the value at a point (n,)."""

    @property
    def size(self) -> int:
        """Return n."""
        return len(self.theta)

    def length(self, v: Tensor) -> float:
        """Return |v|."""
        return float(v.norm())

    def dot(self, a: Tensor, b: Tensor) -> float:
        """Return a'b."""
        return float(a @ b)

    def drawn(self, rng: torch.Generator) -> Tensor:
        """Return a standard normal vector (n,)."""
        return torch.randn(self.size, generator=rng, dtype=torch.float64)

    @property
    def eps(self) -> float:
        """Return the rounding unit."""
        return torch.finfo(self.theta.dtype).eps

    @property
    def tolerance(self) -> float:
        """Return the relative difference of products that are still the same."""
        return 2e-3 if self.eps < 1e-10 else 0.2

    def steps(self) -> Iterator[float]:
        """Yield steps to try: a step across kinks says nothing, and one that agrees is enough.

        ResNet-20 on 32 images has 6 million ReLUs: at a share of 3e-7 the difference was 28 times too large, at 3e-8
        right to 3e-8.  The large ones last, for models that round to float32 inside.
        """
        wide, size = self.eps < 1e-10, self.length(self.theta)
        for share in (3e-8, 1e-5, 1e-7, 1e-9, 1e-4, 1e-3) if wide else (3e-3, 3e-4, 3e-5):
            yield share * (size + 1)
            if 0 < size < 0.1:
                yield share * size

    @cached_property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Return two random unit vectors (n,)."""
        rng = torch.Generator().manual_seed(0)
        u, v = (self.drawn(rng).to(self.theta) for _ in range(2))
        return u / self.length(u), v / self.length(v)

    @cached_property
    def slope(self) -> Tensor:
        """Return g (n,) at the point."""
        return self._slope_and_loss(self.theta)[0]

    def difference(self, v: Tensor, step: float) -> Tensor:
        """Return H v (n,) of a unit vector by a central difference."""
        (ahead, _), (behind, _) = self._sides(v, step)
        return (ahead - behind) / (2 * step)

    @cached_property
    def _known(self) -> list[tuple[Tensor, float, Side, Side]]:  # the last difference
        return []

    def _sides(self, v: Tensor, step: float) -> tuple[Side, Side]:
        if not self._known or self._known[0][0] is not v or self._known[0][1] != step:
            ahead, behind = (self._slope_and_loss(self.theta + sign * step * v) for sign in (1, -1))
            self._known[:] = [(v, step, ahead, behind)]
        return self._known[0][2:]

    def wrong_slope(self) -> float:
        """Return the relative error of the gradient as differences of the loss show it, or 0 where they agree.

        Along a random direction, whose differences `fault` needs anyway.  The gradient's part of it is about
        |g| / sqrt(n), which models that round to float32 inside hide: then along the gradient itself.
        """
        length = self.length(self.slope)
        if length == 0:
            return 0.0
        v, root = self.directions[1], self.size**0.5
        return self._slope_error(v, length / root) and self._slope_error(self.slope / length, length)

    def _slope_error(self, along: Tensor, scale: float) -> float:
        apart: list[tuple[float, float]] = []  # step, and how far the rise over it is from what the slope says
        for step in self.steps():
            (_, ahead), (_, behind) = self._sides(along, step)
            noise = 1e2 * self.eps * (abs(ahead) + abs(behind))
            apart.append((step, abs(ahead - behind - 2 * step * self.dot(self.slope, along)) - noise))
            if apart[-1][1] <= 0.01 * 2 * step * scale or noise > 2 * step * scale:
                return 0.0
        # what is left over the smallest step is the model's own rounding, wherever it rounds
        jitter = 10 * min(apart)[1]
        told = [(gap - jitter) / (2 * step * scale) for step, gap in apart if jitter <= 2 * step * scale]
        return min(told) if told and min(told) > 0.01 else 0.0


@dataclass(frozen=True, eq=False)
class Probe(Slopes):
    """A function on a micro-batch, whose derivatives are asked in the dtype of its parameters."""

    micro: products.Micro
    leaves: list[Tensor]
    own_dtype: torch.dtype | None = None  # of the products to come, where it is another
    samples: int = 1

    @classmethod
    def of(cls, problem: "Problem", dtype: torch.dtype) -> "Probe":
        """Return the problem on samples spread over the data."""
        batch = micro_batch(problem)
        own = None if dtype == problem.dtype else problem.dtype
        return cls(problem._micro(batch), problem.parameters.split(problem.theta.to(dtype)), own, len(batch.targets))

    @cached_property
    def theta(self) -> Tensor:  # type: ignore[override]  # computed when asked
        """Return the point (n,)."""
        return _flat(self.leaves)

    def _slope_and_loss(self, point: Tensor) -> Side:
        slopes, losses = products.gradient(self.micro, self._cut(point))
        return _flat(slopes), float(losses.sum())

    @cached_property
    def fault(self) -> str:
        """Return what is wrong with the exact second derivative, or an empty string."""
        u, v = self.directions
        try:
            product = self.product
            hu, hv = (_flat(product(self._cut(w))) for w in (u, v))
            narrow = self._in_own_dtype(v)
        except UNKNOWN as error:
            if out_of_memory(error):
                raise
            return f"The model's gradient cannot be differentiated again: {_first_line(error)}."
        slope, length = float(self.slope.norm()), float(hv.norm())
        left, right, scale = float(u @ hv), float(v @ hu), float(hu.norm()) + length
        apart = abs(left - right) - (1e-5 if self.eps < 1e-10 else 1e-2) * scale - 100 * self.eps * slope
        if not apart <= 0 and not apart <= 4 * self.eps * self._reach**2 / len(u):
            return f"The second derivative is not symmetric: u'Hv = {left:.6g}, v'Hu = {right:.6g} on a micro-batch."
        gap, kinked = self._gap(v, hv)
        own = v * self.theta.abs()
        if kinked and bool(own.any()):
            own /= own.norm()
            gap = gap and self._gap(own, _flat(product(self._cut(own))))[0]
        if gap:
            return (
                f"The Hessian-vector product differs from a central difference of the gradient by {gap:.2g} "
                f"(its norm is {length:.2g})."
            )
        gap = 0.0 if narrow is None else float((narrow.to(hv) - hv).norm())
        # rounding left 1e-3 at worst, of networks whose data were scaled by 1e4; what under- or overflows is no fault
        if not max(0.1 * length, 1e-30) < gap < math.inf:
            return ""
        return (
            f"The Hessian-vector product in {str(self.own_dtype)[6:]} differs from that in {str(hv.dtype)[6:]} by "
            f"{gap:.2g} (its norm is {length:.2g})."
        )

    def rounding(self) -> float:
        """Return |A w - H w| of a sharp unit vector w, A the products in the problem's dtype, 0 where it is this one.

        A layer norm on few samples, trained: 3.9e-4, where A was off by 4.3e-4 and 10 epsilons of |A| are 2.2e-4.
        """
        image = _flat(self.product(self._cut(self.directions[1])))
        length = float(image.norm())
        if self.own_dtype is None or not length > 0:
            return 0.0
        sharp = image / length
        narrow = self._in_own_dtype(sharp)
        assert narrow is not None
        gap = float((narrow.to(sharp) - _flat(self.product(self._cut(sharp)))).norm()) / self.samples
        return gap if math.isfinite(gap) else 0.0  # what overflows shows wherever it is measured

    @cached_property
    def product(self) -> Callable[[list[Tensor]], list[Tensor]]:
        """Return the product with the Hessian, of one graph that is kept."""
        return products.hessian(self.micro, self.leaves)

    def _in_own_dtype(self, v: Tensor) -> Tensor | None:
        """Return H v (n,) in the problem's dtype, which may have kernels of its own; None where that is this one."""
        if self.own_dtype is None:
            return None
        leaves, cut = ([part.to(self.own_dtype) for part in parts] for parts in (self.leaves, self._cut(v)))
        return _flat(products.hessian(self.micro, leaves)(cut))

    def _gap(self, v: Tensor, hv: Tensor) -> tuple[float, bool]:
        """Return how far H v is from differences of g, 0 where they agree, and whether theta lies on a kink.

        There g jumps, and the differences grow as the step falls: ReLU of a unit whose weights were pruned to 0, or of
        an empty sample without biases.  A step by a share of each weight leaves such units where they are.
        """
        length, slope = float(hv.norm()), float(self.slope.norm())
        gaps: dict[float, float] = {}
        told = False
        for step in self.steps():
            found = self.difference(v, step)
            gap, noise = float((found - hv).norm()) - self.tolerance * length, 100 * self.eps * slope / step
            if gap > noise:  # what rounding of the outputs' slopes does as well costs a gradient to know
                noise += 4 * self.eps * self._reach / step
            tells = noise <= self.tolerance * max(length, float(found.norm()))
            if tells and gap <= noise:
                return self._gap_of_a_part(v, hv, step, noise), False
            gaps[step] = gap - noise
            told = told or tells
        wrong = [gap for gap in gaps.values() if not gap <= 0]
        if not told and not wrong:  # a difference within the rounding of every step is all that can be asked
            return 0.0, False
        fine, coarse = (gaps[step] for step in sorted(gaps)[:2])
        return min(wrong), fine > 3 * max(coarse, 0.0)

    def _gap_of_a_part(self, v: Tensor, hv: Tensor, step: float, noise: float) -> float:
        """Return how far off one parameter's part of H v is, whose fault the whole hides; 0 where none is.

        A part that kinks disturb differs between two steps, one that is wrong does not.
        """
        exact, found = self._cut(hv), self._cut(self.difference(v, step))
        apart = [
            float((b - a).norm()) - 0.2 * max(float(a.norm()), float(b.norm()))
            for a, b in zip(exact, found, strict=True)
        ]
        if max(apart) <= 4 * noise:
            return 0.0
        again = self._cut(self.difference(v, step / 3))
        moved = [float((b - a).norm()) for a, b in zip(found, again, strict=True)]
        return max(
            (gap for gap, move in zip(apart, moved, strict=True) if gap > max(4 * noise, 10 * move)), default=0.0
        )

    @cached_property
    def _reach(self) -> float:
        """Return |J'w| for random w on the outputs: what rounding of slopes of size 1 there does to the gradient.

        At a loss near 0 it is all there is: log-softmax takes 1 - p, and p rounds to 1.
        """
        rng = torch.Generator().manual_seed(1)

        def weighted(outputs: Tensor) -> Tensor:
            return outputs.flatten() * torch.randn(outputs.numel(), generator=rng).to(outputs)

        return float(_flat(products.gradient(products.Micro(self.micro.outputs, weighted), self.leaves)[0]).norm())

    def _cut(self, vector: Tensor) -> list[Tensor]:
        sizes = [leaf.numel() for leaf in self.leaves]
        return [part.view(leaf.shape) for part, leaf in zip(torch.split(vector, sizes), self.leaves, strict=True)]


def micro_batch(problem: "Problem") -> Batch:
    """Return up to 32 samples spread over the data."""
    return problem.picked(spread(problem.samples, samples_of(problem)))


def spread(samples: int, count: int) -> Tensor:
    """Return so many indices (count,), evenly from the first sample to the last: in whole numbers, which are exact."""
    return torch.arange(count) * (samples - 1) // max(1, count - 1)


def samples_of(problem: "Problem") -> int:
    """Return how many samples are probed: by sizes alone, 4 or more."""
    fitting = int(BYTES / bytes_of(problem, 1))
    return min(SAMPLES, max(FEWEST, fitting), problem.samples)


def bytes_of(problem: "Problem", samples: int) -> int:
    """Return what the probe of so many samples takes, in float64."""
    return int(samples * problem.graph_bytes_per_sample * HELD * 8 / problem.theta.element_size())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__


def _flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])
