"""What every optimizer here shares: checked settings, gradients gathered for fused updates, norms left on the device.

An optimizer gives `_update` its new weights.  Nothing in a step waits for the device: no number is read, whatever the
count of layers.  Tensors of one group, device and dtype are updated together (`torch._foreach_*`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from gapscope.errors import UsageError

_BELOW = {"momentum": 1.0, "beta1": 1.0, "beta2": 1.0}  # all settings are 0 or more


@dataclass(frozen=True)
class Bucket:
    """The parameters of one group, device and dtype that have a gradient, and these gradients."""

    group: dict[str, Any]
    params: list[Tensor]
    grads: list[Tensor]

    def decayed(self) -> list[Tensor]:
        """Return g + weight decay w; the gradients themselves, not to be written to, where there is no decay."""
        decay = self.group["weight_decay"]
        return list(torch._foreach_add(self.grads, self.params, alpha=decay)) if decay else self.grads


class Stepper(Optimizer):
    """An optimizer that updates whole lists of tensors; subclasses give `_update`."""

    def __init__(self, params: ParamsT, settings: Mapping[str, Any]) -> None:
        super().__init__(params, dict(settings))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with settings of its own; raises UsageError where they make no sense."""
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                raise UsageError(
                    f"A parameter of shape {tuple(parameter.shape)} is {parameter.dtype}. Expected real floating-point "
                    f"ones. Leave it out of the parameters given to {type(self).__name__}."
                )

    def _check(self, group: Mapping[str, Any]) -> None:
        betas = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
        for name in [name for name in self.defaults if name not in ("betas", "rate")]:
            check_number(type(self).__name__, name, group[name])
        for name, value in betas.items():
            check_number(type(self).__name__, name, value)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; return the loss of `closure`, where one is given to compute it and the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update(self._buckets())
        return loss

    def _update(self, buckets: Sequence[Bucket]) -> None:
        raise NotImplementedError  # each optimizer has its own

    def _buckets(self) -> list[Bucket]:
        """Return what has a gradient; raises UsageError where one is sparse."""
        found: dict[tuple[Any, ...], Bucket] = {}
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    raise UsageError(
                        f"The gradient of a parameter of shape {tuple(parameter.shape)} is sparse. Expected dense: "
                        f"{type(self).__name__} needs norms of whole layers. Build the embedding with `sparse=False`."
                    )
                key = (number, parameter.device, parameter.dtype)
                bucket = found.setdefault(key, Bucket(group, [], []))
                bucket.params.append(parameter)
                bucket.grads.append(parameter.grad)
        return list(found.values())

    def _buffers(self, bucket: Bucket, name: str) -> list[Tensor]:
        """Return a tensor kept in the state of every parameter, zeros at first."""
        for parameter in bucket.params:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in bucket.params]


def norms(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norms of tensors of one dtype (len(tensors),), in float32 or wider."""
    wide = torch.float32 if tensors[0].device.type == "mps" else torch.float64  # 1e20 squared is beyond float32
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=wide))


def total_norm(lists: Iterable[list[Tensor]]) -> Tensor:
    """Return one Euclidean norm over all tensors of all lists (), on the device of the first."""
    parts = [norms(tensors) for tensors in lists]
    total: Tensor = torch.linalg.vector_norm(torch.cat([part.to(parts[0].device) for part in parts]))
    return total


def never_zero(norm: Tensor) -> Tensor:
    """Return a norm to divide by: infinity for 0, so that a zero gradient gives zeros and not NaN."""
    return torch.where(norm > 0, norm, math.inf)


def check_number(owner: str, name: str, value: object) -> None:
    """Raise UsageError unless a setting is a number of 0 or more, and below 1 where it decays something."""
    below = _BELOW.get(name, math.inf)
    if not isinstance(value, int | float) or not 0 <= value < below:
        wanted = "0 or more, and finite" if math.isinf(below) else f"0 or more and below {below:g}"
        raise UsageError(f"{owner} got {name}={value!r}. Expected a number of {wanted}. Mend `{name}`.")
