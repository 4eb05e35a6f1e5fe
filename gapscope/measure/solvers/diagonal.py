"""The diagonal of an operator, entry by entry, and the quartiles of its magnitude over blocks of entries.

A_ii = E[z_i (Az)_i] for independent z_j = +-1; one probe has the variance sum_{j != i} A_ij^2.  That noise does not
average out of a median of |A_ii|: it lifts it, several times over where most entries are small beside their rows.  So
what a few directions carry is taken out exactly first.  With Q the vectors of a Lanczos run, A Q = Q T + beta q e_m',
and P = I - QQ',

    A = QQ'A + AQQ' - QQ'AQQ' + PAP,   diag(A) = diag(Q T Q') + 2 beta q * q_m + E[z * PAPz].

A Q costs no product beyond the run.  Every probe goes through all blocks at once: a probe inside one block is quieter,
but serves that block alone.

Median of |estimate| / median of |A_ii| on the Hessian of a small-batch digits network (4,810 parameters, layers fc1 and
fc2), for equal products in all:

    products                         20           50           100          200
    probes of everything             2.8, 2.0     1.7, 1.3     1.3, 1.2     1.0, 1.0
    probes layer by layer            3.2, 1.6     2.0, 1.2     1.5, 1.0     1.1, .9
    images A z as Q (Hutch++)        2.6, 2.3     1.1, 1.2     1.0, 1.1     1.0, 1.0
    Lanczos vectors as Q, half       1.5, 1.5     1.0, 1.1     1.0, 1.1     1.0, 1.0

The error of a quartile m.  The probes are dealt into 8 groups; the rows of a Hadamard matrix halve them 7 ways.  The
differences between halves give s, the standard error of m.  Halves have twice the variance of noise, which to first
order lifts the mean of m_half^2 twice as much as m^2: so b^2 = 2 m^2 - mean m_half^2 is free of it, but too low where m
is much too high.  Stated is |m - b| + 4 s, and a lower end of 0 where the typical error of an entry exceeds m.

The true median lay within it in 92 to 100 % of 40 runs, for every layer of that network, of its large-batch twin and of
a small convolutional one with BatchNorm, at 32, 48, 72 and 104 products, deflated or not; upper and lower quartiles in
82 to 100 %; with 2 s for 4 s, medians of the digits networks in 65 to 97 %.  100 products resolve all layers but two of
the convolutional network: their medians stay 1.4 and 1.7 times too high, and are called noise-dominated.  So are all 39
of an untrained ResNet-20 on 64 random images.  On the first three networks the diagonal equals that of the Gauss-Newton
matrix to 1e-16, because their outputs are piecewise linear in every single parameter: where that is so, ask that.

On smooth networks it leaves a part over, but one with smaller rows: `known` is the diagonal of the Gauss-Newton matrix,
and the operator the rest.  Median over a layer of |error| / median of |A_ii|, in the layer known worst, on 600 digits;
40 directions of A deflated, none of the rest, a product of which costs 0.5 to 0.9 of one of A:

    network (the known part costs so many products)    100 products of A    known + 24 of the rest    known + 100
    tanh 64-32-10, loss .06 (60)                       .15                  .18                       .09
    the same, loss .003 (47)                           .17                  .17                       .08
    gelu 64-24-16-10, loss .03 (43)                    .08                  .08                       .04
    the same, loss .0007 (41)                          .07                  .05                       .02
    attention block, loss .07 (7)                      .37                  .37                       .19
    the same, loss .0002 (7)                           .43                  .19                       .09

Sources: Bekas, Kokiopoulou, Saad 2007 (the estimator); Baston, Nakatsukasa 2022 (deflation of it, from images A z).
Lanczos vectors, the quartiles and their errors are ours.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Generator, Tensor

from gapscope.measure.operators import Operator
from gapscope.measure.solvers.hutchinson import error_of_mean
from gapscope.measure.solvers.lanczos import decompose, gaussian_start
from gapscope.results import Array, Status

GROUPS = 8
"""Probes before any error is known; they are added this many at a time."""

QUARTILES = (0.25, 0.5, 0.75)

_SPREAD = 4  # standard errors: see the share of runs above
_HALVES = scipy.linalg.hadamard(GROUPS)[1:] > 0  # (7, 8): each row halves the groups, any two rows differently
_VECTORS = 2 * GROUPS + 8  # of length n that are held beside Q

Watch = Callable[[int, float, float], None]


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal with the standard error of every entry, and what its blocks' magnitudes say.

    Quartiles are over the entries that are not exactly zero in all products; NaN where a block has no such entry.
    """

    entries: Tensor  # (n,)
    errors: Tensor  # (n,), NaN with fewer than 8 probes
    quartiles: Array  # (blocks, 3) of |entries|
    quartile_errors: Array  # (blocks, 3), NaN with fewer than 8 probes
    noise_share: Array  # (blocks,) median error / median |entry|; at least 1 with fewer than 8 probes
    zero_fraction: Array  # (blocks,)
    traces: Array  # (blocks,)
    trace_errors: Array  # (blocks,)
    probes: int
    directions: int
    matvecs: int
    status: Status


def estimate_diagonal(
    operator: Operator,
    rng: Generator,
    *,
    blocks: Mapping[str, slice],
    tolerance: float = 0.25,
    max_matvecs: int = 100,
    directions: int = 40,
    basis_bytes: int | None = None,
    known: Tensor | None = None,
    watch: Watch = lambda *_: None,
) -> DiagonalEstimate:
    """Estimate the diagonal until the error of every block's median is within `tolerance` of it.

    At most half of the products deflate.  No more than `directions` + 8 entries are measured one by one: exact.
    `known` (n,) is added to the diagonal, without error: what is asked for is then that of diag(known) + A.

    Shapes: blocks {name: slice of (n,)}.  Cost: at most `max_matvecs` >= 1 products; `directions` vectors (n,) within
    `basis_bytes`, and 24 more.
    """
    size = operator.size
    if size <= min(directions + GROUPS, max_matvecs):
        axes = torch.eye(size, dtype=operator.dtype, device=operator.device)
        entries = torch.stack([axis @ operator.matvec(axis) for axis in axes])
        entries = entries if known is None else entries + known.to(entries)
        exact = _Probes(entries, _Deflation.none(operator), blocks)
        exact.live = exact.offset != 0
        finite = bool(exact.offset.isfinite().all())
        return exact.estimate(size, Status.EXACT if finite else Status.NONFINITE)
    row = size * torch.finfo(operator.dtype).bits // 8
    room = max_matvecs if basis_bytes is None else basis_bytes // row - _VECTORS
    deflation = _Deflation.of(operator, rng, min(directions, max_matvecs // 2, room))
    spent, error = deflation.matvecs, math.inf
    if known is None:
        probes = _Probes(deflation.exact, deflation, blocks)
    else:
        probes = _Probes(deflation.exact + known.to(deflation.exact), deflation, blocks, live=known != 0)
    while spent < max_matvecs:
        z = (2 * torch.randint(0, 2, (size,), generator=rng, dtype=torch.int8) - 1).to(operator.dtype)
        probes.add(*deflation.probe(operator, z.to(operator.device)))
        spent += 1
        if not probes.finite:
            return probes.estimate(spent, Status.NONFINITE)
        if probes.count % GROUPS == 0:
            value, error = probes.worst
            watch(spent, value, error)
            if error <= tolerance:
                break
    noisy = probes.count < GROUPS or bool((probes.noise_share > 1).any())
    status = Status.NOISE_DOMINATED if noisy else Status.CONVERGED if error <= tolerance else Status.BUDGET_SPENT
    return probes.estimate(spent, status)


@dataclass(frozen=True)
class _Deflation:
    """Q and A Q; without directions, nothing is taken out."""

    basis: Tensor  # (m, n), the columns of Q
    beyond: Tensor  # (n,) beta q: what A Q has outside of the span, in its last column
    exact: Tensor  # (n,)
    matvecs: int

    @property
    def directions(self) -> int:
        return len(self.basis)

    @classmethod
    def none(cls, operator: Operator) -> "_Deflation":
        """Take nothing out."""
        nothing = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        return cls(nothing.new_zeros(0, operator.size), nothing, nothing, 0)

    @classmethod
    def of(cls, operator: Operator, rng: Generator, steps: int) -> "_Deflation":
        """Run Lanczos; the last vector of its basis is the q of the one before it."""
        if steps < 2:
            return cls.none(operator)
        run = decompose(operator, gaussian_start(operator, rng), steps)
        m = len(run.basis) - 1
        inner = np.diag(run.alpha[:m]) + np.diag(run.beta[: max(0, m - 1)], 1) + np.diag(run.beta[: max(0, m - 1)], -1)
        if m < 1 or not np.isfinite(inner).all():
            return replace(cls.none(operator), matvecs=run.matvecs)
        basis, middle = run.basis[:m], torch.from_numpy(inner).to(run.basis)
        beyond = float(run.beta[m - 1]) * run.basis[m]
        exact = (basis * (middle @ basis)).sum(0) + 2 * beyond * basis[-1]
        return cls(basis, beyond, exact, run.matvecs)

    def probe(self, operator: Operator, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z * PAPz and where Az is exactly zero, from one product: PAPz = P(Az - beta q q_m'z), as PQ = 0."""
        image = operator.matvec(z).to(operator.dtype)
        nothing = image == 0
        if self.directions:
            image = image - float(self.basis[-1] @ z) * self.beyond
            for _ in range(2):  # the first pass leaves what rounding put inside
                image = image - (self.basis @ image) @ self.basis
        return z * image, nothing


class _Probes:
    """What the probes have said so far: means by group, the mean and the spread of every entry."""

    def __init__(
        self, offset: Tensor, deflation: _Deflation, blocks: Mapping[str, slice], *, live: Tensor | None = None
    ) -> None:
        self.offset, self.deflation, self.blocks = offset, deflation, blocks
        self.groups = offset.new_zeros(GROUPS, len(offset))
        self.mean, self.squares = torch.zeros_like(offset), torch.zeros_like(offset)
        self.live = torch.zeros_like(offset, dtype=torch.bool) if live is None else live.to(offset.device)
        self.sums: list[Array] = []

    def add(self, entries: Tensor, nothing: Tensor) -> None:
        """Add one probe (Welford's recurrence: equal probes leave no spread, not one of rounding)."""
        self.groups[self.count % GROUPS] += entries
        away = entries - self.mean
        self.sums.append(self._by_block(entries))
        self.mean = self.mean + away / self.count
        self.squares += away * (entries - self.mean)
        self.live |= ~nothing

    @property
    def count(self) -> int:
        return len(self.sums)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.sums[-1]).all())

    @property
    def entries(self) -> Tensor:
        return torch.where(self.live, self.offset + self.mean, 0.0)

    @property
    def errors(self) -> Tensor:
        if not self.count:
            return torch.zeros_like(self.offset)
        if self.count < GROUPS:
            return torch.full_like(self.offset, math.nan)
        return torch.where(self.live, (self.squares / ((self.count - 1) * self.count)).sqrt(), 0.0)

    @property
    def noise_share(self) -> Array:
        middle = self._quartiles(self.entries)[:, 1]
        if 0 < self.count < GROUPS:
            return np.where(np.isnan(middle), np.nan, math.inf)
        return _share(self._quartiles(self.errors)[:, 1], middle)

    @property
    def worst(self) -> tuple[float, float]:
        """Return the median of the block whose median has the largest relative error, and that error."""
        middle, error = self._quartiles(self.entries)[:, 1], self.quartile_errors[:, 1]
        relative = _share(error, middle)
        if np.isnan(relative).all():
            return 0.0, 0.0 if self.count >= GROUPS else math.inf
        at = int(np.nanargmax(relative))
        return float(middle[at]), float(relative[at])

    @property
    def quartile_errors(self) -> Array:
        """Return the errors of the header (blocks, 3)."""
        full = self._quartiles(self.entries)
        if not self.count:
            return np.where(np.isnan(full), np.nan, 0.0)
        if self.count < GROUPS:
            return np.full_like(full, np.nan)
        lower, upper = (
            np.asarray([self._quartiles(self._over(half)) for half in halves]) for halves in (_HALVES, ~_HALVES)
        )
        square = 2 * full**2 - ((lower**2 + upper**2) / 2).mean(0)
        spread = np.sqrt(((lower - upper) ** 2).mean(0)) / 2
        error = np.abs(full - np.sqrt(np.maximum(square, 0.0))) + _SPREAD * spread
        noise = self._quartiles(self.errors)[:, 1:2]
        stated: Array = np.where(noise > full, np.maximum(error, full), error)
        return stated

    def _over(self, half: Array) -> Tensor:
        """Return the estimate from half of the groups; those of the last, unfinished round count as they are."""
        rows = [i for i in range(GROUPS) if half[i]]
        used = sum(len(range(i, self.count, GROUPS)) for i in rows)
        return torch.where(self.live, self.offset + self.groups[rows].sum(0) / used, 0.0)

    def _quartiles(self, values: Tensor) -> Array:
        return _live_quartiles(values, self.live, self.blocks)

    def _by_block(self, values: Tensor) -> Array:
        wide = torch.float32 if values.device.type == "mps" else torch.float64  # no float64 there
        return np.asarray([float(values[where].sum(dtype=wide)) for where in self.blocks.values()])

    def estimate(self, matvecs: int, status: Status) -> DiagonalEstimate:
        """Sum up."""
        none = np.zeros(len(self.blocks))
        sums = np.asarray(self.sums).reshape(self.count, len(self.blocks))
        known = self.count > 1
        unknown = np.full(len(self.blocks), np.nan)
        errors = np.asarray([error_of_mean(each) for each in sums.T]) if known else unknown
        spread = errors if self.count else none
        return DiagonalEstimate(
            entries=self.entries,
            errors=self.errors,
            quartiles=self._quartiles(self.entries),
            quartile_errors=self.quartile_errors,
            noise_share=self.noise_share,
            zero_fraction=np.asarray(
                [1 - int(self.live[w].sum()) / max(1, len(self.live[w])) for w in self.blocks.values()]
            ),
            traces=self._by_block(self.offset) + (sums.mean(0) if self.count else none),
            trace_errors=spread,
            probes=self.count,
            directions=self.deflation.directions,
            matvecs=matvecs,
            status=status,
        )


def quartiles_of(entries: Tensor, blocks: Mapping[str, slice]) -> tuple[Array, Array]:
    """Return the quartiles of |entries| by block over those that are not zero (blocks, 3), and the fraction that is.

    Shapes: entries (n,).  A block of zeros has NaN.
    """
    return ratio_quartiles(entries, torch.ones_like(entries), blocks)


def halved(entries: Tensor, sums: Tensor, counts: Array, blocks: Mapping[str, slice]) -> tuple[Array, Array]:
    """Return the standard errors over the data of the quartiles (blocks, 3) and of the traces (blocks,).

    se^2 = mean over balanced halves of ((m_half - m_other) / 2)^2: the rows of a Hadamard matrix halve the chunks.
    Entries that are zero on all data stay out.  On 60 fresh draws of 200 samples the medians of relu
    networks spread 0.94 to 1.03 times as stated with 60 and 200 units, 0.9 to 1.2 with 8 and 20; a jackknife over the
    chunks stated 1.2 to 1.8 times too much.

    Shapes: entries (n,), sums (k, n) over the k = 2^j chunks, whose samples weigh `counts` (k,) together.
    Source: McCarthy 1969 (balanced half-samples), consistent for quantiles as the jackknife is not (Shao, Wu 1992).
    """
    live, rows, traces = entries != 0, [], []
    for row in scipy.linalg.hadamard(len(sums))[1:] > 0:
        halves = [torch.from_numpy(half / counts[half].sum()).to(sums) @ sums for half in (row, ~row)]
        one, other = (_live_quartiles(half, live, blocks) for half in halves)
        rows.append((one - other) / 2)
        apart = (halves[0] - halves[1]) / 2
        traces.append([float(apart[where].sum()) for where in blocks.values()])
    return np.sqrt(np.square(rows).mean(0)), np.sqrt(np.square(traces).mean(0))


def ratio_quartiles(above: Tensor, below: Tensor, blocks: Mapping[str, slice]) -> tuple[Array, Array]:
    """Return the quartiles of |above| / |below| by block where neither is 0 (blocks, 3), and the fraction left out.

    Shapes: above, below (n,).  A block with no such entry has NaN.
    """
    found, left_out = np.full((len(blocks), 3), np.nan), np.ones(len(blocks))
    for i, where in enumerate(blocks.values()):
        top, bottom = (np.abs(part[where].cpu().double().numpy()) for part in (above, below))
        used = (top != 0) & (bottom != 0)
        left_out[i] = 1 - used.mean()
        found[i] = _three(top[used] / bottom[used])
    return found, left_out


def _live_quartiles(values: Tensor, live: Tensor, blocks: Mapping[str, slice]) -> Array:
    """Return the quartiles of |values| over the live entries of each block (blocks, 3)."""
    found = np.full((len(blocks), 3), np.nan)
    for i, where in enumerate(blocks.values()):
        found[i] = _three(values[where][live[where]].abs().cpu().double().numpy())
    return found


def _share(error: Array, value: Array) -> Array:
    """Return error / value: 0 without an error, infinite where the value is 0 by chance, NaN of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share: Array = np.where(error == 0, 0.0, error / value)
    return share


def _three(values: Array) -> Array:
    """Return the quartiles (3,); NaN of nothing, and where a value is not finite."""
    sound = len(values) and np.isfinite(values).all()
    return np.quantile(values, QUARTILES) if sound else np.full(3, np.nan)
