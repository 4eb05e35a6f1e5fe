"""The spectral density of an operator by stochastic Lanczos quadrature.

1/n tr f(A) = E[v'f(A)v] for a random unit v (a Gaussian or sign vector, normalised), and m Lanczos steps from v
give the Gauss quadrature of v'f(A)v: nodes are the eigenvalues theta_j of the tridiagonal T, weights the squared first
entries of its eigenvectors.  Exact for polynomials of degree 2m - 1.  A density is then

    phi(t) = 1/p sum over probes, j of w_j N(t; theta_j, width^2).

Source: Golub & Welsch 1969; Ubaru, Chen, Saad 2017; Ghorbani, Krishnan, Xiao 2019.  The errors are ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from torch import Generator

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator
from gapscope.measure.solvers.lanczos import Lanczos, decompose, gaussian_start
from gapscope.results import Array

Kind = Literal["gaussian", "sign"]
FEWEST = 3  # probes before a spread is believed: its t makes 6.4 standard errors of one
_ROUNDING = 10  # epsilons of |A|, as in lanczos


@dataclass(frozen=True)
class SpectralDensity:
    """One quadrature per probe, padded with weights of 0 where a Krylov space closed early.

    `coarse_*` is the same from two thirds of the steps: the leading part of each T, at no product.  Where the space
    closed there is no quadrature error, and it repeats the full one.
    """

    nodes: Array  # (p, m)
    weights: Array  # (p, m), rows sum to 1
    coarse_nodes: Array  # (p, m)
    coarse_weights: Array  # (p, m)
    matvecs: int
    rounding: float  # of a node

    @property
    def finite(self) -> bool:
        """Return whether all nodes are numbers."""
        return bool(np.isfinite(self.nodes).all())

    @property
    def largest(self) -> float:
        """Return the largest Ritz value over all probes."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """Return the smallest Ritz value over all probes."""
        return float(self.nodes.min())

    def moment(self, power: int) -> tuple[float, float]:
        """Return 1/n tr A^power and its standard error over probes (no quadrature error below 2m)."""
        return _over_probes((self.weights * self.nodes**power).sum(1))

    def mass(self, low: float, high: float) -> tuple[float, float, float]:
        """Return the share of eigenvalues in [low, high], its standard error over probes, and what more steps may
        move it.

        At an edge inside a dense bulk the error of m steps falls as 1/m: what is left is twice what the last third
        moved.
        """
        full = (self.weights * ((self.nodes >= low) & (self.nodes <= high))).sum(1)
        coarse = (self.coarse_weights * ((self.coarse_nodes >= low) & (self.coarse_nodes <= high))).sum(1)
        return *_over_probes(full), 2 * abs(float((full - coarse).mean()))

    def broadened(self, grid: Array, width: float) -> tuple[Array, Array]:
        """Return the density (points,) with each node a Gaussian of this width, and its standard error."""
        values = np.empty((len(self.nodes), len(grid)))
        for row, nodes, weights in zip(values, self.nodes, self.weights, strict=True):
            bells = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2)
            row[:] = bells @ weights / (width * math.sqrt(2 * math.pi))
        return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def spectral_density(
    operator: Operator,
    rng: Generator,
    *,
    probes: int = 8,
    steps: int = 30,
    kind: Kind = "sign",
    basis_bytes: int | None = None,
    enough: Callable[[SpectralDensity], bool] = lambda _: False,
    watch: Callable[[int, float, float], None] = lambda *_: None,
) -> SpectralDensity:
    """Run Lanczos from each of `probes` >= 2 random vectors, and keep the quadratures.

    Stops before that where `enough` says so of those of three or more.

    Shapes: p = probes, m = min(steps, n).  Cost: p m matvecs; one basis of m x n at a time.
    Raises ProblemError where the basis does not fit `basis_bytes`.
    """
    steps = min(steps, operator.size)
    need = steps * operator.size * torch.finfo(operator.dtype).bits // 8
    if basis_bytes is not None and need > basis_bytes:
        raise ProblemError(
            f"A Krylov basis of {steps} vectors of {operator.size:,} entries needs {need / 1e9:.2g} GB; "
            f"{basis_bytes / 1e9:.2g} GB are allowed for it, where {basis_bytes * steps // need} vectors fit. "
            f"Raise `--memory-budget` to {math.ceil(20 * need / 1e9) / 10:.1f}GB, or take fewer `--steps`."
        )
    eps = torch.finfo(operator.dtype).eps
    nodes, weights, coarse_nodes, coarse_weights = (np.zeros((probes, steps)) for _ in range(4))
    spent = 0
    for i in range(probes):
        start = gaussian_start(operator, rng)
        run = decompose(operator, start.sign() if kind == "sign" else start, steps)
        spent += run.matvecs
        if not (np.isfinite(run.alpha).all() and np.isfinite(run.beta).all()):
            nodes[:] = math.nan
            return SpectralDensity(nodes, weights, nodes, weights, spent, math.nan)
        closed = run.matvecs < steps or steps == operator.size
        coarse = run.matvecs if closed else max(1, 2 * run.matvecs // 3)
        _gauss(run, run.matvecs, nodes[i], weights[i])
        _gauss(run, coarse, coarse_nodes[i], coarse_weights[i])
        watch(spent, float(nodes[: i + 1].max()), 0.0)
        rounding = _ROUNDING * eps * float(np.abs(nodes[: i + 1]).max())
        so_far = slice(i + 1)
        found = SpectralDensity(
            nodes[so_far], weights[so_far], coarse_nodes[so_far], coarse_weights[so_far], spent, rounding
        )
        if i + 1 >= FEWEST and enough(found):
            break
    return found


def _gauss(run: Lanczos, steps: int, nodes: Array, weights: Array) -> None:
    """Write the quadrature of the leading part of T; what is left over repeats the last node at weight 0."""
    values, vectors = scipy.linalg.eigh_tridiagonal(run.alpha[:steps], run.beta[: steps - 1])
    squares = vectors[0] ** 2
    nodes[:steps], nodes[steps:] = values, values[-1]
    weights[:steps] = squares / squares.sum()


def _over_probes(values: Array) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
