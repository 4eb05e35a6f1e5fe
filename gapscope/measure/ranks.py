"""How many directions a matrix of activations uses: ranks of a spectrum at a stated cut, and ranks without one.

A spectrum comes with its noise floor: what the float64 Gram matrix of the smaller side k or, for columns in float64, a
QR factorization (max(m, n) eps sigma_1) cannot tell from zero.  Values under it are 0 here.  A Gram matrix has
sqrt((k + 4 + s / 8) eps) sigma_1, 1.1e-7 of it for 16 units and 3.5e-7 for 512 (squaring halves the digits): k eps is
LAPACK's bound for the eigenvalues, s is how many numbers are added one after another, each sum of which is rounded.
Sums are cut into short ones, which are added in pairs, so that s stays small.  The factors are gapscope's own choice:
a matrix of one constant column leaves s / 26 eps.
"""

import contextlib
import ctypes
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal, lapack
from torch import Tensor

from gapscope.errors import UsageError
from gapscope.measure.distributed import ranks
from gapscope.results import Array

# rows of a block of a QR factorization, in columns of the matrix: an eighth more work than one, a ninth of its memory
TALL = 8
# float64 copies of activations are made in pieces of this many numbers: 8 MB, to be multiplied from a cache
PIECE = 1_000_000
# rows of a Gram matrix that are multiplied at once, from the diagonal on: 5/8 of its products at 512 units
_STRIP = 128
# columns whose products are added one after another; the sums of such runs are added in pairs
_RUN = 256
EPS = float(np.finfo(np.float64).eps)


def gram_floor(units: int, columns: int, additions: int = 1) -> float:
    """Return the smallest sigma / sigma_1 that a float64 Gram matrix of this many units can tell from zero.

    It is the sum of `additions` matrices, which together are the products of so many columns.
    """
    return math.sqrt((max(units, 1) + 4 + (min(columns, _RUN) + additions) / 8) * EPS)


def gram_multiply_adds(small: int, large: int) -> int:
    """Return those of half a Gram matrix of the smaller side, in strips, and of its reduction to tridiagonal form.

    The reduction takes 2/3 k^3 (LAPACK's dsytrd), half of them matrix-vector products; both spectra come from one.
    """
    return large * sum(min(_STRIP, small - at) * (small - at) for at in range(0, small, _STRIP)) + 2 * small**3 // 3


def qr_multiply_adds(rows: int, columns: int) -> int:
    """Return m n^2 - n^3 / 3 for every block of rows (dgeqrf), and 4/3 n^3 (dgebrd) for each of both spectra."""
    blocks = -(-rows // (TALL * columns))
    return (rows + (blocks - 1) * columns) * columns**2 - blocks * columns**3 // 3 + 8 * columns**3 // 3


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a matrix units x columns, largest first, those up to the floor set to zero."""

    values: Array  # (min(units, columns),)
    floor: float  # absolute

    @classmethod
    def of(cls, values: Array, floor: float) -> "Spectrum":
        """Return a spectrum from computed values in any order; NaN stays NaN."""
        ordered = np.sort(values)[::-1]
        return cls(np.where(ordered <= floor, 0.0, ordered), floor)

    @property
    def finite(self) -> bool:
        """Return whether there is anything to count."""
        return bool(np.isfinite(self.values).all())

    @property
    def top(self) -> float:
        """Return sigma_1; 0 of an empty spectrum."""
        return float(self.values[0]) if len(self.values) else 0.0


@dataclass(frozen=True)
class Cut:
    """A cut: `rel:1e-2` keeps sigma > 1e-2 sigma_1, `abs:1e-2` keeps sigma > 1e-2."""

    kind: Literal["rel", "abs"]
    value: float

    @classmethod
    def parse(cls, text: str) -> "Cut":
        """Read a cut; raises UsageError."""
        found = re.fullmatch(r"(rel|abs):([0-9.]+(?:[eE][-+]?[0-9]+)?)", text)
        try:
            value = float(found[2]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not 0 < value < (1 if found[1] == "rel" else math.inf):
            raise UsageError(
                f"The cut is `{text}`. Expected `rel:X` with 0 < X < 1, or `abs:X` with X > 0. For example `rel:1e-2`."
            )
        return cls("rel" if found[1] == "rel" else "abs", value)

    def threshold(self, top: float) -> float:
        """Return the singular value at this cut."""
        return self.value * top if self.kind == "rel" else self.value


def near_rank(spectrum: Spectrum, cut: Cut) -> float:
    """Return how many singular values lie above the cut; NaN where the cut lies under the noise floor.

    Source: Oyedotun et al. count singular values well above zero; where to cut is gapscope's own choice.
    """
    threshold = cut.threshold(spectrum.top)
    if not spectrum.finite or (spectrum.top > 0 and threshold < spectrum.floor):
        return math.nan
    return float((spectrum.values > threshold).sum())


def numerical_rank(spectrum: Spectrum, shape: tuple[int, int], eps: float) -> float:
    """Return how many singular values exceed max(m, n) eps sigma_1, and the noise floor.

    Source: the default of LAPACK's users (NumPy, MATLAB); `eps` is that of the activations' own type.
    """
    return float((spectrum.values > max(shape) * eps * spectrum.top).sum()) if spectrum.finite else math.nan


def effective_rank(spectrum: Spectrum) -> float:
    """Return exp(-sum p log p), p = sigma / sum sigma; 0 of a zero matrix.  Source: Roy & Vetterli 2007."""
    if not spectrum.finite:
        return math.nan
    shares = spectrum.values[spectrum.values > 0]
    if not len(shares):
        return 0.0
    shares = shares / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(spectrum: Spectrum) -> float:
    """Return sum sigma^2 / sigma_1^2 = |A|_F^2 / |A|_2^2; 0 of a zero matrix."""
    if not spectrum.finite:
        return math.nan
    return float(((spectrum.values / spectrum.top) ** 2).sum()) if spectrum.top > 0 else 0.0


def participation_ratio(spectrum: Spectrum) -> float:
    """Return (sum sigma^2)^2 / sum sigma^4; 0 of a zero matrix."""
    if not spectrum.finite:
        return math.nan
    squares = (spectrum.values / spectrum.top) ** 2 if spectrum.top > 0 else np.zeros(1)
    return float(squares.sum() ** 2 / (squares**2).sum()) if spectrum.top > 0 else 0.0


def condition(spectrum: Spectrum) -> float:
    """Return sigma_1 / sigma_min: infinite where sigma_min lies under the noise floor, NaN of a zero matrix."""
    if not spectrum.finite or spectrum.top == 0:
        return math.nan
    smallest = float(spectrum.values[-1])
    return spectrum.top / smallest if smallest > 0 else math.inf


# --- from activations to spectra


@dataclass(frozen=True, eq=False)
class Spectra:
    """Both spectra of one matrix, from one pass, and the share of its units that never change."""

    plain: Spectrum
    centred: Spectrum
    columns: int
    dead: float


class Gram:
    """A A' and, in a row above it, the sums of every unit: upper triangle, accumulated in float64 on the device."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None  # (1 + units, 1 + units)
        self.columns = 0
        self.additions = 0

    def add(self, matrix: Tensor) -> None:
        """Add columns, given as rows (columns, units)."""
        if not len(matrix):
            return
        if self.gram is None:
            self.gram = _bordered(matrix.shape[1], matrix)
            self.first = matrix[0].clone()  # an activation may write in place
            self.still = torch.ones_like(self.first, dtype=torch.bool)
        self.still &= (matrix == self.first).all(0)
        for piece in torch.split(matrix, -(-PIECE // matrix.shape[1])):
            block = piece.to(self.gram.device).double()  # of mps the CPU
            _add_square(self.gram, block)
            self.gram[0, 1:] += block.sum(0)
            self.additions += 1
        self.columns += len(matrix)

    def joined(self, device: torch.device) -> "Gram":
        """Add up what each process has seen."""
        group = ranks()
        if group.count == 1:
            return self
        self.gram = group.summed(lambda: self.gram, device)
        own = (self.first.cpu(), self.still.cpu()) if self.columns else ()
        seen = group.gathered((self.columns, self.additions, *own))
        firsts, still = (torch.stack([one[i] for one in seen if one[0]]) for i in (2, 3))
        self.still = still.all(0) & (firsts == firsts[0]).all(0)
        self.columns = sum(one[0] for one in seen)
        self.additions = max(one[1] for one in seen) + len(seen)
        return self

    def spectra(self) -> Spectra:
        """Take both spectra from the one Gram matrix: A P A' = A A' - s s' / columns."""
        assert self.gram is not None
        dead, units = float(self.still.cpu().double().mean()), len(self.gram) - 1
        floor = gram_floor(units, self.columns, self.additions)
        return _from_gram(self.gram, min(units, self.columns), self.columns, floor, dead, streamed=True)


class Columns:
    """The columns themselves, in the activations' own type, of which there are fewer than units."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def add(self, matrix: Tensor) -> None:
        """Add columns, given as rows (columns, units); copied, because an activation may write in place."""
        if len(matrix):
            self.parts.append(matrix.clone())

    def joined(self, device: torch.device) -> "Columns":
        """Put together what each process has seen."""
        group = ranks()
        if group.count == 1:
            return self
        lengths = group.gathered(sum(map(len, self.parts)))
        before, own = sum(lengths[: group.rank]), lengths[group.rank]

        def placed() -> Tensor | None:
            if not self.parts:
                return None
            whole = self.parts[0].new_zeros(sum(lengths), self.parts[0].shape[1])
            whole[before : before + own] = torch.cat(self.parts)
            return whole

        self.parts = [group.summed(placed, device)]
        return self

    def spectra(self) -> Spectra:
        """Take both spectra from A'A: that of A P is of P A'A P; from R of A = Q R where the columns are float64."""
        columns, units = sum(map(len, self.parts)), self.parts[0].shape[1]
        first, dead = self.parts[0][0], self._dead()
        rank, exact = min(units, columns), first.dtype == torch.float64
        if not exact:
            gram = _bordered(columns, first)
            gram[0, 1:] = 1
            additions = 0
            for block in self._blocks(-(-PIECE // columns)):
                _add_square(gram, block)
                additions += 1
            return _from_gram(gram, rank, columns, gram_floor(columns, units, additions), dead, streamed=False)
        if not all(bool(part.isfinite().all()) for part in self.parts):
            return _spectra(np.full(rank, np.nan), np.full(rank, np.nan), math.nan, columns, dead)
        factor = _triangle(self._blocks(TALL * columns))
        plain, centred = _values(factor), _values(factor - factor.mean(1, keepdim=True))
        return _spectra(plain, centred, max(units, columns) * EPS, columns, dead)

    def _dead(self) -> float:
        """Return the share of units with one value; few are left to look at after eight columns."""
        first = self.parts[0][0]
        units = torch.arange(len(first), device=first.device)
        for part in (self.parts[0][:8], *self.parts):
            units = units[(part[:, units] == first[units]).all(0)]
        return len(units) / len(first)

    def _blocks(self, units: int) -> Iterator[Tensor]:
        """Yield so many rows (units, columns) of the matrix at a time in float64, written over by the next."""
        widest = self.parts[0].shape[1]
        block = _empty((sum(map(len, self.parts)), min(units, widest)), self.parts[0])
        for start in range(0, widest, units):
            seen = block[:, : widest - start]
            at = 0
            for part in self.parts:
                seen[at : at + len(part)] = part[:, start : start + units]
                at += len(part)
            yield seen.T


def _spectra(plain: Array, centred: Array, floor: float, columns: int, dead: float) -> Spectra:
    """Return both with one floor, given as a share of the largest value: centring starts from the same rounding."""
    absolute = floor * float(plain.max())
    return Spectra(Spectrum.of(plain, absolute), Spectrum.of(centred, absolute), columns, dead)


def _empty(shape: tuple[int, int], like: Tensor) -> Tensor:
    device = "cpu" if like.device.type == "mps" else like.device  # no float64 on mps
    return torch.empty(shape, dtype=torch.float64, device=device)


def _bordered(size: int, like: Tensor) -> Tensor:
    return _empty((size + 1, size + 1), like).zero_()


def _add_square(gram: Tensor, block: Tensor) -> None:
    """Add B'B to the upper triangle of a bordered Gram matrix, for a block of rows.

    BLAS adds all rows of one product one after another, and, where it is asked to add it, to what is there: of 10,000
    equal ones, rounding leaves 400 eps.
    """
    inner, whole = gram[1:, 1:], len(block) // _RUN * _RUN
    runs, rest = block[:whole].view(-1, _RUN, block.shape[1]) if whole else None, block[whole:]
    for start in range(0, len(inner), _STRIP):
        strip, rows = inner[start : start + _STRIP, start:], slice(start, start + _STRIP)
        if runs is not None:
            strip += torch.bmm(runs[:, :, rows].mT, runs[:, :, start:]).sum(0)
        if len(rest):
            strip += rest[:, rows].T @ rest[:, start:]


def _from_gram(gram: Tensor, rank: int, columns: int, floor: float, dead: float, *, streamed: bool) -> Spectra:
    """Return the spectra of a matrix from [0 g'; g G], of which the upper triangle is given, and written over.

    Centring takes s s' / columns from G = A A', with g = s; or projects G = A'A on what is orthogonal to g = (1 .. 1).
    On the CPU both come from one tridiagonal matrix: the reflection with which its reduction begins turns g into a
    multiple of e_1, so that centring changes one entry, or drops a row (1.1 k^3 multiply-adds' time, where each
    `eigvalsh` of k = 1,024 takes 2.6 k^3).
    """
    if not bool(gram.diagonal().isfinite().all()):  # sums of squares: they bound all else
        return _spectra(np.full(rank, np.nan), np.full(rank, np.nan), math.nan, columns, dead)
    if gram.device.type == "cpu":
        work = int(lapack.dsytrd_lwork(len(gram), lower=1)[0])
        with _as_many_threads_as_torch():
            _, diagonal, beside, _, _ = lapack.dsytrd(gram.numpy().T, lower=1, lwork=work, overwrite_a=1)
        plain = _tridiagonal(diagonal[1:], beside[1:])
        if streamed:
            diagonal[1] -= beside[0] ** 2 / columns
            centred = _tridiagonal(diagonal[1:], beside[1:])
        else:
            centred = np.append(_tridiagonal(diagonal[2:], beside[2:]), 0.0)
    else:
        plain, centred = _on_device(gram, columns, streamed=streamed)
    plain, centred = (np.sqrt(np.sort(values)[::-1][:rank].clip(min=0)) for values in (plain, centred))
    return _spectra(plain, centred, floor, columns, dead)


@contextlib.contextmanager
def _as_many_threads_as_torch() -> Iterator[None]:
    """Hold the OpenBLAS of SciPy's wheels, which would take every core whatever `--threads` says.

    On a busy machine of two cores that took 0.7 to 1.8 s where one thread takes 0.17 s (k = 1,024).
    """
    compiled = getattr(lapack, "_flapack", None)  # SciPy's own: another version may have none
    library = ctypes.CDLL(compiled.__file__) if compiled else None
    names = (f"{prefix}openblas_{{}}_num_threads" for prefix in ("scipy_", ""))
    name = next((name for name in names if hasattr(library, name.format("set"))), None)
    if name is None:
        yield
        return
    asked, told = getattr(library, name.format("get")), getattr(library, name.format("set"))
    before = asked()
    told(torch.get_num_threads())
    try:
        yield
    finally:
        told(before)


def _tridiagonal(diagonal: Array, beside: Array) -> Array:
    return np.asarray(eigvalsh_tridiagonal(diagonal, beside)) if len(diagonal) > 1 else diagonal.copy()


def _on_device(gram: Tensor, columns: int, *, streamed: bool) -> tuple[Array, Array]:
    """Return the eigenvalues of a bordered Gram matrix, and those after centring, by the device's own solver."""
    border, inner = gram[0, 1:], gram[1:, 1:]
    plain = torch.linalg.eigvalsh(inner, UPLO="U")
    if streamed:
        inner.addr_(border, border, alpha=-1 / columns)
    else:
        inner = inner.triu() + inner.triu(1).T
        inner -= inner.mean(0)
        inner -= inner.mean(1, keepdim=True)
    return plain.cpu().numpy(), torch.linalg.eigvalsh(inner, UPLO="U").cpu().numpy()


def _triangle(blocks: Iterator[Tensor]) -> Tensor:
    """Return R of the rows of all blocks (m, n), holding one block at a time (tall-skinny QR, Demmel et al. 2012)."""
    factor: Tensor | None = None
    for block in blocks:
        factor = torch.linalg.qr(block if factor is None else torch.cat([factor, block]), mode="r").R
    assert factor is not None
    return factor


def _values(factor: Tensor) -> Array:
    return np.asarray(torch.linalg.svdvals(factor).cpu().numpy())
