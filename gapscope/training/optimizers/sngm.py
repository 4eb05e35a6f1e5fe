"""SNGM: momentum over gradients of length one (Zhao et al. 2020)."""

from collections.abc import Sequence

import torch
from torch.optim.optimizer import ParamsT

from gapscope.training.optimizers.stepping import Bucket, Stepper, never_zero, total_norm


class SNGM(Stepper):
    """Stochastic normalized gradient descent with momentum.

    u <- beta u + g / |g|,  w <- w - lr u,  u_0 = 0, where g = gradient + weight_decay w and |g| is one norm over the
    parameters of all groups.  As |u| <= 1 / (1 - beta), no step is longer than lr / (1 - beta), however steep the loss
    (with one rate for all groups).  momentum=0 is normalized gradient descent.  Where g is zero, 0 takes the place of
    g / |g|: a step along the momentum left, and none without.

    Source: Zhao, Xie, Li 2020 (arXiv 2007.13985).
    """

    def __init__(self, params: ParamsT, lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _update(self, buckets: Sequence[Bucket]) -> None:
        slopes = [bucket.decayed() for bucket in buckets]
        length = never_zero(total_norm(slopes)) if slopes else None
        for bucket, slope in zip(buckets, slopes, strict=True):
            assert length is not None
            steps = list(torch._foreach_div(slope, length.to(bucket.params[0].device)))
            if bucket.group["momentum"]:
                buffers = self._buffers(bucket, "momentum_buffer")
                torch._foreach_mul_(buffers, bucket.group["momentum"])
                torch._foreach_add_(buffers, steps)
                steps = buffers
            torch._foreach_add_(bucket.params, steps, alpha=-bucket.group["lr"])
