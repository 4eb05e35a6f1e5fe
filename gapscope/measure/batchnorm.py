"""BatchNorm's running statistics, taken anew from the data of a problem."""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.errors import ProblemError
from gapscope.measure.batches import called

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

BATCH, SEED = 128, 0


def re_estimated(problem: "Problem", constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the statistics of every micro-batch, weighted by its samples, into the tensors of `constants`.

    The training data are averaged over, whichever split is measured: one network has one set of statistics.  The
    micro-batches are drawn by permutation: files often lie class by class, and the statistics of single classes are not
    those of batches in training.

    Raises: ProblemError where a micro-batch has no spread: BatchNorm after a dense layer, and one sample.
    """
    layers = [module for module in problem.model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return constants
    if problem.origin.train is not None:
        problem = dataclasses.replace(problem, data=problem.origin.train)
    momenta = [layer.momentum for layer in layers]
    everything = {**problem.parameters.unflatten(problem.theta), **constants}
    # a fixed size, so that the result depends on the data alone; even parts: BatchNorm refuses a sample alone
    parts = math.ceil(problem.samples / BATCH)
    bounds = [part * problem.samples // parts for part in range(parts + 1)]
    order = torch.randperm(problem.samples, generator=torch.Generator().manual_seed(SEED))
    try:
        with problem.measuring(), torch.no_grad():
            for layer in layers:
                layer.training = True
            for start, stop in itertools.pairwise(bounds):
                for layer in layers:
                    layer.momentum = (stop - start) / stop  # of the running mean: 1, then less
                called(problem.model, problem.picked(order[start:stop]).inputs, everything)
    except ValueError as error:
        if problem.samples > 1:
            raise
        raise ProblemError(
            f"BatchNorm has no statistics of one sample ({error}). Expected more samples. Raise `--limit`, or keep the "
            "checkpoint's own statistics: `--batchnorm eval`, and `--statistics frozen` of `path` and `plane`."
        ) from None
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return constants
