"""A problem whose parameters, and all vectors like them, are spread over the ranks: for models larger than one device.

FSDP2 (`torch.distributed.fsdp.fully_shard`) cuts every parameter along its first axis, gathers one block for as long
as it is passed through, and sums the gradient's parts where they belong.  It knows no second backward pass, so products
are central differences of the gradient, with the error that two steps show.  Points are reached by writing to the
shards in place; the checkpoint's own come back bit by bit.

Per rank, of n parameters on R ranks: 8 n/R bytes of weights (in float64, where the model runs in it: `differences` says
why), and in vectors of 4 n/R bytes 26 for the probe, then the Krylov basis and 16; beside them the largest block,
gathered.  An MLP of 3.2 million weights took 385 MB above the loaded model on one rank, 195 MB on each of two, for 14
products.  Loading is not spread: every rank first reads all of the checkpoint to the CPU.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from gapscope.errors import ProblemError, UsageError
from gapscope.measure import products
from gapscope.measure.batches import Batch, called, in_dtype, placed, scores, taken
from gapscope.measure.cutting import blocks, count, cut, local, share_of
from gapscope.measure.derivatives import Derivatives, by_differences, refuse_wrong_slope
from gapscope.measure.differentiable import Precision
from gapscope.measure.distributed import _together, ranks
from gapscope.measure.operators import Operator, gaussian, inner, length
from gapscope.measure.probe import Side, Slopes, Tried, micro_batch
from gapscope.measure.problem import Problem
from gapscope.results import Array

Part = tuple[Batch, bool]  # of this rank, and whether it counts: all ranks pass as often


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Sharded(Problem):
    """A problem of which every rank holds a share; theta and vectors are this rank's part (n/R,), `size` is all of n.

    Losses, gradients, products with the Hessian and what they do along a vector are there; the rest raises UsageError.
    """

    narrow: torch.dtype  # of theta and of vectors
    wide: torch.dtype  # that the model is evaluated in

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> "Sharded":
        """Cut the model of a problem, and of the one on its other split, over the ranks; the problem is used up.

        Alone, one rank has all.  Raises UsageError for what differences or shards cannot do, ProblemError for a
        parameter that has no axis to cut.
        """
        _refuse(problem)
        layout, bare = problem.parameters, type(problem.model).__name__
        kinds = {p.dtype for name, p in problem.model.named_parameters() if name in layout.names}
        narrow = torch.float64 if torch.float64 in kinds else torch.float32
        for name, parameter in problem.model.named_parameters():
            parameter.requires_grad_(name in layout.names)  # the others have no gradient to sum
        # no float64 on mps
        wide = torch.float64 if device.type != "mps" and _runs(problem, torch.float64) else narrow
        cut(problem.model, device)
        problem.model._apply(lambda tensor: in_dtype(tensor, wide))  # type: ignore[no-untyped-call]  # of torch
        share = share_of([p for name, p in problem.model.named_parameters() if name in layout.names])

        def built(one: Problem) -> Sharded:
            given: dict[str, Any] = {f.name: getattr(one, f.name) for f in fields(Problem) if f.init}
            given["origin"] = replace(
                one.origin,
                identity={"model": bare, **one.origin.identity},
                initial=None,
                optimizer=None,  # of the length n, and asked by what needs whole vectors
                other=one.origin.other and built(one.origin.other),
            )
            return cls(**{**given, "share": share, "narrow": narrow, "wide": wide})

        return built(problem)

    @cached_property
    def theta(self) -> Tensor:
        """Return this rank's part of the checkpoint's own theta (n/R,)."""
        return torch.cat([part.reshape(-1) for part in self._shards()]).to(self.narrow)

    @cached_property
    def derivatives(self) -> Derivatives:
        """Return how products are taken: by differences, with the step and the error that a probe finds."""
        return self.examined or ranks().from_first(self._examined())

    @property
    def constants(self) -> dict[str, Tensor]:
        """The buffers, which no rank has a part of only."""
        return dict(self.model.named_buffers())

    # --- L and its derivatives ----------------------------------------------------------------------------------

    def outcomes(self, theta: Tensor | None = None) -> tuple[Array, Array | None]:
        """Return losses (N,), and 1.0 or 0.0 where predictions are right or wrong (None: neither), from one pass."""
        judge = self.bound.correct
        rows: dict[int, Tensor] = {}
        with self._at(theta), torch.no_grad():
            for batch, counts in self._parts():
                micro = self._micro(batch)
                outputs = micro.outputs([])
                columns = [micro.losses(outputs), *([judge(outputs, batch.targets)] if judge is not None else [])]
                if counts:
                    rows[batch.start] = torch.stack([column.cpu().double() for column in columns], 1)
        table = ranks().in_order(rows, self.samples).numpy()
        return table[:, 0].copy(), table[:, 1].copy() if judge is not None else None

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """Return L(theta) and this rank's part of its gradient (n/R,), from one pass."""
        total, rows = self._slopes(self._parts(), theta)
        return float(ranks().in_order(rows, self.samples).mean()), (total / self.samples).to(self.dtype)

    def hvp(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return H v (n/R,), at the checkpoint's theta alone."""
        if theta is not None:
            self._whole()
        return self._difference(v, self.derivatives.step).to(self.dtype)

    def hessian(self, precision: Precision = "full") -> Operator:  # noqa: ARG002  (differences do with no less)
        """Return the Hessian of L at the checkpoint's theta; a product costs two gradients, and nothing is kept."""
        _ = self.derivatives  # what is wrong with the model is said here, not at the first product
        return Operator(self.size, self.hvp, self.dtype, self.device, share=self.share)

    def curvature_along(self, v: Tensor) -> tuple[Tensor, Array]:
        """Return H v (n/R,) and v' H_i v of every sample (N,), these from their losses at three points.

        Three losses want a longer step than two gradients, eps^(1/4): kinks between the points count as curvature.
        """
        longer = torch.finfo(self.wide).eps ** 0.25 * float(length(self.theta, self.share))
        step = max(self.derivatives.step, longer) / (float(length(v, self.share)) or 1.0)
        ahead, here, behind = (self.losses(self._moved(v, sign * step)) for sign in (1, 0, -1))
        return self.hvp(v), (ahead - 2 * here + behind) / step**2

    @cached_property
    def gathered_bytes(self) -> int:
        """Return what is gathered at once: the largest block, the next one under way, and a gradient."""
        if ranks().count == 1:
            return 0
        inside = [count(block) for block in blocks(self.model)]
        return 3 * self.wide.itemsize * max([*inside, count(self.model) - sum(inside)])

    def mean(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse what needs whole vectors."""
        self._whole()

    def _split(self, theta: Tensor | None) -> list[Tensor]:
        """Return nothing: the model holds its parameters."""
        return [] if theta is None else self._whole()

    def _whole(self) -> NoReturn:
        raise UsageError(
            "This needs whole vectors of all parameters on one device. Expected measurements that do with a part of "
            "them: `gap`, `eigenvalues`. Leave out `--shard-parameters`."
        )

    # --- inside -------------------------------------------------------------------------------------------------

    def _shards(self) -> list[Tensor]:
        """Return the numbers themselves that this rank holds, one tensor a parameter."""
        named = dict(self.model.named_parameters())
        return [local(named[name]) for name in self.parameters.names]

    def _moved(self, v: Tensor, share: float) -> Tensor:
        return self.theta.to(self.wide) + share * v.to(self.wide)

    @contextlib.contextmanager
    def _at(self, point: Tensor | None) -> Iterator[None]:
        """Hold the model at a point (n/R,), and give it back as it was, also after an exception."""
        _ = self.theta  # while the model is there
        try:
            if point is not None:
                self._put(point)
            with self.measuring(), _of_others():
                yield
        finally:
            for module in self.model.modules():
                if hasattr(module, "reshard"):  # FSDP2's: what an exception left gathered
                    module.reshard()  # type: ignore[operator]  # a method
            for parameter in self.model.parameters():
                parameter.grad = None
            if point is not None:
                self._put(self.theta)

    def _put(self, point: Tensor) -> None:
        shards = self._shards()
        for shard, part in zip(shards, torch.split(point, [s.numel() for s in shards]), strict=True):
            shard.copy_(part.view_as(shard))

    def _parts(self) -> Iterator[Part]:
        """Yield this rank's micro-batches, by stride; where it has none and others have, one that does not count."""
        group, size = ranks(), self.micro_batch
        starts = range(0, self.samples, size)
        rounds = math.ceil(len(starts) / group.count)
        for number in range(rounds):
            index = number * group.count + group.rank
            start = starts[min(index, len(starts) - 1)]
            yield self._batch(start, min(start + size, self.samples)), index < len(starts)
            self.monitor.tick(1 / rounds)

    def _micro(self, batch: Batch) -> products.Micro:
        """Return a micro-batch as a function of what the model holds."""
        inputs = placed(batch.inputs, self.device, self.wide)
        return products.Micro(
            lambda _: scores(called(self.model, inputs)),
            lambda outputs: self.bound.per_sample(outputs, in_dtype(batch.targets, outputs.dtype)),
        )

    def _slopes(self, parts: Iterable[Part], point: Tensor | None) -> tuple[Tensor, dict[int, Tensor]]:
        """Return this rank's part (n/R,) of the gradient of the sum of all losses at a point, and its own losses."""
        total: Tensor | None = None
        rows: dict[int, Tensor] = {}
        with self._at(point):
            for batch, counts in parts:
                micro = self._micro(batch)
                losses = micro.losses(micro.outputs([]))
                if losses.requires_grad:
                    (losses.sum() * float(counts)).backward()  # type: ignore[no-untyped-call]  # of torch
                total = self._taken() if total is None else total.add_(self._taken())
                if counts:
                    rows[batch.start] = losses.detach().cpu().double()
        assert total is not None  # there is a sample
        return total * ranks().count, rows  # FSDP2 averages over the ranks

    def _taken(self) -> Tensor:
        """Return the gradient that lies at the parameters (n/R,), and take it away."""
        named = dict(self.model.named_parameters())
        found = []
        for name in self.parameters.names:
            parameter = named[name]
            slope = torch.zeros_like(local(parameter)) if parameter.grad is None else local(parameter.grad)
            found.append(slope.reshape(-1))
            parameter.grad = None
        flat = torch.cat(found)
        return flat if flat.device.type == "mps" else flat.double()

    def _difference(self, v: Tensor, step: float) -> Tensor:
        """Return H v (n/R,) by a central difference over all data."""
        size = float(length(v, self.share))
        if size == 0:
            return torch.zeros_like(v)
        ahead, behind = (self._slopes(self._parts(), self._moved(v, sign * step / size))[0] for sign in (1, -1))
        return (ahead - behind).mul_(size / (2 * step * self.samples))

    def _examined(self) -> Derivatives:
        """Probe the gradient on a micro-batch, choose the step, and measure the error of products over all data."""
        probe = _Probe(self)
        if not math.isfinite(probe.length(probe.slope)):
            return Derivatives(error=math.nan, relative_error=math.nan)
        refuse_wrong_slope(probe)
        return by_differences(self, probe, self._difference, "The parameters are sharded.")

    def _graph_bytes(self, samples: int) -> int:
        batch = self._batch(0, samples)
        return products.graph_bytes(lambda: self._slopes([(batch, False)], None))


class _Probe(Slopes):
    """The problem on samples spread over the data, of which every rank takes some."""

    def __init__(self, problem: Sharded) -> None:
        self.problem, self.theta = problem, problem.theta.to(problem.wide)
        whole, group = micro_batch(problem), ranks()
        own = slice(group.rank, None, group.count) if group.rank < len(whole.targets) else slice(0, 1)
        targets = whole.targets[own]
        self.part = Batch(taken(whole.inputs, own), targets, 0, len(targets)), group.rank < len(whole.targets)

    @property
    def size(self) -> int:
        return self.problem.size

    def length(self, v: Tensor) -> float:
        return float(length(v, self.problem.share))

    def dot(self, a: Tensor, b: Tensor) -> float:
        return float(inner(a, b, self.problem.share))

    def drawn(self, rng: torch.Generator) -> Tensor:
        return gaussian(self.size, rng, torch.float64, self.problem.share)

    def _sides(self, v: Tensor, step: float) -> tuple[Side, Side]:  # none is kept: none is asked twice
        ahead, behind = (self._slope_and_loss(self.theta + sign * step * v) for sign in (1, -1))
        return ahead, behind

    def _slope_and_loss(self, point: Tensor) -> Side:
        total, rows = self.problem._slopes([self.part], point)
        losses = torch.stack([row.sum() for row in rows.values()] or [torch.zeros((), dtype=torch.float64)])
        return total.to(point.dtype), float(ranks().total(losses.sum()))


def _refuse(problem: Problem) -> None:
    """Raise for what differences or shards cannot do."""
    if problem.hvp_method == "exact":
        raise UsageError(
            "`--hvp exact` was asked for with `--shard-parameters`. Expected `auto` or `differences`: sharded "
            "parameters are not differentiated twice. Leave one of them out."
        )
    if problem.batchnorm != "eval":
        raise UsageError(
            f"`--batchnorm {problem.batchnorm}` was asked for with `--shard-parameters`. Expected `eval`: only the "
            "running statistics are the same on every rank. Leave one of them out."
        )
    single = [name for name, p in problem.model.named_parameters() if p.dim() == 0]
    if single and ranks().count > 1:
        raise ProblemError(
            f"The parameter `{single[0]}` is one number, without an axis to cut. Expected one axis or more with "
            "`--shard-parameters`. Give it the shape (1,), or leave that option out."
        )


def _runs(problem: Problem, dtype: torch.dtype) -> bool:
    """Return whether the model runs in a dtype (it may hold float32 constants of its own), tried with weights of 1.

    Such weights take no memory; what was cut once cannot change its dtype.
    """
    named = dict(problem.model.named_parameters())
    device = next(iter(named.values())).device
    state = {
        name: in_dtype(torch.ones((), dtype=p.dtype, device=device), dtype).expand(p.shape) for name, p in named.items()
    }
    state |= {name: in_dtype(buffer, dtype) for name, buffer in problem.model.named_buffers()}
    few = placed(taken(problem.data.inputs, slice(0, 2)), device, dtype)
    with Tried(), problem.measuring(), torch.no_grad():
        scores(called(problem.model, few, state))
        return True
    return False


@contextlib.contextmanager
def _of_others() -> Iterator[None]:
    """Raise RankError where a collective inside a pass says that another rank is gone; other errors are the model's."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            with _together():
                raise
        raise
