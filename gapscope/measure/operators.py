"""Symmetric linear maps, known only by what they do to a vector.  No neural networks here."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

CPU = torch.device("cpu")
_PIECE = 1 << 20  # numbers drawn or multiplied at a time, where another vector of all is too much


@dataclass(frozen=True)
class Share:
    """The part of every vector that this process holds, where several hold the vectors of a space together."""

    places: tuple[slice, ...]  # of the whole vector, ascending; held one after the other
    most: int  # entries that one of the processes holds, at most
    total: Callable[[Tensor], Tensor]  # the sum over the processes, the same bits in each; may overwrite its argument


@dataclass(frozen=True)
class Operator:
    """A symmetric matrix-free map A on vectors of length `size`; one `matvec` is the unit of cost.

    With a `share`, vectors are the parts that this process holds, and every inner product is summed over all.
    """

    size: int
    matvec: Callable[[Tensor], Tensor]  # (n,) -> (n,)
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    together: Callable[[Tensor], Tensor] | None = None  # (k, n) -> (k, n), where vectors share work
    share: Share | None = None

    @property
    def held(self) -> int:
        """Return how many entries of a vector one process holds, at most."""
        return self.size if self.share is None else self.share.most

    def total(self, sums: Tensor) -> Tensor:
        """Return the sum of what every process has summed over its part."""
        return sums if self.share is None else self.share.total(sums)

    def length(self, v: Tensor) -> Tensor:
        """Return |v| ()."""
        return length(v, self.share)

    def block(self, vectors: Tensor) -> Tensor:
        """Apply to the rows of (k, n); costs at most k matvecs."""
        if self.together is not None:
            return self.together(vectors)
        return torch.stack([self.matvec(vector) for vector in vectors])


def length(v: Tensor, share: Share | None = None) -> Tensor:
    """Return |v| (), squares summed in float64: in float32 those of entries under 1e-23 vanish, over 1e19 overflow."""
    wide = torch.float32 if v.device.type == "mps" else torch.float64  # no float64 there
    own: Tensor = torch.linalg.vector_norm(v, dtype=wide)
    return own if share is None else share.total(own.square()).sqrt()


def inner(a: Tensor, b: Tensor, share: Share | None = None) -> Tensor:
    """Return a'b (), summed in float64.

    Products of the two in float32 round at random, sums of 10 million do not: `torch.dot` was 2.6e-4 off there, and of
    vectors with a few large entries 2e-4 at 270,000.
    """
    own = (a * b).sum(dtype=torch.float32 if a.device.type == "mps" else torch.float64)  # no float64 there
    return own if share is None else share.total(own)


def rounded(slope: Tensor, x: Tensor) -> float:
    """Return what rounding of the entries of x (n,) does to a function of that slope (n,): eps/2 |slope * x|."""
    pieces = zip(torch.split(slope, _PIECE), torch.split(x, _PIECE), strict=True)
    return torch.finfo(x.dtype).eps / 2 * math.hypot(*(float(length(g * part)) for g, part in pieces))


def gaussian(size: int, rng: Generator, dtype: torch.dtype, share: Share | None = None) -> Tensor:
    """Return a standard normal vector (n,), or the share of it, on the CPU: the same whoever holds how much.

    The numbers are those of one draw in float64, of which only a piece is there at a time.
    """
    places = (slice(0, size),) if share is None else share.places
    found, filled, start = torch.empty(sum(p.stop - p.start for p in places), dtype=dtype), 0, 0
    while start < size:
        # torch draws 16 at a time, and fewer in another way
        stop = size if size - start < _PIECE + 16 else start + _PIECE
        piece = torch.randn(stop - start, generator=rng, dtype=torch.float64)
        for place in places:
            own = piece[max(place.start - start, 0) : max(place.stop - start, 0)]
            found[filled : filled + len(own)] = own
            filled += len(own)
        start = stop
    return found


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
