"""What three processes with sharded parameters find for `test_sharded.py`, beside what one finds with all of them."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from problems import ZOO, dense_hessian, measure, problem, softmax_regression
from torch import nn

from gapscope.errors import ProblemError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.checks import check
from gapscope.measure.cutting import blocks
from gapscope.measure.distributed import ALONE, as_ranks, joined, ranks
from gapscope.measure.loading import Loss
from gapscope.measure.problem import Problem
from gapscope.measure.sharded import Sharded
from gapscope.measure.solvers.lanczos import gaussian_start

CPU = torch.device("cpu")


class Once(torch.autograd.Function):
    """exp, differentiable once."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().exp()
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.y


class Uneven(nn.Module):
    """Blocks of odd widths, one of them frozen in part, a parameter of one row, and one that is not used."""

    def __init__(self, plain: bool = True) -> None:
        super().__init__()
        self.plain = plain
        self.scale, self.idle = nn.Parameter(torch.full((1,), 0.3)), nn.Parameter(torch.ones(2, 2))
        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.head = nn.Linear(5, 3)
        self.blocks[1].weight.requires_grad_(False)

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(block(x))
        x = x * self.scale
        return self.head(x.exp() if self.plain else Once.apply(x))


class Wide32(nn.Module):
    """A model that holds a float32 constant, which float64 weights do not multiply."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) @ torch.eye(3, dtype=torch.float32)


def uneven(dtype: torch.dtype = torch.float64, plain: bool = True, **more) -> Problem:
    torch.manual_seed(0)
    model = Uneven(plain).to(dtype).eval()
    return problem(model, torch.randn(7, 5), torch.arange(7) % 3, **{"batch_size": 2, **more})


def whole(found: Sharded, part: torch.Tensor) -> torch.Tensor:
    """Return the vector of which every rank holds a part."""
    vector, start = torch.zeros(found.size, dtype=torch.float64), 0
    for place in found.share.places:
        vector[place] = part[start : start + place.stop - place.start].double()
        start += place.stop - place.start
    return ranks().total(vector)


def compared(build, twin=None) -> dict[str, object]:
    """Return how far loss, gradient and a product of shards are from those of the whole, and what is stated of them."""
    with as_ranks(ALONE):
        one = (twin or build)()
        hessian = torch.from_numpy(dense_hessian(one))
        theta, gradient, losses = one.theta.double(), one.gradient().double(), one.losses()
    found = Sharded.of(build(), CPU)
    held = found.theta.clone()
    check(found)
    v = gaussian_start(found.hessian(), torch.Generator().manual_seed(1))
    product, along = found.curvature_along(v)
    u = whole(found, v)
    drawn = torch.randn(found.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return {
        "theta": torch.equal(whole(found, found.theta), theta),
        "restored": all(torch.equal(x.reshape(-1).to(found.narrow), y) for x, y in zip(
            found._shards(), torch.split(held, [s.numel() for s in found._shards()]), strict=True
        )),
        "start": torch.equal(u, drawn),
        "losses": float(np.abs(found.losses() - losses).max()),
        "gradient": float((whole(found, found.gradient()) - gradient).norm() / gradient.norm()),
        "product": float((whole(found, product) - hessian @ u).norm() / u.norm()),
        "along": abs(float(along.mean() - u @ hessian @ u)) / float(u @ u),
        "error": found.derivatives.error,
        "size": float(hessian.norm()),
        "method": found.derivatives.method,
        "shards": ranks().gathered([s.numel() for s in found._shards()]),
        "note": found.derivatives.note,
    }  # fmt: skip


def restored_after_an_exception() -> dict[str, object]:
    failing = [False]
    own = Loss(
        "cross-entropy", lambda scores, y: broken() if failing[0] else F.cross_entropy(scores, y, reduction="none")
    )

    def broken():
        raise ProblemError("in the middle")

    found = Sharded.of(uneven(loss=own), CPU)
    held, losses = [s.clone() for s in found._shards()], found.losses()
    failing[0] = True
    said = ""
    try:
        found.gradient(found.theta + 1)
    except ProblemError as error:
        said = str(error)
    failing[0] = False
    same = all(torch.equal(a, b) for a, b in zip(held, found._shards(), strict=True))
    return {"said": said, "same": same, "again": bool((found.losses() == losses).all()),
            "clear": all(p.grad is None for p in found.model.parameters())}  # fmt: skip


def analyzed() -> dict[str, object]:
    """Return the top eigenvalue and losses of shards beside a closed form."""
    closed = softmax_regression(dtype=torch.float32)
    found = Sharded.of(copy.deepcopy(closed.problem), CPU)
    top = measure(Eigenvalues(k=2), found)
    with as_ranks(ALONE):
        gap = measure(Gap(), closed.problem)
    values = np.linalg.eigvalsh(closed.hessian)[::-1][:2]
    return {
        "values": (top.values.value - values).tolist(),
        "errors": top.values.numerical_error.tolist(),
        "above": float(top.top.value + top.top.numerical_error - values[0]),
        "status": top.status.name,
        "loss": float(measure(Gap(), found).train_loss.value - gap.train_loss.value),
        "held": ranks().gathered(found.theta.numel()),
        "size": found.size,
    }


def main(output: Path) -> None:
    with joined() as group:
        kinds = {name: ZOO[name] for name in ("conv batchnorm", "fused attention", "lstm", "tied embedding")}
        found = {name: compared(lambda kind=kind: kind.problem(samples=10)) for name, kind in kinds.items()}
        found["uneven, once"] = compared(lambda: uneven(plain=False), uneven)
        found["exception"] = restored_after_an_exception()
        found["analyzed"] = analyzed()
        found["blocks"] = [len(blocks(Uneven())), len(blocks(ZOO["tied embedding"].build()))]
        narrow = Sharded.of(problem(Wide32(), torch.randn(6, 4), torch.arange(6) % 3), CPU)
        found["narrow"] = [str(narrow.wide), float(narrow.losses().mean()) > 0, narrow.derivatives.relative_error]
        said = ""
        try:
            scalar = nn.Linear(2, 2)
            scalar.shift = nn.Parameter(torch.tensor(1.0))
            Sharded.of(problem(scalar, torch.ones(2, 2), torch.zeros(2).long()), CPU)
        except ProblemError as error:
            said = str(error)
        found["scalar"] = said
        if group.rank == 0:
            output.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
