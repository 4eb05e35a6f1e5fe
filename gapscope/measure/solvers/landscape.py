"""How long SGD stays in a minimum of a low-dimensional landscape, and in which minimum it is found in the end.

SGD with isotropic noise follows dx = -grad L dt + sqrt(2 D) dW, t = rate x iterations, and forgets its start: its
density goes to exp(-L/D).  Two wells a, c with the saddle b between them, at small D:

    tau = (2 pi / |mu_b|) sqrt(|det H_b| / det H_a) exp((L_b - L_a) / D)   from a to c; to b, half of it
    P_a / P_c = sqrt(det H_c / det H_a) exp(-(L_a - L_c) / D)

mu_b is the negative eigenvalue of H_b.  With heavy-ball momentum m, D and the speed of time both grow 1 / (1 - m)
times.  None of this is a statement about a network: there the noise is neither isotropic nor of full rank, the Hessian
of a minimum has zero and negative eigenvalues, and barrier / D came out near 400,000.

Source: Eyring 1935, Kramers 1940; Dai and Zhu 2018 (arXiv 1812.00542) for SGD.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.errors import UsageError
from gapscope.results import Array

Matrix = Array | Sequence[Sequence[float]] | float  # a Hessian (n, n); in one dimension, a number


@dataclass(frozen=True)
class Escape:
    """Mean first-passage times out of a minimum; `inf` where they overflow.

    The formula is that of small D: by quadrature of the exact mean first-passage time, the double well's is 11 % longer
    at an `exponent` of 5 and 4 % at 12.
    """

    iterations: float  # of SGD, from the minimum to the other one
    to_saddle: float  # iterations until it is as likely to fall back as to go on
    time: float  # tau, in units of rate x iterations without momentum
    exponent: float  # (L_b - L_a) / D


def diffusion(variance: float, *, rate: float, batch_size: float, momentum: float = 0.0) -> float:
    """Return D = eta s^2 / (2 (1 - m) B) for gradients of single samples with the variance s^2 in every direction."""
    _require_positive(rate=rate, batch_size=batch_size, variance=variance)
    _require_momentum(momentum)
    return rate * variance / (2 * (1 - momentum) * batch_size)


def escape_time(minimum: Matrix, saddle: Matrix, barrier: float, *, diffusion: float) -> float:
    """Return tau = (2 pi / |mu_b|) sqrt(|det H_b| / det H_a) exp(barrier / D), from one minimum to the other.

    Shapes: minimum, saddle: the Hessians H_a, H_b (n, n) there, or numbers; barrier = L_b - L_a.
    Raises UsageError where a is no minimum, or b no saddle with a single way down.
    """
    _require_positive(diffusion=diffusion, barrier=barrier)
    low, high = _curvatures(minimum), _curvatures(saddle)
    if len(low) != len(high):
        raise UsageError(
            f"The Hessians have {len(low)} and {len(high)} rows. Expected those of one landscape: as many in both."
        )
    _require_minimum(low)
    if high[0] >= 0 or (high[1:] <= 0).any():
        raise UsageError(
            f"The Hessian at the saddle has {int((high < 0).sum())} negative and {int((high == 0).sum())} zero "
            "eigenvalues. Expected one negative, all others positive. Give the Hessian at the lowest pass between the "
            "minima."
        )
    log = math.log(2 * math.pi / -high[0]) + (_log_determinant(high) - _log_determinant(low)) / 2
    return _exp(log + barrier / diffusion)


def escape_iterations(
    minimum: Matrix, saddle: Matrix, barrier: float, *, diffusion: float, rate: float, momentum: float = 0.0
) -> Escape:
    """Return how many iterations of SGD lead from one minimum to the other: tau (1 - m) / eta.

    `diffusion` is that of the same rate and momentum.  With momentum it holds where (1 - m)^2 / eta is far above
    |mu_b|: at m = 0.9 and eta = 0.002, where it is 5, 40,277 +- 1,953 iterations were measured for 32,969.
    """
    _require_positive(rate=rate)
    _require_momentum(momentum)
    time = escape_time(minimum, saddle, barrier, diffusion=diffusion)
    iterations = time * ((1 - momentum) / rate)
    return Escape(iterations, iterations / 2, time, barrier / diffusion)


def basin_odds(flat: Matrix, sharp: Matrix, *, gap: float = 0.0, diffusion: float | None = None) -> float:
    """Return P_flat / P_sharp = sqrt(det H_sharp / det H_flat) exp(-gap / D), gap = L_flat - L_sharp.

    At equal losses no rate and no batch size changes them.  Reached only after many escape times.
    """
    low, high = _curvatures(flat), _curvatures(sharp)
    _require_minimum(low)
    _require_minimum(high)
    if gap and diffusion is None:
        raise UsageError(f"The losses differ by {gap:.3g}. Expected the diffusion, too. Give `diffusion=`.")
    if diffusion is not None:
        _require_positive(diffusion=diffusion)
    weight = gap / diffusion if diffusion is not None else 0.0
    return _exp((_log_determinant(high) - _log_determinant(low)) / 2 - weight)


def _curvatures(hessian: Matrix) -> Array:
    """Return the eigenvalues of a Hessian (n,), ascending."""
    matrix = np.atleast_2d(np.asarray(hessian, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.isfinite(matrix).all():
        raise UsageError(f"A Hessian has the shape {matrix.shape}. Expected finite numbers (n, n). Mend the matrix.")
    if np.abs(matrix - matrix.T).max() > 1e-6 * np.abs(matrix).max():
        raise UsageError("A Hessian is not symmetric. Expected the same above and below its diagonal. Mend the matrix.")
    return np.asarray(np.linalg.eigvalsh(matrix))


def _require_minimum(curvatures: Array) -> None:
    if curvatures[0] <= 0:
        raise UsageError(
            f"The Hessian at a minimum has the eigenvalue {curvatures[0]:.3g}. Expected all above 0: a flat "
            "direction has no finite time. Leave that direction out."
        )


def _require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not (math.isfinite(number) and number > 0):
            raise UsageError(f"The {name.replace('_', ' ')} is {number}. Expected a number above 0. Mend `{name}`.")


def _require_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise UsageError(f"The momentum is {momentum}. Expected 0 or more and below 1. Mend `momentum`.")


def _log_determinant(curvatures: Array) -> float:
    return float(np.log(np.abs(curvatures)).sum())


def _exp(log: float) -> float:
    return math.exp(log) if log < 709 else math.inf  # exp(709.8) is the largest float
