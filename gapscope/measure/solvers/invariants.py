"""Relative flatness: a trace of the Hessian that rescaling of layers leaves alone, from products with random signs.

Of a layer with weights W (out, in), whose rows w_s belong to the units s (Petzka et al. 2021, arXiv 2001.00939), with
H_ss' (in, in) the block of the Hessian for the rows s and s':

    kappa = sum_(s,s') <w_s, w_s'> tr(H_ss') = tr( H (W W' (x) I) ) = E[ v'Hv ],   v = vec(A R),  A A' = W W',

R having independent random signs as entries.  A is W itself, or where W has more columns than rows the triangular
factor of W' = QA': R then has as many rows as W has, not as many as W has columns.

One product serves all layers: with v from all of them, the part of v'Hv from a layer's entries has that layer's kappa
as its mean, because the signs of different layers are independent.  The standard error is that of the mean over probes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gapscope.measure.operators import Operator
from gapscope.measure.solvers.hutchinson import error_of_mean
from gapscope.results import Array

_ROUNDING = 10  # epsilons of |v||Hv|, as in lanczos


@dataclass(frozen=True)
class Flatness:
    """Relative flatness of every layer, and the standard error over probes."""

    values: Array  # (layers,)
    errors: Array  # (layers,)
    matvecs: int


def relative_flatness(
    operator: Operator, layers: Mapping[str, tuple[slice, Tensor]], probes: int, rng: Generator, *, off: float = 0.0
) -> Flatness:
    """Estimate the relative flatness of layers; the errors hold the rounding of the products, too.

    `off` is what else the product of a unit vector is off by: |v|^2 times that counts.

    Shapes: layers {name: (slice of (n,), weights (out, in))}.  Cost: `probes` >= 2 matvecs, a copy of the weights.
    """
    factors = {name: _factor(weights) for name, (_, weights) in layers.items()}
    found, sizes, rounding = [], [], _ROUNDING * torch.finfo(operator.dtype).eps
    for _ in range(probes):
        v = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        for name, (where, weights) in layers.items():
            shape = (factors[name].shape[1], weights.shape[1])
            signs = (2 * torch.randint(0, 2, shape, generator=rng, dtype=torch.int8) - 1).to(weights)
            v[where] = (factors[name] @ signs).flatten()
        image = operator.matvec(v)
        pairs = [(v[where].cpu().double(), image[where].cpu().double()) for where, _ in layers.values()]
        found.append([float(torch.dot(a, b)) for a, b in pairs])
        sizes.append([float(a.norm() * (rounding * b.norm() + off * a.norm())) for a, b in pairs])
    table = np.asarray(found)  # (probes, layers)
    return Flatness(table.mean(0), np.hypot([error_of_mean(each) for each in table.T], np.mean(sizes, axis=0)), probes)


def matrices(model: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, tuple[slice, Tensor]]:
    """Return the weights of linear and convolutional layers as (out, rest), with their places in theta.

    `parameters` are those that theta is made of, in its order, with the values to take: of the model only the layout
    is read, because its own may have been trained on since.  Rows of other weights are not units: those of an
    embedding are tokens, a recurrent layer stacks four matrices into one.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    wanted = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
    named, found, start = dict(model.named_parameters()), {}, 0
    for name, weights in parameters.items():
        if id(named[name]) in wanted:
            found[name.removesuffix(".weight")] = (slice(start, start + weights.numel()), weights.flatten(1))
        start += weights.numel()
    return found


def _factor(weights: Tensor) -> Tensor:
    """Return A (out, k) with A A' = W W' and k the smaller side of W."""
    if weights.shape[1] <= weights.shape[0]:
        return weights
    # on the host in float64: an error of A is one of kappa
    triangle: Tensor = torch.linalg.qr(weights.cpu().double().T, mode="r").R
    return triangle.T.to(weights)
