"""BatchNorm's running statistics, taken anew from the data of a problem."""

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.measure.batches import called

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

BATCH = 128


def re_estimated(problem: "Problem", constants: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the statistics of every micro-batch, weighted by its samples, into the tensors of `constants`."""
    layers = [module for module in problem.model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return constants
    momenta = [layer.momentum for layer in layers]
    everything = {**problem.parameters.unflatten(problem.theta), **constants}
    # a fixed size, so that the result depends on the data alone; even parts: BatchNorm refuses a sample alone
    parts = math.ceil(problem.samples / BATCH)
    bounds = [part * problem.samples // parts for part in range(parts + 1)]
    try:
        with problem.measuring(), torch.no_grad():
            for layer in layers:
                layer.training = True
            for start, stop in itertools.pairwise(bounds):
                for layer in layers:
                    layer.momentum = (stop - start) / stop  # of the running mean: 1, then less
                called(problem.model, problem._batch(start, stop).inputs, everything)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return constants
