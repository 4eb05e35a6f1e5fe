"""What stays behind after many calls in one process: `python -m tests.hardening.leaks 1000` is the long form."""

import gc
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import gapscope
from gapscope.callbacks.recorder import Recorder
from tests.hardening.process import of_model, open_files

FIXTURES = Path(__file__).parents[2] / "fixtures"
X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)


class Fails(nn.Module):
    """Raises at its sixth call."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.calls = nn.Linear(5, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 6:
            raise ValueError("no")
        return self.last(torch.tanh(x))


@dataclass(frozen=True)
class Left:
    """What there is after a full collection."""

    tensors: int
    objects: int
    files: tuple[str, ...]
    modules: int
    resident: int  # bytes

    @classmethod
    def now(cls) -> "Left":
        gc.collect()
        every = gc.get_objects()
        pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
        tensors = sum(issubclass(type(one), torch.Tensor) for one in every)
        return cls(tensors, len(every), tuple(open_files()), len(sys.modules), 4096 * pages)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()


def once(model: nn.Module, folder: Path, number: int) -> None:
    """Measure, write, read, load, and fail: one of each."""
    problem = gapscope.problem(model, (X, Y), test_data=(X[:9], Y[:9]))
    analyzers = [gapscope.Gap(), gapscope.Eigenvalues(max_matvecs=9), gapscope.NearRank()]
    gapscope.write(gapscope.measure(problem, analyzers), folder / "a.h5")
    gapscope.read(folder / "a.h5")
    gapscope.measure(gapscope.load(FIXTURES / "digits-small-batch.pt", limit=64), [gapscope.Gap()])
    Recorder((X, Y), analyzers=[gapscope.Gap()], folder=folder / "steps").measure(model, number % 3 + 1)
    try:
        gapscope.measure(gapscope.problem(Fails(), (X, Y)), [gapscope.Eigenvalues()])
    except ValueError:
        return
    raise AssertionError("the model did not fail")


def after(calls: int, warm: int = 3) -> tuple[Left, Left]:
    """Return what there is after a few calls, and after so many more; hooks of the model must not change."""
    model = network()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(warm):
            once(model, Path(folder), number)
        state, first = of_model(model), Left.now()
        for number in range(calls):
            once(model, Path(folder), number)
        assert of_model(model) == state
        return first, Left.now()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for left in after(int(sys.argv[1])):
        print(left)
