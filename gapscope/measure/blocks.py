"""Products over the data with the graphs kept between them as far as the budget goes, whole and by layer.

A product with the Hessian's diagonal block of one layer passes only through what lies between that layer and the loss.
On ResNet-20 (256 random images, 32 a micro-batch, graphs kept) the top eigenvalues of all 39 layers took 376 products:
226 gradients in this way, 917 with whole products.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from gapscope.measure import products
from gapscope.measure.batches import Batch
from gapscope.measure.differentiable import Precision, in_precision
from gapscope.measure.operators import Operator

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

P = TypeVar("P", bound=products.Product)


@dataclass(frozen=True, eq=False)
class Kept(Generic[P]):
    """The products of every micro-batch: kept for the first ones, half the memory budget's worth, else built anew."""

    problem: "Problem"
    build: Callable[[products.Micro, products.Leaves], P]
    held: dict[int, P] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> list[Tensor]:
        """Return theta, cut."""
        return self.problem._split(None)

    @cached_property
    def room(self) -> int:
        """Return how many micro-batches may be kept."""
        return self.problem.memory_budget // 2 // (self.problem.graph_bytes_per_sample * self.problem.micro_batch)

    def known(self, batch: Batch) -> P | None:
        """Return the product of a micro-batch that is kept or can be; None where there is no room."""
        if batch.start not in self.held:
            if len(self.held) >= self.room:
                return None
            self.held[batch.start] = self.build(self.problem._micro(batch), self.parameters)
        return self.held[batch.start]

    def of(self, batch: Batch) -> P:
        """Return the product of a micro-batch."""
        found = self.known(batch)
        return self.build(self.problem._micro(batch), self.parameters) if found is None else found

    def operator(self, precision: Precision = "full") -> Operator:
        """Return the mean over the data, of passes through the graphs in this precision."""
        _ = self.room  # what is wrong with the model is said here, not at the first product
        return _mean(self.problem, products.ALL, self.of, precision)


@dataclass(frozen=True, eq=False)
class Blocks:
    """The Hessian and its diagonal blocks by layer."""

    problem: "Problem"

    @cached_property
    def _kept(self) -> Kept[products.Hessian]:
        return self.problem.graphs()

    @cached_property
    def _which(self) -> dict[str, slice]:
        """Return where the parameters of every layer are in the list of all."""
        layout = self.problem.parameters
        starts = {start: i for i, start in enumerate(itertools.accumulate(layout.sizes, initial=0))}
        return {layer: slice(starts[where.start], starts[where.stop]) for layer, where in layout.blocks().items()}

    def whole(self) -> Operator:
        """Return H."""
        return self._kept.operator()

    def layer(self, name: str) -> Operator:
        """Return the block of one layer, acting on its part of theta."""
        problem, which = self.problem, self._which[name]

        def product(batch: Batch) -> products.Product:
            graph = self._kept.known(batch)
            if graph is not None:
                return partial(graph.block, which)
            # what lies before the layer needs no graph at all
            return problem.derivatives.ways.hessian(problem._micro(batch), self._kept.parameters, which)

        return _mean(problem, which, product)

    def apart(self) -> Operator:
        """Return the block-diagonal of H, the blocks of all layers and nothing between them; costs their sum."""

        def product(batch: Batch) -> products.Product:
            graph = self._kept.of(batch)
            return lambda v: [part for which in self._which.values() for part in graph.block(which, v[which])]

        return _mean(self.problem, products.ALL, product)


def _mean(
    problem: "Problem", which: slice, product: Callable[[Batch], products.Product], precision: Precision = "full"
) -> Operator:
    """Return the mean over the data of the products of its micro-batches, acting on these of the parameters.

    The vectors of a block share one pass over the data: what is not kept is built once for all of them.
    """
    shapes, sizes = problem.parameters.shapes[which], problem.parameters.sizes[which]

    def block(vectors: Tensor) -> Tensor:
        rows = torch.split(vectors.to(problem.dtype), sizes, dim=1)
        cuts = [[part[i].view(shape) for part, shape in zip(rows, shapes, strict=True)] for i in range(len(vectors))]

        def of(batch: Batch) -> Tensor:
            apply = product(batch)
            with in_precision(precision, problem.device):
                return torch.stack([problem.parameters.flatten(apply(cut)) for cut in cuts])

        return problem._vector(problem.mean(of, passes=len(cuts)))

    return Operator(sum(sizes), lambda v: block(v[None])[0], problem.dtype, problem.device, block)
