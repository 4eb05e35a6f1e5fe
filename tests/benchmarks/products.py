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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gapscope.measure.allocation import hold_freed_memory
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import infer_loss
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Problem

PRODUCTS = 15
BLOCK = 4


class Transformer(nn.Module):
    """Four pre-norm layers of width 128 with four heads, mean-pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 256, 0.0, batch_first=True, norm_first=True) for _ in range(4)
        )
        self.out = nn.Linear(128, 10)

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
        Case("ResNet-20", NETWORKS["resnet20"](), torch.randn(512 // scale, 3, 32, 32), "conv1"),
        Case("transformer, 4 layers", Transformer(), torch.randint(0, 64, (512 // scale, 32)), ""),
    ]


def problem_of(case: Case, **more: Any) -> Problem:
    targets = torch.randint(0, 10, (len(case.inputs),), generator=torch.Generator().manual_seed(1))
    data = Data(inputs=case.inputs, targets=targets, name=case.name, fingerprint="", total=len(targets))
    return Problem(model=case.model.eval(), data=data, loss_function=infer_loss(targets), **more)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


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
    """Return a row for every problem and way: single products, and blocks of 4 vectors, per vector."""
    hold_freed_memory()  # as every command does
    return [
        _row(case, size, way, repeats)
        for case in cases(quick)
        for size in ((None, 128) if case.name.startswith("transformer") else (None,))
        for way in ("kept", "recomputed")
    ]


def _row(case: Case, size: int | None, way: str, repeats: int) -> dict[str, Any]:
    kept = problem_of(case, batch_size=size, memory_budget=16_000_000_000)
    again = problem_of(case, batch_size=kept.micro_batch, memory_budget=1)
    problem, floor = (kept, limit(case, kept)[0]) if way == "kept" else (again, limit(case, kept)[1])
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
        times = [seconds(work) for work in (problem.gradient, run, problem.gradient, run_blocks, problem.gradient)]
        single.append(2 * times[1] / (times[0] + times[2]))
        blocks.append(2 * times[3] / (times[2] + times[4]) / BLOCK)
        gradients += times[::2]
    cost = statistics.median(single)
    return {
        "problem": f"{case.name}, {len(case.inputs)} samples in {problem.micro_batch}s",
        "way": way,
        "gradient s": round(statistics.median(gradients), 4),
        f"{PRODUCTS} products": round(cost, 1),
        "limit": round(floor, 1),
        "over limit": round(cost / floor, 2),
        f"a vector of {BLOCK}": round(statistics.median(blocks), 2),
        "graph MB": round(problem.graph_bytes_per_sample * problem.samples / 1e6) if way == "kept" else 0,
    }
