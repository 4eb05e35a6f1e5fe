"""Optimizers by name: one file for each that torch does not have."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from gapscope.errors import UsageError, did_you_mean
from gapscope.training.optimizers.lamb import LAMB
from gapscope.training.optimizers.layerwise import LayerwiseSGD
from gapscope.training.optimizers.sam import SAM
from gapscope.training.optimizers.sngm import SNGM
from gapscope.training.optimizers.stepping import check_number

OPTIMIZERS = ("sgd", "adam", "sngm", "lars", "mclr", "cblr", "lamb", "sam")

_LAYERWISE = ("damping", "trust")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "sgd": (),
    "adam": ("beta1", "beta2", "eps"),
    "sngm": (),
    "lars": _LAYERWISE,
    "mclr": _LAYERWISE,
    "cblr": _LAYERWISE,
    "lamb": ("beta1", "beta2", "eps"),
    "sam": ("rho",),
}
_BETAS = {"beta1": 0.9, "beta2": 0.999}  # they take the place of momentum


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    options: Mapping[str, float] = {},
) -> torch.optim.Optimizer:
    """Return an optimizer of `OPTIMIZERS` over the model's parameters that require a gradient; `sam` is over sgd.

    Raises UsageError for unknown names and options, and for numbers that make no sense.
    """
    if name not in OPTIMIZERS:
        raise UsageError(
            f"There is no optimizer `{name}`.{did_you_mean(name, OPTIMIZERS)} Expected one of {', '.join(OPTIMIZERS)}. "
            "Mend `--optimizer`."
        )
    for option in options:
        if option not in _OPTIONS[name]:
            raise UsageError(
                f"`{name}` has no option `{option}`.{did_you_mean(option, _OPTIONS[name])} Expected "
                f"{' or '.join(f'`{one}`' for one in _OPTIONS[name]) or 'none'}. Leave it out."
            )
    for setting, value in {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **options}.items():
        check_number(name, setting, value)
    more: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, **options}
    if "beta1" in _OPTIONS[name]:
        if momentum:
            raise UsageError(f"`{name}` has no momentum, and got {momentum}. Expected 0. Give `beta1={momentum}`.")
        more["betas"] = tuple(more.pop(beta, default) for beta, default in _BETAS.items())
    else:
        more["momentum"] = momentum
    return _BUILDERS[name](model, more)


def _layerwise(rate: Literal["lars", "mclr", "cblr"]) -> Callable[[nn.Module, dict[str, Any]], torch.optim.Optimizer]:
    return lambda model, more: LayerwiseSGD(_free(model), rate=rate, **more)


_BUILDERS: Mapping[str, Callable[[nn.Module, dict[str, Any]], torch.optim.Optimizer]] = {
    "sgd": lambda model, more: torch.optim.SGD(_free(model), **more),
    "adam": lambda model, more: torch.optim.Adam(_free(model), **more),
    "sngm": lambda model, more: SNGM(_free(model), **more),
    "lars": _layerwise("lars"),
    "mclr": _layerwise("mclr"),
    "cblr": _layerwise("cblr"),
    "lamb": lambda model, more: LAMB(_free(model), **more),
    "sam": lambda model, more: SAM(_free(model), torch.optim.SGD, model=model, **more),
}


def _free(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
