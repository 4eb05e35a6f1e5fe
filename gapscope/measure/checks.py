"""Is L a fixed, finite, twice differentiable function of theta, and of what?  Asked before anything is measured."""

import math

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import ProblemError
from gapscope.measure.batches import Batch, pieces
from gapscope.measure.culprits import unrepeatable
from gapscope.measure.probe import FEWEST, SAMPLES, micro_batch, spread
from gapscope.measure.problem import Problem
from gapscope.results import Array


def check(problem: Problem, *, second_order: bool = True) -> float:
    """Raise ProblemError unless L is finite, repeatable and, if that is asked for, has a curvature; return L(theta).

    What is found of the second derivatives is kept: `problem.derivatives`.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in problem.model.modules()):
        raise ProblemError(
            "The model is TorchScript, which is called with its own weights alone. Expected a module of Python code. "
            "Build the model from its code (`--model`) and load these weights into it."
        )
    lost = (~torch.isfinite(problem.theta)).sum()
    lost = lost if problem.share is None else problem.share.total(lost)
    if lost:
        raise ProblemError(
            f"{int(lost)} of {problem.size} weights are NaN or infinite. "
            "Expected finite weights. This run diverged: measure an earlier checkpoint."
        )
    constants = {name: tensor.clone() for name, tensor in problem.constants.items()}
    losses, again = problem.losses(), problem.losses()
    finite = torch.isfinite(torch.from_numpy(losses))
    if not bool(finite.all()):
        raise ProblemError(
            f"The loss is NaN or infinite on {int((~finite).sum())} of {problem.samples} samples "
            f"(first: sample {int((~finite).int().argmax())}). Expected finite losses. "
            "Check the data (`--data`), the labels and the loss (`--loss`)."
        )
    change = abs(losses - again).max()
    if change > _rounding(problem, losses):
        raise ProblemError(
            f"Two passes over the same samples gave losses that differ by up to {change:.2g}: {unrepeatable(problem)} "
            "returns something else for the same inputs. Expected the same function twice. Look there for dropout "
            "that ignores eval mode (`F.dropout(x, p)` without `training=self.training`) or random numbers."
        )
    changed = [name for name, tensor in problem.constants.items() if not _same(tensor, constants[name])]
    if changed:
        raise ProblemError(
            f"A forward pass in eval mode changed the buffer `{changed[0]}`. Expected a function without memory. "
            "Update buffers only `if self.training`."
        )
    _refuse_company(problem)
    if second_order and math.isnan(problem.derivatives.error):
        raise ProblemError(
            "The gradient is NaN or infinite although the losses are finite. Expected a finite gradient. Look for "
            "roots, norms and logarithms at 0 in the model and the loss."
        )
    return float(losses.mean())


def _refuse_company(problem: Problem) -> None:
    """Raise ProblemError where samples change each other's losses, and no size of micro-batches makes that definite."""
    change = _of_company(problem, micro_batch(problem)) if problem.batch_size is None else 0.0
    if change:
        raise ProblemError(
            f"The loss of a sample changes by up to {change:.2g} with the company of other samples. Expected a model "
            "that maps every sample by itself, as BatchNorm does in eval mode. Look for statistics over the batch in "
            "`forward`, or fix the micro-batches that L shall be of: `--batch-size 128`."
        )


def is_mixed(problem: Problem) -> bool:
    """Return whether L depends on the micro-batches: by BatchNorm, or by a batch's statistics in the model itself.

    Asked only where a size is given: without one, `check` refuses such a model.  All ranks have to ask together.
    """
    if problem.depends_on_batches or problem.batch_size is None:
        return problem.depends_on_batches
    # no more than a given size where it can be: it may be all that fits
    few = spread(problem.samples, min(problem.samples, SAMPLES, max(FEWEST, problem.batch_size)))
    return _of_company(problem, problem.picked(few)) > 0


def _of_company(problem: Problem, whole: Batch) -> float:
    """Return by how much a sample's loss changes where the others are half of them, 0 where by rounding alone."""
    together = _losses(problem, whole)
    half = (len(whole.targets) + 1) // 2
    apart = np.concatenate(
        [_losses(problem, Batch(x, y, 0, len(y))) for x, y in pieces(whole.inputs, whole.targets, half)]
    )
    with np.errstate(invalid="ignore"):  # infinite losses are refused elsewhere
        change = float(abs(together - apart).max())
    # other kernels serve other batch sizes: ResNet-20 in float32 came out 3e-7 apart
    return change if change > _rounding(problem, together) else 0.0


def _losses(problem: Problem, batch: Batch) -> Array:
    with problem.measuring(), torch.no_grad():
        micro = problem._micro(batch)
        return np.asarray(micro.losses(micro.outputs(problem._split(None))).cpu().double().numpy())


def _rounding(problem: Problem, losses: Array) -> float:
    """Return what rounding may do to a loss."""
    return 1e3 * torch.finfo(problem.dtype).eps * (1 + float(abs(losses).max()))


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN
