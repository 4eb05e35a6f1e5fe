"""What three processes do together for `test_several_processes.py`; the first measures also by itself, to compare."""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from problems import measure, problem
from torch import nn

from gapscope.errors import GapscopeError, ProblemError
from gapscope.measure.analyzers import analyzer_class, names
from gapscope.measure.distributed import ALONE, as_ranks, joined
from gapscope.measure.interface import measure_together
from gapscope.measure.loading import Request
from gapscope.measure.problem import Problem
from gapscope.measure.session import Execution, Session, open_session, record

FIXTURES = Path(__file__).parents[1] / "fixtures"
FEW = {  # less of the same
    "epsilon-sharpness": {"manifold": 3, "draws": 2, "epsilons": (1e-3,)},
    "adaptive-sharpness": {"steps": 5, "draws": 2, "probes": 2, "rhos_l2": (0.5,), "rhos_linf": (4e-3,)},
    "density": {"probes": 2, "steps": 8},
    "trace": {"max_matvecs": 10},
    "curvature": {"max_matvecs": 12, "directions": 4, "top_matvecs": 4},
    "noise": {"probes": 10, "max_matvecs": 8},
    "path": {"points": 5},
    "plane": {"points": 3},
}


class Net(nn.Module):
    def __init__(self, fails: object = None) -> None:
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)
        self.fails = fails

    def forward(self, x):
        if self.fails is not None:
            raise self.fails
        return self.last(nn.functional.max_pool2d(self.norm(self.convolution(x)).relu(), 3).flatten(1))


def images(samples: int, **more) -> Problem:
    torch.manual_seed(0)
    net = Net(more.pop("fails", None)).double().eval()
    return problem(net, torch.randn(samples, 1, 8, 8, dtype=torch.float64), torch.arange(samples) % 3, **more)


def digits(regime: str, limit: int) -> Session:
    request = Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt", limit=limit)
    return open_session(request, Execution(dtype="float64", threads=1))


def built(name: str):
    return analyzer_class(name)(**FEW.get(name, {}))


def apart(one, other) -> float:
    """Return the largest difference of two records' numbers, relative to their quantity."""
    assert (one.status, one.matvecs, one.notes) == (other.status, other.matvecs, other.notes)
    worst = 0.0
    for name, a in one.quantities.items():
        b = other.quantities[name]
        sound = np.isfinite(a.value)
        scale = float(np.abs(a.value[sound]).max()) if sound.any() else 0.0
        for field in ("value", "numerical_error", "sampling_error", "chunks"):
            x, y = getattr(a, field), getattr(b, field)
            assert (x is None) == (y is None), f"{name}.{field}"
            if x is not None and scale:
                assert np.array_equal(np.isfinite(x), np.isfinite(y)), f"{name}.{field}"
                sound = np.isfinite(x)
                worst = max(worst, float(np.abs(x[sound] - y[sound]).max(initial=0.0)) / scale)
    return worst


def main(output: Path) -> None:
    found: dict[str, object] = {}
    with joined() as group:

        def both(name: str, work) -> None:
            """Do the work together and then, in the first process, alone."""
            together = work()
            with as_ranks(ALONE):
                alone = work() if group.rank == 0 else None
            if alone is not None:
                found[name] = apart(alone, together)

        def of_digits(name: str, limit: int):
            analyzer = built(name)
            session = digits("small", limit)
            return session.measure([analyzer]).results[name]

        def of_images(name: str, samples: int, **more):
            analyzer = analyzer_class(name)(**more.pop("settings", {}))
            return record(analyzer, measure(analyzer, images(samples, **more)), 0)

        for name in names():  # 70 = 24 + 24 + 22
            if analyzer_class(name).arity == 1:
                both(name, lambda name=name: of_digits(name, 70))
        for name in ("eigenvalues", "gap", "near-rank", "noise"):  # the third has no sample
            both(f"{name} of 2 samples", lambda name=name: of_digits(name, 2))
        # whole micro-batches of the one partition: 4 of them, of 10 10 10 5
        for mode in ("batch", "re-estimated"):
            both(f"{mode}", lambda mode=mode: of_images("eigenvalues", 35, batchnorm=mode, batch_size=10))
            both(f"near-rank, {mode}", lambda mode=mode: of_images("near-rank", 35, batchnorm=mode, batch_size=10))
        few = {"samples": 2}
        both("columns of 2 samples", lambda: of_images("near-rank", 35, settings=few))
        both("channels", lambda: of_images("near-rank", 35, settings={"view": "channels"}))
        for name in ("path", "plane"):
            both(
                name,
                lambda name=name: measure_together(
                    [digits(regime, 70) for regime in ("small", "large")], [built(name)]
                ).results[name],
            )

        # the same bits everywhere
        where = images(35)
        vectors = [where.gradient(), where.hvp(where.gradient()), torch.from_numpy(where.losses())]
        digest = zlib.crc32(b"".join(vector.numpy().tobytes() for vector in vectors))
        found["one digest"] = len(set(group.gathered(digest))) == 1

        # an exception of one is everybody's, and the work goes on
        said = []
        failure = {1: ProblemError("in the second"), 2: OSError("in the third")}.get(group.rank)
        for one in (failure, None):
            try:
                images(35, fails=one).losses()
            except (GapscopeError, OSError) as error:
                said.append(f"{type(error).__name__}: {error}")
        found["said"] = group.gathered(said)
        try:
            group.first(lambda: 1 / 0)
        except ZeroDivisionError:
            found["first"] = group.first(lambda: group.rank)
        try:
            group.summed(lambda: torch.zeros(2 + group.rank))
        except GapscopeError as error:
            found["came apart"] = str(error)
        found["ranks"] = group.gathered(group.from_first(group.rank) + group.rank)
        # what the first holds on the CPU is summed there, wherever the others compute
        elsewhere = group.summed(lambda: torch.arange(3.0) if group.rank == 0 else None, torch.device("meta"))
        found["elsewhere"] = group.gathered((elsewhere.device.type, elsewhere.tolist()))
    # what is left of the group would meet the end of the interpreter, and abort it now and then
    tasks = Path("/proc/self/task")
    found["threads left"] = [name for at in tasks.glob("*/comm") if "gloo" in (name := at.read_text())]
    if group.rank == 0:
        output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
