"""What every analyzer costs on ResNet-20 with 1,024 samples: `python -m tests.benchmarks.analyzers [--samples N]`.

One process per analyzer.  Time is in gradients, timed before and after in the same process; memory is the peak resident
set less that of the loaded problem after one gradient, in vectors of theta's length and in MB.  The network is trained
for a few epochs on images of a random teacher, so that it is neither random nor at zero loss.  `--near-rank` measures
the processor time of near-rank, forward passes left out, against that of the multiply-adds which its plan states, for
ResNet-20 and VGG-16, and its memory at many samples.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gapscope
from gapscope.measure import activations
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.pace import pace
from gapscope.measure.plan import expected, kinds
from gapscope.measure.problem import Problem
from tests.benchmarks.machine import markdown, seconds

TOGETHER = ("path", "plane", "escape")
ALONE = (
    *("gap", "eigenvalues", "adaptive-sharpness", "epsilon-sharpness", "near-rank"),
    *("noise", "trace", "density", "curvature"),
)
EPOCHS = 3


def images(samples: int) -> tuple[Tensor, Tensor]:
    """Return images of 32 x 32 with the labels of a random convolutional teacher."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 32, 32, generator=rng)
    teacher = torch.randn(10, 3, 8, 8, generator=rng)
    return x, torch.nn.functional.conv2d(x, teacher, stride=8).square().mean((2, 3)).argmax(1)


def vgg16() -> nn.Module:
    """Return VGG-16 with BatchNorm for images of 32 x 32."""
    layers: list[nn.Module] = []
    fan_in = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(fan_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            fan_in = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def prepare(folder: Path, samples: int) -> None:
    """Train two networks with batches of 32 and 256 and save them beside their data."""
    x, y = images(samples)
    np.savez(folder / "data.npz", x=x.numpy(), y=y.numpy())
    for batch in (32, 256):
        torch.manual_seed(0)
        model = NETWORKS["resnet20"]()
        initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(EPOCHS):
            for part in torch.randperm(samples).split(batch):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        gapscope.save_checkpoint(
            folder / f"batch-{batch}.pt",
            model.eval(),
            factory="resnet20",
            loss="cross-entropy",
            initial=initial,
            training={"optimizer": "sgd", "lr": 0.05, "batch_size": batch, "momentum": 0.0, "weight_decay": 0.0},
        )


def measure_one(asked: str, folder: Path) -> dict[str, Any]:
    """Measure one analyzer in this process, as `density` or with a setting: `density:probes=2`."""
    from gapscope.measure.analyzers import analyzer_class
    from gapscope.measure.session import Session, together

    name, _, setting = asked.partition(":")
    key, _, value = setting.partition("=")
    torch.set_num_threads(1)
    paths = [folder / f"batch-{batch}.pt" for batch in ((32, 256) if name in TOGETHER else (32,))]
    problems = [gapscope.load(path, data=str(folder / "data.npz"), threads=1) for path in paths]
    analyzer = analyzer_class(name)(**({key: int(value)} if key else {}))
    gradients = [seconds(problems[0].gradient) for _ in range(2)]
    said = expected(problems[0], analyzer, pace(problems[0], kinds(problems[0], [analyzer]))).seconds
    needed = [analyzer_class(one)() for one in getattr(analyzer, "needs", ())]
    contexts = [Session(problem).context([analyzer, *needed]) for problem in problems]
    context = together(contexts, [analyzer]) if name in TOGETHER else contexts[0]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = context.run(name)
    spent = time.perf_counter() - started
    gradients.append(seconds(problems[0].gradient))
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
    each = statistics.median(gradients)
    return {
        "analyzer": asked,
        "status": found.status.name,
        "seconds": round(spent, 1),
        "gradient s": round(each, 2),
        "in gradients": round(spent / each, 1),
        "planned s": round(said, 1),
        "matvecs": found.matvecs,
        "peak MB": round(peak / 1e6),
        "peak / n": round(peak / (4 * problems[0].size)),
    }


def analyzers_table(samples: int, names: list[str]) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), samples)
        for name in names:
            words = [sys.executable, "-m", "tests.benchmarks.analyzers", "--child", name, "--folder", folder]
            ended = subprocess.run(words, capture_output=True, text=True, check=False)
            if ended.returncode:
                print(f"{name} failed: {ended.stderr[-500:]}", file=sys.stderr)
                continue
            rows.append(json.loads(ended.stdout.splitlines()[-1]))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def near_rank_table(samples: int, many: int) -> list[dict[str, Any]]:
    """Measure the time of the spectra, and the peak memory, against what the plan states."""
    rows = []
    for name in ("ResNet-20", "VGG-16"):
        for view in ("flat", "channels"):
            for count in (samples, many):
                if count == many and view == "flat":
                    continue  # flat layers take 1,024 samples however many there are
                words = [
                    sys.executable,
                    "-m",
                    "tests.benchmarks.analyzers",
                    "--child",
                    f"near-rank:{name}:{view}:{count}",
                ]
                ended = subprocess.run(words, capture_output=True, text=True, check=False)
                if ended.returncode:
                    print(f"{name} {view} {count} failed: {ended.stderr[-500:]}", file=sys.stderr)
                    continue
                rows.append(json.loads(ended.stdout.splitlines()[-1]))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def near_rank_one(name: str, view: Any, samples: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = (NETWORKS["resnet20"]() if name == "ResNet-20" else vgg16()).eval()
    x = torch.randn(samples, 3, 32, 32)
    problem: Problem = gapscope.problem(model, (x, torch.zeros(samples, dtype=torch.long)))
    problem.losses()
    chosen = activations.chosen_samples(samples, min(1024, samples), 0)
    plan = activations.Plan.of(problem, activations.layers(problem, view)[0], view, chosen)
    rates = [_rate()]
    forward = _spent(problem.losses)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = _spent(lambda: list(plan.run()))
    peak = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
    rates.append(_rate())
    passes = len(plan.passes)
    spectra = spent - passes * forward
    return {
        "network": name,
        "view": view,
        "samples": samples,
        "passes": passes,
        "planned Gmadd": round(plan.multiply_adds / 1e9, 1),
        "Gmadd / s of a product": round(statistics.mean(rates) / 1e9, 1),
        "forward s": round(forward, 1),
        "spectra s": round(spectra, 1),
        "ratio": round(spectra * statistics.mean(rates) / plan.multiply_adds, 2),
        "stated MB": round(max(map(activations.peak, plan.passes)) / 1e6),
        "peak MB": round(peak / 1e6),
        "budget MB": round(problem.memory_budget / 1e6),
    }


def _spent(work: Callable[[], object]) -> float:
    """Return the seconds of the processor: others on the machine lengthen those of a clock."""
    before = time.process_time()
    work()
    return time.process_time() - before


def _rate() -> float:
    """Return the multiply-adds a second of a float64 product of 1,024 x 1,024 matrices."""
    a = torch.randn(1024, 1024, dtype=torch.float64)
    return 1024**3 / min(_spent(lambda: a @ a) for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--many", type=int, default=50_000)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--near-rank", action="store_true")
    parser.add_argument("--child")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.child and options.child.startswith("near-rank:"):
        _, name, view, samples = options.child.split(":")
        print(json.dumps(near_rank_one(name, view, int(samples))))
        return
    if options.child:
        print(json.dumps(measure_one(options.child, options.folder)))
        return
    start = os.getloadavg()[0]
    if options.near_rank:
        rows = near_rank_table(options.samples, options.many)
    else:
        rows = analyzers_table(options.samples, options.only or [*ALONE, *TOGETHER])
    end = os.getloadavg()[0]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, 1 thread, torch {torch.__version__}, "
        f"load {start:.1f} at the start, {end:.1f} at the end\n\n{markdown(rows)}"
    )


if __name__ == "__main__":
    main()
