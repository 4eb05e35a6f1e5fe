"""Second derivatives by central differences of the first ones, for models that cannot be differentiated twice.

    H v = (g(theta + h u) - g(theta - h u)) / 2h * |v|,   u = v / |v|,

with an error of h^2 / 6 times a fourth derivative, and of eps |g| / h by rounding.  Everything is evaluated in
`dtype`: in float64 the two leave 1e-9 or so of smooth networks, in float32 1e-4.  Kinks (ReLU) between the two points
are a third error, that grows as the step does and cannot be computed: it is measured, see `derivatives`.

The functions are those of `products`, in its words.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gapscope.measure import products
from gapscope.measure.products import ALL, Leaves, Micro


@dataclass(frozen=True)
class Difference:
    """A Hessian known by its gradients: a product is two of them, of a part of it too."""

    slopes: Callable[[Leaves], list[Tensor]]  # theta -> g, both cut
    point: list[Tensor]
    step: float
    which: slice

    def __call__(self, v: Leaves) -> list[Tensor]:
        """Return A v."""
        return self.block(self.which, v)

    def block(self, which: slice, v: Leaves) -> list[Tensor]:
        """Return A[which, which] v; costs as much as the whole."""
        length = norm(v)
        if length == 0:
            return [torch.zeros_like(part) for part in v]
        ahead, behind = (self.slopes(moved(self.point, v, which, sign * self.step / length)) for sign in (1, -1))
        factor = length / (2 * self.step)
        return [(a - b) * factor for a, b in zip(ahead[which], behind[which], strict=True)]


@dataclass(frozen=True)
class Hessian(Difference):
    """A Hessian known by its gradients, and along a direction by the losses of every sample."""

    losses: Callable[[Leaves], Tensor]  # theta, cut -> (B,)

    def curvature_along(self, v: Leaves) -> tuple[list[Tensor], Tensor]:
        """Return H v for the sum of losses, and v' H_i v for every sample (B,), from their losses at three points.

        Three losses want a longer step than two gradients, eps^(1/4): kinks between the points count as curvature.
        """
        longer = torch.finfo(self.point[0].dtype).eps ** 0.25 * norm(self.point)
        share = max(self.step, longer) / (norm(v) or 1.0)
        with torch.no_grad():
            ahead, here, behind = (self.losses(moved(self.point, v, ALL, s * share)) for s in (1, 0, -1))
        return self(v), (ahead - 2 * here + behind) / share**2


@dataclass(frozen=True)
class Differences:
    """The ways of `products`, by central differences with steps of the length `step` in `dtype`."""

    step: float
    dtype: torch.dtype

    def hessian(self, micro: Micro, parameters: Leaves, which: slice = ALL) -> Hessian:
        """Return v -> H v, or H[which, which] v, for the sum of losses; costs two gradients a product."""
        point = self._in(parameters)
        return Hessian(
            lambda leaves: products.gradient(micro, leaves)[0],
            point,
            self.step,
            which,
            lambda leaves: micro.losses(micro.outputs(leaves)),
        )

    def gauss_newton(self, micro: Micro, parameters: Leaves) -> products.Product:
        """Return v -> J' (loss Hessian) J v for the sum of losses; costs three passes forward and one back a product.

        J v is a difference of outputs, the loss Hessian times it a difference of the loss's slopes by the outputs.
        """
        point = self._in(parameters)

        def product(v: Leaves) -> list[Tensor]:
            length = norm(v)
            if length == 0:
                return [torch.zeros_like(part) for part in v]
            with torch.no_grad():
                ahead, behind = (micro.outputs(moved(point, v, ALL, s * self.step / length)) for s in (1, -1))
            pushed = (ahead - behind) * (length / (2 * self.step))
            leaves = products.leaves_of(point)
            outputs = micro.outputs(leaves)
            weights = self._bend(micro.losses, outputs.detach(), pushed)
            return products._grad(outputs, leaves, weights)

        return product

    def residual(self, micro: Micro, parameters: Leaves) -> Difference:
        """Return v -> (H - Gauss-Newton) v for the sum of losses: the slopes of the loss are held as constants."""
        point = self._in(parameters)
        with torch.no_grad():
            outputs = micro.outputs(point)
        weights = _slope(micro.losses, outputs)

        def slopes(leaves: Leaves) -> list[Tensor]:
            own = products.leaves_of(leaves)
            return products._grad((micro.outputs(own) * weights).sum(), own)

        return Difference(slopes, point, self.step, ALL)

    def slopes_along(self, micro: Micro, parameters: Leaves, v: Leaves) -> Tensor:
        """Return g_i'v for every sample of the micro-batch (B,), from their losses at two points."""
        share = self.step / (norm(v) or 1.0)
        ahead, behind = (self._losses(micro, parameters, v, s * share) for s in (1, -1))
        return (ahead - behind) / (2 * share)

    def _losses(self, micro: Micro, parameters: Leaves, v: Leaves, share: float) -> Tensor:
        with torch.no_grad():
            return micro.losses(micro.outputs(moved(self._in(parameters), v, ALL, share)))

    def _bend(self, losses: Callable[[Tensor], Tensor], outputs: Tensor, pushed: Tensor) -> Tensor:
        """Return (loss Hessian) pushed, (B, ...)."""
        length = float(pushed.norm())
        if length == 0:
            return torch.zeros_like(pushed)
        step = torch.finfo(self.dtype).eps ** (1 / 3) * (1 + float(outputs.norm()) / math.sqrt(len(outputs)))
        ahead, behind = (_slope(losses, outputs + (s * step / length) * pushed) for s in (1, -1))
        bent: Tensor = (ahead - behind) * (length / (2 * step))
        return bent

    def _in(self, parameters: Leaves) -> list[Tensor]:
        return [parameter.detach().to(self.dtype) for parameter in parameters]


def norm(v: Leaves) -> float:
    """Return |v|."""
    return math.hypot(*(float(part.norm()) for part in v))


def moved(point: Leaves, v: Leaves, which: slice, share: float) -> list[Tensor]:
    """Return the point with `share` of v added to the parts that v is of."""
    there = list(point)
    there[which] = [p + share * part.to(p.dtype) for p, part in zip(there[which], v, strict=True)]
    return there


def _slope(losses: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    point = outputs.detach().requires_grad_()
    (slope,) = products._grad(losses(point).sum(), [point])
    return slope.detach()
