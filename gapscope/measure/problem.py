"""L(theta) = 1/N sum_i loss(f(x_i; theta), y_i), its gradient and its products, and the only loop over data.

A problem is fixed when it is built: the same samples, in the same order, in the same micro-batches, whatever is asked.
The model is only ever called with other tensors in the place of its own (`torch.func.functional_call`): its weights,
buffers, mode and requires_grad flags are as before after every call, also after an exception.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.errors import ProblemError, one_of
from gapscope.measure import differentiable, gauss_newton, products
from gapscope.measure.allocation import give_back
from gapscope.measure.batches import Batch as Batch  # part of what a problem is: `mean` hands them out
from gapscope.measure.batches import Inputs, called, fitting, in_dtype, mapped, placed, scores, taken, tensors
from gapscope.measure.batchnorm import re_estimated
from gapscope.measure.blocks import Blocks, Kept
from gapscope.measure.derivatives import Derivatives, examine
from gapscope.measure.distributed import ranks
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss
from gapscope.measure.monitor import Monitor
from gapscope.measure.operators import Operator, Share
from gapscope.measure.origin import Origin as Origin  # part of a problem
from gapscope.measure.parameters import Parameters
from gapscope.measure.samples import Samples
from gapscope.measure.surroundings import interruption_point, with_gradients
from gapscope.results import CHUNKS, Array

BatchNorm = Literal["eval", "batch", "re-estimated"]
Hvp = Literal["auto", "exact", "differences"]

DEFAULT_MEMORY_BUDGET = 4_000_000_000
CHUNK_SEED = 0
_MICRO_BYTES_CPU = 100_000_000  # a larger graph leaves the cache: ResNet-20 in 32s, 96 MB, is 25 % faster than in 128s


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Problem:
    """Empirical risk of a model over data, as a function of theta (n,).

    The model must already be on its device and in its dtype; one of half precision is measured in float32, with the
    weights that it has.  `batchnorm`: `eval` uses the running statistics, `batch` those of each micro-batch (which then
    belong to L), `re-estimated` replaces the running ones by an average over the training data.  Dropout is off.
    `chosen`: patterns of the parameters that make up theta (none: those that require a gradient).  The memory budget
    bounds the graphs kept between products and the Krylov basis, half each.
    """

    model: nn.Module
    data: Data
    loss_function: Loss
    batch_size: int | None = None
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    batchnorm: BatchNorm = "eval"
    chosen: tuple[str, ...] = ()
    hvp_method: Hvp = "auto"
    monitor: Monitor = field(default_factory=Monitor)
    origin: Origin = field(default_factory=Origin)
    examined: Derivatives | None = None  # by an earlier problem of this model: not probed again
    threads: int | None = None  # of torch while `gapscope.measure` is at it (none: as many as then)
    share: Share | None = None  # what this process holds of theta and of every vector like it: see `sharded`
    _graphs: "list[weakref.ref[Kept[products.Hessian]]]" = field(default_factory=list, init=False)  # one at most
    repaired: set[str] = field(default_factory=set, init=False)  # of `differentiable.NOTES`: what was met so far

    def __post_init__(self) -> None:
        one_of("batchnorm", self.batchnorm, get_args(BatchNorm))
        one_of("hvp", self.hvp_method, get_args(Hvp))
        bare, compiled = differentiable.unwrapped(self.model)
        object.__setattr__(self, "model", bare)
        self.repaired.update({"compile"} if compiled else ())
        if self.parameters.size == 0:
            raise ProblemError(
                "The model has no trainable parameter. Expected at least one with requires_grad=True. Do not freeze "
                "the whole model in its factory."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ProblemError(f"The batch size is {self.batch_size}. Expected 1 or more. Give `--batch-size auto`.")
        if self.depends_on_batches and self.batch_size is None:
            raise ProblemError(
                "BatchNorm in batch mode (or without running statistics) makes L depend on the micro-batches, and no "
                "size was given. Expected a fixed size. Add for example `--batch-size 128`."
            )
        alone = self.batch_size is not None and self.samples % self.batch_size == 1 != self.batch_size
        if self.depends_on_batches and alone and any(isinstance(one, _BatchNorm) for one in self.model.modules()):
            raise ProblemError(
                f"The last of the micro-batches of {self.batch_size} has 1 of the {self.samples} samples: BatchNorm "
                "has no statistics there. Expected 2 or more. Give another `--batch-size`."
            )

    def __repr__(self) -> str:
        name = self.origin.identity.get("model", type(self.model).__name__)
        return (
            f"Problem({name}, {self.size:,} parameters, {self.samples:,} samples of {self.data.name}, "
            f"{self.origin.split} split, {self.loss_function.name}, {self.batchnorm} mode, {self.dtype}, {self.device})"
        )

    @cached_property
    def depends_on_batches(self) -> bool:
        """Return whether L depends on the micro-batches: BatchNorm in batch mode or without running statistics."""
        layers = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        return self.batchnorm == "batch" or any(layer.running_mean is None for layer in layers)

    @cached_property
    def parameters(self) -> Parameters:
        """Return the layout of theta."""
        return Parameters.of(self.model, self.chosen)

    @cached_property
    def theta(self) -> Tensor:
        """Return the checkpoint's own theta (n,)."""
        theta = self.parameters.flatten(dict(self.model.named_parameters()))
        # half precision as float32: the same numbers, with room for differences between them
        return theta.float() if theta.element_size() < 4 else theta

    @cached_property
    def derivatives(self) -> Derivatives:
        """Return how products are taken, exactly or by differences: found on a micro-batch when first asked."""
        return self.examined or ranks().from_first(examine(self))

    @cached_property
    def bound(self) -> Loss:
        """Return the loss as its mean over these data needs it: weighted by tokens, classes, ... of all of them."""
        return self.loss_function.bound(self.data.targets)

    @property
    def size(self) -> int:
        """Return n."""
        return self.parameters.size

    @property
    def samples(self) -> int:
        """Return N."""
        return len(self.data)

    @property
    def device(self) -> torch.device:
        """Return where the model is."""
        return self.theta.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the floating type of theta and of all products."""
        return self.theta.dtype

    @cached_property
    def chunk_of(self) -> Tensor:
        """Return the chunk of every sample (N,): dealt by a seeded permutation, whatever the micro-batches."""
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(CHUNK_SEED))
        return order.argsort() % CHUNKS

    def chunk_means(self, values: Array) -> Array | None:
        """Average per-sample values (N,) within each chunk (CHUNKS,); None with under two samples a chunk."""
        if len(values) < 2 * CHUNKS:
            return None
        chunks = self.chunk_of.numpy()
        means: Array = np.bincount(chunks, weights=values, minlength=CHUNKS) / np.bincount(chunks, minlength=CHUNKS)
        return means

    # --- the loop -----------------------------------------------------------------------------------------------

    @cached_property
    def graph_bytes_per_sample(self) -> int:
        """Return what one more sample adds to a kept gradient graph, counted, not timed."""
        few, more = (min(samples, self.samples) for samples in (2, 4))
        small, large = self._graph_bytes(few), self._graph_bytes(more)
        return max(1, math.ceil((large - small) / (more - few)) if more > few else large)

    @property
    def micro_bytes(self) -> int:
        """Return what the graph of one micro-batch may take."""
        return min(self.memory_budget // 8, _MICRO_BYTES_CPU if self.device.type == "cpu" else self.memory_budget)

    @cached_property
    def micro_batch(self) -> int:
        """Return the samples per micro-batch: as given, or from the sizes and the memory budget alone."""
        if self.batch_size is not None:
            return min(self.batch_size, self.samples)
        most = min(self.samples, fitting(self.micro_bytes, self.graph_bytes_per_sample, self.device))
        return ranks().even(self.samples, most)

    def mean(self, per_batch: Callable[[Batch], Tensor], passes: int = 1, size: int | None = None) -> Tensor:
        """Return 1/N times the total, in float64, of what `per_batch` sums over its micro-batch, `passes` of them.

        Sums, not means: a short last micro-batch then weighs what it should by construction.  `size`: of micro-batches.
        """

        def own() -> Tensor | None:
            total: Tensor | None = None
            step = size or self.micro_batch
            starts = range(0, self.samples, step)[ranks().share()]
            with self.measuring():
                for start in starts:
                    give_back()
                    part = per_batch(self._batch(start, min(start + step, self.samples)))
                    if part.device.type == "mps":  # no float64 there
                        part = part.cpu()
                    total = part.double() if total is None else total.add_(part)
                    self.monitor.tick(passes / len(starts))
            return total

        return ranks().summed(own, self.device) / self.samples

    def mean_and_rows(
        self, per_batch: Callable[[Batch], tuple[Tensor, Tensor]], size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean, and what `per_batch` returns of every sample beside the sum: rows (N, ...) on the CPU."""
        rows: dict[int, Tensor] = {}

        def keeping(batch: Batch) -> Tensor:
            total, rows[batch.start] = per_batch(batch)
            return total

        return self.mean(keeping, size=size), ranks().in_order(rows, self.samples)

    # --- L and its derivatives ----------------------------------------------------------------------------------

    def losses(self, theta: Tensor | None = None) -> Array:
        """Return the loss of every sample (N,), in the order of the data."""
        return self.outcomes(theta)[0]

    def outcomes(self, theta: Tensor | None = None) -> tuple[Array, Array | None]:
        """Return losses (N,), and 1.0 or 0.0 where predictions are right or wrong (None: neither), from one pass."""
        judge, parameters = self.bound.correct, self._split(theta)

        def collect(batch: Batch) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                micro = self._micro(batch)
                outputs = micro.outputs(parameters)
                columns = [micro.losses(outputs), *([judge(outputs, batch.targets)] if judge is not None else [])]
            rows = torch.stack([column.cpu().double() for column in columns], 1)
            return rows[:, 0].sum(), rows

        rows = self.mean_and_rows(collect)[1].numpy()
        return rows[:, 0].copy(), rows[:, 1].copy() if judge is not None else None

    def loss(self, theta: Tensor | None = None) -> float:
        """Return L(theta)."""
        return float(self.losses(theta).mean())

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """Return L(theta) and its gradient (n,), from one pass."""
        parameters = self._split(theta)

        def add(batch: Batch) -> tuple[Tensor, Tensor]:
            slopes, losses = products.gradient(self._micro(batch), parameters)
            return self.parameters.flatten(slopes), losses

        gradient, losses = self.mean_and_rows(add)
        return float(losses.mean()), self._vector(gradient)

    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """Return the gradient of L (n,)."""
        return self.loss_and_gradient(theta)[1]

    def hvp(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return H v (n,), recomputing everything; for several products at one theta, use `hessian()`."""
        parameters, direction, build = self._split(theta), self.parameters.split(v), self.derivatives.ways.hessian
        return self._vector(self.mean(lambda b: self.parameters.flatten(build(self._micro(b), parameters)(direction))))

    def hessian(self, precision: differentiable.Precision = "full") -> Operator:
        """Return the Hessian of L at the checkpoint's theta; gradient graphs are kept as far as the budget goes."""
        return self.graphs().operator(precision)

    @property
    def living_graphs(self) -> Kept[products.Hessian] | None:
        """Return the Hessian's graphs that something alive keeps; a product is the same to the bit without them."""
        return self._graphs[0]() if self._graphs else None

    def graphs(self) -> Kept[products.Hessian]:
        """Return the Hessian's graphs, living ones if there are."""
        found = self.living_graphs or Kept(self, self.derivatives.ways.hessian)
        self._graphs[:] = [weakref.ref(found)]
        return found

    def hessian_blocks(self) -> Blocks:
        """Return the Hessian together with its diagonal blocks by layer, over the same kept graphs."""
        return Blocks(self)

    def gauss_newton(self) -> Operator:
        """Return J' (loss Hessian) J at the checkpoint's theta: positive semidefinite for convex losses."""
        return Kept(self, self.derivatives.ways.gauss_newton).operator()

    def residual(self) -> Operator:
        """Return the Hessian less the Gauss-Newton matrix: 0 where the outputs are linear in theta."""
        return Kept(self, self.derivatives.ways.residual).operator()

    def gauss_newton_diagonal(self) -> Tensor:
        """Return the diagonal of the Gauss-Newton matrix (n,), in float64 and without noise."""
        return gauss_newton.diagonal(self).mean

    # --- sample by sample: see Samples --------------------------------------------------------------------------

    def curvature_along(self, v: Tensor) -> tuple[Tensor, Array]:
        """Return H v (n,) and v' H_i v of every sample (N,), whose mean is v' H v."""
        return self._samples.curvature_along(v)

    def slopes_along(self, v: Tensor) -> Array:
        """Return g_i'v of every sample (N,), whose mean is G'v."""
        return self._samples.slopes_along(v)

    def weighted_gradient(self, weights: Array | Tensor) -> Tensor:
        """Return 1/N sum_i w_i g_i (n,) for weights (N,)."""
        return self._samples.weighted_gradient(torch.as_tensor(weights))

    def gradient_squares(self, center: Tensor | None = None) -> tuple[Array, Tensor]:
        """Return |g_i - center|^2 (0 if none) of every sample and layer (N, layers), and the mean gradient (n,)."""
        return self._samples.gradient_squares(center)

    def curvature_squares(self, v: Tensor, center: Tensor | None = None) -> tuple[Array, Tensor]:
        """Return |d_i|^2 of every sample (N,), d_i = H_i v - center (0 if none), and 1/N sum_i H_i d_i (n,)."""
        return self._samples.curvature_squares(v, center)

    def second_moment(self) -> Operator:
        """Return v -> 1/N sum_i H_i (H_i v), the mean of the samples' squared Hessians."""
        return Operator(self.size, lambda v: self.curvature_squares(v)[1], self.dtype, self.device)

    # --- inside -------------------------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> Samples:
        return Samples(weakref.proxy(self))  # in a cycle, theta and the data would wait for the collector

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """Everything of the model that is not theta: buffers and frozen parameters, as tensors of our own."""
        free = set(self.parameters.names)
        fixed = {name: p.detach().clone() for name, p in self.model.named_parameters() if name not in free}
        fixed |= {name: b.detach().clone() for name, b in self.model.named_buffers()}
        fixed = {name: in_dtype(tensor, self.dtype) for name, tensor in fixed.items()}
        return re_estimated(self, fixed) if self.batchnorm == "re-estimated" else fixed

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the model in the mode of this problem, and give it back as it was; gradients are on meanwhile."""
        with with_gradients(), differentiable.plain(self.model, self.repaired):
            modes = [(module, module.training) for module in self.model.modules()]
            try:
                for module, _ in modes:
                    module.training = self.batchnorm == "batch" and isinstance(module, _BatchNorm)
                yield
            finally:
                for module, training in modes:
                    module.training = training

    @cached_property
    def _tensors(self) -> tuple[Inputs, Tensor]:
        """The data as they are used: floating types cast, and on the device when a quarter of the budget holds them."""
        inputs, targets = self.data.inputs, self.data.targets
        size = sum(tensor.nbytes for tensor in tensors(inputs))
        device = self.device if size <= self.memory_budget // 4 else torch.device("cpu")
        return placed(inputs, device, self.dtype), tensors(placed(targets, device, self.dtype))[0]

    def _batch(self, start: int, stop: int) -> Batch:
        return self._some(slice(start, stop), start, stop)

    def picked(self, index: Tensor) -> Batch:
        """Return some of the samples (B,) as one micro-batch."""
        return self._some(index, 0, len(index))

    def _some(self, index: slice | Tensor, start: int, stop: int) -> Batch:
        interruption_point()
        (inputs, targets), to = self._tensors, self.device
        return Batch(mapped(taken(inputs, index), lambda tensor: tensor.to(to)), targets[index].to(to), start, stop)

    def _micro(self, batch: Batch) -> products.Micro:
        """Return a micro-batch as a function of the parameters, evaluated in whatever dtype they come in."""

        def outputs(leaves: products.Leaves) -> Tensor:
            dtype = leaves[0].dtype
            constants = {name: in_dtype(tensor, dtype) for name, tensor in self.constants.items()}
            if self.batchnorm == "batch":  # running statistics are written to: never twice into the same tensors
                constants = {name: tensor.clone() for name, tensor in constants.items()}
            named = dict(zip(self.parameters.names, leaves, strict=True))
            return scores(called(self.model, placed(batch.inputs, self.device, dtype), {**named, **constants}))

        def losses(outputs: Tensor) -> Tensor:
            return self.bound.per_sample(outputs, in_dtype(batch.targets, outputs.dtype))

        return products.Micro(outputs, losses)

    def _graph_bytes(self, samples: int) -> int:
        with self.measuring():
            micro = self._micro(self._batch(0, samples))
            return products.graph_bytes(lambda: products.hessian(micro, self._split(None)))

    def _split(self, theta: Tensor | None) -> list[Tensor]:
        return self.parameters.split(self.theta if theta is None else theta)

    def _vector(self, total: Tensor) -> Tensor:
        return total.to(self.device, self.dtype) if total.device != self.device else total.to(self.dtype)
