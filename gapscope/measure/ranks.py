"""How many directions a matrix of activations uses: ranks of a spectrum at a stated cut, and ranks without one.

A spectrum comes with its noise floor: what a float64 Gram matrix (sqrt(units eps) sigma_1, about 1e-8 sigma_1 for few
units: squaring halves the digits) or a QR factorization (max(m, n) eps sigma_1) cannot tell from zero.  Values under
it are 0 here.  The factor in front of eps is gapscope's own choice: LAPACK's bound for eigenvalues of h x h matrices.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import UsageError
from gapscope.measure.distributed import ranks
from gapscope.results import Array

# rows of a block, in columns of the matrix: an eighth more work than one factorization, a ninth of its memory
TALL = 8
# float64 copies of activations are made in pieces of this many numbers
_PIECE = 4_000_000
EPS = float(np.finfo(np.float64).eps)


def gram_floor(units: int) -> float:
    """Return the smallest sigma / sigma_1 that a float64 Gram matrix of this many units can tell from zero."""
    return math.sqrt(max(units, 1) * EPS)


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
    """A A', sums, least and greatest value of every unit, accumulated in float64 on the device."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None  # (units, units)
        self.columns = 0

    def add(self, matrix: Tensor) -> None:
        """Add columns, given as rows (columns, units)."""
        for piece in torch.split(matrix, max(1, _PIECE // matrix.shape[1])):
            block = _double(piece)
            if self.gram is None:
                self.gram = block.new_zeros(block.shape[1], block.shape[1])
                self.sums, self.least, self.greatest = block.new_zeros(block.shape[1]), block[0], block[0]
            self.gram.addmm_(block.T, block)
            self.sums += block.sum(0)
            self.least, self.greatest = self.least.minimum(block.amin(0)), self.greatest.maximum(block.amax(0))
            self.columns += len(block)

    def joined(self, device: torch.device) -> "Gram":
        """Add up what each process has seen."""
        group = ranks()
        if group.count == 1:
            return self
        own = None if self.gram is None else torch.cat([self.gram, self.sums[None]])
        whole = group.summed(lambda: own, device)
        self.gram, self.sums = whole[:-1], whole[-1]
        seen = group.gathered((self.columns, *((self.least.cpu(), self.greatest.cpu()) if self.columns else ())))
        self.least = torch.stack([one[1] for one in seen if one[0]]).amin(0)
        self.greatest = torch.stack([one[2] for one in seen if one[0]]).amax(0)
        self.columns = sum(one[0] for one in seen)
        return self

    def spectra(self) -> Spectra:
        """Take both spectra from the one Gram matrix: A P A' = A A' - s s' / columns."""
        assert self.gram is not None
        plain = _roots(self.gram, self.columns)
        centred = _roots(self.gram.addr_(self.sums, self.sums, alpha=-1 / self.columns), self.columns)
        floor = gram_floor(len(self.gram)) * float(plain.max())
        dead = float((self.least == self.greatest).double().mean())
        return Spectra(Spectrum.of(plain, floor), Spectrum.of(centred, floor), self.columns, dead)


def _roots(gram: Tensor, columns: int) -> Array:
    rank = min(len(gram), columns)
    if not bool(gram.isfinite().all()):
        return np.full(rank, np.nan)
    return np.asarray(torch.linalg.eigvalsh(gram)[-rank:].clamp(min=0).sqrt().cpu().numpy())


class Columns:
    """The columns themselves, in the activations' own type; their spectrum by blocked QR in float64."""

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
        """Factor A = Q R: the singular values of A P are those of R P."""
        columns, units = sum(len(part) for part in self.parts), self.parts[0].shape[1]
        least = torch.stack([part.amin(0) for part in self.parts]).amin(0)
        greatest = torch.stack([part.amax(0) for part in self.parts]).amax(0)
        still = float((least == greatest).float().mean())
        rank = min(units, columns)
        if not all(bool(part.isfinite().all()) for part in self.parts):
            nothing = Spectrum(np.full(rank, np.nan), np.nan)
            return Spectra(nothing, nothing, columns, still)
        if units >= columns:
            step = TALL * columns
            blocks = (
                torch.cat([_double(part[:, start : start + step]) for part in self.parts]).T
                for start in range(0, units, step)
            )
            factor = _triangle(blocks)
            plain, middle = _values(factor), _values(factor - factor.mean(1, keepdim=True))
        else:
            mean = sum(_double(part).sum(0) for part in self.parts) / columns
            plain = _values(_triangle(_double(part) for part in self._regrouped()))
            middle = _values(_triangle(_double(part) - mean for part in self._regrouped()))
        floor = max(units, columns) * EPS * float(plain.max())
        return Spectra(Spectrum.of(plain, floor), Spectrum.of(middle, floor), columns, still)

    def _regrouped(self) -> Iterator[Tensor]:
        """Yield the columns in blocks of about `TALL` x units: small micro-batches would each cost a factorization."""
        waiting: list[Tensor] = []
        rows = TALL * self.parts[0].shape[1]
        for part in self.parts:
            for piece in torch.split(part, rows):
                if waiting and sum(map(len, waiting)) + len(piece) > rows:
                    yield torch.cat(waiting)
                    waiting = []
                waiting.append(piece)
        yield torch.cat(waiting)


def _triangle(blocks: Iterator[Tensor]) -> Tensor:
    """Return R of the rows of all blocks (m, n), holding one block at a time (tall-skinny QR, Demmel et al. 2012)."""
    factor: Tensor | None = None
    for block in blocks:
        factor = torch.linalg.qr(block if factor is None else torch.cat([factor, block]), mode="r").R
    assert factor is not None
    return factor


def _values(factor: Tensor) -> Array:
    return np.asarray(torch.linalg.svdvals(factor).cpu().numpy())


def _double(matrix: Tensor) -> Tensor:
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()  # no float64 on mps
