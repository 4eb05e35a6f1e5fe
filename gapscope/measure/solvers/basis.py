"""Where the vectors of a Krylov space lie: on the operator's device, in CPU memory beside it, or in a file.

Each step reads all of them four times to orthogonalize one vector, and multiplies only the last: so they can lie
elsewhere, and one vector travels each way.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor

Home = Literal["device", "host", "disk"]

_SLAB = 16  # rows taken at a time where memory is taken when asked for; a CPU gives it only to rows in use
_COLUMNS = 1 << 20  # of a basis that are replaced at a time


class Basis:
    """At most `capacity` rows of `size` numbers; as a context, it gives back memory or file also after an error.

    `total` sums inner products over the processes where each holds its part of every row.
    """

    def __init__(
        self,
        capacity: int,
        like: Tensor,
        home: Home = "device",
        slab: int | None = None,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> None:
        self._total = total
        self.capacity, self.rows, self.size = capacity, 0, len(like)
        self.device = like.device if home == "device" else torch.device("cpu")
        self._dtype, self._slabs = like.dtype, list[Tensor]()
        self._slab = slab or (capacity if self.device.type == "cpu" else _SLAB)
        self._folder = tempfile.TemporaryDirectory(prefix="gapscope-") if home == "disk" else None
        if self._folder is not None:
            path = str(Path(self._folder.name) / "basis")
            stored = torch.from_file(path, shared=True, size=capacity * self.size, dtype=self._dtype)
            self._slabs = [stored.view(capacity, self.size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._slabs = []
        if self._folder is not None:
            self._folder.cleanup()

    def append(self, row: Tensor) -> None:
        """Add a row (n,)."""
        if self.rows == sum(len(slab) for slab in self._slabs):
            more = min(self._slab, self.capacity - self.rows)
            self._slabs.append(torch.empty(more, self.size, dtype=self._dtype, device=self.device))
        self._row(self.rows).copy_(row)
        self.rows += 1

    def last(self) -> Tensor:
        """Return the row added last (n,)."""
        return self._row(self.rows - 1)

    def all(self) -> Tensor:
        """Return all rows (rows, n): themselves where they lie together."""
        parts = [part for part, _ in self._parts()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def orthogonal(self, w: Tensor) -> Tensor:
        """Return w (n,) less its part in the span of the rows, which are orthonormal."""
        w = w.to(self.device)
        # twice is enough (Parlett 1998, sec. 6.9): in float32 one pass leaves max|QQ'-I| at 3e-5, two at 3e-7
        for _ in range(2):
            along = [(part, self._total(part @ w)) for part, _ in self._parts()]  # all of them before any is taken off
            for part, found in along:
                w = torch.addmv(w, part.T, found, alpha=-1)
        return w

    def combined(self, coefficients: Tensor) -> Tensor:
        """Return combinations (k, n) of the rows from coefficients (k, rows)."""
        c = coefficients.to(self.device, self._dtype)
        total = torch.zeros(len(c), self.size, dtype=self._dtype, device=self.device)
        for part, start in self._parts():
            total.addmm_(c[:, start : start + len(part)], part)
        return total

    def replace(self, coefficients: Tensor) -> None:
        """Put combinations of the rows in their place, from coefficients (k, rows), in no more memory."""
        c = coefficients.to(self.device, self._dtype)
        for left in range(0, self.size, _COLUMNS):
            where = slice(left, left + _COLUMNS)
            fewer = c @ torch.cat([part[:, where] for part, _ in self._parts()])
            for i, row in enumerate(fewer):
                self._row(i)[where] = row
        self.rows = len(c)

    def _row(self, number: int) -> Tensor:
        first = len(self._slabs[0])
        slab, rest = (0, number) if number < first else divmod(number, first)
        return self._slabs[slab][rest]

    def _parts(self) -> Iterator[tuple[Tensor, int]]:
        start = 0
        for slab in self._slabs:
            if start < self.rows:
                yield slab[: self.rows - start], start
            start += len(slab)
