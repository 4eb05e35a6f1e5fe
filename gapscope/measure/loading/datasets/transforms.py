"""What `--reshape` and `--normalize` do to inputs; every step is said in a note."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gapscope.errors import UsageError, did_you_mean
from gapscope.measure.batches import Inputs, tensors

CHANNELS = (1, 3, 4)  # of a picture: gray, colors, colors and transparency
# mean and standard deviation of the training pixels by channel, from 0 to 1, as training scripts usually give them
PRESETS = {
    "mnist": "0.1307/0.3081",
    "fashion-mnist": "0.2860/0.3530",
    "cifar10": "0.4914,0.4822,0.4465/0.2470,0.2435,0.2616",
    "cifar100": "0.5071,0.4865,0.4409/0.2673,0.2564,0.2762",
    "imagenet": "0.485,0.456,0.406/0.229,0.224,0.225",
}


def reshaped(inputs: Inputs, text: str, where: str) -> tuple[Inputs, str]:
    """Give every sample another shape, like `3,32,32` (-1 once stands for the rest), and say how.

    Pictures with their channels last, (32, 32, 3), are turned for `3,32,32`: no network was trained on pixels in the
    order that they would have otherwise.
    """
    only = _alone(inputs, "--reshape", text, where)
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if not shape or any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UsageError(f"`--reshape {text}` is no shape. Expected that of one sample, like `3,32,32` or `-1`.")
    size, rest = math.prod(only.shape[1:]), math.prod(shape)  # of -1 the sign alone, which is no matter
    if size % rest if -1 in shape else size != rest:
        raise UsageError(
            f"`--reshape {text}`: a sample of {where} has {size} numbers (shape {tuple(only.shape[1:])}). Expected a "
            "shape of as many."
        )
    new = only.reshape(len(only), *shape)
    if channels_last(only.shape[1:]) and new.shape[1:] == (only.shape[-1], *only.shape[1:-1]):
        return only.movedim(-1, 1).contiguous(), f"data: {where}: the channels of each sample moved first, to {text}"
    return new, f"data: {where}: each sample reshaped to {text}"


def channels_last(sizes: Sequence[int]) -> bool:
    """Return whether the sizes of a sample are those of a picture (height, width, channels)."""
    return len(sizes) == 3 and sizes[-1] in CHANNELS and sizes[0] not in CHANNELS


def normalized(inputs: Inputs, text: str, where: str) -> tuple[Inputs, str]:
    """Return (x / 255 - mean) / std by channel, and what was done; only bytes are divided by 255.

    `text`: `scale` (division alone), a preset, or `MEAN,.../STD,...`, in units of 0 to 1 for bytes.
    """
    held = only = _alone(inputs, "--normalize", text, where)
    mean, std = ([], []) if text == "scale" else _numbers(PRESETS.get(text, text), text)
    scaled = _is_bytes(only, text, where)
    only = scaled_pixels(only) if scaled else only if only.is_floating_point() else only.float()
    note = f"data: {where}: divided by 255" if scaled else f"data: {where}: not divided by 255: not bytes"
    if text == "scale":
        return only, note
    channels = only.shape[1] if only.ndim > 1 else 1
    if len(mean) not in (1, channels):
        own = tuple(held.shape[1:])
        wanted = ",".join(map(str, (own[-1], *own[:-1]))) if own[-1:] == (len(mean),) else f"{len(mean)},..."
        raise UsageError(
            f"`--normalize {text}` is for {len(mean)} channels. Expected {channels}, the first size of a sample of "
            f"{where} (shape {own}): give the shape first, `--reshape {wanted}`."
        )
    if scaled and max(map(abs, mean)) > 1:
        raise UsageError(
            f"`--normalize {text}`: bytes are divided by 255 first. Expected a mean between 0 and 1: divide yours, and "
            "the deviations, by 255."
        )
    wide = (-1, *([1] * (only.ndim - 2)))
    only = only.clone() if only is held else only  # the user's own tensor is not written to
    only.sub_(only.new_tensor(mean).view(wide)).div_(only.new_tensor(std).view(wide))
    return only, f"{note}; minus {','.join(map(str, mean))}, over {','.join(map(str, std))}"


def scaled_pixels(inputs: Tensor) -> Tensor:
    """Return bytes as floats from 0 to 1, as torchvision's ToTensor does."""
    return inputs / 255 if inputs.is_floating_point() else inputs.float().div_(255)


def _is_bytes(inputs: Tensor, text: str, where: str) -> bool:
    if inputs.dtype == torch.uint8 or "/" in text:
        return inputs.dtype == torch.uint8
    low, high = float(inputs.min()), float(inputs.max())
    # a table has no bytes, but holds the same numbers
    if low >= 0 and 1 < high <= 255 and bool((inputs == inputs.round()).all()):
        return True
    if low < 0 or high > 1:
        raise UsageError(
            f"`--normalize {text}`: the inputs of {where} run from {low:.4g} to {high:.4g}. Expected bytes, or pixels "
            "from 0 to 1: they may be normalized already; otherwise give `MEAN,.../STD,...`."
        )
    return False


def _numbers(text: str, typed: str) -> tuple[list[float], list[float]]:
    try:
        mean, std = ([float(number) for number in part.split(",")] for part in text.split("/"))
    except ValueError:
        mean, std = [], []
    if not mean or len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise UsageError(
            f"`--normalize {typed}` is unknown.{did_you_mean(typed, ['scale', *PRESETS])} Expected `scale`, "
            f"{', '.join(f'`{name}`' for name in PRESETS)}, or as "
            "many means as positive deviations: `MEAN,.../STD,...`."
        )
    return mean, std


def _alone(inputs: Inputs, flag: str, text: str, where: str) -> Tensor:
    if not isinstance(inputs, Tensor):
        raise UsageError(
            f"`{flag} {text}`: {where} has {len(tensors(inputs))} inputs. Expected one: choose it with `--x-key NAME`."
        )
    return inputs
