"""Which rule finds the top eigenvalue with the fewest products: `python -m tests.benchmarks.eigenvalue_studies`.

Lanczos in float64 on spectra like those of trained networks: a few eigenvalues stand out of a bulk around zero, the
first two as far apart as the row says.  A bulk of many equal parts is one entry of the start whose square is their
number.  Per rule: the steps it takes, those above the fewest after which all starts are within the tolerance, and how
many of the starts it leaves at a wrong value.  No product to verify is counted: gapscope takes one.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Generator

from gapscope.measure.operators import Operator
from gapscope.measure.solvers.bounds import Reach, log_tau
from gapscope.measure.solvers.lanczos import Room, decompose, extreme_eigenpairs
from gapscope.results import Array
from tests.benchmarks.__main__ import markdown

TOLERANCE = 1e-3
STEPS = 36
# the leading eigenvalues, the bulk's half width, the number of parameters
SPECTRA: dict[str, tuple[tuple[float, ...], float, int]] = {
    "MLP 784-512-512-10": ((1.567, 1.554, 1.512, 1.438, 1.333, 1.266, 1.233, 1.138, 1.071), 0.178, 669_706),
    "digits MLP": ((0.888, 0.606, 0.516, 0.400, 0.310, 0.277, 0.258, 0.182), 0.096, 4_810),
}


class Cycle:
    """A Krylov space of m steps, of a start of a norm, as every rule sees it."""

    def __init__(self, alpha: Array, beta: Array, norm: float) -> None:
        t = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        self.ritz, inner = np.linalg.eigh(t)
        self.residuals = beta[-1] * np.abs(inner[-1])
        self.beta, self.norm = beta, norm
        self.top, self.residual = float(self.ritz[-1]), float(self.residuals[-1])

    def value_error(self) -> float:
        gap = float(self.ritz[-1] - self.ritz[-2])
        return min(self.residual, self.residual**2 / gap)

    def above(self, delta: float, *, last_only: bool = False) -> float:
        residuals = np.zeros_like(self.residuals) if last_only else self.residuals
        space = Reach(self.ritz, residuals, np.empty(0), float(np.log(self.beta).sum()), log_tau(self.norm, delta))
        return space.upper() - self.top


def rules() -> dict[str, Callable[[Cycle], bool]]:
    found: dict[str, Callable[[Cycle], bool]] = {
        "residual": lambda c: c.residual <= TOLERANCE * c.top,
        "residual^2 / gap": lambda c: c.value_error() <= TOLERANCE * c.top,
    }
    for delta in (1e-3, 1e-2, 5e-2):
        found[f"last term {delta:g}, residual"] = lambda c, d=delta: (
            c.residual <= TOLERANCE * c.top and c.above(d, last_only=True) <= TOLERANCE * c.top
        )
        found[f"sum {delta:g}"] = lambda c, d=delta: c.above(d) <= TOLERANCE * c.top
        found[f"sum {delta:g}, residual^2 / gap"] = lambda c, d=delta: (
            c.value_error() <= TOLERANCE * c.top and c.above(d) <= TOLERANCE * c.top
        )
    return found


def problem(name: str, apart: float | None) -> tuple[Array, Array]:
    """Return distinct eigenvalues and how often each occurs."""
    leading, width, size = SPECTRA[name]
    top = np.array(leading)
    if apart is not None:
        top[1] = top[0] * (1 - apart)
    bulk = width * np.sin(np.linspace(-1, 1, 400) * math.pi / 2) ** 3  # dense around 0, with ends
    return np.concatenate([top, bulk]), np.concatenate([np.ones(len(top)), np.full(400, (size - len(top)) / 400)])


def rules_table(seeds: int) -> list[dict[str, Any]]:
    rows = []
    for name in SPECTRA:
        for apart in (0.003, 0.008, 0.014, None):
            values, counts = problem(name, apart)
            diagonal, truth, asked = torch.from_numpy(values), values.max(), rules()
            operator = Operator(len(values), lambda v, d=diagonal: d * v, torch.float64)
            fewest, stops = [], {rule: list[tuple[int, bool]]() for rule in asked}
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                normal = rng.standard_normal(len(values))
                start = torch.from_numpy(np.where(counts == 1, normal, np.sqrt(counts)))
                run = decompose(operator, start, STEPS)
                left, right = dict(asked), False
                for m in range(2, STEPS + 1):
                    cycle = Cycle(run.alpha[:m], run.beta[:m], float(start.norm()))
                    close = abs(cycle.top / truth - 1) <= TOLERANCE
                    fewest += [m] if close and not right else []
                    right = right or close
                    for rule in [rule for rule, done in left.items() if done(cycle)]:
                        stops[rule].append((m, not close))
                        del left[rule]
                    if right and not left:
                        break
            for rule, ended in stops.items():
                steps = [m for m, _ in ended]
                rows.append(
                    {
                        "spectrum": name,
                        "top two apart %": "as it is" if apart is None else round(100 * apart, 1),
                        "rule": rule,
                        "steps": f"{np.mean(steps):.1f}",
                        "most": max(steps),
                        "fewest (mean, all starts)": f"{np.mean(fewest):.1f}, {max(fewest)}",
                        f"wrong of {seeds}": sum(wrong for _, wrong in ended),
                    }
                )
    return rows


def misses_table(draws: int) -> list[dict[str, Any]]:
    """Say how probable a wrong value is: only a start with next to nothing along the top eigenvector gives one.

    That component is set to 20 sizes; where the rule then stops wrong, the density of a normal variable is summed.
    """
    sizes = np.geomspace(1e-4, 0.05, 20)
    edges = np.concatenate([[0], np.sqrt(sizes[1:] * sizes[:-1]), sizes[-1:]])
    rows = []
    for name in SPECTRA:
        for apart in (0.003, 0.008, 0.014):
            values, counts = problem(name, apart)
            diagonal, truth = torch.from_numpy(values), values.max()
            operator = Operator(len(values), lambda v, d=diagonal: d * v, torch.float64)
            for delta in (1e-3, 3e-3, 1e-2):
                missed = []
                for seed in range(draws):
                    start = np.where(counts == 1, np.random.default_rng(seed).standard_normal(len(values)), counts**0.5)
                    wrong = [_ends_wrong(operator, start, size, truth, delta) for size in sizes]
                    missed.append(math.sqrt(2 / math.pi) * float(np.diff(edges) @ np.array(wrong)))
                rows.append(
                    {
                        "spectrum": name,
                        "top two apart %": round(100 * apart, 1),
                        "delta": delta,
                        "probability of a wrong value": f"{np.mean(missed):.1e}",
                    }
                )
    return rows


def _ends_wrong(operator: Operator, start: Array, size: float, truth: float, delta: float) -> bool:
    own = torch.from_numpy(np.concatenate([[size], start[1:]]))
    run = decompose(operator, own, STEPS)
    for m in range(2, STEPS + 1):
        cycle = Cycle(run.alpha[:m], run.beta[:m], float(own.norm()))
        if max(cycle.value_error(), cycle.above(delta)) <= TOLERANCE * cycle.top:
            return abs(cycle.top / truth - 1) > TOLERANCE
    return False


def spread(name: str) -> tuple[Operator, float]:
    """Return the operator of a whole spectrum, every eigenvalue of its own, and the top one."""
    values, counts = problem(name, None)
    entries = torch.from_numpy(np.repeat(values, np.maximum(1, counts).astype(int)))
    return Operator(len(entries), lambda v: entries * v, torch.float64), float(values.max())


def restarts_table(seeds: int) -> list[dict[str, Any]]:
    """Say what a basis of few vectors costs in products."""
    rows = []
    for k in (1, 5):
        operator, truth = spread("digits MLP")
        for vectors in (None, 20, 16, 13, *((11, 9) if k == 1 else ())):
            room = None if vectors is None else Room((vectors + 2 * k) * 8 * operator.size)
            found = [extreme_eigenpairs(operator, k, Generator().manual_seed(seed), room=room) for seed in range(seeds)]
            rows.append(
                {
                    "k": k,
                    "vectors": vectors or "all",
                    "products": f"{np.mean([pairs.matvecs for pairs in found]):.1f}",
                    f"wrong of {seeds}": sum(abs(pairs.values[0] / truth - 1) > TOLERANCE for pairs in found),
                    "statuses": ", ".join(sorted({pairs.status.name for pairs in found})),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    few = min(30, options.seeds)
    print(f"rules\n\n{markdown(rules_table(options.seeds))}\n")
    print(f"how often the rule is wrong\n\n{markdown(misses_table(max(1, options.seeds // 25)))}\n")
    print(f"restarts\n\n{markdown(restarts_table(few))}")


if __name__ == "__main__":
    main()
