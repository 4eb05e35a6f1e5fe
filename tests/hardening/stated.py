"""What every analyzer states about a random problem, beside what is true of it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gapscope.errors import GapscopeError
from gapscope.measure.analyzers.adaptive_sharpness import AdaptiveSharpness
from gapscope.measure.analyzers.curvature import Curvature
from gapscope.measure.analyzers.density import Density
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.analyzers.path import Path
from gapscope.measure.analyzers.trace import Trace
from gapscope.results import Quantity, Result, Status
from tests.hardening.random_problems import Drawn, drawn
from tests.problems import both, measure

ANALYZERS: dict[str, Any] = {
    "eigenvalues": Eigenvalues(k=3),
    "eigenvalues bf16": Eigenvalues(k=3, tolerance=1e-2, precision="bf16"),  # refused where the problem is in float64
    "trace": Trace(),
    "density": Density(),
    "curvature": Curvature(),
    "noise": Noise(),
    "adaptive-sharpness": AdaptiveSharpness(rhos_linf=(), rhos_sam=(), steps=2),
    "path": Path(curved=False),
}
DRAWS = 3_000  # of Gaussian changes for the truth of an average: a tenth of the stated error of 30 pairs
DEAR = 60  # parameters to which the samples' Hessians are formed
FINE = 401  # points of the true path


@dataclass(frozen=True, repr=False)
class Stated:
    """One number with its stated error, and how far it is from the truth."""

    quantity: str
    value: float
    truth: float
    off: float
    error: float  # NaN where none is stated
    status: Status

    def __repr__(self) -> str:
        return f"{self.quantity} {self.value:.9g}, truly {self.truth:.9g}, error {self.error:.3g}, {self.status.name}"

    @property
    def share(self) -> float:
        """Return the true error in stated ones; infinite where an error is missing or 0."""
        if self.off <= 0:
            return 0.0
        return self.off / self.error if self.error > 0 else math.inf


def stated(one: Drawn, analyzer: str) -> tuple[Status | str, list[Stated]]:
    """Return how an analyzer ended, or what refused the problem, and every number that has a truth."""
    try:
        if analyzer == "path":
            result = ANALYZERS[analyzer](both(one.problem, _other(one).problem))
        else:
            result = measure(ANALYZERS[analyzer], one.problem)
    except GapscopeError as error:
        return str(error), []
    if analyzer == "path" and one.kind == "conv batchnorm":  # whose statistics are estimated again on the way
        return result.status, []
    found = [
        row
        for name, truth in TRUTHS[analyzer](one, result)
        for row in _rows(f"{analyzer}/{name}", result, getattr(result, name), truth, _slack(one))
    ]
    return result.status, found


def _rows(name: str, result: Result, quantity: Quantity | None, truth: Any, slack: float) -> Iterator[Stated]:
    if quantity is None or result.status is Status.NONFINITE:
        return
    values, truths = np.atleast_1d(quantity.value), np.atleast_1d(truth)
    errors = (
        np.full_like(values, np.nan) if quantity.numerical_error is None else np.atleast_1d(quantity.numerical_error)
    )
    for value, true, error in zip(values.ravel(), truths.ravel(), errors.ravel(), strict=True):
        if math.isfinite(value) and math.isfinite(true):
            room = slack * max(1.0, abs(true)) if name.startswith(("noise", "adaptive")) else slack
            yield Stated(name, float(value), float(true), abs(value - true) - room, float(error), result.status)


def _slack(one: Drawn) -> float:
    """Return what the truth's own rounding is."""
    return 1e-13 * float(np.linalg.norm(one.hessian))


# --- the truths


def _eigenvalues(one: Drawn, result: Any) -> Iterator[tuple[str, Any]]:
    yield "top", one.spectrum[-1]
    yield "bottom", one.spectrum[0]
    nearest = np.abs(result.values.value[:, None] - one.spectrum).argmin(1)
    yield "values", np.where(np.isfinite(result.values.value), one.spectrum[nearest], np.nan)


def _trace(one: Drawn, _: Any) -> Iterator[tuple[str, Any]]:
    yield "trace", np.trace(one.hessian)
    yield "frobenius", np.linalg.norm(one.hessian)
    yield "blocks_trace", [np.trace(one.hessian[w, w]) for w in one.problem.parameters.blocks().values()]


def _density(one: Drawn, result: Any) -> Iterator[tuple[str, Any]]:
    cut = float(result.cut.value)
    # an eigenvalue on the cut is on either side of it
    sides = [((one.spectrum < -c).mean(), (np.abs(one.spectrum) <= c).mean()) for c in (cut * 0.999, cut * 1.001)]
    (below, near), again = sides
    yield "mass_below_zero", below if below == again[0] else math.nan
    yield "mass_near_zero", near if near == again[1] else math.nan


def _curvature(one: Drawn, result: Any) -> Iterator[tuple[str, Any]]:
    diagonal, blocks = np.diag(one.hessian), one.problem.parameters.blocks().values()
    table, same = [], []
    for i, where in enumerate(blocks):
        live = np.abs(diagonal[where][diagonal[where] != 0])
        table.append(np.quantile(live, (0.25, 0.5, 0.75)) if len(live) else np.full(3, np.nan))
        # an entry that underflows to 0 in one precision leaves another median
        same.append(result.zero_fraction.value[i] == 1 - len(live) / (where.stop - where.start))
    table = np.where(np.asarray(same)[:, None], np.asarray(table), np.nan)
    yield from zip(("lower_quartile", "median", "upper_quartile"), table.T, strict=True)
    yield "trace", [diagonal[where].sum() for where in blocks]
    yield "top", [np.linalg.eigvalsh(one.hessian[where, where])[-1] for where in blocks]


def _noise(one: Drawn, result: Any) -> Iterator[tuple[str, Any]]:
    mean = one.gradients.mean(0)
    apart = one.gradients - mean
    sigma, bend = apart.T @ apart / len(apart), mean @ one.hessian @ mean
    yield "curvature_noise", (sigma * one.hessian).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        yield "noise_scale", np.trace(sigma) / (mean @ mean)
        if result.critical_batch is not None:
            yield "critical_batch", (sigma * one.hessian).sum() / bend
    if result.nonuniformity is not None and one.problem.size <= DEAR:
        yield "nonuniformity", math.sqrt(max(0.0, one.spread))


def _adaptive(one: Drawn, result: Any) -> Iterator[tuple[str, Any]]:
    rng, theta = torch.Generator().manual_seed(1), one.problem.theta.double()
    base, rises = one.loss(theta), []
    for rho in ANALYZERS["adaptive-sharpness"].rhos_average if one.kind != "lstm" else ():  # no vmap: seconds
        d = rho * theta.abs() * torch.randn(DRAWS // 2, len(theta), generator=rng, dtype=torch.float64)
        pairs = (one.along(d) + one.along(-d)) / 2 - base
        rises.append(pairs.mean())
    if rises:
        yield "average", rises
    yield "fisher_rao", ((one.gradients @ theta.numpy()) ** 2).mean()
    if result.relative_flatness is not None:
        from gapscope.measure.solvers.invariants import matrices

        layers = matrices(one.problem.model, one.problem.parameters.unflatten(theta)).values()
        yield "relative_flatness", [_flatness(one.hessian[where, where], weights.numpy()) for where, weights in layers]


def _flatness(block: np.ndarray, weights: np.ndarray) -> float:
    out, inside = weights.shape
    cut = block.reshape(out, inside, out, inside)
    return float(np.einsum("sitj,ij,st->", cut, np.eye(inside), weights @ weights.T))


def _path(one: Drawn, _: Any) -> Iterator[tuple[str, Any]]:
    start, end = one.problem.theta.double(), _other(one).problem.theta.double()
    along = torch.linspace(0, 1, FINE, dtype=torch.float64)[:, None]
    losses, a = one.along(along * (end - start)), along[:, 0].numpy()
    excess = losses - (1 - a) * losses[0] - a * losses[-1]
    near = torch.linspace(-1, 1, FINE, dtype=torch.float64)[:, None] / (FINE - 1)
    tops = []
    for heights, line in ((excess, losses[[0, -1]]), (losses, np.zeros(2))):  # closer, about the highest
        at = (along[int(heights.argmax())] + near).clamp(0, 1)
        b = at[:, 0].numpy()
        tops.append((one.along(at * (end - start)) - (1 - b) * line[0] - b * line[1]).max())
    yield "barrier", max(0.0, tops[0])
    yield "rise", tops[1] - losses[[0, -1]]


def _other(one: Drawn) -> Drawn:
    """Return the same problem with other weights."""
    other = drawn(one.number, one.problem.dtype)
    rng = torch.Generator().manual_seed(one.number + 1)
    with torch.no_grad():
        for p in other.problem.model.parameters():
            p.add_(p.abs().mean() * torch.randn(p.shape, generator=rng).to(p))
    return other


TRUTHS: dict[str, Callable[[Drawn, Any], Iterator[tuple[str, Any]]]] = {
    "eigenvalues": _eigenvalues,
    "eigenvalues bf16": _eigenvalues,
    "trace": _trace,
    "density": _density,
    "curvature": _curvature,
    "noise": _noise,
    "adaptive-sharpness": _adaptive,
    "path": _path,
}
