"""Data files with named arrays: `.npz`, `.pt`, `.safetensors`; no pickled objects are ever loaded."""

import itertools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.torchfile import read_torch_file
from gapscope.measure.loading.trust import Trust

INPUT_NAMES = (
    "x",
    "X",
    "inputs",
    "input",
    "data",
    "images",
    "image",
    "features",
    "samples",
    "input_ids",
    "tokens",
    "img",
)
TARGET_NAMES = ("y", "Y", "targets", "target", "labels", "label", "classes")
_SPLITS = {"train": ("_train", "_tr"), "test": ("_test", "_te")}


class Pair(NamedTuple):
    """Inputs and targets as they were found."""

    inputs: Tensor
    targets: Tensor
    notes: tuple[str, ...] = ()


def read_arrays(path: Path, trust: Trust) -> Mapping[str, Tensor]:
    """Return a file's arrays by name."""
    if path.suffix == ".npz":
        return _read_npz(path)
    content = read_torch_file(path, trust).value
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("x", "y"), content, strict=True))
    if not isinstance(content, Mapping):
        raise LoadError(
            f"{path} holds {type(content).__name__}. Expected named tensors: `torch.save({{'x': x, 'y': y}}, path)`."
        )
    return {str(name): torch.as_tensor(v) for name, v in content.items() if isinstance(v, Tensor | np.ndarray)}


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: to_tensor(file[name], f"{path}: `{name}`") for name in file.files}
    except FileNotFoundError:
        beside = [str(p) for p in path.parent.glob("*.npz")]
        raise LoadError(f"{path} does not exist.{did_you_mean(str(path), beside)} Expected a data file.") from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}. Expected a readable .npz file.") from None
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        if "allow_pickle" in str(error) or "pickled" in str(error):
            raise LoadError(
                f"{path} holds pickled objects, or is no .npz file. Loading those could run code, so nothing "
                "was loaded. Expected arrays of numbers: `np.savez(path, x=x, y=y)`."
            ) from None
        raise LoadError(f"{path} is damaged or no .npz file. Write it again: `np.savez(path, x=x, y=y)`.") from None


def to_tensor(value: Any, where: str) -> Tensor:
    """Return numbers as a tensor; PIL images, text and nested objects are refused."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64)
        if type(value).__module__.startswith("PIL."):
            raise TypeError
        # a float in Python is a float64 only for want of another type
        tensor = torch.as_tensor(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(array.shape))
        return tensor.float() if isinstance(value, float) else tensor
    except (TypeError, ValueError):
        raise LoadError(
            f"{where} is {type(value).__module__}.{type(value).__qualname__}, not numbers. Expected a tensor, array or "
            "number; for images add `torchvision.transforms.ToTensor()`."
        ) from None


def pick_pair(
    arrays: Mapping[str, Tensor], split: Literal["train", "test"], where: str, *, whole: bool = False
) -> Pair | None:
    """Find inputs and targets among named arrays; None for the test split of a source that has none."""
    own = _named(arrays, _SPLITS[split])
    if own:
        return own
    unsplit = _named(arrays, ("",))
    if split == "test" and not whole:
        return None
    if unsplit:
        return unsplit
    keys = ", ".join(f"`{name}`" for name in list(arrays)[:12]) or "none"
    raise LoadError(
        f"{where} has the arrays {keys}. Expected inputs and targets under `x` and `y` "
        "(or inputs/targets, images/labels, x_train/y_train/x_test/y_test)."
    )


def _named(arrays: Mapping[str, Tensor], endings: tuple[str, ...]) -> Pair | None:
    def first(names: tuple[str, ...]) -> Tensor | None:
        spelled = (f"{name}{ending}" for name, ending in itertools.product(names, endings))
        prefixed = (f"{ending[1:]}_{name}" for name, ending in itertools.product(names, endings) if ending)
        return next((arrays[name] for name in itertools.chain(spelled, prefixed) if name in arrays), None)

    inputs, targets = first(INPUT_NAMES), first(TARGET_NAMES)
    return Pair(inputs, targets) if inputs is not None and targets is not None else None
