"""The trained networks that the benchmarks measure, the same for every tool: `case("mlp")`.

Each is made from seeds, trained until the loss over its data falls below a stated level, well under chance, and kept
in a cache folder (`BENCHMARK_CACHE`, else ~/.cache/gapscope-benchmarks).  Needs torch alone beside gapscope's networks
and synthetic data, so that it runs in the environment of any other tool.

mlp: 784-512-512-10, 2,000 samples of a random network.  resnet20: 512 images of 32x32 in eval mode (`resnet20-large`:
8,192).  transformer: 4 pre-norm layers of width 128, 512 rows of 32 tokens of a Markov chain, next token.
close: the MLP after three epochs of SGD on labels of a linear network, its top two eigenvalues 0.8 % apart.
"""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gapscope.measure.loading.datasets.teacher import read_teacher
from gapscope.measure.loading.networks import NETWORKS

NAMES = ("mlp", "resnet20", "transformer")


class MeanCrossEntropy(nn.CrossEntropyLoss):
    """Mean cross-entropy over samples (B, C), or over samples and places (B, T, C), as every tool can call it."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss."""
        return F.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1))


@dataclass(frozen=True)
class Case:
    """A trained model in eval mode, its data and its loss, all on one device and in one dtype."""

    name: str
    model: nn.Module
    inputs: Tensor  # (N, ...)
    targets: Tensor  # (N,) or (N, T)
    loss: MeanCrossEntropy
    first: str  # the layer whose input needs no gradient, "" for an embedding

    @property
    def samples(self) -> int:
        """Return N."""
        return len(self.targets)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Return what theta is made of."""
        return list(self.model.parameters())

    def batches(self, size: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the data in order, `size` samples at a time; None: all at once."""
        size = size or self.samples
        return list(zip(self.inputs.split(size), self.targets.split(size), strict=True))

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> "Case":
        """Return the case elsewhere, or in another precision; the model itself is moved."""
        inputs = self.inputs.to(device, dtype) if self.inputs.is_floating_point() else self.inputs.to(device)
        return dataclasses.replace(
            self, model=self.model.to(device, dtype), inputs=inputs, targets=self.targets.to(device)
        )


@dataclass(frozen=True)
class Plan:
    """How a case is made: sizes, and when its training ends."""

    network: str
    samples: int
    data: str  # options of `teacher:`
    first: str
    level: float = 0.0  # the training ends below this loss,
    epochs: int = 200  # or after so many epochs
    batch: int = 64
    rate: float = 0.0  # of plain SGD; 0: Adam at 1e-3
    width: int = 0
    depth: int = 0

    def build(self) -> nn.Module:
        """Return the network, untrained."""
        if self.network == "mlp":
            return NETWORKS["mlp"](inputs=784, hidden=[self.width] * self.depth)
        if self.network == "gpt":
            sizes: dict[str, Any] = {"outputs": 64, "block": 32, "heads": 4, "dropout": 0.0}
            return NETWORKS["gpt"](dim=self.width, depth=self.depth, **sizes)
        return NETWORKS[self.network]()

    def read(self) -> tuple[Tensor, Tensor]:
        """Return inputs and targets."""
        if self.data == "linear":
            rng = torch.Generator().manual_seed(0)
            x, teacher = torch.randn(self.samples, 784, generator=rng), torch.randn(784, 10, generator=rng)
            return x, (x @ teacher).argmax(1)
        pair = read_teacher(f"samples={self.samples},{self.data}", "train", self.data)
        x, y = torch.as_tensor(pair[0]), torch.as_tensor(pair[1])
        return x.float() if x.is_floating_point() else x, y


PLANS = {
    "mlp": Plan("mlp", 2000, "inputs=784", "fc1", 0.2, width=512, depth=2),
    "close": Plan("mlp", 2000, "linear", "fc1", epochs=3, batch=128, rate=0.1, width=512, depth=2),
    "resnet20": Plan("resnet20", 512, "image=3x32x32", "conv1", 0.3),
    "resnet20-large": Plan("resnet20", 8192, "image=3x32x32", "conv1", 1.0, epochs=10, batch=128),
    "transformer": Plan("gpt", 512, "tokens=32,outputs=64", "", 2.0, width=128, depth=4),
}


def case(name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, **sizes: int) -> Case:
    """Return a trained case, from the cache if it is there; sizes are other `samples`, `width` or `depth`."""
    plan = dataclasses.replace(PLANS[name], **sizes)
    x, y = plan.read()
    torch.manual_seed(0)
    model, loss = plan.build(), MeanCrossEntropy()
    path = folder() / f"{name}-{plan.samples}-{plan.width}-{plan.depth}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        _train(model, x, y, loss, plan)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), half)
        half.replace(path)
    shown = name + "".join(f" {size}={value}" for size, value in sizes.items())
    return Case(shown, model.eval(), x, y, loss, plan.first).to(device, dtype)


def tiny() -> Case:
    """Return a case of 30 parameters that takes no time, untrained, for tests of the benchmarks themselves."""
    torch.manual_seed(0)
    return Case("tiny", NETWORKS["mlp"](inputs=4, hidden=[3], outputs=3), *_tiny_data(), MeanCrossEntropy(), "fc1")


def folder() -> Path:
    """Return the cache folder."""
    return Path(os.environ.get("BENCHMARK_CACHE") or Path.home() / ".cache" / "gapscope-benchmarks")


def _tiny_data() -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(30, 4, generator=rng), torch.randint(3, (30,), generator=rng)


def _train(model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, plan: Plan) -> None:
    optimizer = torch.optim.SGD(model.parameters(), plan.rate) if plan.rate else torch.optim.Adam(model.parameters())
    rng = torch.Generator().manual_seed(0)
    for _ in range(plan.epochs):
        model.train()
        for part in torch.randperm(len(x), generator=rng).split(plan.batch):
            optimizer.zero_grad()
            loss(model(x[part]), y[part]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            total = sum(float(loss(model(a), b)) * len(a) for a, b in _parts(x, y))
        if total / len(x) < plan.level:
            break


def _parts(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(x.split(256), y.split(256), strict=True)
