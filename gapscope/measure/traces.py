"""The trace of the Hessian from random gradients of pieces of the data: no product of the Hessian in it.

With L_i the Hessian of sample i's loss by its outputs f_i, J_i the Jacobian of f_i by theta and L_i = S_i S_i',

    tr(J_i' L_i J_i) = E |J_i' S_i w|^2 for random signs w;   over a piece, E |sum_i J_i' S_i w_i|^2 = sum_i of them.

One backward pass takes a piece.  What one piece adds to the variance of the estimate is 2 |K|_F^2 less the diagonal of
K, K the matrix of inner products of the piece's J_i' S_i: without what lies between pieces, which a sign vector z of
theta's length cannot leave out, as z'Hz has all of 2 |H|_F^2.  On MLP 784-512-512-10 (2,000 samples,
trained) the standard error of a pass over 64 pieces was .4 %, that of one z'Hz 3.5 %; on the digits networks, against
the exact trace, 4 % and 30 to 36 %; on ResNet-20 (512 samples) 8 % of a pass, stated.

The rest of the Hessian, sum_c (dloss / df_c) (Hessian of f_c), has no diagonal where no output bends along a single
parameter (see `gauss_newton.bent`): there this is the trace of the Hessian.  Elsewhere that rest can be the larger part
(tanh perceptron on 256 samples: 55 beside 35) and takes products; signs of their own for every micro-batch do not help
there (a standard deviation of 2.3 for 1.8).

Two estimates of each piece give its variance, and the sum over pieces that of the trace.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure import gauss_newton, products
from gapscope.measure.batches import Batch, pieces
from gapscope.measure.problem import Problem
from gapscope.measure.solvers.hutchinson import caution
from gapscope.results import Array

PIECES = 32
SMALLEST = 8  # samples of a piece: below, a pass costs more than it saves
PAIR = 2  # estimates of every piece in a pass
FREEDOM = 9  # degrees of freedom of a variance before it is believed


@dataclass(frozen=True)
class Traces:
    """The trace and those of the blocks, with standard errors that 3 of hold as often as of a normal distribution."""

    trace: float
    error: float
    blocks: Array  # (layers,)
    blocks_error: Array  # (layers,)
    shares: Array  # (2, N) of each sample, twice
    passes: int


def applies(problem: Problem) -> bool:
    """Return whether the trace of the Hessian is that of Gauss-Newton, and samples have outputs of their own."""
    try:
        gauss_newton.require_outputs(problem)
    except ProblemError:
        return False
    return not gauss_newton.bent(problem)


def estimate(
    problem: Problem,
    rng: Generator,
    *,
    tolerance: float,
    least: float,
    most: int,
    watch: Callable[[int, float, float], None] = lambda *_: None,
) -> Traces:
    """Estimate the trace of the Gauss-Newton matrix to `tolerance` of the larger of it and `least`, in `most` passes.

    Cost: by its operations a pass is 1.7 gradients, the first 4 to 5; on MLP 784-512-512-10 the first took 6 to 12.
    Raises ProblemError where a sample has no outputs of its own, too many, or a loss that is not convex in them.
    """
    gauss_newton.require_outputs(problem)
    shares: list[Tensor] = []
    passes: list[Array] = []
    while True:
        passes.append(_one_pass(problem, rng, shares))
        values = np.mean([one[0] for one in passes], axis=0)
        variances, squares, pairs = (np.sum([one[row] for one in passes], axis=0) for row in (1, 2, 3))
        # Satterthwaite: the variances of the pieces are known from two numbers each, and two may be alike by chance
        freedom = np.minimum(np.divide(variances**2, squares, out=pairs.copy(), where=squares > 0), pairs)
        errors = np.sqrt(variances) / len(passes) * [caution(one) for one in freedom]
        trace, error = float(values[-1]), float(errors[-1])
        watch(len(passes), trace, error)
        known = freedom[-1] >= FREEDOM and error <= tolerance * max(abs(trace), least)
        if known or len(passes) >= most or not math.isfinite(trace):
            table = np.asarray(torch.cat(shares, 1).numpy())
            return Traces(trace, error, values[:-1], errors[:-1], table, len(passes))


def _one_pass(problem: Problem, rng: Generator, shares: list[Tensor]) -> Array:
    """Return values by block and in all, their variances, the squares of these, and the pieces (4, blocks + 1)."""
    samples, leaves = problem._samples, problem._split(None)
    size, first = max(SMALLEST, -(-problem.samples // PIECES)), not shares

    def collect(batch: Batch) -> Tensor:
        total = torch.zeros(4, len(problem.parameters.blocks()) + 1, dtype=torch.float64)
        scale, weights, vectors = gauss_newton._loss_curvature(samples, batch.inputs, batch.targets)
        if bool((weights < 0).any()):
            raise ProblemError(
                "The loss is not convex in the outputs of the model: its Hessian by them has negative eigenvalues. "
                "Expected a convex one, such as cross-entropy."
            )
        roots = (scale * weights).sqrt()
        roots = vectors * roots.view(*roots.shape, *(1 for _ in vectors.shape[2:]))  # (B, K, outputs...)
        start, step = 0, min(size, problem.micro_batch)
        for x, y in pieces(batch.inputs, batch.targets, step):
            own, like = roots[start : start + step], weights[start : start + step]
            start += step
            signs = [_signs(like, rng) for _ in range(PAIR)]
            cotangents = [(own * sign.view(*sign.shape, *(1 for _ in own.shape[2:]))).sum(1) for sign in signs]
            found = [
                _squares(problem, rows) for rows in _pulled(samples._micro(x, y), leaves, cotangents, shares, first)
            ]
            total += _moments(torch.stack(found))
        return total

    found = np.asarray(problem.mean(collect).cpu().numpy())
    count = problem.samples
    return np.stack([found[0], found[1] / count, found[2] / count**3, found[3] * count])


def _pulled(
    micro: products.Micro, leaves: list[Tensor], cotangents: list[Tensor], shares: list[Tensor], first: bool
) -> list[list[Tensor]]:
    """Return J'c of a piece for each of the cotangents; the first pass adds what each sample has in its square."""
    own = products.leaves_of(leaves)
    with sdpa_kernel(SDPBackend.MATH):
        outputs = micro.outputs(own)
        if not first:
            return [products._grad(outputs, own, one, retain_graph=True) for one in cotangents]
        found, along = [], []
        for one in cotangents:
            weights = outputs.new_ones(len(outputs), requires_grad=True)
            weighted = (weights.view(-1, *(1 for _ in outputs.shape[1:])) * one * outputs).sum()
            slopes = products._grad(weighted, own, create_graph=True)
            found.append([slope.detach() for slope in slopes])
            along.append(products._grad(products._dot(slopes, found[-1]), [weights], retain_graph=True)[0])
    shares.append(torch.stack(along).double().cpu())
    return found


def _moments(pair: Tensor) -> Tensor:
    """Return the mean of two estimates (2, blocks + 1), its variance, and the square of that, and 1 (4, blocks + 1)."""
    variance = (pair[0] - pair[1]).square() / 4
    return torch.stack([pair.mean(0), variance, variance.square(), torch.ones_like(variance)])


def _squares(problem: Problem, parts: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(part, dtype=_wide(part)).square() for part in parts]
    starts = np.cumsum([0, *problem.parameters.sizes])
    blocks = problem.parameters.blocks()
    stacked = torch.stack(norms).cpu().double()
    inside = [stacked[_which(starts, where)].sum() for where in blocks.values()]
    return torch.stack([*inside, stacked.sum()])


def _which(starts: Array, where: slice) -> slice:
    return slice(int(np.searchsorted(starts, where.start)), int(np.searchsorted(starts, where.stop)))


def _signs(like: Tensor, rng: Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=rng, dtype=torch.int8)
    return (2 * bits - 1).to(like)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # no float64 there
