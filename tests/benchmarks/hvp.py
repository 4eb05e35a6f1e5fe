"""What Hessian-vector products cost over their arithmetic limit, counted, not timed.

With G the operations of a gradient and F those of the forward pass of layers whose input needs no gradient, a product
takes 2 G - 2 F on top of the primal computation, which is done once when it is kept and every time when it is not.
"""

import statistics
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gapscope
from gapscope.measure.problem import Problem
from tests.benchmarks.cases import NAMES, Case, case
from tests.benchmarks.machine import seconds

PRODUCTS = 15


def problem_of(made: Case, **more: Any) -> Problem:
    """Return the problem of a case."""
    return gapscope.problem(made.model, (made.inputs, made.targets), **more)


def limit(made: Case, problem: Problem) -> tuple[float, float]:
    """Return the arithmetic limit of the run, kept and recomputed, in gradients."""
    with FlopCounterMode(display=False) as counter:
        problem.gradient()
    gradient = counter.get_total_flops()
    free = 0
    if made.first:
        inputs: list[tuple[Tensor, ...]] = []
        layer = made.model.get_submodule(made.first)
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
    """Return what 15 products cost on each problem, with the primal kept and recomputed."""
    rows = []
    for name in NAMES:
        made = case(name)
        kept = problem_of(made, memory_budget=16_000_000_000)
        again = problem_of(made, batch_size=kept.micro_batch, memory_budget=1)
        vector = torch.randn(kept.size, generator=torch.Generator().manual_seed(2))
        limits = limit(made, kept)
        for way, problem, floor in (("kept", kept, limits[0]), ("recomputed", again, limits[1])):

            def run(problem: Problem = problem, vector: Tensor = vector) -> None:
                operator = problem.hessian()
                for _ in range(PRODUCTS):
                    operator.matvec(vector)

            ratios, gradients = [], []
            if not quick:
                run()
            for _ in range(repeats):
                before, spent, after = seconds(problem.gradient), seconds(run), seconds(problem.gradient)
                gradients.append((before + after) / 2)
                ratios.append(spent / gradients[-1])
            cost = statistics.median(ratios)
            rows.append(
                {
                    "problem": f"{name}, {made.samples} samples in {problem.micro_batch}s",
                    "way": way,
                    "gradient s": round(statistics.median(gradients), 4),
                    f"{PRODUCTS} products": round(cost, 1),
                    "limit": round(floor, 1),
                    "over limit": round(cost / floor, 2),
                    "graph MB": round(problem.graph_bytes_per_sample * problem.samples / 1e6) if way == "kept" else 0,
                }
            )
    return rows
