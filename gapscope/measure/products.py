"""First and second derivatives of one micro-batch: the only file that knows how they are computed.

A `Micro` is a micro-batch as a function of the list of parameters.  A `Product` holds whatever is kept between
products; dropping it frees that.  A faster way to differentiate is a change of this file only.

Kept: the graph of the gradient stays in memory, and one product is one backward pass through it (2.1 gradients on
convolutions, 1.5 on a multilayer perceptron).  Recomputed: the same, built anew for each product (3.3 and 2.5).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.measure.twice import Twice

Leaves = Sequence[Tensor]
Product = Callable[[Leaves], list[Tensor]]  # v -> A v, both cut into the shapes of the parameters
ALL = slice(None)


@dataclass(frozen=True)
class Micro:
    """One micro-batch as a function of the parameters: its forward pass and its loss apart."""

    outputs: Callable[[Leaves], Tensor]  # in the leaves' own dtype
    losses: Callable[[Tensor], Tensor]  # outputs -> (B,)


class Cut(Protocol):
    """A product of which parts can be asked."""

    def __call__(self, v: Leaves, /) -> list[Tensor]:
        """Return A v."""

    def block(self, which: slice, v: Leaves) -> list[Tensor]:
        """Return A[which, which] v."""


class Hessian(Cut, Protocol):
    """The Hessian of a micro-batch, of which also every sample's part can be asked."""

    def curvature_along(self, v: Leaves) -> tuple[list[Tensor], Tensor]:
        """Return H v for the sum of losses, and v' H_i v for every sample of the micro-batch, shape (B,)."""


class Ways(Protocol):
    """How second derivatives are taken: by the functions of this file, or by `differences.Differences`."""

    @property
    def hessian(self) -> Callable[..., Hessian]:
        """Return micro, parameters -> the product of H."""

    @property
    def residual(self) -> Callable[[Micro, Leaves], Cut]:
        """Return micro, parameters -> the product of H - Gauss-Newton."""

    @property
    def gauss_newton(self) -> Callable[[Micro, Leaves], Product]:
        """Return micro, parameters -> the product of the Gauss-Newton matrix."""

    @property
    def slopes_along(self) -> Callable[[Micro, Leaves, Leaves], Tensor]:
        """Return micro, parameters, v -> g_i'v."""


@dataclass(frozen=True)
class Graph:
    """A kept graph of slopes: one backward pass through it, or through a part of it, is a product."""

    slopes: Leaves
    leaves: Leaves

    def __call__(self, v: Leaves) -> list[Tensor]:
        """Return A v."""
        return _pull(self.slopes, self.leaves, v)

    def block(self, which: slice, v: Leaves) -> list[Tensor]:
        """Return A[which, which] v: only what lies between these parameters and the loss is passed through.

        Over the 39 layers of ResNet-20 it costs 0.72 gradients in the mean (3.0 for the first, 0.0 for the last), the
        whole product 2.8.
        """
        return _pull(self.slopes[which], self.leaves[which], v)


@dataclass(frozen=True)
class Weighted(Graph):
    """The kept graph of g(w) = sum_i w_i g_i at w = 1, whose products are those of H."""

    weights: Tensor  # (B,)

    def curvature_along(self, v: Leaves) -> tuple[list[Tensor], Tensor]:
        """Return H v for the sum of losses, and v' H_i v for every sample of the micro-batch, shape (B,).

        h(w) = v' H(w) v is linear in w, and its derivative by w is what is asked for.
        """
        with sdpa_kernel(SDPBackend.MATH), Twice():
            product = _grad(_dot(self.slopes, v), self.leaves, create_graph=True)
            (along,) = _grad(_dot(product, v), [self.weights], retain_graph=True)
        return [part.detach() for part in product], along.detach()


def leaves_of(parameters: Leaves) -> list[Tensor]:
    """Return copies-free leaves that ask for gradients, so that the caller's tensors stay untouched."""
    return [parameter.detach().requires_grad_() for parameter in parameters]


def gradient(micro: Micro, parameters: Leaves) -> tuple[list[Tensor], Tensor]:
    """Return the gradient of the sum of losses and the losses (B,)."""
    leaves = leaves_of(parameters)
    losses = micro.losses(micro.outputs(leaves))
    return _grad(losses.sum(), leaves), losses.detach()


def weighted_gradient(micro: Micro, parameters: Leaves, weights: Tensor) -> list[Tensor]:
    """Return sum_i w_i g_i, for weights of the shape of the losses (B,)."""
    leaves = leaves_of(parameters)
    losses = micro.losses(micro.outputs(leaves))
    return _grad((weights.to(losses) * losses).sum(), leaves)


def slopes_along(micro: Micro, parameters: Leaves, v: Leaves) -> Tensor:
    """Return g_i'v for every sample of the micro-batch (B,).

    With weights w on the samples, g(w)'v is linear in w, and its derivative by w is what is asked for.
    """
    leaves = leaves_of(parameters)
    with sdpa_kernel(SDPBackend.MATH):
        losses = micro.losses(micro.outputs(leaves))
        weights = torch.ones_like(losses, requires_grad=True)
        slopes = _grad((weights * losses).sum(), leaves, create_graph=True)
        return _grad(_dot(slopes, v), [weights])[0]


def hessian(micro: Micro, parameters: Leaves, which: slice = ALL) -> Weighted:
    """Return v -> H v, or H[which, which] v, for the sum of losses, with the graph of the gradient kept.

    The weights on the samples cost a product nothing.
    """
    leaves = leaves_of(parameters[which])
    everything = [p.detach() for p in parameters]
    everything[which] = _seen(leaves)
    with sdpa_kernel(SDPBackend.MATH), Twice():  # the fused attention kernels have no second derivative
        losses = micro.losses(micro.outputs(everything))
        weights = torch.ones_like(losses, requires_grad=True)
        slopes = _grad((weights * losses).sum(), leaves, create_graph=True)
    return Weighted(slopes, leaves, weights)


def residual(micro: Micro, parameters: Leaves) -> Graph:
    """Return v -> (H - Gauss-Newton) v for the sum of losses: the curvature of the outputs, weighted by their slopes.

    It costs 0.5 to 0.9 products of H: the slopes of the loss are constants.
    """
    leaves = leaves_of(parameters)
    with sdpa_kernel(SDPBackend.MATH), Twice():
        outputs = micro.outputs(_seen(leaves))
        point = outputs.detach().requires_grad_()
        weights = _grad(micro.losses(point).sum(), [point])[0]
        slopes = _grad((outputs * weights).sum(), leaves, create_graph=True)
    return Graph(slopes, leaves)


def gauss_newton(micro: Micro, parameters: Leaves) -> Product:
    """Return v -> J' (loss Hessian) J v for the sum of losses, J the Jacobian of the outputs; graphs kept.

    J v comes from two reverse passes: w -> J'w is linear, and its derivative by w along v is J v.
    """
    leaves = leaves_of(parameters)
    with sdpa_kernel(SDPBackend.MATH), Twice():
        outputs = micro.outputs(_seen(leaves))
        dual = torch.zeros_like(outputs, requires_grad=True)
        transposed = _grad(outputs, leaves, dual, create_graph=True)
    point = outputs.detach().requires_grad_()
    slope = _grad(micro.losses(point).sum(), [point], create_graph=True)

    def product(v: Leaves) -> list[Tensor]:
        pushed = _pull(transposed, [dual], v)
        return _grad(outputs, leaves, _pull(slope, [point], pushed)[0], retain_graph=True)

    return product


def graph_bytes(build: Callable[[], object]) -> int:
    """Return the bytes that autograd saves while `build` runs: a function of sizes alone, never of a clock."""
    seen: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # without its graph: a node that keeps its own output would keep itself, for ever and unseen by the collector
        kept = tensor.detach()
        seen[storage.data_ptr()] = (storage.nbytes(), kept)  # holding the tensor keeps its address its own
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        build()
    return sum(size for size, _ in seen.values())


def _seen(leaves: Leaves) -> list[Tensor]:
    """Return the leaves as results of an operation: the engine tells `twice` which of those it needs, not of leaves."""
    return [leaf.view_as(leaf) for leaf in leaves]


def _dot(a: Leaves, b: Leaves) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


class _Seed(Function):
    """A number whose derivatives by `outputs` are the cotangents.

    Given to `torch.autograd.grad` itself, cotangents make torch import sympy to compare their shapes: 0.4 s.
    """

    @staticmethod
    def forward(ctx: Any, cotangents: Leaves, *outputs: Tensor) -> Tensor:
        ctx.cotangents = cotangents
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return None, *ctx.cotangents


def _seed(cotangents: Leaves, outputs: Leaves) -> Tensor:
    seed: Tensor = _Seed.apply(cotangents, *outputs)  # type: ignore[no-untyped-call]  # of torch
    return seed


def _grad(
    output: Tensor,
    inputs: Leaves,
    cotangent: Tensor | None = None,
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> list[Tensor]:
    if not output.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    if cotangent is not None:
        output = _seed([cotangent], [output])
    return list(
        torch.autograd.grad(
            output, list(inputs), create_graph=create_graph, retain_graph=retain_graph, materialize_grads=True
        )
    )


def _pull(outputs: Leaves, inputs: Leaves, cotangents: Leaves) -> list[Tensor]:
    """Pull cotangents back through a kept graph; parts that do not depend on the inputs count as zero."""
    live = [(output, cotangent) for output, cotangent in zip(outputs, cotangents, strict=True) if output.requires_grad]
    if not live:
        return [torch.zeros_like(x) for x in inputs]
    with sdpa_kernel(SDPBackend.MATH):
        return _grad(_seed([given for _, given in live], [output for output, _ in live]), inputs, retain_graph=True)
