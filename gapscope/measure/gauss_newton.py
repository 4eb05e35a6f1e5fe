"""The diagonal of the Gauss-Newton matrix, without any noise, and where it is that of the Hessian.

With (lambda, u) the eigenpairs of the Hessian of a sample's loss by its outputs f, and J the Jacobian of f by theta,

    H = J' (loss Hessian) J + sum_c (dloss / df_c) (Hessian of f_c),
    diag(first term) = mean over samples of sum_c lambda_c (J'u_c)^2.

The second term has no diagonal where no output bends along a single parameter: wherever parameters are only multiplied
by what they do not touch, and everything after them is piecewise linear (linear and convolutional layers, BatchNorm
with running statistics, ReLU, pooling).  On three such networks diag(H) came out the same to 1e-16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import vjp, vmap

from gapscope.errors import ProblemError
from gapscope.measure import products
from gapscope.measure.samples import Batch, Parts, Samples, _accepted, _pieces, _stack, _vectorized
from gapscope.results import CHUNKS

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

OUTPUTS = 128  # of one sample: each costs a backward pass over the data, and the loss Hessian has their square
PROBED = 8  # samples on which the outputs are asked whether they bend
_VECTORS = 3  # (n,) that a sample needs at a time: J'u, its square and their sum
_ZERO = 1e-12  # an eigenvalue of the loss Hessian, relative to the largest: float64 leaves 1e-17 of the exact zero


@dataclass(frozen=True)
class Diagonal:
    """The diagonal, whole and by chunk of samples."""

    mean: Tensor  # (n,)
    chunks: Tensor | None  # (CHUNKS, n) sums over each chunk's samples, where the memory holds them
    passes: int  # backward passes over the data


def gauss_newton_diagonal(problem: "Problem") -> Diagonal:
    """Return 1/N sum_i sum_c lambda_ic (J_i'u_ic)^2, over the non-zero eigenvalues of every sample's loss Hessian.

    Shapes: (n,), float64.  Cost: a pass of per-sample gradients for every output but, with cross-entropy, one; each
    is 2 (ResNet-20) to 30 (multilayer perceptrons: N x n numbers are written) gradients.
    Raises ProblemError where a sample has no outputs of its own, or more than 128.
    """
    samples = Samples(problem)
    samples._require_independence()
    together = _accepted(lambda: _trial(samples))
    squares, piece = (_together if together else _alone), samples._piece(_VECTORS)
    room = problem.memory_budget // 8
    sums = None
    if 8 * CHUNKS * problem.size <= room and problem.device.type != "mps":  # no float64 there
        sums = torch.zeros(CHUNKS, problem.size, dtype=torch.float64, device=problem.device)
    passes = 0

    def collect(batch: Batch) -> Tensor:
        nonlocal passes
        values, vectors = loss_curvature(samples, batch.inputs, batch.targets)
        passes = max(passes, values.shape[1])
        scale = float(values.abs().max()) if values.numel() else 0.0
        total = torch.zeros(problem.size, dtype=torch.float64 if sums is not None else problem.dtype)
        total = total.to(problem.device)
        if scale == 0:
            return total
        # relative to the largest: at a loss of 1e-30, float32 would know no eigenvalue
        weights = (values / scale).to(problem.dtype).to(problem.device)
        cotangents = vectors.to(problem.dtype).to(problem.device)
        dealt = problem.chunk_of[batch.start : batch.stop].to(problem.device)
        start = 0
        for x, y in _pieces(batch.inputs, batch.targets, piece):
            part = slice(start, start := start + len(x))
            rows = squares(samples, x, y, weights[part], cotangents[part])
            flat = torch.cat([row.flatten(1) for row in rows], 1)
            if sums is None:
                total += scale * flat.sum(0)
                continue
            present, which = dealt[part].unique(return_inverse=True)
            mixing = torch.nn.functional.one_hot(which, len(present)).T.to(flat)
            added = scale * (mixing @ flat).double()
            sums[present] += added
            total += added.sum(0)
        return total

    mean = problem.mean(collect)
    return Diagonal(mean, sums, passes)


def loss_curvature(samples: Samples, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues (B, K) and eigenvectors (B, K, outputs...) of every sample's loss Hessian, in float64.

    K is the most non-zero eigenvalues of any of these samples, zeros fill up.
    """
    micro = samples._micro(inputs, targets)
    with torch.no_grad():
        outputs = micro.outputs(samples._leaves)
    count = outputs[0].numel()
    if count > OUTPUTS:
        raise ProblemError(
            f"A sample has {count:,} outputs. Expected at most {OUTPUTS}: the exact diagonal takes a backward pass over "
            "the data for each. Estimate it instead: `gapscope curvature --estimator hutchinson`."
        )
    dense = _loss_hessian(samples, outputs, targets)
    if not bool(dense.isfinite().all()):
        values = dense.new_full((len(dense), 1), torch.nan)
        return values, dense.new_zeros(len(dense), 1, *outputs.shape[1:])
    values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
    order = values.abs().argsort(1, descending=True)
    values = values.gather(1, order)
    vectors = vectors.mT.gather(1, order[:, :, None].expand_as(vectors))
    keep = values.abs() > _ZERO * values.abs().amax(1, keepdim=True)
    most = int(keep.sum(1).max())
    values = torch.where(keep, values, 0.0)[:, :most]
    return values, vectors[:, :most].reshape(len(values), most, *outputs.shape[1:])


def _loss_hessian(samples: Samples, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return every sample's (count, count): in float64, where 1 - p is known to more digits, if the loss takes it."""
    wide = targets.double() if targets.is_floating_point() else targets

    def dense(point: Tensor, targets: Tensor) -> Tensor:
        leaf = point.detach().requires_grad_()
        loss = samples.problem.loss_function.per_sample(leaf, targets).sum()
        slope = products._grad(loss, [leaf], create_graph=True)[0].flatten(1)
        rows = [
            products._grad(column.sum(), [leaf], retain_graph=True)[0].flatten(1).detach() for column in slope.unbind(1)
        ]
        return torch.stack(rows, 1)

    try:
        found = dense(outputs.double(), wide)
    except (RuntimeError, TypeError):  # float32 constants of its own, or a device without float64
        found = dense(outputs, targets)
    return found.cpu().double()


def _together(samples: Samples, x: Tensor, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
    def one(x: Tensor, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
        pull: Callable[[Tensor], tuple[Parts]]
        _, pull = vjp(
            lambda leaves: samples._micro(x.unsqueeze(0), y.unsqueeze(0)).outputs(leaves)[0], samples._leaves
        )
        total = [torch.zeros_like(leaf) for leaf in samples._leaves]
        for weight, cotangent in zip(weights.unbind(), cotangents.unbind(), strict=True):
            total = [sum_ + weight * part.square() for sum_, part in zip(total, pull(cotangent)[0], strict=True)]
        return total

    with _vectorized():
        return list(vmap(one)(x, y, weights, cotangents))


def _alone(samples: Samples, x: Tensor, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
    rows = []
    for i in range(len(x)):
        leaves = products.leaves_of(samples._leaves)
        outputs = samples._micro(x[i : i + 1], y[i : i + 1]).outputs(leaves)
        total = [torch.zeros_like(leaf) for leaf in samples._leaves]
        for weight, cotangent in zip(weights[i], cotangents[i], strict=True):
            parts = products._grad(outputs, leaves, cotangent.unsqueeze(0), retain_graph=True)
            total = [sum_ + weight * part.square() for sum_, part in zip(total, parts, strict=True)]
        rows.append(total)
    return _stack(rows)


def _trial(samples: Samples) -> Parts:
    x, y = samples._trial
    with torch.no_grad(), samples.problem.measuring():
        outputs = samples._micro(x, y).outputs(samples._leaves)
    with samples.problem.measuring():
        return _together(samples, x, y, outputs.new_ones(len(x), 1), torch.ones_like(outputs).unsqueeze(1))
