"""How far beyond its Ritz values the ends of a spectrum can lie, from the start of a Krylov space alone.

Let u be the eigenvector of the eigenvalue lambda, and c its component along the normalized start.  Every vector of the
space is a polynomial of A applied to the start, so its component along u is c times that polynomial at lambda.  For
the orthonormal Ritz vectors y_i and the vector q that the space couples to next,

    u'q = c phi(lambda),   u'y_i = c phi(lambda) rho_i / (lambda - theta_i),
    phi(t) = prod_j (t - theta_j) / prod_j beta_j,

with the residuals rho_i = beta_m |s_mi|, up to signs.  They are orthonormal and u has length 1, hence

    c^2 S(lambda) <= 1,   S(t) = phi(t)^2 (1 + sum_i rho_i^2 / (t - theta_i)^2),

and S grows beyond the Ritz values, as all its terms do: whoever knows |c| >= tau knows that lambda is at most the mu
with S(mu) = 1 / tau^2.  No polynomial of this space gives a sharper bound: 1 / S(t) is the least |p(A) q_1|^2 of all
with p(t) = 1.

A thick restart (Wu and Simon 2000) keeps some y_i and q, and goes on.  Again u'q = c phi(lambda), phi being the
product over the Ritz values of the space and those that restarts dropped, and over all beta: those kept are zeros of
the old phi and poles of what the next cycle multiplies it by.  So nothing of the bound is lost.

The start b is standard normal, so u'b is, too, and P(|u'b| < t) <= t sqrt(2 / pi): |c| = |u'b| / |b| is at least
tau = delta sqrt(pi / 2) / |b| with probability 1 - delta.

Source: phi^2 alone in Van Dorsselaer, Hochstenbach and van der Vorst 2000; the sum and the restarts are ours.
"""

import math
from dataclasses import dataclass

import numpy as np

from gapscope.results import Array

_FINE = 1e-6  # of the distance to the Ritz value that is searched for; the outer end is returned


@dataclass(frozen=True)
class Reach:
    """What bounds the ends of a spectrum: the Krylov space's Ritz values, its residuals, and how phi has grown."""

    ritz: Array  # (m,), of the space
    residuals: Array  # (m,)
    dropped: Array  # Ritz values that restarts kept out
    log_betas: float  # the sum of log beta over all steps
    log_tau: float  # log of what the start's component is at least; inf: nothing lies outside the space

    def upper(self) -> float:
        """Return the mu with S(mu) = 1 / tau^2 above all Ritz values."""
        return self._beyond(self.ritz, self.dropped)

    def lower(self) -> float:
        """Return the mu with S(mu) = 1 / tau^2 below all Ritz values."""
        return -self._beyond(-self.ritz, -self.dropped)

    def _beyond(self, ritz: Array, dropped: Array) -> float:
        top = float(ritz.max())
        gaps, squares = np.concatenate([top - ritz, top - dropped]), self.residuals**2

        def short(distance: float) -> bool:
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                grown = np.log(distance + gaps).sum() - self.log_betas
                beside = 0.5 * math.log1p(float((squares / (distance + gaps[: len(ritz)]) ** 2).sum()))
            return bool(grown + beside < -self.log_tau)

        low, high = 0.0, max(float(np.ptp(ritz)), float(self.residuals.max()), 1e-300)
        while short(high):
            low, high = high, 2 * high
        nothing = 1e-17 * float(np.abs(ritz).max())
        while high - low > max(_FINE * high, nothing):
            middle = (low + high) / 2
            low, high = (middle, high) if short(middle) else (low, middle)
        return top + high


def log_tau(norm: float, delta: float) -> float:
    """Return the log of what a start of this norm has at least along any fixed direction, but for a chance of delta."""
    return math.log(delta * math.sqrt(math.pi / 2)) - math.log(norm)
