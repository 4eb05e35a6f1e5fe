"""The Lanczos iteration, and the extreme eigenpairs that it certifies.

A Q = Q T + r e_m', Q orthonormal and r orthogonal to it.  Ritz values bound the top eigenvalue from below, and to
second order: theta is off by about rho^2 / gap where its residual is rho.  But a small residual says only that some
eigenvalue is near, so the iteration goes on until a bound from above closes too (`bounds`), which costs no product.

A full basis is restarted with its upper Ritz vectors, the lowest and r (thick restart: Wu and Simon 2000); T is then an
arrow, diagonal but for the row of r, and goes on as before.

Source: Lanczos 1950.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, gaussian, inner
from gapscope.measure.solvers.basis import Basis, Home
from gapscope.measure.solvers.bounds import Reach, log_tau
from gapscope.results import Array, Status

_ROUNDING = 10  # epsilons: a Krylov space closes at this much of |A|, and no eigenvalue is stated more exactly
_LEAST = 1e-140  # a vector this short has squares that vanish in float64
_ENOUGH = 64  # vectors that nearly every run does with
_SPARE = 8  # rows beside the k wanted ones, under which restarts would hardly move


@dataclass(frozen=True)
class Lanczos:
    """A decomposition A Q' = Q' T + beta[-1] q e_m'; rows of `basis` are the columns of Q'."""

    basis: Tensor  # (m, n)
    alpha: Array  # (m,)
    beta: Array  # (m,), the last one couples to a vector outside the basis
    matvecs: int


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs with recomputed residuals |A u - theta u|, and where the extreme eigenvalues can still lie."""

    values: Array  # (k,), largest algebraic first
    vectors: Tensor  # (k, n)
    residuals: Array  # (k,)
    upper: float  # the top eigenvalue is below this with probability 1 - delta
    bottom: float  # smallest Ritz value
    lower: float  # the smallest eigenvalue is above this with probability 1 - delta
    matvecs: int
    status: Status
    rounding: float  # no value is known better; `upper` and `lower` include it
    apart: float = 0.0  # how far a product that checks is from the recurrence; `upper` and `lower` include it
    spent_on: str = ""  # what ran out where the status is BUDGET_SPENT: matvecs or precision


@dataclass(frozen=True)
class Stopping:
    """When to stop: relative tolerance on bound and lower residuals, failure probability, and the budget of products.

    A tenth of delta costs 1 product more.  An eigenvalue that stands out by a fraction gap is missed with a probability
    of about delta tolerance / gap: at the defaults, 3 starts of 1,000 where the top two are 0.3 % apart, 1 at
    0.8 % (found by setting the start's component; `tests/benchmarks/eigenvalue_studies.py`).
    """

    tolerance: float = 1e-3
    delta: float = 1e-2
    max_matvecs: int = 200


@dataclass(frozen=True)
class Room:
    """The bytes that a Krylov basis may take: on the operator's device, in CPU memory beside it, in a file."""

    device: int | None = None  # none: no limit
    host: int = 0
    disk: int = 0

    def place(self, operator: Operator, k: int, asked: int) -> tuple[int, Home]:
        """Return how many vectors to allow and where: the first place for 64 of them or all, else the largest.

        Raises ProblemError where not even k + 8 fit.
        """
        each = operator.held * torch.finfo(operator.dtype).bits // 8
        if self.device is None:
            return asked, "device"
        host = 0 if operator.device.type == "cpu" else self.host
        places: dict[Home, int] = {"device": self.device, "host": host, "disk": self.disk}
        fitting = {home: max(0, size // each - 2 * k) for home, size in places.items()}  # Ritz vectors count too
        roomy: list[Home] = [home for home, rows in fitting.items() if rows >= min(asked, _ENOUGH)]
        home = roomy[0] if roomy else max(fitting, key=lambda home: fitting[home])
        if fitting[home] < min(asked, k + _SPARE):
            need = (3 * k + _SPARE) * each
            raise ProblemError(
                f"A Krylov basis of {k + _SPARE} vectors of {operator.held:,} entries and {2 * k} Ritz vectors need "
                f"{need / 1e9:.2g} GB; {places[home] / 1e9:.2g} GB are allowed for them, where {fitting[home]} fit. "
                f"Raise `--memory-budget` to {math.ceil(20 * need / 1e9) / 10:.1f}GB, ask for fewer eigenvalues, or "
                "spread the vectors over more ranks of torchrun: `--shard-parameters`."
            )
        return min(asked, fitting[home]), home


Verify = Callable[[Tensor], Tensor]
Watch = Callable[[int, float, float], None]


class _Iteration:
    """The recurrence with full reorthogonalization; grows one step at a time, and restarts where the basis is full."""

    def __init__(self, operator: Operator, start: Tensor, basis: Basis, scale: float = 0.0) -> None:
        self.operator, self.basis, self.scale = operator, basis, scale
        self.norm = float(operator.length(start))
        basis.append(start / self.norm)
        self.heads, self.spokes = np.empty(0), np.empty(0)  # of the arrow: Ritz values kept, their couplings to r
        self.dropped = np.empty(0)
        self.alpha: list[float] = []
        self.beta: list[float] = []
        self.log_betas = 0.0
        self.rest = start  # r, not normalized

    def step(self) -> bool:
        """Do one product; return False when the Krylov space has closed (the last beta is then rounding noise)."""
        q = self.basis.last().to(self.operator.device)
        image = self.operator.matvec(q).to(q.dtype)
        self.rest = self.basis.orthogonal(image)
        length = self.operator.length
        numbers = [inner(q, image, self.operator.share), length(image), length(self.rest)]
        # one wait for the device a step
        alpha, before, beta = torch.stack([one.to(self.rest.device, numbers[1].dtype) for one in numbers]).tolist()
        if before < _LEAST and float(self.operator.total(torch.count_nonzero(image).to(numbers[1].dtype))):
            beta = math.nan  # its square is not known, and neither is where the space closes
        scale = max(self.scale, before, abs(alpha), *map(abs, self.alpha), *self.beta, *np.abs(self.heads))
        self.alpha.append(alpha)
        self.beta.append(beta)
        closed = beta <= _ROUNDING * torch.finfo(q.dtype).eps * scale
        return not (not math.isfinite(beta) or closed or self.basis.rows == self.operator.size)

    def extend(self, keep: int) -> None:
        """Make r the next vector, after a restart with the `keep` upper Ritz vectors and the lowest where full."""
        if self.basis.rows == self.basis.capacity:
            values, inner = self.ritz()
            kept = np.r_[0, len(values) - keep : len(values)]
            self.basis.replace(torch.from_numpy(np.ascontiguousarray(inner[:, kept].T)))
            self.dropped = np.append(self.dropped, np.delete(values, kept))
            self.heads, self.spokes = values[kept], self.beta[-1] * inner[-1, kept]
            self.log_betas += float(np.log(self.beta).sum())
            self.alpha, self.beta = [], []
        self.basis.append(self.rest / self.operator.length(self.rest).to(self.rest.dtype))

    def ritz(self) -> tuple[Array, Array]:
        """Return Ritz values, ascending, and eigenvectors of T, in float64."""
        p, off = len(self.heads), np.asarray(self.beta[:-1])
        t = np.diag(np.append(self.heads, self.alpha))
        t[p, :p] = t[:p, p] = self.spokes
        t[p:, p:] += np.diag(off, 1) + np.diag(off, -1)
        values, vectors = np.linalg.eigh(t)
        return values, vectors

    def rounding(self, ritz: Array) -> float:
        """Return what rounding alone may have done to an eigenvalue."""
        return _ROUNDING * torch.finfo(self.rest.dtype).eps * float(np.abs(ritz).max())

    def reach(self, ritz: Array, inner: Array, delta: float) -> Reach:
        """Return what bounds the ends of the spectrum, but for rounding."""
        # below rounding a coupling is not known: what hides there is bounded like everything else
        unknown = torch.finfo(self.rest.dtype).eps * float(np.abs(ritz).max())
        last = max(self.beta[-1], unknown, 1e-300)
        grown = self.log_betas + float(np.log([*self.beta[:-1], last]).sum())
        known = math.inf if unknown == 0 or len(ritz) == self.operator.size else log_tau(self.norm, delta)
        return Reach(ritz, last * np.abs(inner[-1]), self.dropped, grown, known)


def gaussian_start(operator: Operator, rng: Generator) -> Tensor:
    """Return a standard normal vector (n,), drawn on the CPU so that every device starts alike."""
    return gaussian(operator.size, rng, operator.dtype, operator.share).to(operator.device)


def decompose(operator: Operator, start: Tensor, steps: int, basis: Basis | None = None, scale: float = 0.0) -> Lanczos:
    """Run `steps` Lanczos steps, or fewer where the Krylov space closes.

    Orthonormal rows that are in `basis` already stay, and the run is that of PAP in their complement; |A| is known to
    be `scale` at least, and what is rounding beside it closes the space.
    """
    basis = basis or Basis(min(steps, operator.size), start, total=operator.total)
    before = basis.rows
    steps = min(steps, operator.size - before)
    iteration = _Iteration(operator, basis.orthogonal(start), basis, scale)
    for number in range(steps):
        if not iteration.step():
            break
        if number + 1 < steps:
            iteration.extend(0)
    m = len(iteration.alpha)
    return Lanczos(basis.all()[before:], np.asarray(iteration.alpha), np.asarray(iteration.beta), m)


def extreme_eigenpairs(
    operator: Operator,
    k: int,
    rng: Generator,
    *,
    stopping: Stopping | None = None,
    room: Room | None = None,
    verify: Verify | None = None,
    exact: Operator | None = None,
    watch: Watch = lambda *_: None,
) -> Eigenpairs:
    """Find the k largest (algebraic) eigenvalues and the smallest Ritz value of a symmetric operator.

    Stops when the top value is certified, the bound from above being within `tolerance` times |theta_1| of it, and the
    recomputed residuals of the others are within the same; the smallest Ritz value is a by-product with its own bound.
    The residual of the first may be larger: its value is known to second order.  Copies of one eigenvalue look like
    one, and only the first value is bounded from above: below it, one more may hide between those found.
    `room` says how many bytes the basis may take and where; full, it is restarted.
    `verify` replaces the product that checks the first pair (the caller may learn more from it).
    `exact`: the operator that is meant, where `operator` is a cheaper one near it.  It checks the pairs, the values are
    its Rayleigh quotients, and how far the two are apart along a vector found widens the bounds.

    Shapes: k >= 1, vectors (k, n).  Cost: one matvec a step, k to verify, `max_matvecs` in all; a basis of m x n.
    Raises ProblemError where not even k + 8 vectors fit anywhere.
    """
    stopping = stopping or Stopping()
    k = min(k, operator.size)
    steps = max(1, stopping.max_matvecs - k)
    capacity, home = (room or Room()).place(operator, k, min(steps, operator.size))
    start = gaussian_start(operator, rng)
    with Basis(capacity, start, home, total=operator.total) as basis:
        iteration, check = _Iteration(operator, start, basis), _Check(exact, verify)
        return _run(iteration, k, stopping, check, watch)


@dataclass(frozen=True)
class _Check:
    """The products that check what was found."""

    exact: Operator | None
    verify: Verify | None

    def product(self, operator: Operator, number: int, vector: Tensor) -> Tensor:
        """Return A u for the Ritz vector of this number."""
        if self.verify is not None and number == 0:
            return self.verify(vector)
        return (self.exact or operator).matvec(vector)


def _run(iteration: _Iteration, k: int, stopping: Stopping, check: _Check, watch: Watch) -> Eigenpairs:
    size, keep = iteration.operator.size, (iteration.basis.capacity + k) // 2 - 1
    spent, taken, wanted = 0, 0, stopping.tolerance
    while True:
        growing = iteration.step()
        spent, taken = spent + 1, taken + 1
        if not math.isfinite(iteration.alpha[-1]) or not math.isfinite(iteration.beta[-1]):
            return _nonfinite(iteration.operator, k, spent)
        values, inner = iteration.ritz()
        top, rho = float(values[-1]), iteration.beta[-1] * np.abs(inner[-1, ::-1][:k])
        above = iteration.reach(values, inner, stopping.delta).upper() + iteration.rounding(values) - top
        scale = max(abs(top), 1e-300)
        watch(taken, top, float(max(above, *rho[1:], 0.0)))
        ready = len(values) >= k and max(above, _off(values, rho[0]), *rho[1:]) <= wanted * scale
        if growing and not ready and spent + k < stopping.max_matvecs:
            iteration.extend(keep)
            continue
        pairs = _verified(iteration, k, check, stopping.delta)
        spent += pairs.matvecs
        if not np.isfinite(pairs.residuals).all():
            return _nonfinite(iteration.operator, k, spent)
        close = max(pairs.upper - pairs.values[0], *pairs.residuals[1:], 0.0) <= stopping.tolerance * scale
        affordable = spent + 1 + k <= stopping.max_matvecs
        hopeless = check.exact is not None and pairs.apart > stopping.tolerance * scale
        if growing and ready and not close and affordable and not hopeless and wanted > stopping.tolerance / 100:
            wanted /= 4  # the recurrence was optimistic (rounding): go on until it asks for less
            iteration.extend(keep)
            continue
        settled = pairs.residuals.max() <= stopping.tolerance * scale
        if close and len(pairs.values) == k:
            status = Status.CONVERGED
        elif settled and len(values) == size and check.exact is None:
            status = Status.EXACT  # all of the space: only rounding keeps the bounds open
        elif not growing and (settled or len(pairs.values) < k) and len(values) < size:
            status = Status.BREAKDOWN
        else:
            status = Status.BUDGET_SPENT
        lacking = "matvecs" if len(values) < size and not affordable else "precision"
        return replace(pairs, matvecs=spent, status=status, spent_on=lacking if status is Status.BUDGET_SPENT else "")


def _off(values: Array, residual: float) -> float:
    """Return about how far the top Ritz value is from an eigenvalue: its residual, or that squared over the gap."""
    gap = values[-1] - values[-2] if len(values) > 1 else 0.0
    return min(residual, residual**2 / gap) if gap > 0 else residual


def _verified(iteration: _Iteration, k: int, check: _Check, delta: float) -> Eigenpairs:
    """Form the Ritz vectors, recompute their residuals, and bound both ends.

    In exact arithmetic A y = theta y + s r; how far the product is from that widens the bounds.
    """
    operator = iteration.operator
    values, coordinates = iteration.ritz()
    count = min(k, len(values))
    columns = coordinates.T[::-1][:count].copy()
    vectors = iteration.basis.combined(torch.from_numpy(columns)).to(operator.device)
    vectors = torch.stack([vector / operator.length(vector).to(vector.dtype) for vector in vectors])
    found, residuals, off = values[::-1][:count].copy(), [], 0.0
    for i, vector in enumerate(vectors):
        image = check.product(operator, i, vector)
        if i == 0 or check.exact is not None:
            rest = float(columns[i, -1]) * iteration.rest.to(image.device)
            off = max(off, float(operator.length(image - float(values[-1 - i]) * vector - rest)))
        if check.exact is not None:
            found[i] = float(inner(vector, image, operator.share))
        residuals.append(float(operator.length(image - float(found[i]) * vector)))
    order = np.argsort(-found, kind="stable")  # quotients of neighbours may change places
    reach, rounding = iteration.reach(values, coordinates, delta), iteration.rounding(values)
    # where the start was one of the delta, the value's own second-order error still shows
    upper = max(reach.upper(), float(values[-1]) + _off(values, residuals[0]))
    left = float(iteration.beta[-1] * abs(coordinates[-1, 0]))
    lower = min(reach.lower(), float(values[0]) - _off(-values[::-1], left))
    return Eigenpairs(
        values=found[order],
        vectors=vectors[torch.from_numpy(order)],
        residuals=np.asarray(residuals)[order],
        upper=upper + rounding + off,
        bottom=float(values[0]),
        lower=lower - rounding - off,
        matvecs=count,
        status=Status.CONVERGED,
        rounding=rounding,
        apart=off,
    )


def _nonfinite(operator: Operator, k: int, spent: int) -> Eigenpairs:
    nothing = torch.full((k, operator.held), math.nan)
    nan = math.nan
    return Eigenpairs(np.full(k, nan), nothing, np.full(k, nan), nan, nan, nan, spent, Status.NONFINITE, nan)
