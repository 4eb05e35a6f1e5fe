"""What several processes gain on CPUs: `torchrun --standalone --nproc-per-node 2 -m tests.benchmarks.ranks`.

Products of the Hessian with the graphs kept, set-up included, by all ranks together and by the first alone, in turn in
the same processes, one thread each.  Wall time wants as many idle cores as ranks; the processor time of the busiest
rank tells on a busy machine what the wall time of an idle one would be, less what ranks wait for each other.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import nn

from gapscope.measure.batches import Inputs
from gapscope.measure.distributed import ALONE, as_ranks, joined
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import LOSSES
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Problem


def problems(samples: int) -> dict[str, Callable[[], Problem]]:
    """Return how the problems are made; each is made anew, because nothing kept may stay."""

    def made(model: nn.Module, inputs: Inputs) -> Problem:
        targets = torch.arange(samples) % 10
        data = Data(inputs, targets, "random", "-", samples)
        return Problem(model=model.eval(), data=data, loss_function=LOSSES["cross-entropy"])

    def mlp() -> Problem:
        torch.manual_seed(0)
        layers = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        return made(nn.Sequential(*layers), torch.randn(samples, 784))

    def resnet() -> Problem:
        torch.manual_seed(0)
        return made(NETWORKS["resnet20"](), torch.randn(samples, 3, 32, 32))

    return {"MLP 784-512-512-10": mlp, "ResNet-20": resnet}


def spent(problem: Problem, products: int) -> tuple[float, float]:
    """Return wall and processor time of so many products, set-up included."""
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(problem.size, generator=rng)
    wall, processor = time.perf_counter(), time.process_time()
    operator = problem.hessian()
    for _ in range(products):
        v = operator.matvec(v)
        v /= v.norm()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Print products per second and ratios, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--products", type=int, default=15)
    parser.add_argument("--samples", type=int, nargs=2, default=(2000, 512), help="of the MLP and of ResNet-20")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with joined() as group:
        for (name, make), samples in zip(problems(0).items(), options.samples, strict=True):
            make = problems(samples)[name]
            together, alone = [], []
            for number in range(options.rounds):
                for first_alone in (False, True):
                    with as_ranks(ALONE) if first_alone else nullcontext():
                        if first_alone and group.rank:
                            continue
                        problem = make()
                        _ = problem.derivatives, problem.micro_batch
                    group.wait(f"{name} {number} {first_alone}") if not first_alone else None
                    with as_ranks(ALONE) if first_alone else nullcontext():
                        (alone if first_alone else together).append(spent(problem, options.products))
                group.wait(f"{name} {number} done")
            busiest = [max(one) for one in zip(*group.gathered([cpu for _, cpu in together]), strict=True)]
            if group.rank == 0:
                walls = [min(wall for wall, _ in times) for times in (alone, together)]
                processors = [min(cpu for _, cpu in alone), min(busiest)]
                figures = {
                    "problem": name,
                    "samples": samples,
                    "ranks": group.count,
                    "products per second alone": round(options.products / walls[0], 2),
                    "together": round(options.products / walls[1], 2),
                    "speed-up": round(walls[0] / walls[1], 2),
                    "by processor time": round(processors[0] / processors[1], 2),
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
