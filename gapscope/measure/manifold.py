"""Keskar's random manifold x + A y: A (n, p) with independent N(0, 1) entries, drawn from a seed in blocks of rows.

The paper does not state the distribution of A.  Only entries of size O(1) reproduce the order of its table 4, so N(0,
1) is gapscope's choice, and stands in the report.  A is kept when it fits, else drawn again for each use.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class RandomManifold:
    """The matrix A (size, dimension) of one draw, and the three products that are needed of it."""

    size: int
    dimension: int
    seed: int
    device: torch.device
    dtype: torch.dtype
    keep_bytes: int = 0

    def _draw(self) -> Iterator[tuple[slice, Tensor]]:
        rng = torch.Generator().manual_seed(self.seed)
        for start in range(0, self.size, _ROWS):
            rows = min(_ROWS, self.size - start)
            block = torch.randn(rows, self.dimension, generator=rng, dtype=torch.float32)
            yield slice(start, start + rows), block.to(self.device, self.dtype)

    @cached_property
    def _kept(self) -> list[tuple[slice, Tensor]] | None:
        fits = self.size * self.dimension * torch.finfo(self.dtype).bits // 8 <= self.keep_bytes
        return list(self._draw()) if fits else None

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        yield from self._kept if self._kept is not None else self._draw()

    def lift(self, y: Tensor) -> Tensor:
        """Return A y (n,)."""
        return torch.cat([block @ y for _, block in self._blocks()])

    def project(self, g: Tensor) -> Tensor:
        """Return A' g (p,)."""
        return torch.stack([block.T @ g[rows] for rows, block in self._blocks()]).sum(dim=0)

    def coordinates(self, x: Tensor) -> Tensor:
        """Return A+ x = (A'A)^-1 A'x (p,), formed in float64 on the CPU."""
        gram = torch.zeros(self.dimension, self.dimension, dtype=torch.float64)
        image = torch.zeros(self.dimension, dtype=torch.float64)
        for rows, block in self._blocks():
            part = block.double() if block.device.type != "mps" else block.cpu().double()
            gram += (part.T @ part).cpu()
            image += (part.T @ x[rows].to(part.device).double()).cpu()
        solution: Tensor = torch.linalg.solve(gram, image)
        return solution.to(self.device, self.dtype)


def memory(problem: "Problem", dimension: int) -> int:
    """Return the bytes that a manifold takes: A where a quarter of the budget keeps it, and a block in float64."""
    size = problem.theta.element_size()
    kept, block = problem.size * dimension * size, min(_ROWS, problem.size) * dimension
    return (kept if kept <= problem.memory_budget // 4 else 0) + block * (4 + size + 8)


def uses(problem: "Problem", dimension: int, draws: int, products: float) -> dict[str, float]:
    """Return how many numbers `draws` manifolds draw, and read in so many products each."""
    entries = draws * problem.size * dimension
    kept = problem.size * dimension * problem.theta.element_size() <= problem.memory_budget // 4
    return {"numbers_drawn": entries * (1 if kept else 1 + products), "numbers_read": entries * products}
