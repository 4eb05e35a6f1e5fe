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

    def block(self, vectors: Tensor) -> Tensor:
        """Apply to the rows of (k, n); costs k matvecs."""
        return torch.stack([self.matvec(vector) for vector in vectors])


def from_dense(matrix: Tensor) -> Operator:
    """Return the operator of a symmetric matrix (n, n)."""
    return Operator(matrix.shape[0], lambda v: matrix @ v, matrix.dtype, matrix.device)
