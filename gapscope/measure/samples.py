"""Derivatives of every sample by itself, which no mean over a micro-batch gives back.

The samples of a piece are differentiated together by `torch.func.vmap`; where it refuses a model (recurrent networks,
in-place operations, control flow that looks at data), one after the other, with the same numbers.  Asked once, on two
samples.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure import products
from gapscope.measure.batches import Batch, Inputs, pieces, single
from gapscope.measure.operators import Operator
from gapscope.measure.parameters import Parameters
from gapscope.measure.probe import Tried
from gapscope.results import Array

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

Parts = list[Tensor]  # one tensor (B, *shape) for each parameter: a vector (n,) for each sample

# vectors (n,) that one sample needs at a time: its gradient, and a centred copy of the largest part; for the second
# derivative H_i v and H_i (H_i v), too, and what lies between them
_GRADIENT_VECTORS, _CURVATURE_VECTORS = 3, 6


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a problem, one by one: what `Problem`'s methods of the same names return."""

    problem: "Problem"

    def curvature_along(self, v: Tensor) -> tuple[Tensor, Array]:
        """Return H v (n,) and v' H_i v of every sample (N,), whose mean is v' H v.

        Cost: 2.5 (multilayer perceptron) to 3.7 (ResNet-20) gradients, and one more where the Hessian's graphs are not
        kept; it is the product that verifies an eigenpair.
        """
        direction, ways, living = self._layout.split(v), self._ways, self.problem.living_graphs

        def collect(batch: Batch) -> tuple[Tensor, Tensor]:
            hessian = living.of(batch) if living else ways.hessian(self.problem._micro(batch), self._leaves)
            product, along = hessian.curvature_along(direction)
            return self._layout.flatten(product), along

        return self._mean_and_rows(collect)

    def slopes_along(self, v: Tensor) -> Array:
        """Return g_i'v of every sample (N,), whose mean is G'v; costs 1.7 to 3 gradients."""
        direction, ways = self._layout.split(v), self._ways

        def collect(batch: Batch) -> tuple[Tensor, Tensor]:
            slopes = ways.slopes_along(self.problem._micro(batch), self._leaves, direction)
            return slopes.sum(), slopes

        return self._mean_and_rows(collect)[1]

    def weighted_gradient(self, weights: Tensor) -> Tensor:
        """Return 1/N sum_i w_i g_i (n,) for weights (N,); costs one gradient."""

        def add(batch: Batch) -> Tensor:
            part = products.weighted_gradient(
                self.problem._micro(batch), self._leaves, weights[batch.start : batch.stop]
            )
            return self._layout.flatten(part)

        return self.problem._vector(self.problem.mean(add))

    def gradient_squares(self, center: Tensor | None) -> tuple[Array, Tensor]:
        """Return |g_i - center|^2 of every sample and layer (N, layers), in the order of `blocks()`, and G (n,).

        Cost: together 2 (ResNet-20) to 30 (multilayer perceptrons: N x n numbers are written) gradients; alone, N
        passes of one sample.  Raises ProblemError where a sample has no gradient of its own.
        """
        self._require_independence()
        middle = None if center is None else self._layout.split(center)
        piece = self._piece(_GRADIENT_VECTORS)

        def collect(batch: Batch) -> tuple[Tensor, Tensor]:
            total, rows = _Sum(), []
            for x, y in pieces(batch.inputs, batch.targets, piece):
                parts = self._gradients_together(x, y) if self._gradients_agree else self._gradients_alone(x, y)
                total.add(parts)
                rows.append(self._squares(parts, middle))
            return total.flat(), torch.cat(rows)

        mean, rows = self._mean_and_rows(collect)
        return rows, mean

    def curvature_squares(self, v: Tensor, center: Tensor | None) -> tuple[Array, Tensor]:
        """Return |d_i|^2 of every sample (N,), d_i = H_i v - center, and 1/N sum_i H_i d_i (n,).

        With the center H v, the second is (mean of H_i^2 - H^2) v; with none, (mean of H_i^2) v.
        Cost: together 12 (ResNet-20) to 110 (multilayer perceptrons) gradients.
        Raises ProblemError where a sample has no Hessian of its own.
        """
        self._require_independence()
        direction = self._layout.split(v.to(self.problem.dtype))
        middle = None if center is None else self._layout.split(center)
        piece = self._piece(_CURVATURE_VECTORS)
        exact = self.problem.derivatives.method == "exact"  # asked here, because all ranks find it out together

        def collect(batch: Batch) -> tuple[Tensor, Tensor]:
            total, rows = _Sum(), []
            curvatures = self._curvatures_together if exact and self._curvatures_agree else self._curvatures_alone
            for x, y in pieces(batch.inputs, batch.targets, piece):
                apart, twice = curvatures(x, y, direction, middle)
                total.add(twice)
                rows.append(self._squares(apart, None).sum(1))
            return total.flat(), torch.cat(rows)

        mean, rows = self._mean_and_rows(collect)
        return rows, mean

    # --- the two ways ---------------------------------------------------------------------------------------------

    def _loss(self, leaves: products.Leaves, x: Inputs, y: Tensor) -> Tensor:
        micro = self._micro(single(x), y.unsqueeze(0))
        return micro.losses(micro.outputs(leaves)).sum()

    def _gradients_together(self, inputs: Inputs, targets: Tensor) -> Parts:
        with _vectorized():
            return list(vmap(grad(self._loss), in_dims=(None, 0, 0))(self._leaves, inputs, targets))

    def _curvatures_together(
        self, inputs: Inputs, targets: Tensor, v: Parts, center: Parts | None
    ) -> tuple[Parts, Parts]:
        def one(x: Inputs, y: Tensor) -> tuple[Parts, Parts]:
            pull = vjp(lambda leaves: grad(self._loss)(leaves, x, y), self._leaves)[1]
            apart = _less(pull(v)[0], center)  # a Hessian is its own transpose
            return apart, pull(apart)[0]

        with _vectorized():
            apart, twice = vmap(one)(inputs, targets)
        return list(apart), list(twice)

    def _gradients_alone(self, inputs: Inputs, targets: Tensor) -> Parts:
        alone = (self._micro(x, y) for x, y in pieces(inputs, targets, 1))
        return _stack([products.gradient(micro, self._leaves)[0] for micro in alone])

    def _curvatures_alone(self, inputs: Inputs, targets: Tensor, v: Parts, center: Parts | None) -> tuple[Parts, Parts]:
        apart, twice = [], []
        for x, y in pieces(inputs, targets, 1):
            product = self._ways.hessian(self._micro(x, y), self._leaves)
            apart.append(_less(product(v), center))
            twice.append(product(apart[-1]))
        return _stack(apart), _stack(twice)

    @cached_property
    def _gradients_agree(self) -> bool:
        """Return whether vmap takes the model's gradient."""
        return _accepted(lambda: self._gradients_together(*self._trial))

    @cached_property
    def _curvatures_agree(self) -> bool:
        """Return whether vmap takes the model's second derivative, too, and it is right."""
        return _accepted(lambda: self._curvatures_together(*self._trial, self._leaves, None))

    def _require_independence(self) -> None:
        """Raise ProblemError where a sample's output is another one in company."""
        if self.problem.depends_on_batches:
            raise ProblemError(
                "BatchNorm in batch mode (or without running statistics) mixes the samples of a micro-batch: there is "
                "no gradient of a single one. Expected a loss of every sample by itself. Take `--batchnorm eval`."
            )
        if self._company:
            raise ProblemError(self._company)

    @cached_property
    def _company(self) -> str:
        """Return what is wrong with a sample by itself, or an empty string: asked of two samples' outputs."""
        inputs, targets = self._trial
        whole, singles = self._in_company(inputs, targets, self._leaves)
        demand = "Expected a model that maps every sample by itself: the gradient of one sample has no meaning here."
        shape = tuple(singles[0].shape)
        if shape != (1, *whole.shape[1:]):
            return (
                f"The model returns {shape} for a batch of 1 and {tuple(whole.shape)} for one of {len(targets)}. "
                f"{demand} Keep the batch axis in `forward` (`squeeze()` drops it)."
            )
        # other kernels serve other batch sizes: ResNet-20 in float32 came out 3e-7 apart, a mean over the batch 0.7
        difference, apart = _apart(whole, singles)
        if apart and whole.dtype != torch.float64 and self.problem.device.type != "mps":
            with Tried():  # what rounding alone does, to data far from 0, float64 does not
                apart = _apart(*self._in_company(inputs, targets, [leaf.double() for leaf in self._leaves]))[1]
        if apart:
            return (
                f"The output for a sample changes by {difference:.2g} with the company of another one. {demand} "
                "Look for statistics over the batch in `forward`."
            )
        return ""

    def _in_company(self, inputs: Inputs, targets: Tensor, leaves: Parts) -> tuple[Tensor, list[Tensor]]:
        """Return the outputs of samples together, and of each alone."""
        with self.problem.measuring(), torch.no_grad():
            whole = self._micro(inputs, targets).outputs(leaves)
            return whole, [self._micro(x, y).outputs(leaves) for x, y in pieces(inputs, targets, 1)]

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _layout(self) -> Parameters:
        return self.problem.parameters

    @property
    def _ways(self) -> products.Ways:
        """Return how derivatives are taken; to be asked before a pass, because all ranks find it out together."""
        return self.problem.derivatives.ways

    @cached_property
    def _leaves(self) -> Parts:
        return self._layout.split(self.problem.theta)

    @cached_property
    def _trial(self) -> tuple[Inputs, Tensor]:
        """Return up to two samples, to try on."""
        few = self.problem._batch(0, min(2, self.problem.samples))
        return few.inputs, few.targets

    def _micro(self, inputs: Inputs, targets: Tensor) -> products.Micro:
        return self.problem._micro(Batch(inputs, targets, 0, len(targets)))

    def _mean_and_rows(self, per_batch: Callable[[Batch], tuple[Tensor, Tensor]]) -> tuple[Tensor, Array]:
        mean, rows = self.problem.mean_and_rows(per_batch)
        return self.problem._vector(mean), np.asarray(rows.detach().numpy())

    def _piece(self, vectors: int) -> int:
        """Return how many samples are differentiated together, each by itself, with so many vectors (n,) each."""
        single = vectors * self.problem.size * self.problem.theta.element_size()
        return max(1, self.problem.micro_bytes // (self.problem.graph_bytes_per_sample + single))

    @cached_property
    def _layer_of(self) -> list[int]:
        """Return the index of the layer of each parameter."""
        layers = list(self._layout.blocks())
        return [layers.index(name.rpartition(".")[0] or name) for name in self._layout.names]

    def _squares(self, parts: Parts, center: Parts | None) -> Tensor:
        """Return the squared norms by layer (B, layers)."""
        squares = torch.zeros(len(parts[0]), len(self._layout.blocks()), dtype=torch.float64)
        for layer, part in zip(self._layer_of, _less(parts, center), strict=True):
            squares[:, layer] += _norms(matrix(part)).square()
        return squares


def noise_curvature(problem: "Problem", hessian: Operator) -> Operator:
    """Return K = A'HA / N on the samples (N,), the columns of A being g_i - G: its trace is tr(Sigma H).

    With signs e on the samples, v = A e / sqrt(N) has the covariance Sigma of the g_i, and e'Ke = v'Hv.
    Vectors are brought to entries of 1 on the way: in float32, gradients of 1e-23 times others like them would vanish.
    Cost: 2.5 to 4 gradients and a product of the Hessian.
    """

    def matvec(e: Tensor) -> Tensor:
        v, first = _of_size_one(problem.weighted_gradient(e - e.mean()))
        image, second = _of_size_one(hessian.matvec(v))
        slopes = torch.from_numpy(problem.slopes_along(image))
        return (slopes - slopes.mean()) * float(first) * float(second)

    return Operator(problem.samples, matvec, torch.float64)


def _of_size_one(v: Tensor) -> tuple[Tensor, Tensor]:
    """Return v (n,) over its largest entry, and that entry's size; a vector of zeros as it is."""
    size = v.abs().amax()
    size = torch.where(size > 0, size, 1.0)
    return v / size, size


class _Sum:
    """Sums over samples: within a piece in their own dtype, like any gradient of a batch; of pieces in float64."""

    def __init__(self) -> None:
        self.parts: Parts = []

    def add(self, parts: Parts) -> None:
        # as a product, 30 times faster than `sum(0, dtype=torch.float64)`
        sums = [part.new_ones(len(part)) @ matrix(part) for part in parts]
        if parts[0].device.type != "mps":  # no float64 there
            sums = [part.double() for part in sums]
        self.parts = [a.add_(b) for a, b in zip(self.parts, sums, strict=True)] if self.parts else sums

    def flat(self) -> Tensor:
        return torch.cat(self.parts)


def _norms(rows: Tensor) -> Tensor:
    """Return the norms of rows (B,), in float64: summed in their own dtype, 30 times faster, where squares fit it.

    In parts of 65,536 entries, which float32 sums to 5e-7; two million at once came out 3e-5 off.
    """
    parts = [torch.linalg.vector_norm(part, dim=1).cpu().double() for part in torch.split(rows, 65_536, dim=1)]
    norms = torch.stack(parts).square().sum(0).sqrt()
    lost = (norms < 1e-15) | ~torch.isfinite(norms)  # float32 squares of entries under 1e-19 lose digits, then all
    if rows.dtype != torch.float64 and bool(lost.any()):
        few = rows[lost.to(rows.device)].cpu().double()
        norms[lost] = torch.linalg.vector_norm(few, dim=1)
    return norms


def _apart(whole: Tensor, singles: Sequence[Tensor]) -> tuple[float, bool]:
    """Return the largest difference of outputs in company and alone, and whether rounding does not explain it."""
    difference = float((torch.cat(list(singles)) - whole).abs().max())
    return difference, difference > torch.finfo(whole.dtype).eps ** 0.5 * float(whole.abs().max())


def matrix(part: Tensor) -> Tensor:
    """Return one parameter's numbers for every sample (B, size); one of 0 dimensions has one."""
    return part.reshape(len(part), -1)


def _less(parts: Parts, center: Parts | None) -> Parts:
    return parts if center is None else [part - middle for part, middle in zip(parts, center, strict=True)]


def _stack(rows: list[Parts]) -> Parts:
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _accepted(attempt: Callable[[], object]) -> bool:
    """Return whether vmap takes it; what it raises is of many kinds, and what is truly wrong is raised again alone."""
    try:
        attempt()
    except Exception:
        return False
    return True


@contextlib.contextmanager
def _vectorized() -> Iterator[None]:
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        warnings.filterwarnings("ignore", message="There is a performance drop")  # vmap loops by itself there: right
        yield
