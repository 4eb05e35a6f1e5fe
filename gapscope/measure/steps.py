"""The length of an SGD step and its effect on the loss, layer by layer, from a checkpoint's recorded recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, length
from gapscope.measure.recipe import sgd_recipe
from gapscope.measure.solvers.hutchinson import error_of_mean
from gapscope.results import Array

if TYPE_CHECKING:
    from gapscope.measure.context import Context

# with 32 the standard error is 12 to 18 % of the second-order part on digits networks of 2 to 6 layers; with 8, 8 %
# on ResNet-20, whose products with all 39 blocks cost 5 to 10 whole ones
STEP_PROBES, FEW_PROBES = 32, 8
MANY_LAYERS = 8
_ROUNDING = 10  # epsilons of |y||Hy|, as in lanczos


@dataclass(frozen=True)
class Steps:
    """What one SGD step does to every layer."""

    length: Array  # (layers,)
    loss: Array  # (layers,)
    loss_error: Array  # (layers,) standard error, and rounding
    matvecs: int


def probes_for(layers: int) -> int:
    """Return how many products with the Hessian's blocks the effect on the loss takes."""
    return STEP_PROBES if layers <= MANY_LAYERS else FEW_PROBES


def recorded_recipe(training: Mapping[str, Any]) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return rate and batch size of recorded SGD, or None, and what to say."""
    found, why = sgd_recipe(training)
    if found is None:
        return None, (f"no step lengths: {why}",)
    more = [f"{word} {x:g}" for word, x in (("momentum", found.momentum), ("weight_decay", found.decay)) if x]
    notes = (f"steps are those of one mini-batch gradient of the loss, without {' and '.join(more)}",) if more else ()
    return (found.rate, found.batch), notes


def sgd_steps(
    context: "Context", apart: Operator, gradient: Tensor, recipe: tuple[float, float]
) -> tuple[Steps | None, tuple[str, ...]]:
    """Measure the SGD step by layer, or say why not.

    y = G + v / sqrt(B), v = sum_i e_i (g_i - G) / sqrt(N) with random signs e_i, has the mean G and the covariance
    Sigma / B of a mini-batch gradient (B drawn with replacement), so y_l'H_l y_l has the mean G'HG + tr(H Sigma) / B of
    its block.  `apart` is the Hessian's block-diagonal: with the whole Hessian and random signs on the layers, what
    other layers add averages out too, but it made one probe's standard deviation 1.9 to 4 times its mean for 0.7 to 0.9
    (digits networks of 2 to 6 layers), and on ResNet-20 hundreds for 0.2.
    """
    problem, (eta, size) = context.problem(), recipe
    blocks = problem.parameters.blocks()
    try:
        squares, _ = problem.gradient_squares(gradient)
    except ProblemError as error:
        return None, (f"no step lengths: {error}",)
    square = np.asarray([float(length(gradient[where])) ** 2 for where in blocks.values()])
    rng, bends, lost, probes = context.generator("curvature/step"), [], [], probes_for(len(blocks))
    eps, off = _ROUNDING * torch.finfo(problem.dtype).eps, problem.derivatives.error
    for number in range(probes):
        signs = (2 * torch.randint(0, 2, (problem.samples,), generator=rng) - 1).to(problem.dtype).to(problem.device)
        drawn = gradient + math.sqrt(problem.samples / size) * problem.weighted_gradient(signs - signs.mean())
        image = apart.matvec(drawn)
        pairs = [(drawn[where].cpu().double(), image[where].cpu().double()) for where in blocks.values()]
        bends.append([float(torch.dot(y, hy)) for y, hy in pairs])
        whole = off * float(drawn.norm())
        lost.append([float(y.norm() * (eps * hy.norm() + whole)) for y, hy in pairs])
        context.monitor.say(f"loss step, probe {number + 1} of {probes}")
    table = np.asarray(bends)  # (probes, layers)
    half = eta**2 / 2
    return Steps(
        length=eta * np.sqrt(square + squares.mean(0) / size),
        loss=-eta * square + half * table.mean(0),
        loss_error=np.hypot(
            half * np.asarray([error_of_mean(each) for each in table.T]),
            eps * eta * square + half * np.mean(lost, axis=0),
        ),
        matvecs=probes,
    ), ()
