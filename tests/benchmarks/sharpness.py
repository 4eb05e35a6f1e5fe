"""Maxima in the box of epsilon-sharpness, full space, and the ranks of all layers, by several ways.

The box's value is 100 (max f - f) / (1 + f); the setting is epsilon.  L-BFGS-B is SciPy's with the gradient tolerance
off, since it stops at once at a good minimum otherwise, and from a random point of a tenth of the box.  APGD takes
20 steps in y / r.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks.cases import Case
from tests.benchmarks.own import measured
from tests.benchmarks.peers import Ask, Found

EPSILON = 1e-3
MICRO = 128  # samples at a time where all are given at once: a gradient needs no graph of all of them


class _Objective:
    """y -> (f(theta + y), its gradient), by plain autograd; counts its evaluations."""

    def __init__(self, case: Case, batch: int | None) -> None:
        self.case, self.batches, self.evaluations = case, case.batches(batch or MICRO), 0
        self.theta = torch.cat([p.detach().reshape(-1) for p in case.parameters])
        self.radius = EPSILON * (self.theta.abs() + 1)
        self.start = self(torch.zeros_like(self.theta))[0]

    def __call__(self, y: Tensor) -> tuple[float, Tensor]:
        self.evaluations += 1
        case, total, slope = self.case, 0.0, torch.zeros_like(y)
        self._place(self.theta + y)
        try:
            for x, targets in self.batches:
                loss = case.loss(case.model(x), targets)
                parts = torch.autograd.grad(loss, case.parameters)
                total += float(loss.detach()) * len(targets) / case.samples
                slope.add_(torch.cat([part.reshape(-1) for part in parts]), alpha=len(targets) / case.samples)
        finally:
            self._place(self.theta)
        return total, slope

    def _place(self, theta: Tensor) -> None:
        sizes = [p.numel() for p in self.case.parameters]
        with torch.no_grad():
            for p, part in zip(self.case.parameters, theta.split(sizes), strict=True):
                p.copy_(part.view_as(p))

    def found(self, value: float) -> Found:
        return Found(100 * (value - self.start) / (1 + self.start), None, self.evaluations)


def lbfgs(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the best value that `setting` iterations of L-BFGS-B saw."""
    from scipy.optimize import Bounds, minimize

    objective, values = _Objective(case, batch), []
    box = objective.radius.double().cpu().numpy()

    def negated(y: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = objective(torch.from_numpy(y).to(objective.theta))
        values.append(value)
        return -value, -slope.double().cpu().numpy()

    start = 0.1 * box * np.random.default_rng(seed).uniform(-1, 1, len(box))
    options = {"maxiter": int(setting), "gtol": 0.0, "ftol": 1e-14}
    minimize(negated, start, jac=True, method="L-BFGS-B", bounds=Bounds(-box, box), options=options)
    return objective.found(max(values))


def apgd_steps(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the best value of `setting` steps of APGD."""
    from gapscope.measure.solvers.apgd import Ball, apgd

    objective, rng = _Objective(case, batch), torch.Generator().manual_seed(seed)
    radius = objective.radius

    def scaled(u: Tensor) -> tuple[float, Tensor]:
        value, slope = objective(radius * u)
        return value, radius * slope

    def draw() -> Tensor:
        return torch.randn(len(radius), generator=rng).to(radius)

    peak = apgd(scaled, Ball("linf", 1.0), scaled(torch.zeros_like(radius)), draw, steps=int(setting))
    return objective.found(peak.value)


def _own(solver: str) -> Any:
    def way(case: Case, batch: int | None, seed: int, setting: float) -> Found:
        import gapscope

        analyzer = gapscope.EpsilonSharpness(epsilons=(EPSILON,), solvers=(solver,), manifold=0)
        record, quantities = measured(case, batch, seed, analyzer)
        value = float(np.asarray(quantities["full"].value).ravel()[0])
        evaluations = int(np.asarray(quantities["full_evaluations"].value).ravel()[0])
        return Found(value, record.status.name == "CONVERGED", record.matvecs + evaluations)

    return way


# --- ranks


def own_ranks(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return gapscope's near-ranks, of a thousand samples at most for convolutions."""
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.NearRank())
    return _found_ranks(record.status.name == "EXACT", quantities["near_rank"].value)


def _found_ranks(converged: bool | None, ranks: Any) -> Found:
    return Found(float(np.asarray(ranks, dtype=float).sum()), converged, 0)


def plain_ranks(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Hooks keep every layer's outputs, then `torch.linalg.svdvals` of each: what one would write in a notebook."""
    kept: dict[nn.Module, list[Tensor]] = {}

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        rows = output.detach().flatten(1) if isinstance(layer, nn.Conv2d) else output.detach().flatten(0, -2)
        kept.setdefault(layer, []).append(rows)

    layers = [layer for layer in case.model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        for x, _ in case.batches(batch or MICRO):
            case.model(x)
    for handle in handles:
        handle.remove()
    count = 0
    for rows in kept.values():
        values = torch.linalg.svdvals(torch.cat(rows))
        count += sum(int((values > cut * values[0]).sum()) for cut in (1e-2, 1e-3, 1e-4))
    return _found_ranks(None, count)


MORE = {
    "epsilon-sharpness": {
        "gapscope, ascent": Ask(_own("ascent")),
        "gapscope, keskar": Ask(_own("keskar")),
        "SciPy L-BFGS-B, 10 iterations": Ask(lbfgs, (10.0,), "iterations"),
        "SciPy L-BFGS-B, 100 iterations": Ask(lbfgs, (100.0,), "iterations"),
        "APGD, 20 steps": Ask(apgd_steps, (20.0,), "steps"),
    },
    "near-rank": {"gapscope": Ask(own_ranks), "svdvals of hooked outputs": Ask(plain_ranks)},
}
