"""Dai and Zhu's theory where it can be checked: SGD on two wells, simulated step by step, against the formulas.

Gradient noise is Gaussian, independent of the place, and of variance s^2 / B in every direction.  Every walker is one
run of SGD in float64; the walkers of a seed are one replicate, and intervals are over seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gapscope.measure.solvers.landscape import Escape, basin_odds, diffusion, escape_iterations
from gapscope.results import Array

if TYPE_CHECKING:
    from gapscope.training.studies.dai_zhu import Plan

BARRIER = 0.25  # from either minimum to the saddle
LEFT, RIGHT = -1.0, 1.0  # the minima
Seed = int | tuple[int, ...]
NONE_SEEN = 3.0  # exp(-3) = 5 %: without one event in a time T, the mean time is above T / 3 with 95 % confidence


@dataclass(frozen=True, kw_only=True)
class Landscape:
    """L(x, y) = (x^2 - 1)^2 / 4 + h(x) y^2 / 2: minima of loss 0 at (-1, 0) and (1, 0), a saddle of 1/4 at (0, 0).

    `across` are h(-1) and h(1), between which log h is linear in x; without them there is no y.
    """

    across: tuple[float, float] | None = None

    @property
    def dimensions(self) -> int:
        """1, or 2 with a y."""
        return 1 if self.across is None else 2

    def curvature(self, x: Array) -> Array:
        """Return h(x)."""
        left, right = self.across or (1.0, 1.0)
        return np.asarray(math.sqrt(left * right) * np.exp(math.log(right / left) / 2 * x))

    def gradient(self, point: Array) -> Array:
        """Return the gradients of the loss at points (dimensions, ...)."""
        x = point[0]
        along = x * (x * x - 1)
        if self.across is None:
            return np.asarray(along[None])
        y, h = point[1], self.curvature(x)
        change = math.log(self.across[1] / self.across[0]) / 2  # h'(x) = change h(x)
        return np.stack([along + change / 2 * h * y * y, h * y])

    def hessian(self, x: float) -> Array:
        """Return the Hessian at (x, 0), (dimensions, dimensions)."""
        return np.diag([3 * x * x - 1, float(self.curvature(np.asarray(x)))][: self.dimensions])

    def odds(self, spread: float) -> float:
        """Return P(x > 0) / P(x < 0) of the density exp(-L/D), by quadrature over x after y is integrated out.

        As D goes to 0 this goes to sqrt(det H_left / det H_right).
        """
        x = np.linspace(-4, 4, 80_002)  # an even number: 0 lies between two places
        density = np.exp(-((x * x - 1) ** 2) / (4 * spread)) / np.sqrt(self.curvature(x))
        return float(density[x > 0].sum() / density[x < 0].sum())

    def odds_of_formula(self) -> float:
        """Return sqrt(det H_left / det H_right)."""
        return basin_odds(self.hessian(RIGHT), self.hessian(LEFT))


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How SGD with heavy-ball momentum moves: u <- m u + g,  w <- w - eta u.

    `variance` is that of the gradients of single samples, s^2, in every direction.
    """

    variance: float
    rate: float
    batch_size: int
    momentum: float = 0.0

    @property
    def diffusion(self) -> float:
        """D = eta s^2 / (2 (1 - m) B)."""
        return diffusion(self.variance, rate=self.rate, batch_size=self.batch_size, momentum=self.momentum)

    @property
    def speed(self) -> float:
        """Time of the stochastic differential equation that passes in an iteration: eta / (1 - m)."""
        return self.rate / (1 - self.momentum)

    def scaled(self, factor: int) -> "Walk":
        """Return a walk of the same noise scale at a rate and a batch size so many times as large."""
        return replace(self, rate=self.rate * factor, batch_size=self.batch_size * factor)

    def heavy(self, momentum: float) -> "Walk":
        """Return a walk with momentum at the rate that leaves eta / (1 - m) as it is."""
        return replace(self, rate=self.speed * (1 - momentum), momentum=momentum)

    def predicted(self, landscape: Landscape, start: float) -> Escape:
        """Return the formula of Eyring and Kramers for the way from one minimum to the other."""
        return escape_iterations(
            landscape.hessian(start),
            landscape.hessian(0.0),
            BARRIER,
            diffusion=self.diffusion,
            rate=self.rate,
            momentum=self.momentum,
        )


def walks_of(plan: "Plan", sizes: Sequence[int]) -> list[Walk]:
    """Return a plan's walks without momentum, from the largest eta / B to the smallest."""
    return [Walk(variance=plan.noise_variance, rate=plan.walk_rate, batch_size=size) for size in sorted({*sizes})]


@dataclass(frozen=True, kw_only=True)
class Passages:
    """How often the walkers of each seed went from one minimum to the other, and in how many iterations of all."""

    arrivals: Array  # (seeds,)
    iterations: int  # of all walkers of a seed together

    @property
    def mean(self) -> Array:
        """Iterations per passage (seeds,): all those walked, unfinished passages included, over the arrivals.

        That is the likeliest mean of exponential times, of which some are cut off.  Infinite without an arrival.
        """
        with np.errstate(divide="ignore"):
            return np.asarray(self.iterations / self.arrivals)

    @property
    def pooled(self) -> tuple[float, float]:
        """Iterations per passage over all seeds, and the standard error: arrivals are those of a Poisson process.

        Without an arrival: a bound from below that holds with 95 % confidence, and NaN.
        """
        total, walked = float(self.arrivals.sum()), float(self.iterations * self.arrivals.size)
        if not total:
            return walked / NONE_SEEN, math.nan
        return walked / total, walked / total / math.sqrt(total)


def walk_on(
    landscape: Landscape, walk: Walk, start: float, shape: tuple[int, ...], rng: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield points and velocities (dimensions, *shape) after each iteration, without end; both may be written to."""
    point = np.zeros((landscape.dimensions, *shape))
    point[0] = start
    velocity = np.zeros_like(point)
    deviation = math.sqrt(walk.variance / walk.batch_size)
    while True:
        velocity *= walk.momentum
        velocity += landscape.gradient(point)
        velocity += deviation * rng.standard_normal(point.shape)
        point -= walk.rate * velocity
        yield point, velocity


def arrivals(
    landscape: Landscape, walk: Walk, start: float, *, shape: tuple[int, int], iterations: int, seed: Seed
) -> Array:
    """Walk from one minimum until the other is reached, where a walker starts again; return how often it was (seeds,).

    shape: (seeds, walkers).
    """
    found, rng = np.zeros(shape[0]), np.random.default_rng(seed)
    for (point, velocity), _ in zip(walk_on(landscape, walk, start, shape, rng), range(iterations), strict=False):
        arrived = point[0] * start <= -1
        if arrived.any():
            found += arrived.sum(axis=1)
            point[:, arrived] = velocity[:, arrived] = 0
            point[0, arrived] = start
    return found


def shares(
    landscape: Landscape, walk: Walk, *, shape: tuple[int, int], iterations: int, places: int, seed: Seed
) -> Array:
    """Return the share of walkers at x > 0, all of which start at x = -1: (seeds, places).

    The time is cut into `places` equal pieces, and each share is a mean over one.
    """
    length = max(iterations // places, 1)
    found, rng = np.zeros((shape[0], places)), np.random.default_rng(seed)
    for (point, _), step in zip(walk_on(landscape, walk, LEFT, shape, rng), range(length * places), strict=False):
        found[:, step // length] += (point[0] > 0).mean(axis=1)
    return found / length


def relaxation(landscape: Landscape, walk: Walk) -> float:
    """Return after how many iterations the start is forgotten to 1/e: 1 / (1 / tau_left + 1 / tau_right)."""
    return 1 / sum(1 / walk.predicted(landscape, start).iterations for start in (LEFT, RIGHT))
