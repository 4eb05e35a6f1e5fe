"""LAMB: Adam's direction with a length in proportion to the layer's weights (You et al. 2019)."""

from collections.abc import Sequence

import torch
from torch.optim.optimizer import ParamsT

from gapscope.training.optimizers.stepping import Bucket, Stepper, norms


class LAMB(Stepper):
    """Layer-wise adaptive moments; every parameter tensor counts as a layer.

    r = m^ / (sqrt(v^) + eps) + weight_decay w,  w <- w - lr |w| / |r| r, with the bias-corrected means m^ of the
    gradient and v^ of its square.  Where |w| or |r| is 0, as of fresh biases, the factor |w| / |r| is 1.  The lengths
    |w| are not cut off, and the gradient is not clipped.

    Source: You et al. 2019 (arXiv 1904.00962).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _update(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            group, (beta1, beta2) = bucket.group, bucket.group["betas"]
            means, squares = self._buffers(bucket, "exp_avg"), self._buffers(bucket, "exp_avg_sq")
            counts = []
            for parameter in bucket.params:
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                counts.append(state["step"])
            torch._foreach_lerp_(means, bucket.grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, bucket.grads, bucket.grads, 1 - beta2)
            below = torch._foreach_div(squares, [1 - beta2**count for count in counts])
            torch._foreach_sqrt_(below)
            torch._foreach_add_(below, group["eps"])
            steps = list(torch._foreach_div(means, [1 - beta1**count for count in counts]))
            torch._foreach_div_(steps, below)
            if group["weight_decay"]:
                torch._foreach_add_(steps, bucket.params, alpha=group["weight_decay"])
            weights, lengths = norms(bucket.params), norms(steps)
            ratios = torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
            torch._foreach_mul_(steps, list(torch.unbind(ratios)))
            torch._foreach_add_(bucket.params, steps, alpha=-group["lr"])
