"""`torchvision:NAME:root=PATH`: a data set of torchvision that is already on disk; nothing is downloaded."""

from typing import Any

import torch
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.datasets.arrays import Pair, Split, check_size
from gapscope.measure.loading.datasets.columns import stacked
from gapscope.measure.loading.datasets.images import pixels_of
from gapscope.measure.loading.trust import one_line, signature

PREFIX = "torchvision:"


def read_catalogue(spec: str, split: Split, *, whole: bool) -> Pair | None:
    """Return the images (N, channels, height, width) as bytes, and labels, of one split.

    Options after the name: `root`, and `split` where the data set has others than train and test.
    """
    name, _, rest = spec.removeprefix(PREFIX).partition(":")
    options = dict(part.partition("=")[::2] for part in rest.split(","))
    if not options.get("root") or not options.keys() <= {"root", "split"}:
        raise LoadError(f"`{spec}`: unknown options. Expected `torchvision:NAME:root=FOLDER[,split=NAME]`.")
    if "split" in options and split == "test" and not whole:
        return None  # the user named one split, and that is the training data
    source = _made(name, options, split, spec)
    parts, labels, used = [], [], 0
    for i in range(len(source)):
        pixels, label = _sample(source, i, spec)
        parts.append(pixels[None])
        labels.append(label)
        used += 4 * parts[-1].numel()
        check_size(used, f"`{spec}`")
    if not parts:
        raise LoadError(f"`{spec}` has no samples. Expected at least one: check its folder.")
    return Pair(stacked(parts, f"`{spec}`"), torch.tensor(labels), pixels=True)


def _sample(source: Any, i: int, spec: str) -> tuple[Tensor, int]:
    try:
        sample = source[i]
        parts = sample if isinstance(sample, tuple | list) else (sample,)
        if len(parts) != 2 or type(parts[1]) is not int or not hasattr(parts[0], "mode"):
            raise LoadError(
                f"`{spec}` gives {' and '.join(type(part).__name__ for part in parts)}. Expected an image and a class "
                "number: make it in a factory, `-d path/file.py:factory`."
            )
        return pixels_of(parts[0], f"`{spec}`, sample {i}"), parts[1]
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # what a library raises for a damaged picture, or one that is missing, is not told
        raise LoadError(
            f"`{spec}`: reading sample {i} raised {one_line(error)}. Expected an image. Copy its file again, or leave "
            "it out in a factory: `-d path/file.py:factory`."
        ) from error


def _made(name: str, options: dict[str, str], split: Split, spec: str) -> Any:
    try:
        from torchvision import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise LoadError(f"`{spec}` takes torchvision, which is not installed. `pip install torchvision`.") from None
    except (RuntimeError, OSError) as error:
        raise LoadError(
            f"`{spec}`: importing torchvision raised {one_line(error)}. Expected the release that fits your torch: "
            "`pip install -U torchvision`."
        ) from error
    known = [key for key, value in vars(datasets).items() if isinstance(value, type)]
    if name not in known:
        raise LoadError(
            f"torchvision has no data set `{name}`.{did_you_mean(name, known)} Expected a name of torchvision.datasets."
        )
    found = getattr(datasets, name)
    declared = signature(found)
    accepted = declared.parameters if declared else {}
    if "train" in accepted:
        settings: dict[str, Any] = {"train": options.get("split", split) == "train"}
    else:
        settings = {"split": options.get("split", split)} if "split" in accepted else {}
    if "download" in accepted:
        settings["download"] = False
    try:
        return found(root=options["root"], **settings)
    except Exception as error:  # whatever torchvision says of a folder that does not fit
        raise LoadError(
            f"`{spec}` cannot be read ({one_line(error)}). Expected its files under {options['root']}: gapscope "
            f"downloads nothing, so run `torchvision.datasets.{name}(root=..., download=True)` once."
        ) from error
