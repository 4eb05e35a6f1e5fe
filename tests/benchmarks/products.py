"""What Hessian-vector products cost over the arithmetic limit of their model.

The arithmetic limit of a run of products is counted, not timed: with G the operations of a gradient and F those of the
forward pass of layers whose input needs no gradient, a Hessian-vector product takes 2 G - 2 F on top of the primal
computation, which is done once when it is kept and every time when it is not.

Times are those of the process (user and system), each beside the gradients around it: on a busy machine the clock on
the wall says more about the others.  A run builds its operator anew: set-up counts.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import gapscope
from gapscope.measure.allocation import hold_freed_memory
from gapscope.measure.problem import Problem
from tests.benchmarks.cases import NAMES, Case, case

PRODUCTS = 15
BLOCK = 4
TARGETS = {"kept": 1.15, "recomputed": 1.1}  # over the limit


def products_table(quick: bool, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for every problem and way: single products, and blocks of 4 vectors, per vector; and the targets.

    The MLP also in batches of 128; the others, which take minutes, once.
    """
    hold_freed_memory()  # as every command does
    rows = [
        _row(case(name), size, way, repeats if name == "mlp" else 1)
        for name in (NAMES[:1] if quick else NAMES)
        for size in ((None, 128) if name == "mlp" else (None,))
        for way in TARGETS
    ]
    worst = {way: max(row["over limit"] for row in rows if row["way"] == way) for way in TARGETS}
    said = [
        f"{way}: at most {worst[way]} times the limit; target {target}: {'met' if worst[way] <= target else 'missed'}"
        for way, target in TARGETS.items()
    ]
    return rows, said


def _row(made: Case, size: int | None, way: str, repeats: int) -> dict[str, Any]:
    kept = _problem(made, batch_size=size, memory_budget=16_000_000_000)
    again = _problem(made, batch_size=kept.micro_batch, memory_budget=1)
    problem, floor = (kept, _limit(made, kept)[0]) if way == "kept" else (again, _limit(made, kept)[1])
    vectors = torch.randn(PRODUCTS, kept.size, generator=torch.Generator().manual_seed(2))

    def run() -> None:
        operator = problem.hessian()
        for vector in vectors:
            operator.matvec(vector)

    def run_blocks() -> None:
        problem.hessian().block(vectors[:BLOCK])

    assert problem.derivatives.method == "exact"  # asked once for each problem, whatever is measured then
    problem.hessian().matvec(vectors[0])
    single, blocks, gradients = [], [], []
    for _ in range(repeats):
        times = [_seconds(work) for work in (problem.gradient, run, problem.gradient, run_blocks, problem.gradient)]
        single.append(2 * times[1] / (times[0] + times[2]))
        blocks.append(2 * times[3] / (times[2] + times[4]) / BLOCK)
        gradients += times[::2]
    cost = statistics.median(single)
    return {
        "problem": f"{made.name}, {made.samples} samples in {problem.micro_batch}s",
        "way": way,
        "gradient s": round(statistics.median(gradients), 4),
        f"{PRODUCTS} products": round(cost, 1),
        "limit": round(floor, 1),
        "over limit": round(cost / floor, 2),
        f"a vector of {BLOCK}": round(statistics.median(blocks), 2),
        "graph MB": round(problem.graph_bytes_per_sample * problem.samples / 1e6) if way == "kept" else 0,
    }


def _problem(made: Case, **more: Any) -> Problem:
    return gapscope.problem(made.model, (made.inputs, made.targets), **more)


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _limit(made: Case, problem: Problem) -> tuple[float, float]:
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
