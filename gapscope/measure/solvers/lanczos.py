"""The Lanczos iteration, and the extreme eigenpairs that it certifies.

A Q = Q T + beta_m q_{m+1} e_m', Q orthonormal.  Ritz values bound the top eigenvalue from below.  A small residual says
only that some eigenvalue is near, so the iteration goes on until a bound from above closes too: for a Gaussian start,

    |c| p_m(lambda_1) <= 1,   p_m(t) = prod_j (t - theta_j) / prod_j beta_j,

where c is the start's component along the top eigenvector, and P(|c| < tau) <= delta for tau = delta sqrt(pi / (2n)).
So with probability 1 - delta the top eigenvalue is at most the largest mu with p_m(mu) = 1 / tau.  It costs no product.

Source: Lanczos 1950; bound after Van Dorsselaer, Hochstenbach and van der Vorst 2000.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch
from torch import Generator, Tensor

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator
from gapscope.results import Array, Status

_ROUNDING = 10  # epsilons: a Krylov space closes at this much of |A|, and no eigenvalue is stated more exactly


@dataclass(frozen=True)
class Lanczos:
    """A decomposition A Q' = Q' T + beta[-1] q e_m'; rows of `basis` are the columns of Q'."""

    basis: Tensor  # (m, n)
    alpha: Array  # (m,)
    beta: Array  # (m,), the last one couples to a vector outside the basis
    matvecs: int

    def top_vector(self) -> Tensor:
        """Return the Ritz vector (n,) of the largest Ritz value."""
        _, inner = scipy.linalg.eigh_tridiagonal(self.alpha, self.beta[:-1])
        vector = torch.from_numpy(inner[:, -1].copy()).to(self.basis) @ self.basis
        unit: Tensor = vector / vector.norm()
        return unit


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs with recomputed residuals |A u - theta u|, and where the extreme eigenvalues can still lie."""

    values: Array  # (k,), largest algebraic first
    vectors: Tensor  # (k, n)
    residuals: Array  # (k,)
    upper: float  # the top eigenvalue is below this with probability 1 - delta
    bottom: float  # smallest Ritz value
    bottom_vector: Tensor  # (n,)
    bottom_residual: float
    lower: float  # the smallest eigenvalue is above this with probability 1 - delta
    matvecs: int
    status: Status
    rounding: float  # no value is known better; `upper` and `lower` include it
    spent_on: str = ""  # what ran out where the status is BUDGET_SPENT: matvecs, memory or precision


@dataclass(frozen=True)
class Stopping:
    """When to stop: relative tolerance on residual and bound, failure probability, and the budget of products."""

    tolerance: float = 1e-3
    delta: float = 1e-3
    max_matvecs: int = 200


Verify = Callable[[Tensor], Tensor]
Watch = Callable[[int, float, float], None]


class _Iteration:
    """The recurrence with full reorthogonalization; grows one step at a time."""

    def __init__(self, operator: Operator, start: Tensor, steps: int) -> None:
        self.operator = operator
        # all rows at once: growing would hold two bases for a moment, and a CPU gives memory only to rows in use
        self.basis = start.new_empty(steps, operator.size)
        self.basis[0] = start / start.norm()
        self.alpha: list[float] = []
        self.beta: list[float] = []

    def step(self) -> bool:
        """Do one product; return False when the Krylov space has closed (the last beta is then rounding noise)."""
        m = len(self.alpha)
        w = self.operator.matvec(self.basis[m]).to(self.basis.dtype)
        before = _norm(w)
        self.alpha.append(float(torch.dot(self.basis[m], w)))
        known = self.basis[: m + 1]
        # twice is enough (Parlett 1998, sec. 6.9): in float32 one pass leaves max|QQ'-I| at 3e-5, two at 3e-7
        for _ in range(2):
            w = w - known.T @ (known @ w)
        self.beta.append(_norm(w))
        scale = max(before, *map(abs, self.alpha), *self.beta[:-1], 0.0)
        closed = self.beta[-1] <= _ROUNDING * torch.finfo(self.basis.dtype).eps * scale
        if not math.isfinite(self.beta[-1]) or closed or m + 1 == self.operator.size:
            return False
        if m + 1 < len(self.basis):
            self.basis[m + 1] = w / self.beta[-1]
        return True

    def ritz(self) -> tuple[Array, Array]:
        """Return Ritz values, ascending, and eigenvectors of T, in float64."""
        off = np.asarray(self.beta[:-1])
        values, vectors = scipy.linalg.eigh_tridiagonal(np.asarray(self.alpha), off)
        return values, vectors

    def rounding(self, ritz: Array) -> float:
        """Return what rounding alone may have done to an eigenvalue."""
        return _ROUNDING * torch.finfo(self.basis.dtype).eps * float(np.abs(ritz).max())

    def reach(self, ritz: Array, delta: float) -> tuple[float, float]:
        """Return bounds on the smallest and largest eigenvalue, from all Ritz values, rounding included."""
        size, eps, scale = self.operator.size, torch.finfo(self.basis.dtype).eps, float(np.abs(ritz).max())
        rounding = self.rounding(ritz)
        if scale == 0 or len(ritz) == size:
            return float(ritz[0]) - rounding, float(ritz[-1]) + rounding
        # below rounding a coupling is not known: what hides there is bounded like everything else
        beta = np.append(self.beta[:-1], max(self.beta[-1], eps * scale))
        low, high = -extreme_bound(-ritz, beta, size, delta), extreme_bound(ritz, beta, size, delta)
        return low - rounding, high + rounding


def gaussian_start(operator: Operator, rng: Generator) -> Tensor:
    """Return a standard normal vector (n,), drawn on the CPU so that every device starts alike."""
    return torch.randn(operator.size, generator=rng, dtype=torch.float64).to(operator.dtype).to(operator.device)


def decompose(operator: Operator, start: Tensor, steps: int) -> Lanczos:
    """Run `steps` Lanczos steps, or fewer where the Krylov space closes."""
    steps = min(steps, operator.size)
    iteration = _Iteration(operator, start, steps)
    for _ in range(steps):
        if not iteration.step():
            break
    m = len(iteration.alpha)
    return Lanczos(iteration.basis[:m], np.asarray(iteration.alpha), np.asarray(iteration.beta), m)


def extreme_bound(ritz: Array, beta: Array, size: int, delta: float) -> float:
    """Return the largest mu with sum_j log(mu - theta_j) = sum_j log beta_j - log tau: an upper bound on lambda_max.

    ritz: (m,) all Ritz values; beta: (m,).  For the lower end, pass -ritz and negate.
    """
    target = float(np.log(beta).sum()) - math.log(delta * math.sqrt(math.pi / (2 * size)))
    top = float(ritz.max())
    low, high = 0.0, max(float(np.ptp(ritz)), float(beta.max()), 1e-300)
    while float(np.log(top + high - ritz).sum()) < target:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        with np.errstate(divide="ignore"):
            below = float(np.log(np.maximum(top + middle - ritz, 0.0)).sum()) < target
        low, high = (middle, high) if below else (low, middle)
    return top + high


def extreme_eigenpairs(
    operator: Operator,
    k: int,
    rng: Generator,
    *,
    stopping: Stopping | None = None,
    basis_bytes: int | None = None,
    start: Tensor | None = None,
    verify: Verify | None = None,
    watch: Watch = lambda *_: None,
) -> Eigenpairs:
    """Find the k largest (algebraic) eigenvalues and the smallest Ritz value of a symmetric operator.

    Stops when the residuals of the k top pairs, recomputed, and the bound from above on the first are within
    `tolerance` times |theta_1|; the smallest Ritz value is a by-product with its own bound.  Copies of one eigenvalue
    look like one, and only the first value is bounded from above: below it, one more may hide between those found.
    `start` (n,) replaces the Gaussian start: nearer to the answer, but then no bound holds with any probability, the
    residuals alone stop the iteration, and `upper` and `lower` are infinite.
    `verify` replaces the product that checks the first pair (the caller may learn more from it).

    Shapes: k >= 1, vectors (k, n).  Cost: one matvec a step, k + 1 to verify, `max_matvecs` in all; a basis of m x n.
    Raises ProblemError where the basis does not fit `basis_bytes`.
    """
    stopping = stopping or Stopping()
    k = min(k, operator.size)
    check = k + 1
    steps = _steps_that_fit(operator, k, max(1, stopping.max_matvecs - check), basis_bytes)
    delta = stopping.delta if start is None else None
    iteration = _Iteration(operator, gaussian_start(operator, rng) if start is None else start, steps)
    spent, wanted = 0, stopping.tolerance
    while True:
        growing = iteration.step()
        spent += 1
        m = len(iteration.alpha)
        if not math.isfinite(iteration.alpha[-1]) or not math.isfinite(iteration.beta[-1]):
            return _nonfinite(operator, k, spent)
        values, inner = iteration.ritz()
        top, recurrence = values[::-1][:k], iteration.beta[-1] * np.abs(inner[-1, ::-1][:k])
        above = 0.0 if delta is None else iteration.reach(values, delta)[1] - top[0]
        scale = max(abs(top[0]), 1e-300)
        watch(m, float(top[0]), float(max(recurrence.max(), above)))
        ready = m >= k and recurrence.max() <= wanted * scale and above <= stopping.tolerance * scale
        out_of_budget = m >= steps
        if growing and not ready and not out_of_budget:
            continue
        pairs = _verified(operator, iteration, k, verify, delta)
        spent += pairs.matvecs
        if not np.isfinite(pairs.residuals).all():
            return _nonfinite(operator, k, spent)
        close = pairs.residuals.max() <= stopping.tolerance * scale
        affordable = not out_of_budget and spent + 1 + check <= stopping.max_matvecs
        if growing and ready and not close and affordable and wanted > stopping.tolerance / 100:
            wanted /= 4  # the recurrence was optimistic (rounding): go on until it asks for less
            continue
        if close and ready:
            status = Status.CONVERGED
        elif close and m == operator.size:
            status = Status.EXACT  # all of the space: only rounding keeps the bounds open
        elif not growing and (close or len(pairs.values) < k):
            status = Status.BREAKDOWN
        else:
            status = Status.BUDGET_SPENT
        wanted_steps = min(max(1, stopping.max_matvecs - check), operator.size)
        lacking = (
            "memory"
            if m == steps < wanted_steps
            else "matvecs"
            if m < operator.size and not affordable
            else "precision"
        )
        return replace(pairs, matvecs=spent, status=status, spent_on=lacking if status is Status.BUDGET_SPENT else "")


def _steps_that_fit(operator: Operator, k: int, asked: int, basis_bytes: int | None) -> int:
    """Return the steps to allow, or raise ProblemError when not even k + 2 vectors fit."""
    steps = min(asked, operator.size)
    if basis_bytes is None:
        return steps
    fitting = basis_bytes // (operator.size * torch.finfo(operator.dtype).bits // 8) - 2 * k  # Ritz vectors count too
    if fitting < min(steps, k + 8):
        need = (3 * k + 8) * operator.size * torch.finfo(operator.dtype).bits // 8
        raise ProblemError(
            f"A Krylov basis of {k + 8} vectors of {operator.size:,} entries and {2 * k} Ritz vectors need "
            f"{need / 1e9:.2g} GB; {basis_bytes / 1e9:.2g} GB are allowed for them, where {max(0, fitting)} fit. "
            f"Raise `--memory-budget` to {math.ceil(20 * need / 1e9) / 10:.1f}GB, or ask for fewer eigenvalues."
        )
    return min(steps, fitting)


def _verified(
    operator: Operator, iteration: _Iteration, k: int, verify: Verify | None, delta: float | None
) -> Eigenpairs:
    """Form the Ritz vectors, recompute their residuals, and bound both ends; without a delta nothing does."""
    values, inner = iteration.ritz()
    m = len(values)
    count = min(k, m)
    columns = np.concatenate([inner[:, ::-1][:, :count], inner[:, :1]], axis=1)
    coefficients = torch.from_numpy(np.ascontiguousarray(columns.T)).to(iteration.basis.dtype).to(operator.device)
    vectors = coefficients @ iteration.basis[:m]
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    wanted = np.append(values[::-1][:count], values[0])
    distances, spent = [], 0
    same = m == 1  # top and bottom are one pair
    for i, vector in enumerate(vectors[:-1] if same else vectors):
        image = verify(vector) if verify is not None and i == 0 else operator.matvec(vector)
        spent += 1
        distances.append(_norm(image - float(wanted[i]) * vector))
    if same:
        distances.append(distances[0])
    lower, upper = (-math.inf, math.inf) if delta is None else iteration.reach(values, delta)
    return Eigenpairs(
        values=wanted[:-1],
        vectors=vectors[:-1],
        residuals=np.asarray(distances[:-1]),
        upper=upper,
        bottom=float(wanted[-1]),
        bottom_vector=vectors[-1],
        bottom_residual=distances[-1],
        lower=lower,
        matvecs=spent,
        status=Status.CONVERGED,
        rounding=iteration.rounding(values),
    )


def _norm(vector: Tensor) -> float:
    """Return |v|, squares summed in float64: in float32 those of entries under 1e-23 vanish, over 1e19 overflow."""
    wide = torch.float32 if vector.device.type == "mps" else torch.float64  # no float64 there
    return float(torch.linalg.vector_norm(vector, dtype=wide))


def _nonfinite(operator: Operator, k: int, spent: int) -> Eigenpairs:
    nothing = torch.full((k, operator.size), math.nan)
    nan = math.nan
    return Eigenpairs(
        np.full(k, nan), nothing, np.full(k, nan), nan, nan, nothing[0], nan, nan, spent, Status.NONFINITE, nan
    )
