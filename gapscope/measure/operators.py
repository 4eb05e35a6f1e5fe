"""Symmetric linear maps, known only by what they do to a vector.  No neural networks here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix-free map A on vectors of length `size`; one `matvec` is the unit of cost."""

    size: int
    matvec: Callable[[Tensor], Tensor]  # (n,) -> (n,)
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    together: Callable[[Tensor], Tensor] | None = None  # (k, n) -> (k, n), where vectors share work

    def block(self, vectors: Tensor) -> Tensor:
        """Apply to the rows of (k, n); costs at most k matvecs."""
        if self.together is not None:
            return self.together(vectors)
        return torch.stack([self.matvec(vector) for vector in vectors])


def from_dense(matrix: Tensor) -> Operator:
    """Return the operator of a symmetric matrix (n, n)."""
    return Operator(matrix.shape[0], lambda v: matrix @ v, matrix.dtype, matrix.device)


def scaled(operator: Operator, d: Tensor) -> Operator:
    """Return D A D for D = diag(d), d (n,): with d = P^-1/2, the operator as a preconditioner P sees it.

    Cost: one matvec of `operator`.
    """
    diagonal = d.to(operator.dtype).to(operator.device)
    return _rowwise(operator, lambda product, v: diagonal * product(diagonal * v))


def shifted(operator: Operator, d: Tensor) -> Operator:
    """Return A + diag(d), d (n,).  Cost: one matvec of `operator`."""
    diagonal = d.to(operator.dtype).to(operator.device)
    return _rowwise(operator, lambda product, v: product(v) + diagonal * v)


def _rowwise(operator: Operator, around: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Operator:
    """Return the operator that does `around` a product what it does around a block of them."""
    return Operator(
        operator.size,
        lambda v: around(operator.matvec, v),
        operator.dtype,
        operator.device,
        lambda vectors: around(operator.block, vectors),
    )
