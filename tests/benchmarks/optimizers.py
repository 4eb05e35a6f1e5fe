"""What a step of every optimizer costs beside torch's SGD: `python -m tests.benchmarks.optimizers [--device cuda]`.

Three models: ResNet-20, 1,000 small parameter tensors, where the count of launches shows, and one large layer, where
memory does.  The gradients are there already: the step alone is timed, with momentum and weight decay, against
`torch.optim.SGD(foreach=True)` with the same, whose steps are taken before and after in the same process.  Median ratio
with its quartiles over rounds.  For SAM, whose second gradient is the caller's, `ascend` and `step` are timed together.
On CUDA one more step of each is taken in which any wait for the device raises.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gapscope.measure.loading.networks import NETWORKS
from gapscope.training.optimizers import OPTIMIZERS, make_optimizer
from gapscope.training.optimizers.layerwise import LayerwiseSGD
from tests.benchmarks.machine import markdown


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "ResNet-20": NETWORKS["resnet20"](),
        "1,000 tensors of 64": nn.ParameterList([torch.randn(8, 8) for _ in range(1000)]),
        "one layer, 4,000,000": nn.Linear(2000, 2000, bias=False),
    }


def stepping(name: str, model: nn.Module) -> Callable[[], None]:
    """Return a function that takes one step with the gradients at hand."""
    if name == "SGD, foreach":
        return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4, foreach=True).step
    momentum = 0.0 if name in ("adam", "lamb") else 0.9
    optimizer: Any = make_optimizer(name, model, lr=1e-6, momentum=momentum, weight_decay=1e-4)
    if isinstance(optimizer, LayerwiseSGD):
        optimizer.set_curvature({p: torch.rand_like(p) for p in model.parameters()})
    if name != "sam":
        return optimizer.step

    def both() -> None:
        optimizer.ascend()
        optimizer.step()

    return both


def seconds(step: Callable[[], None], repeats: int, device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    wait()
    return (time.perf_counter() - start) / repeats


def rows(device: str, rounds: int) -> list[dict[str, Any]]:
    found = []
    for title, model in models().items():
        model.to(device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        steps = {name: stepping(name, model) for name in ("SGD, foreach", *OPTIMIZERS)}
        for step in steps.values():
            step()
        repeats = max(1, int(0.02 / seconds(steps["SGD, foreach"], 3, device)))
        ratios: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
        baseline = []
        for _ in range(rounds):
            for name in OPTIMIZERS:
                before, own = (seconds(steps[one], repeats, device) for one in ("SGD, foreach", name))
                after = seconds(steps["SGD, foreach"], repeats, device)
                baseline.append((before + after) / 2)
                ratios[name].append(own / baseline[-1])
        row = {"model": title, "SGD ms": f"{1000 * statistics.median(baseline):.3f}"}
        for name, values in ratios.items():
            low, middle, high = statistics.quantiles(values, n=4)
            row[name] = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        found.append(row)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            for step in steps.values():
                step()
            torch.cuda.set_sync_debug_mode("default")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    table = rows(options.device, options.rounds)
    print(
        f"{where}, {options.threads} thread(s), torch {torch.__version__}, load {load:.1f} at the start, "
        f"{os.getloadavg()[0]:.1f} at the end\n"
    )
    print(markdown(table))


if __name__ == "__main__":
    main()
