"""Errors over data whose samples weigh differently: by their tokens, or by the weights of their classes."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from gapscope.measure.problem import Problem
from gapscope.results import Array


def evened(
    problem: Problem, values: Array, share: Callable[[Tensor], Tensor] | None = None, *, power: int = 1
) -> Array:
    """Return values (N,) of the same mean, whose spread over samples and chunks is that of a weighted mean.

    With weights w and their mean m, L = mean(w_i l_i / m) is a ratio of two means that both vary with the data.  To
    first order its error is that of the mean of w_i l_i / m - L (w_i / m - 1); without the last term, token counts that
    vary by 77 % made the error of a loss seven times too wide.

    `values` are the w_i l_i / m, of shape (N,) or (N, k); `share` gives the w_i from the targets (default: the weights
    of the loss).  Of squares of them (`power` 2) the mean goes with 1 / m^2, and that term counts twice.
    Source: the ratio estimator (Cochran 1977, Sampling Techniques, chapter 6).
    """
    relative = relative_weights(problem, share)
    if relative is None:
        return values
    found: Array = values - power * np.multiply.outer(relative - 1, values.mean(0))
    return found


def relative_weights(problem: Problem, share: Callable[[Tensor], Tensor] | None = None) -> Array | None:
    """Return w_i / m (N,), of mean 1, as `evened` has them; None where all samples weigh the same."""
    share = share or problem.loss_function.weights
    if share is None:
        return None
    weights = share(problem.data.targets).cpu().double().numpy()
    relative: Array = weights / weights.mean()
    return relative
