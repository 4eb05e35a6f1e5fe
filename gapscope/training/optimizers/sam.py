"""SAM: the gradient is taken where the loss is highest nearby, the step from where the weights are."""

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer, ParamsT

from gapscope.errors import UsageError
from gapscope.training.optimizers.stepping import Bucket, Stepper, check_number, never_zero, total_norm


class SAM(Stepper):
    """Sharpness-aware minimization over any optimizer: SAM(params, torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9).

    e = rho g / |g|, |g| one norm over all groups; the base optimizer steps from w with the gradient at w + e.  A step
    costs two gradients.  `step(closure)` does all of it; the closure clears and computes the gradients, and is called
    twice.  Without one: backward, `ascend()`, zero_grad, backward, `step()`.  With a GradScaler, which takes none:

        scaler.scale(loss(x, y)).backward();  optimizer.ascend();  optimizer.zero_grad()
        scaler.scale(loss(x, y)).backward();  scaler.step(optimizer);  optimizer.restore();  scaler.update()

    where `restore` matters if the scaler skips the step.  Given `model`, its BatchNorm layers do not take the second
    pass, at other weights than the model's, into their running statistics; without it, they do.  Dropout draws anew in
    it.  Rates and state are the base optimizer's: schedulers and state_dict work as on that.

    Source: Foret et al. 2020 (arXiv 2010.01412), without their second-order term.
    """

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: Callable[..., Optimizer],
        *,
        rho: float = 0.05,
        model: nn.Module | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(params, {"rho": rho})
        self.base = base_optimizer(self.param_groups, **settings)
        self.defaults = {**self.base.defaults, "rho": rho}
        self._before: list[tuple[Bucket, list[Tensor]]] = []
        layers = () if model is None else model.modules()
        self._layers = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        self._share()

    def _check(self, group: Mapping[str, Any]) -> None:
        check_number("SAM", "rho", group["rho"])  # the others are the base optimizer's

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: torch's own leaves out what it does not know."""
        return {**super().__getstate__(), "base": self.base, "_before": self._before, "_layers": self._layers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of SAM and its base optimizer."""
        self.base.load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def ascend(self) -> None:
        """Move to w + e by the gradients at hand; `step` or `restore` comes back."""
        self.restore()
        buckets = self._buckets()
        if not buckets:
            return
        length = never_zero(total_norm([bucket.grads for bucket in buckets]))
        for bucket in buckets:
            self._before.append((bucket, [parameter.clone() for parameter in bucket.params]))
            steps = torch._foreach_div(bucket.grads, length.to(bucket.params[0].device))
            torch._foreach_add_(bucket.params, steps, alpha=bucket.group["rho"])
        for layer in self._layers:
            layer.track_running_stats = False

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back, bit by bit, if they are at w + e."""
        for bucket, before in self._before:
            torch._foreach_copy_(bucket.params, before)
        self._before = []
        for layer in self._layers:
            layer.track_running_stats = True

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; return the loss at w.  Raises UsageError without a closure or `ascend` before."""
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            self.ascend()
            try:
                with torch.enable_grad():
                    closure()
            finally:
                self.restore()
        elif self._before:
            loss = None
            self.restore()
        else:
            raise UsageError(
                "SAM.step got no closure, and the weights are where they were. Expected two gradients a step. Give a "
                "closure that computes loss and gradients, or call `ascend()` between them."
            )
        self.base.step()
        return loss
