"""How fast passes over the data are, each kind at its own pace, timed on a few micro-batches.

An analyzer says by kind how many it makes (`passes`); kinds are named after the methods of `Problem`:

outcomes, gradient, slopes_along, weighted_gradient, curvature_along, gradient_squares, curvature_squares,
gauss_newton_diagonal; `product` is one of the Hessian with its kept graphs, `blocks` one of all its diagonal blocks.
Beside passes: `multiply_adds` of the spectra of near-rank, `numbers_drawn` and `numbers_read` of random manifolds.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from gapscope.errors import GapscopeError, RankError
from gapscope.measure.distributed import ranks
from gapscope.measure.manifold import RandomManifold
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem

TIMED = 4  # micro-batches: enough that the share of kept graphs among them is that of all
FEW = 2  # samples that warm up kinds which take many gradients: those are timed on one micro-batch, once
ROWS, COLUMNS = 2048, 256  # of the matrix whose factorization prices multiply-adds: as tall as near-rank's own blocks


@dataclass(frozen=True)
class Pace:
    """Seconds over all data: of a gradient, of a product, of the others, and what the first ones set up beside."""

    gradient: float
    product: float = 0.0
    first: float = 0.0  # of products: the graphs that are kept
    others: Mapping[str, float] = field(default_factory=dict)

    def of(self, passes: Mapping[str, float]) -> float:
        """Return the seconds that passes take; NaN where a kind was not timed."""
        known = {"gradient": self.gradient, "product": self.product, **self.others}
        return sum(count * known.get(kind, math.nan) for kind, count in passes.items() if count)


def pace(problem: Problem, kinds: Iterable[str] = ("product",), *, within: float = math.inf) -> Pace:
    """Time a gradient, and each of these kinds, on the first micro-batches with their share of the memory budget.

    Cost: two passes of each kind over about `TIMED` micro-batches, one over one where they take many gradients; every
    rank has as many.  After so many seconds (`within`) no further kind is begun, and its seconds are NaN.  A kind that
    the problem does not allow takes none: the analyzer will say why.
    """
    end, count = time.perf_counter() + within, ranks().count
    few, share = _part(problem, -(-TIMED // count) * count * problem.micro_batch)
    few.gradient()  # the first one also warms up
    gradient = share * _timed(few.gradient, problem)
    first, took = 0.0, {kind: math.nan for kind in kinds if kind != "gradient"}
    for kind in took:
        if within < math.inf and ranks().from_first(time.perf_counter() > end):  # all ranks make the same passes
            break
        try:
            if kind in DENSE:
                took[kind] = DENSE[kind](problem)
            elif kind in DEAR_PASSES:
                DEAR_PASSES[kind](_part(problem, FEW * count, at_once=FEW)[0])()
                one, times = _part(problem, count * problem.micro_batch, problem.memory_budget)
                took[kind] = times * _timed(DEAR_PASSES[kind](one), problem)
            elif kind in PASSES:
                work = PASSES[kind](few)
                before = share * _timed(work, problem)
                took[kind] = share * _timed(work, problem)
                first = max(0.0, before - took[kind]) if kind == "product" else first
        except RankError:
            raise
        except GapscopeError:  # raised alike by all ranks
            took[kind] = 0.0
    return Pace(gradient, took.pop("product", 0.0), first, took)


def _part(problem: Problem, samples: int, memory: int = 0, at_once: int = 0) -> tuple[Problem, float]:
    """Return the first samples, with their share of the memory or the given one, and how many times as many all are.

    Weights and second derivatives are those of all: the first samples may hold no target that counts.
    """
    size = min(problem.samples, samples)
    part = dataclasses.replace(
        problem,
        data=problem.data.part(torch.arange(size)),
        loss_function=problem.bound,
        examined=vars(problem).get("derivatives", problem.examined),
        batch_size=at_once or problem.micro_batch,
        memory_budget=memory or max(1, problem.memory_budget * size // problem.samples),
        monitor=Monitor(),
    )
    return part, problem.samples / size


def _timed(work: Callable[[], object], problem: Problem) -> float:
    started = time.perf_counter()
    work()
    if problem.device.type == "cuda":
        torch.cuda.synchronize(problem.device)
    return time.perf_counter() - started


def _direction(problem: Problem) -> torch.Tensor:
    unit: torch.Tensor = problem.theta / (problem.theta.norm() + 1)
    return unit


def _products(problem: Problem) -> Callable[[], object]:
    hessian, v = problem.hessian(), _direction(problem)
    return lambda: hessian.matvec(v)


def _blocks(problem: Problem) -> Callable[[], object]:
    apart, v = problem.hessian_blocks().apart(), _direction(problem)
    return lambda: apart.matvec(v)


PASSES: Mapping[str, Callable[[Problem], Callable[[], object]]] = {
    "outcomes": lambda problem: problem.outcomes,
    "slopes_along": lambda problem: lambda: problem.slopes_along(_direction(problem)),
    "weighted_gradient": lambda problem: lambda: problem.weighted_gradient(torch.ones(problem.samples)),
    "product": _products,
    "blocks": _blocks,
}
DEAR_PASSES: Mapping[str, Callable[[Problem], Callable[[], object]]] = {
    "curvature_along": lambda problem: lambda: problem.curvature_along(_direction(problem)),
    "gradient_squares": lambda problem: lambda: problem.gradient_squares(),
    "curvature_squares": lambda problem: lambda: problem.curvature_squares(_direction(problem)),
    "gauss_newton_diagonal": lambda problem: problem.gauss_newton_diagonal,
}


def _number(problem: Problem, *, drawn: bool) -> float:
    """Return the seconds of one number of a manifold: to draw it, with the Gram matrix of its row, or to read it."""
    rows, columns = 1 << 14, 100
    x = torch.ones(rows, dtype=problem.dtype, device=problem.device)
    matrix = RandomManifold(rows, columns, 0, problem.device, problem.dtype, 0 if drawn else problem.memory_budget)
    matrix.coordinates(x)
    if drawn:
        return _timed(lambda: matrix.coordinates(x), problem) / (rows * columns)
    return min(_timed(lambda: matrix.project(x), problem) for _ in range(3)) / (rows * columns)


def _multiply_add(problem: Problem) -> float:
    """Return the seconds of one multiply-add of a factorization: m n^2 of them for (m, n)."""
    wide = torch.float32 if problem.device.type == "mps" else torch.float64  # no float64 there
    matrix = torch.rand(ROWS, COLUMNS, dtype=wide, device=problem.device)
    torch.linalg.qr(matrix)
    return min(_timed(lambda: torch.linalg.qr(matrix), problem) for _ in range(3)) / (ROWS * COLUMNS**2)


DENSE: Mapping[str, Callable[[Problem], float]] = {
    "multiply_adds": _multiply_add,
    "numbers_drawn": partial(_number, drawn=True),
    "numbers_read": partial(_number, drawn=False),
}
