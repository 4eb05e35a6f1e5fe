"""The trace of the Hessian from random gradients of pieces of the data: no product of the Hessian in it.

With L_i the Hessian of sample i's loss by its outputs f_i, J_i the Jacobian of f_i by theta and L_i = S_i S_i',

    tr(J_i' L_i J_i) = E |J_i' S_i w|^2 for random signs w;   over a piece, E |sum_i J_i' S_i w_i|^2 = sum_i of them.

One backward pass takes a piece.  What one piece adds to the variance of the estimate is 2 |K|_F^2 less the diagonal of
K, K the matrix of inner products of the piece's J_i' S_i: without what lies between pieces, which a sign vector z of
theta's length cannot leave out, as z'Hz has all of 2 |H|_F^2.  On MLP 784-512-512-10 (2,000 samples,
trained) the standard error of a pass over 32 pieces was 1.3 %, that of one z'Hz 3.5 %; on the digits networks, against
the exact trace, 4 % and 30 to 36 %; on ResNet-20 (512 samples) 8 % of a pass, stated.

The rest of the Hessian, sum_c (dloss / df_c) (Hessian of f_c), has no diagonal where no output bends along a single
parameter (see `gauss_newton.bent`): there this is the trace of the Hessian.  Elsewhere that rest can be the larger part
(tanh perceptron on 256 samples: 55 beside 35) and takes products; signs of their own for every micro-batch do not help
there (a standard deviation of 2.3 for 1.8).

Two estimates of each piece give its variance, and the sum over pieces that of the trace.

The pieces are those of one partition of the data, by its size and the memory budget alone; the signs of a piece come
from a generator of its own, and go along the eigenvectors of L_i, whose own signs are settled.  So neither
micro-batches nor ranks change a number by more than rounding.  (The symmetric root of L_i needs no settling, but made
the standard error of the same MLP a third larger.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure import gauss_newton, products
from gapscope.measure.batches import Batch, pieces
from gapscope.measure.distributed import ranks
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

    Cost: by its operations a pass is 1.7 gradients, the first 3; on MLP 784-512-512-10 2.9 and 5.5 to 6.6.
    Raises ProblemError where a sample has no outputs of its own, too many, or a loss that is not convex in them.
    """
    gauss_newton.require_outputs(problem)
    size = piece(problem)
    # their loss Hessians are taken together: a piece alone is mostly overhead
    group = size * ranks().even(-(-problem.samples // size), max(1, problem.micro_batch // size))
    one = _Pass(problem, size, _blocks(problem), _seed(rng), shared=True)
    mean, shares = problem.mean_and_rows(one.whole, group)
    passes = [one.moments(mean)]
    while True:
        values = np.mean([found[0] for found in passes], axis=0)
        variances, squares, pairs = (np.sum([found[row] for found in passes], axis=0) for row in (1, 2, 3))
        # Satterthwaite: the variances of the pieces are known from two numbers each, and two may be alike by chance
        freedom = np.minimum(np.divide(variances**2, squares, out=pairs.copy(), where=squares > 0), pairs)
        errors = np.sqrt(variances) / len(passes) * [caution(each) for each in freedom]
        trace, error = float(values[-1]), float(errors[-1])
        watch(len(passes), trace, error)
        known = freedom[-1] >= FREEDOM and error <= tolerance * max(abs(trace), least)
        if known or len(passes) >= most or not math.isfinite(trace):
            return Traces(trace, error, values[:-1], errors[:-1], np.asarray(shares.T.numpy()), len(passes))
        one = replace(one, seed=_seed(rng), shared=False)
        passes.append(one.moments(problem.mean(one.sums, size=group)))


def piece(problem: Problem) -> int:
    """Return the samples of a piece: by the sizes and the memory budget alone."""
    fitting = max(1, problem.micro_bytes // problem.graph_bytes_per_sample)
    return min(max(SMALLEST, -(-problem.samples // PIECES)), fitting)


@dataclass(frozen=True)
class _Pass:
    """Two estimates of every piece of the data."""

    problem: Problem
    size: int  # samples of a piece
    blocks: Tensor  # (blocks + 1, parameters) 1 where a parameter belongs to a block; the last has all
    seed: int
    shared: bool  # whether samples are asked for their shares

    def whole(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return sums of `_moments` over the pieces of a micro-batch, and the shares of its samples (B, PAIR or 0)."""
        own = products.leaves_of(self.problem._split(None))
        with sdpa_kernel(SDPBackend.MATH):
            outputs = [
                self.problem._samples._micro(x, y).outputs(own)
                for x, y in pieces(batch.inputs, batch.targets, self.size)
            ]
            scale, roots = _roots(self.problem, torch.cat([one.detach() for one in outputs]), batch.targets)
            total = torch.zeros(4, len(self.blocks), dtype=self.blocks.dtype, device=self.blocks.device)
            rows = []
            for i, (one, root) in enumerate(zip(outputs, torch.split(roots, self.size), strict=True)):
                cotangents = self._cotangents(root, batch.start + i * self.size, one)
                found, shares = _pulled(one, own, cotangents, shared=self.shared)
                squares = [torch.stack([_norm(part) for part in parts]).square() for parts in found]
                total += _moments(scale * (self.blocks @ torch.stack(squares, 1)).T)
                rows.append(scale * shares)
                outputs[i] = one.detach()  # with it goes its graph
        return total, torch.cat(rows)

    def sums(self, batch: Batch) -> Tensor:
        """Return the first of `whole`."""
        return self.whole(batch)[0]

    def moments(self, mean: Tensor) -> Array:
        """Return values by block and in all, their variances, the squares of these, and the pieces (4, blocks + 1)."""
        found, count = np.asarray(mean.cpu().numpy()), self.problem.samples
        return np.stack([found[0], found[1] / count, found[2] / count**3, found[3] * count])

    def _cotangents(self, roots: Tensor, start: int, outputs: Tensor) -> list[Tensor]:
        """Return S_i w_i of every sample, in the shape of the outputs; signs are drawn on the CPU for every device."""
        rng = Generator().manual_seed(self.seed + start)
        bits = torch.randint(0, 2, (PAIR, *roots.shape[:2]), generator=rng, dtype=torch.int8)
        signs = (2 * bits - 1).to(roots)
        return [(roots @ sign.unsqueeze(2)).view_as(outputs).to(outputs) for sign in signs]


def _roots(problem: Problem, outputs: Tensor, targets: Tensor) -> tuple[float, Tensor]:
    """Return a number, and roots S_i (B, K, K) of the Hessians of the loss by the K outputs, over that number.

    Raises ProblemError where one has a negative eigenvalue.
    """
    dense = gauss_newton._loss_hessian(problem._samples, outputs, targets)
    if not bool(dense.isfinite().all()):
        return math.nan, torch.ones_like(dense)
    values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
    zero = gauss_newton._ZERO * values.abs().amax(1, keepdim=True)
    if bool((values < -zero).any()):
        raise ProblemError(
            "The loss is not convex in the outputs of the model: its Hessian by them has negative eigenvalues. "
            "Expected a convex one, such as cross-entropy."
        )
    scale = float(values.max()) or 1.0  # at a loss of 1e-40, float32 would know no square of a root
    roots = torch.where(values > zero, values / scale, 0.0).sqrt()
    # rounding may turn an eigenvector round; against numbers that none is perpendicular to by chance it cannot
    settled = (torch.arange(1.0, 1 + len(vectors[0]), dtype=vectors.dtype).sqrt() @ vectors).sign()
    return scale, vectors * (roots * settled).unsqueeze(1)


def _pulled(
    outputs: Tensor, leaves: list[Tensor], cotangents: list[Tensor], *, shared: bool
) -> tuple[list[list[Tensor]], Tensor]:
    """Return J'c of a piece for each of the cotangents c, and c_i'J_i J'c, each sample's part of its square (B, PAIR).

    J'w is linear in w, so that its graph, made once, gives J along any vector.
    """
    if not shared:
        found = [products._grad(outputs, leaves, one, retain_graph=True) for one in cotangents]
        return found, torch.zeros(len(outputs), 0)
    seed = cotangents[0].clone().requires_grad_()
    slopes = products._grad(outputs, leaves, seed, create_graph=True)
    found = [[slope.detach() for slope in slopes]]
    found += [products._grad(outputs, leaves, one, retain_graph=True) for one in cotangents[1:]]
    along = [products._grad(products._dot(slopes, parts), [seed], retain_graph=True)[0] for parts in found]
    shares = [(one * image).flatten(1).sum(1) for one, image in zip(cotangents, along, strict=True)]
    return found, torch.stack(shares, 1).cpu().double()


def _moments(pair: Tensor) -> Tensor:
    """Return the mean of two estimates (2, blocks + 1), its variance, and the square of that, and 1 (4, blocks + 1)."""
    variance = (pair[0] - pair[1]).square() / 4
    return torch.stack([pair.mean(0), variance, variance.square(), torch.ones_like(variance)])


def _blocks(problem: Problem) -> Tensor:
    starts = np.cumsum([0, *problem.parameters.sizes])[:-1]
    inside = [(starts >= where.start) & (starts < where.stop) for where in problem.parameters.blocks().values()]
    kinds = np.stack([*inside, np.ones(len(starts), bool)])
    return torch.from_numpy(kinds).to(problem.device, _wide(problem.theta))


def _seed(rng: Generator) -> int:
    return int(torch.randint(0, 1 << 62, (), generator=rng))


def _norm(part: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(part, dtype=_wide(part))
    return norm


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # no float64 there
