"""What products and maxima cost, in gradients: `python -m tests.benchmarks [--quick]`.

One gradient is one forward and backward pass over the same data, timed in the same run, between the measurements, so
that ratios hold on a busy machine.  The arithmetic limit of a run of products is counted, not timed: with G the
operations of a gradient and F those of the forward pass of layers whose input needs no gradient, a Hessian-vector
product takes 2 G - 2 F on top of the primal computation, which is done once when it is kept and every time when it is
not.

Prints Markdown tables; --json FILE writes the numbers too.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import infer_loss
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Problem
from gapscope.measure.referee import scipy_top
from gapscope.measure.solvers.ascent import Maximum, ascent, keskar
from gapscope.measure.solvers.lanczos import Stopping, extreme_eigenpairs
from gapscope.training.trainer import Recipe, train

PRODUCTS = 15
FIXTURES = Path(__file__).parents[2] / "fixtures"


class Transformer(nn.Module):
    """Two pre-norm layers of width 64 with four heads, mean-pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.out(x.mean(1))


@dataclass(frozen=True)
class Case:
    name: str
    model: nn.Module
    inputs: Tensor
    first: str  # the layer whose input needs no gradient, or ""


def cases(quick: bool) -> list[Case]:
    torch.manual_seed(0)
    scale = 4 if quick else 1
    return [
        Case(
            "MLP 784-512-512-10", NETWORKS["mlp"](inputs=784, hidden=[512, 512]), torch.randn(2000 // scale, 784), "fc1"
        ),
        Case("ResNet-20", NETWORKS["resnet20"](), torch.randn(256 // scale, 3, 32, 32), "conv1"),
        Case("transformer, 2 layers", Transformer(), torch.randint(0, 64, (512 // scale, 32)), ""),
    ]


def problem_of(case: Case, **more: Any) -> Problem:
    targets = torch.randint(0, 10, (len(case.inputs),), generator=torch.Generator().manual_seed(1))
    data = Data(inputs=case.inputs, targets=targets, name=case.name, fingerprint="", total=len(targets))
    return Problem(model=case.model.eval(), data=data, loss_function=infer_loss(targets), **more)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def limit(case: Case, problem: Problem) -> tuple[float, float]:
    """Return the arithmetic limit of the run, kept and recomputed, in gradients."""
    with FlopCounterMode(display=False) as counter:
        problem.gradient()
    gradient = counter.get_total_flops()
    free = 0
    if case.first:
        inputs: list[tuple[Tensor, ...]] = []
        layer = case.model.get_submodule(case.first)
        handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given))
        problem.loss()
        handle.remove()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            for given in inputs:
                layer(*given)
        free = counter.get_total_flops()
    product = (2 * gradient - 2 * free) / gradient
    return 1 + PRODUCTS * product, PRODUCTS * (1 + product)


def products_table(quick: bool, repeats: int) -> list[dict[str, Any]]:
    rows = []
    for case in cases(quick):
        kept = problem_of(case, memory_budget=16_000_000_000)
        again = problem_of(case, batch_size=kept.micro_batch, memory_budget=1)
        vector = torch.randn(kept.size, generator=torch.Generator().manual_seed(2))
        limits = limit(case, kept)
        for name, problem, floor in (("kept", kept, limits[0]), ("recomputed", again, limits[1])):

            def run(problem: Problem = problem, vector: Tensor = vector) -> None:
                operator = problem.hessian()
                for _ in range(PRODUCTS):
                    operator.matvec(vector)

            ratios, gradients = [], []
            run()
            for _ in range(repeats):
                before, spent, after = seconds(problem.gradient), seconds(run), seconds(problem.gradient)
                gradients.append((before + after) / 2)
                ratios.append(spent / gradients[-1])
            cost = statistics.median(ratios)
            rows.append(
                {
                    "problem": f"{case.name}, {len(case.inputs)} samples in {problem.micro_batch}s",
                    "way": name,
                    "gradient s": round(statistics.median(gradients), 4),
                    f"{PRODUCTS} products": round(cost, 1),
                    "limit": round(floor, 1),
                    "over limit": round(cost / floor, 2),
                    "graph MB": round(problem.graph_bytes_per_sample * problem.samples / 1e6) if name == "kept" else 0,
                }
            )
    return rows


def maxima_table() -> list[dict[str, Any]]:
    from gapscope.measure.loading import Request
    from gapscope.measure.session import Execution, open_session

    rows = []
    for regime in ("small", "large"):
        path = FIXTURES / f"digits-{regime}-batch.pt"
        problem = open_session(Request(checkpoint=path), Execution()).problem
        slope = problem.gradient()
        start = problem.loss()
        for epsilon in (5e-3, 1e-3, 5e-4):
            radius = epsilon * (problem.theta.abs() + 1)

            def objective(y: Tensor, problem: Problem = problem) -> tuple[float, Tensor]:
                return problem.loss_and_gradient(problem.theta + y)

            finders: dict[str, Callable[[], Maximum]] = {
                "keskar": partial(keskar, objective, radius, start, torch.Generator().manual_seed(0)),
                "ascent": partial(ascent, objective, radius, start, [slope]),
            }
            for name, find in finders.items():
                began = time.perf_counter()
                found = find()
                rows.append(
                    {
                        "checkpoint": path.stem,
                        "epsilon": epsilon,
                        "solver": name,
                        "epsilon-sharpness %": round(100 * (found.value - start) / (1 + start), 4),
                        "gradients": found.evaluations,
                        "ms": round(1000 * (time.perf_counter() - began), 1),
                    }
                )
    return rows


def seeds_table(starts: int) -> list[dict[str, Any]]:
    """How often Lanczos finds the right one of two close eigenvalues, from many starts, against ARPACK in float64."""
    torch.manual_seed(0)
    inputs, teacher = torch.randn(2000, 784), torch.randn(784, 10)
    targets = (inputs @ teacher).argmax(1)
    data, loss = Data(inputs=inputs, targets=targets, name="teacher", fingerprint="", total=2000), infer_loss(targets)
    recipe = Recipe(batch_size=128, lr=0.1, epochs=3)
    model = train(lambda: NETWORKS["mlp"](inputs=784, hidden=[512, 512]), data, loss, recipe).model
    exact = Problem(model=copy.deepcopy(model).double(), data=data, loss_function=loss)
    two = extreme_eigenpairs(exact.hessian(), 2, torch.Generator().manual_seed(99), stopping=Stopping(tolerance=1e-5))
    truth = scipy_top(exact.hessian(), tolerance=1e-10)
    operator = Problem(model=model, data=data, loss_function=loss).hessian()
    found = [extreme_eigenpairs(operator, 1, torch.Generator().manual_seed(seed)) for seed in range(starts)]
    errors = [abs(pairs.values[0] / truth - 1) for pairs in found]
    return [
        {
            "problem": "MLP 784-512-512-10, 2000 samples, trained",
            "top two apart %": round(100 * (1 - two.values[1] / two.values[0]), 2),
            "starts": starts,
            "wrong by over 1e-3": sum(bool(error > 1e-3) for error in errors),
            "largest error": f"{max(errors):.1e}",
            "above the bound": sum(bool(truth > pairs.upper) for pairs in found),
            "products": f"{statistics.mean(pairs.matvecs for pairs in found):.1f}",
        }
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([str(row[key]) for key in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the samples, one repeat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} thread(s), "
        f"torch {torch.__version__}, load {load:.1f} at the start"
    )
    tables = {
        "products": products_table(options.quick, 1 if options.quick else 3),
        "epsilon-sharpness, full space": maxima_table(),
        "the right eigenvalue": seeds_table(3 if options.quick else 30),
    }
    print(f"{machine}, {os.getloadavg()[0]:.1f} at the end\n")
    for title, rows in tables.items():
        print(f"{title}\n\n{markdown(rows)}\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "tables": tables}, indent=1))


if __name__ == "__main__":
    main()
