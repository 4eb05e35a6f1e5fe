"""SGD with a rate for every layer, or every weight: LARS, and two rules that fit the rate to the curvature."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from gapscope.errors import UsageError, did_you_mean
from gapscope.training.optimizers.stepping import Bucket, Stepper, norms

CURVED = ("mclr", "cblr")
RATES = ("lars", *CURVED)


class NotFiniteError(UsageError):
    """A curvature is NaN or infinite, as where training diverges."""


class LayerwiseSGD(Stepper):
    """Momentum SGD whose rate is multiplied layer by layer; every parameter tensor counts as a layer.

    v <- momentum v + lr m (gradient + weight_decay w),  w <- w - v, with the multiplier m by `rate`:

    `lars`   trust |w| / (|g| + damping |w|), You et al. 2017: every layer moves by lr trust of its length, but for the
             damping, which is the weight decay unless given.
    `mclr`   trust / (c + damping), c the median of |h_i| over the layer's non-zero entries.
    `cblr`   trust / (|h_i| + damping), for every weight its own.

    h is the diagonal of the Hessian, given by `set_curvature` (see `gapscope.training.LayerCurvature`).  The names and
    the idea of the last two are Gao and Zhong's (2020), whose equations are not public: the definitions are gapscope's
    own.  Among them LARS is the special case h_i = |g| / |w|, damping = weight decay.  Their damping bounds the
    multiplier by trust / damping, which is what entries without curvature get, and entries whose curvature noise hides:
    on digits, batch 256, 8 probes, the default of 0.1 trained at rates of 0.003 to 0.1, 0.01 not at 0.1, and 1 was SGD.

    Where |w| = 0, as of fresh biases, or both terms of its divisor are 0, `lars` takes 1 for the multiplier: plain SGD.
    trust is 1 by default, so that lr is the share of its length by which a layer moves; LARS is often run with 0.001
    and an lr a thousand times larger.  Some other versions leave vectors (biases, BatchNorm) to plain SGD: give those
    to an optimizer of their own.

    Source: You, Gitman, Ginsburg 2017 (arXiv 1708.03888); Gao, Zhong 2020 (arXiv 2012.08795), abstract; ours.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        rate: Literal["lars", "mclr", "cblr"] = "lars",
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float | None = None,
        trust: float = 1.0,
    ) -> None:
        chosen = 0.1 if damping is None and rate in CURVED else damping
        settings = {"lr": lr, "rate": rate, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(params, {**settings, "damping": chosen})

    def _check(self, group: Mapping[str, Any]) -> None:
        if group["rate"] not in RATES:
            raise UsageError(
                f"There is no rate `{group['rate']}`.{did_you_mean(str(group['rate']), RATES)} "
                f"Expected one of {', '.join(RATES)}. Mend `rate`."
            )
        super()._check({**group, "damping": _damping(group)})
        if group["rate"] in CURVED and not group["damping"]:
            raise UsageError(
                f"The damping of `{group['rate']}` is 0. Expected more: weights without curvature would take infinite "
                "steps. Give `damping=0.1`, or what curvature is small."
            )

    def set_curvature(self, curvature: Tensor | Mapping[Tensor, Tensor]) -> None:
        """Take the diagonal of the Hessian, for `mclr` and `cblr`, until the next is given.

        A vector (n,) over all parameters in the optimizer's order, or {parameter: tensor of its shape}.  Of `mclr` only
        the medians are kept.  They are part of the state_dict.
        Raises UsageError where it does not fit the parameters or is not finite.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        if isinstance(curvature, Tensor):
            sizes = [p.numel() for p in params]
            if curvature.shape != (sum(sizes),):
                raise UsageError(
                    f"The curvature has the shape {tuple(curvature.shape)} for {sum(sizes)} parameters. Expected "
                    f"({sum(sizes)},). Give one number for every weight, in the optimizer's order."
                )
            curvature = {p: c.view_as(p) for p, c in zip(params, torch.split(curvature, sizes), strict=True)}
        for group in self.param_groups:
            if group["rate"] in CURVED:
                for parameter in group["params"]:
                    found = _fitting(parameter, curvature.get(parameter)).abs()
                    kept = _median(found) if group["rate"] == "mclr" else found
                    self.state[parameter]["curvature"] = kept.to(parameter)

    def _update(self, buckets: Sequence[Bucket]) -> None:
        for bucket in buckets:
            group = bucket.group
            steps = list(torch._foreach_mul(bucket.decayed(), self._multipliers(bucket)))
            torch._foreach_mul_(steps, group["lr"])
            if group["momentum"]:
                buffers = self._buffers(bucket, "momentum_buffer")
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, steps)
                steps = buffers
            torch._foreach_sub_(bucket.params, steps)

    def _multipliers(self, bucket: Bucket) -> list[Tensor]:
        trust, damping = bucket.group["trust"], _damping(bucket.group)
        if bucket.group["rate"] == "lars":
            return lars(bucket.params, bucket.grads, trust=trust, damping=damping)
        curvature = [self.state[parameter].get("curvature") for parameter in bucket.params]
        known = [one for one in curvature if one is not None]
        if len(known) < len(curvature):
            raise UsageError(
                f"`{bucket.group['rate']}` has no curvature for {len(curvature) - len(known)} of {len(curvature)} "
                "parameters. Expected it before the first step. Call `set_curvature`, or "
                "`gapscope.training.LayerCurvature(model).refresh(optimizer, x, y)` before every step."
            )
        return cblr(known, trust=trust, damping=damping)


def _damping(group: Mapping[str, Any]) -> Any:
    """Return a group's damping: its own weight decay where none was given."""
    return group["weight_decay"] if group["damping"] is None else group["damping"]


def lars(weights: list[Tensor], slopes: list[Tensor], *, trust: float, damping: float) -> list[Tensor]:
    """Return trust |w| / (|g| + damping |w|) of every layer, and 1 where that says nothing."""
    w, g = norms(weights), norms(slopes)
    below = g + damping * w
    return list(torch.unbind(torch.where((w > 0) & (below > 0), trust * w / below, 1.0)))


def cblr(curvature: list[Tensor], *, trust: float, damping: float) -> list[Tensor]:
    """Return trust / (h + damping), h >= 0: one number of a layer (`mclr`), or one of every weight."""
    found = list(torch._foreach_add(curvature, damping))
    torch._foreach_reciprocal_(found)
    torch._foreach_mul_(found, trust)
    return found


def _fitting(parameter: Tensor, curvature: Tensor | None) -> Tensor:
    if curvature is None or curvature.shape != parameter.shape:
        got = "none" if curvature is None else f"one of shape {tuple(curvature.shape)}"
        raise UsageError(
            f"For a parameter of shape {tuple(parameter.shape)} there is {got} in the curvature. Expected one number "
            "for every weight. Give it for all parameters of the optimizer."
        )
    if not bool(curvature.isfinite().all()):
        raise NotFiniteError(
            f"The curvature of a parameter of shape {tuple(parameter.shape)} is not finite. Expected numbers. Lower "
            "the rate if training diverges."
        )
    return curvature


def _median(magnitudes: Tensor) -> Tensor:
    """Return the analyzer's median, that over what is not zero; 0 of nothing."""
    from gapscope.measure.solvers.diagonal import quartiles_of  # scipy: not for `lars`

    quartiles, _ = quartiles_of(magnitudes.flatten(), {"layer": slice(None)})
    return torch.tensor(quartiles[0, 1]).nan_to_num()
