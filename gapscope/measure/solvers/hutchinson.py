"""The trace of an operator, of its diagonal blocks, and its Frobenius norm, from products with random sign vectors.

tr(A) = E[z'Az] and |A|_F^2 = E|Az|^2 for independent z_j = +-1 (Hutchinson); the part of z'Az from a block of entries
has that block's trace as its mean.  One probe has the variance 2 (|A|_F^2 - sum_j A_jj^2).

Hutch++ takes what a few directions carry out of that variance.  With Q an orthonormal basis of the span of some A z_j
and P = I - QQ',

    tr(A) = tr(Q'AQ) + E[g'PAPg],   |A|_F^2 = |AQ|_F^2 + E|APg|^2,   Var(g'PAPg) <= 2 |PA|_F^2.

Its block traces follow from A = QQ'A + AQQ' - QQ'AQQ' + PAP, and add up to the whole.

Sources: Hutchinson 1989; Meyer, Musco, Musco, Woodruff 2020 (arXiv 2010.09649).  The blocks, the choice between the two
and the standard errors are ours: sample variances over probes, after a deflation not below r^2 (see `estimate_trace`),
half of what bounds them, times what t with so few degrees of freedom asks for.  Without both, 5 % of 640 errors lay
beyond 3 of those stated.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Generator, Tensor

from gapscope.measure.operators import Operator
from gapscope.results import Array, Status

THREE_SIGMA = 0.99865010  # of a normal distribution lies below the mean and three standard deviations
PILOT = 10
"""Probes before any standard error is believed; the smallest sketch, too."""

_ROUNDING = 10  # epsilons of |A|_F that every entry of A may be off, as in lanczos

Watch = Callable[[int, float, float], None]


@dataclass(frozen=True)
class TraceEstimate:
    """Means over probes with their standard errors; `rounding` bounds what arithmetic may have done to the trace."""

    trace: float
    trace_error: float
    frobenius: float
    frobenius_error: float
    blocks: Array  # (layers,)
    blocks_error: Array  # (layers,)
    probes: int  # that the means are over
    sketch: int  # directions deflated: 0 for plain Hutchinson
    matvecs: int
    method: Literal["exact", "hutchinson", "hutch++", "gradients"]
    status: Status
    rounding: float


class _Probes:
    """What the probes have said so far; a row of `parts` is one probe's z'Az, cut by block."""

    def __init__(self, blocks: Mapping[str, slice], offset: Array, squares: float, spread: float = 0.0) -> None:
        self.blocks, self.offset, self.squares_offset = blocks, offset, squares
        self.spread = spread  # what the variance of one probe is known to be about
        self.traces: list[float] = []
        self.squares: list[float] = []
        self.parts: list[Array] = []

    def add(self, z: Tensor, image: Tensor, square: float) -> None:
        """Add one probe: z and what it is multiplied with, and |Az|^2."""
        parts = _by_block(z * image, self.blocks) + self.offset
        self.traces.append(float(parts[-1]))
        self.parts.append(parts[:-1])
        self.squares.append(square + self.squares_offset)

    def __len__(self) -> int:
        return len(self.traces)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.traces[-1]) and math.isfinite(self.squares[-1])

    @property
    def variance(self) -> float:
        return float(np.var(self.traces, ddof=1))

    @property
    def error(self) -> float:
        return caution(len(self) - 1) * math.sqrt(max(self.variance, self.spread) / len(self))

    @property
    def scale(self) -> float:
        """Return what an error is relative to: |tr A|, but not less than |A|_F (a trace may cancel to nothing)."""
        return max(abs(float(np.mean(self.traces))), math.sqrt(float(np.mean(self.squares))))


def estimate_trace(
    operator: Operator,
    rng: Generator,
    *,
    blocks: Mapping[str, slice] | None = None,
    tolerance: float = 0.05,
    max_matvecs: int = 200,
    sketch_bytes: int | None = None,
    watch: Watch = lambda *_: None,
) -> TraceEstimate:
    """Estimate trace, block traces and Frobenius norm until se(trace) <= tolerance max(|trace|, |A|_F).

    Starts with Hutchinson.  After 10, 20, 40 ... probes it asks whether to stop there and deflate: the images A z_j at
    hand are the sketch, and the squared distance of each from the span of the others, averaged, is an unbiased
    estimate r^2 of |PA|_F^2 for a sketch of one less.  It costs no product.  With v the sample variance of z'Az,
    tau the error wanted and k the probes so far, Hutchinson needs v / tau^2 - k more products, Hutch++ k for AQ and
    2 r^2 / tau^2 (at least 10); the smaller wins.  Where neither fits the budget, the smaller error at its end wins, at
    the last sketch that leaves two thirds of the products.  Probes before the deflation are then not in the mean.

    The stopping looks at the estimated error, so this is a little optimistic near 10 probes.  At most 10 entries are
    measured entry by entry: exact.

    Shapes: blocks {layer: slice of (n,)}.  Cost: at most `max_matvecs` >= 10 products; four times the sketch's
    vectors (n,), within `sketch_bytes`.
    """
    blocks = blocks or {}
    size = operator.size
    plain = _Probes(blocks, np.zeros(len(blocks) + 1), 0.0)
    if size <= PILOT:
        for j in range(size):
            axis = torch.zeros(size, dtype=operator.dtype, device=operator.device)
            axis[j] = 1.0
            image = operator.matvec(axis)
            plain.add(size * axis, image, size * _square(image))
        return _finish(operator, plain, size, "exact", Status.EXACT if np.isfinite(plain.squares).all() else None)
    row = size * torch.finfo(operator.dtype).bits // 8
    room = max_matvecs // 3 if sketch_bytes is None else min(max_matvecs // 3, sketch_bytes // (4 * row))
    images: list[Tensor] = []
    look = PILOT
    while True:
        z = _signs(operator, rng)
        image = operator.matvec(z).to(operator.dtype)
        plain.add(z, image, _square(image))
        spent = len(plain)
        if not plain.finite:
            return _finish(operator, plain, spent, "hutchinson", None)
        if look <= room:
            images.append(image)
        if spent < PILOT:
            continue
        watch(spent, float(np.mean(plain.traces)), plain.error)
        if plain.error <= tolerance * plain.scale:
            return _finish(operator, plain, spent, "hutchinson", Status.CONVERGED)
        if spent >= max_matvecs:
            return _finish(operator, plain, spent, "hutchinson", Status.BUDGET_SPENT)
        if spent == look and look <= room:
            basis, missed = _span(torch.stack(images))
            look *= 2
            wanted = (tolerance * plain.scale) ** 2
            if _deflation_pays(plain, missed, len(basis), wanted, max_matvecs - spent, last=look > room):
                images.clear()
                return _deflated(operator, rng, basis, plain, missed, tolerance, max_matvecs, watch)
            if look > room:
                images.clear()


def _deflation_pays(plain: _Probes, missed: float, directions: int, wanted: float, left: int, *, last: bool) -> bool:
    """Return whether Hutch++ promises the tolerance sooner or, where neither reaches it, the smaller error."""
    for_plain = plain.variance / wanted - len(plain)
    for_deflated = directions + max(PILOT, 2 * missed / wanted)
    if min(for_plain, for_deflated) <= left:
        return for_deflated < for_plain
    fresh = left - directions
    return last and fresh >= PILOT and 2 * missed / fresh < plain.variance / (len(plain) + left)


def _deflated(
    operator: Operator,
    rng: Generator,
    basis: Tensor,
    plain: _Probes,
    spread: float,
    tolerance: float,
    max_matvecs: int,
    watch: Watch,
) -> TraceEstimate:
    """Go on with Hutch++; `basis` holds the columns of Q as rows, `spread` bounds the variance of a probe, about."""
    spent = len(plain)
    images = torch.empty_like(basis)
    for j, direction in enumerate(basis):
        images[j] = operator.matvec(direction)
        spent += 1
    inner = basis @ images.T
    inner = (inner + inner.T) / 2
    entries = (basis * (2 * images - inner @ basis)).sum(0, dtype=_wide(basis))
    deflated = _Probes(plain.blocks, _by_block(entries, plain.blocks), sum(map(_square, images)), spread)
    del images, entries
    while True:
        g = _signs(operator, rng)
        image = operator.matvec(g - basis.T @ (basis @ g))
        square = _square(image)
        image = image - basis.T @ (basis @ image)
        deflated.add(g, image, square)
        spent += 1
        if not deflated.finite:
            return _finish(operator, deflated, spent, "hutch++", None, len(basis))
        status = Status.BUDGET_SPENT
        if len(deflated) >= PILOT:
            watch(spent, float(np.mean(deflated.traces)), deflated.error)
            if deflated.error <= tolerance * deflated.scale:
                status = Status.CONVERGED
        if status is Status.CONVERGED or spent >= max_matvecs:
            return _finish(operator, deflated, spent, "hutch++", status, len(basis))


def _finish(
    operator: Operator,
    probes: _Probes,
    spent: int,
    method: Literal["exact", "hutchinson", "hutch++"],
    status: Status | None,
    sketch: int = 0,
) -> TraceEstimate:
    """Average; a status of None means that something was not finite."""
    m, nan = len(probes), math.nan
    if status is None:
        lost = np.full(len(probes.blocks), nan)
        return TraceEstimate(nan, nan, nan, nan, lost, lost, m, sketch, spent, method, Status.NONFINITE, nan)
    parts = np.asarray(probes.parts).reshape(m, len(probes.blocks))
    square = float(np.mean(probes.squares))
    frobenius = math.sqrt(square)
    exact = method == "exact"
    square_error = 0.0 if exact else error_of_mean(np.asarray(probes.squares))  # skewed, as a chi-square
    return TraceEstimate(
        trace=float(np.mean(probes.traces)),
        trace_error=0.0 if exact else probes.error,
        frobenius=frobenius,
        frobenius_error=square_error / (2 * frobenius) if frobenius > 0 else 0.0,  # delta method
        blocks=parts.mean(0),
        # one block may be of rank 1, and its draws a chi-square's, where all together are near normal
        blocks_error=np.asarray([0.0 if exact else error_of_mean(each) for each in parts.T]),
        probes=m,
        sketch=sketch,
        matvecs=spent,
        method=method,
        status=status,
        # |tr E| <= sqrt(n) |E|_F
        rounding=_ROUNDING * torch.finfo(operator.dtype).eps * math.sqrt(operator.size) * frobenius,
    )


def caution(freedom: float) -> float:
    """Return what makes 3 standard errors of so few degrees of freedom hold as often as 3 of a normal distribution.

    The variance is estimated, too: t instead of a normal, 1.36 at 9 degrees, 1.04 at 59.
    """
    return float(stdtrit(min(freedom, 1e6), THREE_SIGMA)) / 3 if freedom > 0 else math.nan


def error_of_mean(values: Array) -> float:
    """Return an error of the mean of few skewed draws: three of it seldom miss the truth.

    s / sqrt(m) (t / 3 + 19 k / (18 sqrt(m))), t the quantile of Student's distribution that for m = infinity is 3, and
    k the skewness, to which the term of Johnson's statistic at 3 belongs.  Few draws show neither the tail nor the
    skewness: k is at least that of a positive semidefinite quadratic form of Gaussians with the same mean and spread,
    2 s / |mean|, which for rank 1, the most skewed, is sqrt(8).

    Shares of 40,000 means of 30 draws with the truth beyond three errors, in brackets beyond three s / sqrt(m): of
    z^2 0.7 % (3.5), of a chi^2 with 4 degrees of freedom 0.3 % (1.2), of z 0.2 % (0.6), of z^2 + z^4 / 10 1.7 % (6.2);
    the error of z^2 is 1.6 times s / sqrt(m) then, that of z 1.15 times.

    Shapes: values (m,).  Source: Johnson 1978 (J. Am. Stat. Assoc. 73, 536); the least skewness is ours.
    """
    draws, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    if not spread > 0:
        return spread / math.sqrt(draws)
    unbiased = draws**2 / ((draws - 1) * max(1, draws - 2))
    seen = unbiased * abs(float((((values - mean) / spread) ** 3).mean()))
    least = min(2 * spread / abs(mean), math.sqrt(8)) if mean else math.sqrt(8)
    return spread / math.sqrt(draws) * (caution(draws - 1) + 19 / 18 * max(seen, least) / math.sqrt(draws))


def _span(images: Tensor) -> tuple[Tensor, float]:
    """Return an orthonormal basis of the rows (r, n), and the mean squared distance of a row from the others' span."""
    lengths = np.sqrt([_square(image) for image in images])
    unit = torch.from_numpy(1 / np.where(lengths > 0, lengths, 1.0))
    q, r = torch.linalg.qr((images * unit.to(images)[:, None]).T)
    small = r.cpu().double().numpy()
    left, values, _ = np.linalg.svd(small)
    cut = _ROUNDING * torch.finfo(images.dtype).eps * max(values[0], 1e-300)
    keep = max(1, int((values > cut).sum()))
    turn = torch.from_numpy(np.ascontiguousarray(left[:, :keep])).to(images.dtype).to(images.device)
    missed = 0.0
    for j in range(len(lengths)):
        others = np.delete(small, j, axis=1)
        rest = small[:, j] - others @ np.linalg.lstsq(others, small[:, j], rcond=None)[0]
        missed += float((lengths[j] * np.linalg.norm(rest)) ** 2) / len(lengths)
    return (q @ turn).T.contiguous(), missed


def _signs(operator: Operator, rng: Generator) -> Tensor:
    """Return +-1 (n,), drawn on the CPU so that every device starts alike."""
    bits = torch.randint(0, 2, (operator.size,), generator=rng, dtype=torch.int8)
    return (2 * bits - 1).to(operator.dtype).to(operator.device)


def _by_block(entries: Tensor, blocks: Mapping[str, slice]) -> Array:
    """Return the sums over each block, and over everything (layers + 1,)."""
    wide = _wide(entries)
    sums = [entries[where].sum(dtype=wide) for where in blocks.values()] + [entries.sum(dtype=wide)]
    return np.asarray(torch.stack(sums).cpu().numpy(), dtype=np.float64)


def _square(vector: Tensor) -> float:
    square = float(torch.linalg.vector_norm(vector, dtype=_wide(vector))) ** 2
    # below, float64 knows no squares: not 0, but unknown
    return square if square > 1e-280 or not bool(vector.any()) else math.nan


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # no float64 there
