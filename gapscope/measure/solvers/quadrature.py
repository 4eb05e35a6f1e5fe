"""The spectral density of an operator by stochastic Lanczos quadrature, after a deflation.

1/n tr f(A) = E[v'f(A)v] for a random unit v (Gaussian, normalised), and m Lanczos steps from v give the Gauss
quadrature of v'f(A)v: nodes are the eigenvalues theta_j of the tridiagonal T, weights the squared first entries of its
eigenvectors.  Exact for polynomials of degree 2m - 1.  A density is then

    phi(t) = 1/p sum over probes, j of w_j N(t; theta_j, width^2).

A probe gives an eigenvalue the weight 1/n, give or take 1.4/n.  So the Ritz pairs T, Y of a first run whose residuals
are small are taken out: they weigh 1/n each, and the probes are drawn in the complement, P = I - YY', where all else,
every further copy of an eigenvalue too, has its unbiased weight.  The residuals have one direction: A = YTY' + PAP + E,
and two eigenvalues of E are not 0, rho and -rho with rho^2 the sum of the squared residuals.  Below no point do the
numbers of eigenvalues of A and of YTY' + PAP differ by more than one (Weyl), and each moves by rho at most.

A Gauss rule puts what lies between two nodes at one of them, and most eigenvalues of a trained network are nearer to 0
than its nodes to each other: where they go changes from step to step.  So a rule here is the mean of the Gauss rules of
the last third of the steps, at no product (exact for degree 4m/3 - 1); how they differ tells what more steps may move.
On an MLP of 669,706 parameters one probe's Wasserstein distance over the mean |eigenvalue| is 1.0 / 0.55 / 0.38 after
12 / 20 / 30 steps without that mean, and 0.40 / 0.26 / 0.17 with it (0.53 / 0.45 / 0.38 with a node put at 0), where
all pairs with residuals of 10 % of the largest eigenvalue were taken out.

Source: Golub & Welsch 1969; Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019; the deflation as in
Hutch++ (Meyer, Musco, Musco, Woodruff 2020).  The mean over steps and the errors are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Generator

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator
from gapscope.measure.solvers.basis import Basis
from gapscope.measure.solvers.lanczos import Lanczos, decompose, gaussian_start
from gapscope.results import Array

FEWEST = 3  # probes before a spread is believed: its t makes 6.4 standard errors of one
_CLOSE = 0.01  # of the largest |Ritz value|: the residuals of what is taken out, see `spectral_density`
_ROUNDING = 10  # epsilons of |A|, as in lanczos


@dataclass(frozen=True)
class SpectralDensity:
    """Per probe the Gauss rules of the last third of its steps; the first k nodes of each are what was taken out.

    Padded with weights of 0.  Where a Krylov space closed there is no quadrature error, and its rules are all the same.
    """

    nodes: Array  # (p, rules, k + m), p = probes
    weights: Array  # (p, rules, k + m), the last axis sums to 1
    one: float  # 1/n, an eigenvalue
    coupling: float  # rho, of what was taken out to the rest; 0 where it is rounding
    matvecs: int
    rounding: float  # of a node
    closed: bool = False  # every Krylov space: the rules are those of the whole operator

    @property
    def finite(self) -> bool:
        """Return whether all nodes are numbers."""
        return bool(np.isfinite(self.nodes).all())

    @property
    def largest(self) -> float:
        """Return the largest Ritz value."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """Return the smallest Ritz value."""
        return float(self.nodes.min())

    def mass(self, low: float, high: float) -> tuple[float, float, float]:
        """Return the share of eigenvalues in [low, high], its standard error over probes, and what else it may be off.

        At an edge inside a dense bulk the error of m steps falls as 1/m and swings from step to step: what is left is
        the standard deviation over the last third of them.  The deflation adds up to one eigenvalue at each edge that
        is within rho of the Ritz values' range.  Nothing is known better than to one eigenvalue, where no node lies in
        the range either, unless every Krylov space closed.
        """
        inside = (self.nodes >= low) & (self.nodes <= high)
        masses = (self.weights * inside).sum(2)  # (p, rules)
        full = masses.mean(1)
        edges = [self.smallest - self.coupling <= edge <= self.largest + self.coupling for edge in (low, high)]
        moved = float(masses.mean(0).std()) + self.one * sum(edges) * (self.coupling > 0)
        moved = moved if self.closed else max(moved, self.one)
        return float(full.mean()), float(full.std(ddof=1)) / math.sqrt(len(full)), moved

    def broadened(self, grid: Array, width: float) -> tuple[Array, Array, Array]:
        """Return the density (points,), each node a Gaussian of this width, with its errors as those of a mass.

        But for the deflation, which moves them by rho at most.
        """
        values = np.empty((*self.nodes.shape[:2], len(grid)))
        for at in np.ndindex(values.shape[:2]):
            bells = np.exp(-0.5 * ((grid[:, None] - self.nodes[at]) / width) ** 2)
            values[at] = bells @ self.weights[at] / (width * math.sqrt(2 * math.pi))
        full = values.mean(1)
        return full.mean(0), full.std(0, ddof=1) / math.sqrt(len(full)), values.mean(0).std(0)


def spectral_density(
    operator: Operator,
    rng: Generator,
    *,
    probes: int = 8,
    steps: int = 20,
    basis_bytes: int | None = None,
    enough: Callable[[SpectralDensity], bool] = lambda _: False,
    watch: Callable[[int, float, float], None] = lambda *_: None,
) -> SpectralDensity:
    """Run Lanczos from a random vector, take out what it found, and run it from each of `probes` >= 2 in the rest.

    Stops before that where `enough` says so of those of three or more.  What was found is what has a residual of 1 % of
    the largest |Ritz value|: of 0.1 %, errors are half as large again (nine networks of 65 to 159 parameters); of all,
    4 % of the errors of a density lie beyond 3 of those stated, instead of 0.1 %.

    Shapes: p = probes, m = min(steps, n).  Cost: (p + 1) m matvecs, n where m = n; two bases of m x n at a time.
    Raises ProblemError where the bases do not fit `basis_bytes`.
    """
    size, steps = operator.size, min(steps, operator.size)
    _refuse_too_much(operator, steps, basis_bytes)
    start = gaussian_start(operator, rng)
    basis = Basis(2 * steps, start, slab=2 * steps, total=operator.total)
    first = decompose(operator, start, steps, basis)
    spent = first.matvecs
    if not _finite(first):
        return _lost(spent)
    known, inner, rho = _known(first, closed=spent < steps or spent == size)
    scale = float(np.abs(known).max(initial=0.0))
    basis.replace(torch.from_numpy(inner))
    taken = len(known)
    left, steps = size - taken, min(steps, size - taken)
    rules = range(steps - steps // 3, steps + 1)  # by their steps
    nodes, weights = np.zeros((2, probes, len(rules), taken + steps))
    nodes[..., :taken], weights[..., :taken] = known, 1 / size
    eps, closed = torch.finfo(operator.dtype).eps, True
    for i in range(probes):
        if left > 0:
            # orthogonal to them at every step: a PAP alone has them at 0, and grows what rounding leaves of them there
            run = decompose(operator, gaussian_start(operator, rng), steps, basis, scale)
            basis.rows = taken
            spent += run.matvecs
            if not _finite(run):
                return _lost(spent)
            whole = run.matvecs < steps or steps == left
            closed = closed and whole
            for j, m in enumerate(rules):
                nodes[i, j, taken:], weights[i, j, taken:] = _gauss(run, run.matvecs if whole else m, steps)
            weights[i, :, taken:] *= left / size
        rounding = _ROUNDING * eps * float(np.abs(nodes[: i + 1]).max())
        coupling = rho if rho > rounding else 0.0
        found = SpectralDensity(nodes[: i + 1], weights[: i + 1], 1 / size, coupling, spent, rounding, closed)
        watch(spent, found.largest, 0.0)
        if i + 1 >= FEWEST and (left == 0 or enough(found)):
            break
    return found


def _known(run: Lanczos, closed: bool) -> tuple[Array, Array, float]:
    """Return the Ritz values that are taken out (k,), their vectors in the basis (k, m), and rho."""
    values, inner = scipy.linalg.eigh_tridiagonal(run.alpha, run.beta[:-1])
    residuals = (0.0 if closed else run.beta[-1]) * np.abs(inner[-1])
    near = residuals <= _CLOSE * np.abs(values).max()
    return values[near], np.ascontiguousarray(inner.T[near]), float(np.linalg.norm(residuals[near]))


def _refuse_too_much(operator: Operator, steps: int, basis_bytes: int | None) -> None:
    row = operator.size * torch.finfo(operator.dtype).bits // 8
    need = 2 * steps * row
    if basis_bytes is not None and need > basis_bytes:
        raise ProblemError(
            f"Two Krylov bases of {steps} vectors of {operator.size:,} entries need {need / 1e9:.2g} GB; "
            f"{basis_bytes / 1e9:.2g} GB are allowed for them, where {basis_bytes // (2 * row)} vectors each fit. "
            f"Raise `--memory-budget` to {math.ceil(20 * need / 1e9) / 10:.1f}GB, or take fewer `--steps`."
        )


def _gauss(run: Lanczos, steps: int, length: int) -> tuple[Array, Array]:
    """Return nodes and weights of the leading part of T, with the last node repeated at weight 0."""
    values, vectors = scipy.linalg.eigh_tridiagonal(run.alpha[:steps], run.beta[: steps - 1])
    squares, padding = vectors[0] ** 2, (0, length - steps)
    return np.pad(values, padding, "edge"), np.pad(squares / squares.sum(), padding)


def _finite(run: Lanczos) -> bool:
    return bool(np.isfinite(run.alpha).all() and np.isfinite(run.beta).all())


def _lost(spent: int) -> SpectralDensity:
    nan = np.full((2, 1, 1), math.nan)
    return SpectralDensity(nan, nan, math.nan, math.nan, spent, math.nan)
