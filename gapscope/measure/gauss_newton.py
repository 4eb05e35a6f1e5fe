"""The diagonal of the Gauss-Newton matrix, without any noise, and where it is that of the Hessian.

With (lambda, u) the eigenpairs of the Hessian of a sample's loss by its outputs f, and J the Jacobian of f by theta,

    H = J' (loss Hessian) J + sum_c (dloss / df_c) (Hessian of f_c),
    diag(first term) = mean over samples of sum_c lambda_c (J'u_c)^2.

The second term has no diagonal where no output bends along a single parameter: wherever parameters are only multiplied
by what they do not touch, and everything after them is piecewise linear (linear and convolutional layers, BatchNorm
with running statistics, ReLU, pooling).  On three such networks diag(H) came out the same to 1e-16.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import one_hot

from gapscope.errors import ProblemError
from gapscope.measure import products
from gapscope.measure.batches import Batch, Inputs, pieces, single
from gapscope.measure.distributed import ranks
from gapscope.measure.probe import spread
from gapscope.measure.samples import Parts, Samples, _accepted, _stack, _vectorized, matrix
from gapscope.results import CHUNKS

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

OUTPUTS = 128  # of one sample: each costs a backward pass over the data, and the loss Hessian has their square
PROBED = 8  # samples on which the outputs are asked whether they bend
_VECTORS = 3  # (n,) that a sample needs at a time: J'u, its square and their sum
_UNITS = 8  # of rounding, of outputs
_ZERO = 1e-12  # an eigenvalue of the loss Hessian, relative to the largest: float64 leaves 1e-17 of the exact zero


@dataclass(frozen=True)
class Diagonal:
    """The diagonal, whole and by chunk of samples."""

    mean: Tensor  # (n,)
    chunks: Tensor | None  # (CHUNKS, n) sums over each chunk's samples, where the memory holds them
    unsure: float  # relative, of entries: what rounding of the outputs does to a sample's loss Hessian, at most


def diagonal(problem: "Problem") -> Diagonal:
    """Return 1/N sum_i sum_c lambda_ic (J_i'u_ic)^2, over the non-zero eigenvalues of every sample's loss Hessian.

    Cost: a pass of per-sample gradients for every output (cross-entropy: but one), 1.7 (ResNet-20) to 30 (multilayer
    perceptrons: N x n numbers are written) gradients each.
    Raises ProblemError where a sample has no outputs of its own, or more than 128.
    """
    require_outputs(problem)
    samples = problem._samples
    squares = _together if _accepted(lambda: _trial(samples)) else _alone
    # four matrices of the outputs' size a sample, in float64
    piece = max(1, min(samples._piece(_VECTORS), problem.micro_bytes // (32 * outputs_of_a_sample(problem) ** 2)))
    wide = torch.float32 if problem.device.type == "mps" else torch.float64  # no float64 there
    sums = None
    if wide.itemsize * CHUNKS * problem.size <= problem.memory_budget // 8:
        sums = torch.zeros(CHUNKS, problem.size, dtype=wide, device=problem.device)
    unsure = 0.0

    def collect(batch: Batch) -> Tensor:
        nonlocal unsure
        chunks = problem.chunk_of[batch.start : batch.stop].to(problem.device)
        total, start = torch.zeros(problem.size, dtype=wide, device=problem.device), 0
        for x, y in pieces(batch.inputs, batch.targets, piece):
            scale, weights, cotangents, moved = _loss_curvature(samples, x, y)
            unsure = max(unsure, moved)
            rows = squares(samples, x, y, weights, cotangents)
            present, which = chunks[start : start + len(y)].unique(return_inverse=True)  # type: ignore[no-untyped-call]
            if sums is None:
                which = torch.zeros_like(which)
            mixing = one_hot(which).T.to(problem.dtype)  # as a product, 30 times faster than sums in float64
            added = scale * torch.cat([mixing @ matrix(row) for row in rows], 1).to(wide)
            total += added.sum(0)
            if sums is not None:
                sums[present] += added
            start += len(y)
        return total

    mean = problem.mean(collect)
    return Diagonal(mean, None if sums is None else ranks().total(sums), max(ranks().gathered(unsure)))


def bent(problem: "Problem") -> tuple[str, ...]:
    """Return the parameters along which the outputs bend: diag(H) is that of Gauss-Newton for all others.

    Asked of each parameter by itself: the second derivative along one random direction d of all its entries, of the
    outputs of a few samples weighted at random.  It is 0 for linear outputs, and otherwise with probability 0.  On
    piecewise linear networks, ResNet-20 included, it came out 0.0 in either precision, on a smooth network 1e-3 of the
    first derivative or more.  What bends only on samples that are not asked is not seen.

    Cost: a few gradients and a Hessian product by blocks, over 8 samples spread over the data.
    """
    picked = spread(problem.samples, min(PROBED, problem.samples))
    micro, leaves = problem._micro(problem.picked(picked)), problem.parameters.split(problem.theta)
    rng = torch.Generator().manual_seed(1)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=rng).to(like)

    steps = [leaf.new_zeros(()).requires_grad_() for leaf in leaves]
    with problem.measuring(), sdpa_kernel(SDPBackend.MATH):
        # as long as the parameter itself, so that both derivatives are of one size
        moved = [
            leaf + step * normal(leaf) * (float(leaf.square().mean().sqrt()) or 1.0)
            for leaf, step in zip(leaves, steps, strict=True)
        ]
        outputs = micro.outputs(moved)
        slopes = products._grad((normal(outputs) * outputs).sum(), steps, create_graph=True)
        bends = [
            float(products._grad(slope, [step], retain_graph=True)[0].detach())
            for slope, step in zip(slopes, steps, strict=True)
        ]
    eps = torch.finfo(problem.dtype).eps
    return tuple(
        name
        for name, slope, bend in zip(problem.parameters.names, slopes, bends, strict=True)
        if not abs(bend) <= 10 * eps * abs(float(slope.detach()))
    )


def outputs_of_a_sample(problem: "Problem") -> int:
    """Return how many numbers the model returns for one sample."""
    batch = problem._batch(0, 1)
    with problem.measuring(), torch.no_grad():
        return problem._micro(batch).outputs(problem.parameters.split(problem.theta)).numel()


def require_outputs(problem: "Problem") -> None:
    """Raise ProblemError where a sample has no outputs of its own, or too many, or no second derivative is at hand."""
    if problem.derivatives.method == "differences":
        raise ProblemError(
            "Second derivatives are taken by differences here. Expected exact ones for the exact Gauss-Newton "
            "diagonal. Estimate the diagonal instead: `gapscope curvature --estimator hutchinson`."
        )
    problem._samples._require_independence()
    count = outputs_of_a_sample(problem)
    if count > OUTPUTS:
        raise ProblemError(
            f"A sample has {count:,} outputs. Expected at most {OUTPUTS}: the exact Gauss-Newton diagonal takes a pass "
            "over the data for each. Estimate the diagonal instead: `gapscope curvature --estimator hutchinson`."
        )


def _loss_curvature(samples: Samples, x: Inputs, y: Tensor) -> tuple[float, Tensor, Tensor, float]:
    """Return eigenvalues over the largest of all, that scale, eigenvectors of every loss Hessian, and their rounding.

    Shapes: eigenvalues (B, K), eigenvectors (B, K, outputs...), K the most non-zero ones of a sample; zeros fill up.
    """
    with torch.no_grad():
        outputs = samples._micro(x, y).outputs(samples._leaves)
    dense = _loss_hessian(samples, outputs, y)
    if not bool(dense.isfinite().all()):
        return math.nan, outputs.new_ones(len(y), 1), torch.ones_like(outputs).unsqueeze(1), 0.0
    moved = _loss_hessian(samples, _rounded(outputs), y) - dense
    unsure = float((moved.norm(dim=(1, 2)) / dense.norm(dim=(1, 2)).clamp_min(1e-300)).nan_to_num(0.0, 0.0).max())
    values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
    order = values.abs().argsort(1, descending=True)
    values = values.gather(1, order)
    vectors = vectors.mT.gather(1, order[:, :, None].expand_as(vectors))
    keep = values.abs() > _ZERO * values.abs().amax(1, keepdim=True)
    most = int(keep.sum(1).max())
    scale = float(values.abs().max()) or 1.0  # at a loss of 1e-40, float32 would know no eigenvalue
    values = torch.where(keep, values / scale, 0.0)[:, :most]
    shaped = vectors[:, :most].reshape(len(y), most, *outputs.shape[1:])
    return scale, values.to(outputs), shaped.to(outputs), unsure


def _rounded(outputs: Tensor) -> Tensor:
    """Return outputs off by 8 units of rounding each (6 were seen): exp(-s) is off by |s| times as many."""
    signs = 2.0 * torch.randint(0, 2, outputs.shape, generator=torch.Generator().manual_seed(2)) - 1
    return outputs * (1 + _UNITS * torch.finfo(outputs.dtype).eps * signs.to(outputs))


def _loss_hessian(samples: Samples, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return every sample's (count, count): in float64, where 1 - p is known to more digits, if the loss takes it."""

    def dense(point: Tensor, targets: Tensor) -> Tensor:
        leaf = point.detach().requires_grad_()
        loss = samples.problem.bound.per_sample(leaf, targets).sum()
        slope = matrix(products._grad(loss, [leaf], create_graph=True)[0])
        rows = [
            matrix(products._grad(column.sum(), [leaf], retain_graph=True)[0]).detach() for column in slope.unbind(1)
        ]
        return torch.stack(rows, 1)

    try:
        found = dense(outputs.double(), targets.double() if targets.is_floating_point() else targets)
    except (RuntimeError, TypeError):  # float32 constants of its own, or a device without float64
        found = dense(outputs, targets)
    return found.cpu().double()


def _together(samples: Samples, x: Inputs, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
    mixed = bool((weights < 0).any())  # N x n numbers are written for every operation: two less for convex losses

    def one(x: Inputs, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
        pull = vjp(lambda leaves: samples._micro(single(x), y.unsqueeze(0)).outputs(leaves)[0], samples._leaves)[1]
        total = [torch.zeros_like(leaf) for leaf in samples._leaves]
        for weight, cotangent in zip(weights.unbind(), cotangents.unbind(), strict=True):
            parts = pull(weight.abs().sqrt() * cotangent)[0]
            signed = [weight.sign() * part for part in parts] if mixed else parts
            total = [torch.addcmul(sum_, *pair) for sum_, *pair in zip(total, signed, parts, strict=True)]
        return total

    with _vectorized():
        return list(vmap(one)(x, y, weights, cotangents))


def _alone(samples: Samples, x: Inputs, y: Tensor, weights: Tensor, cotangents: Tensor) -> Parts:
    rows = []
    for i, (own, target) in enumerate(pieces(x, y, 1)):
        leaves = products.leaves_of(samples._leaves)
        outputs = samples._micro(own, target).outputs(leaves)
        total = [torch.zeros_like(leaf) for leaf in samples._leaves]
        for weight, cotangent in zip(weights[i], cotangents[i], strict=True):
            parts = products._grad(outputs, leaves, cotangent.unsqueeze(0), retain_graph=True)
            total = [sum_ + weight * part.square() for sum_, part in zip(total, parts, strict=True)]
        rows.append(total)
    return _stack(rows)


def _trial(samples: Samples) -> Parts:
    x, y = samples._trial
    with samples.problem.measuring(), torch.no_grad():
        outputs = samples._micro(x, y).outputs(samples._leaves)
    with samples.problem.measuring():
        return _together(samples, x, y, outputs.new_ones(len(y), 1), torch.ones_like(outputs).unsqueeze(1))
