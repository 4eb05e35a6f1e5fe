"""What the estimators' choices rest on: `python -m tests.benchmarks.estimator_studies [--table boxes|traces]`.

`boxes`: the maximum of Keskar's box by `ascent` against L-BFGS-B with 10 and 100 iterations and 20 steps of APGD, with
the gradients each took.  `traces`: trace of the Hessian from random gradients of pieces, and from sign vectors, against
the exact one; errors are those of many runs, not stated ones.  Costs are counted, so that they hold on a busy machine.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Generator, Tensor

from gapscope.measure import traces
from gapscope.measure.loading import Request
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import infer_loss
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Problem
from gapscope.measure.session import Execution, open_session
from gapscope.measure.solvers.apgd import Ball, apgd
from gapscope.measure.solvers.ascent import ascent
from tests.benchmarks.__main__ import markdown

FIXTURES = Path(__file__).parents[2] / "fixtures"
EPSILONS = (5e-4, 1e-3, 5e-3)
RUNS = 20


def rng(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def perceptron() -> Problem:
    """Return a perceptron 196-128-128-10 on 400 samples of a linear teacher, trained to a loss of .1."""
    torch.manual_seed(0)
    x = torch.randn(400, 196, generator=rng())
    y = (x @ torch.randn(196, 10, generator=rng(1))).argmax(1)
    model = NETWORKS["mlp"](inputs=196, hidden=[128, 128])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = math.inf
    while loss > 0.1:
        for part in torch.randperm(400).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        loss = float(torch.nn.functional.cross_entropy(model(x), y).detach())
    data = Data(inputs=x, targets=y, name="teacher", fingerprint="", total=400)
    return Problem(model=model.eval(), data=data, loss_function=infer_loss(y))


def problems() -> dict[str, Problem]:
    found = {
        f"digits, {regime} batch": open_session(
            Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt"), Execution()
        ).problem
        for regime in ("small", "large")
    }
    return {**found, "perceptron 196-128-128-10": perceptron()}


def lbfgsb(objective: Any, radius: Tensor, iterations: int) -> tuple[float, int]:
    box = radius.double().numpy()
    start = 0.1 * box * (2 * torch.rand(len(box), generator=rng(), dtype=torch.float64).numpy() - 1)
    values: list[float] = []

    def negated(y: Any) -> tuple[float, Any]:
        value, slope = objective(torch.from_numpy(y).to(radius.dtype))
        values.append(value)
        return -value, -slope.double().numpy()

    options = {"maxiter": iterations, "gtol": 0.0, "ftol": 1e-14}
    bounds = scipy.optimize.Bounds(-box, box)
    scipy.optimize.minimize(negated, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return max(values), len(values)


def boxes() -> list[dict[str, Any]]:
    rows = []
    for name, problem in problems().items():
        level, slope = problem.loss_and_gradient()
        for epsilon in EPSILONS:
            radius = epsilon * (problem.theta.abs() + 1)

            def objective(y: Tensor, problem: Problem = problem) -> tuple[float, Tensor]:
                return problem.loss_and_gradient(problem.theta + y)

            def scaled(u: Tensor, radius: Tensor = radius, problem: Problem = problem) -> tuple[float, Tensor]:
                value, slope = problem.loss_and_gradient(problem.theta + radius * u)
                return value, radius * slope

            found = {f"L-BFGS-B {i}": lbfgsb(objective, radius, i) for i in (10, 100)}
            peak = apgd(scaled, Ball("linf", 1.0), (level, radius * slope), lambda n=problem.size: torch.randn(n))
            ours = ascent(objective, radius, level, [slope])
            found |= {"APGD 20": (peak.value, peak.evaluations + 1), "ascent": (ours.value, ours.evaluations + 1)}
            told = {
                key: f"{100 * (value - level) / (1 + level):.4g} ({count})" for key, (value, count) in found.items()
            }
            rows.append({"network": name, "epsilon": epsilon, **told})
    return rows


def trace_rows() -> list[dict[str, Any]]:
    rows = []
    for name, problem in problems().items():
        true, hessian = float(problem.gauss_newton_diagonal().sum()), problem.hessian()
        ours = [traces.estimate(problem, rng(s), tolerance=1.0, least=0.0, most=1) for s in range(RUNS)]
        signs = [2 * torch.randint(0, 2, (problem.size,), generator=rng(s)).to(problem.dtype) - 1 for s in range(RUNS)]
        probes = [float(z @ hessian.matvec(z)) for z in signs]
        rows.append(
            {
                "network": name,
                "trace": f"{true:.5g}",
                "error of a pass of random gradients, %": round(_error([one.trace for one in ours], true), 2),
                "stated, %": round(100 * float(np.mean([one.error for one in ours])) / true, 2),
                "error of a sign vector, %": round(_error(probes, true), 1),
            }
        )
    return rows


def _error(values: list[float], true: float) -> float:
    return 100 * float(np.sqrt(np.mean((np.array(values) / true - 1) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    tables = {"boxes": boxes, "traces": trace_rows}
    parser.add_argument("--table", choices=tables)
    chosen = parser.parse_args().table
    torch.set_num_threads(1)
    for name in [chosen] if chosen else tables:
        print(f"{name}\n\n{markdown(tables[name]())}\n")


if __name__ == "__main__":
    main()
