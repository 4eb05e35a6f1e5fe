"""Data files with named arrays: `.npz`, `.npy`, `.pt`, `.safetensors`; no pickled objects are ever loaded."""

import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.batches import Inputs
from gapscope.measure.loading.checkpoints.pickles import dense
from gapscope.measure.loading.checkpoints.torchfile import read_torch_file
from gapscope.measure.loading.trust import Trust

Split = Literal["train", "test"]
# what Hugging Face models call their inputs: such inputs are given by these names
HF_NAMES = (
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "decoder_input_ids",
    "decoder_attention_mask",
    "inputs_embeds",
    "pixel_values",
    "input_values",
    "input_features",
)
INPUT_NAMES = (
    *("x", "X", "inputs", "input", "data", "images", "image", "features", "samples", "tokens", "img"),
    *HF_NAMES,
)
TARGET_NAMES = (
    *("y", "Y", "targets", "target", "labels", "label", "classes", "class", "label_ids"),
    *("fine_labels", "fine_label"),
)
_SPLITS = {"train": ("_train", "_tr"), "test": ("_test", "_te")}
# how folders and dicts of data sets call their parts
PARTS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
MEMORY_BYTES = 16 * 2**30
_PICKLED = "pickled objects"
DEFLATE_RATIO = 1100  # zlib's best is 1032 to 1: a larger promise is not kept


class Keys(NamedTuple):
    """Names inside the source that the user gave; empty: the usual ones."""

    inputs: tuple[str, ...] = ()
    target: str | None = None


USUAL = Keys()


class Pair(NamedTuple):
    """Inputs and targets as they were found.

    `pixels`: the bytes are brightness; `classes`: names of 0, 1, 2, ...; `same`: the one input is its own target.
    """

    inputs: Inputs
    targets: Tensor
    notes: tuple[str, ...] = ()
    pixels: bool = False
    classes: tuple[str, ...] = ()
    same: bool = False


class Lazy(Mapping[str, Tensor]):
    """Arrays that are read when asked for, so that a large file costs only what is used."""

    def __init__(self, names: Sequence[str], read: Callable[[str], Tensor]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> Tensor:
        return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def check_size(nbytes: int, where: str, *, held: float = math.inf) -> None:
    """Refuse what is larger than memory, or than the file can hold, before it is allocated."""
    if nbytes > held:
        raise LoadError(
            f"{where} declares {nbytes:,} bytes, but the file is too short to hold them. It is damaged: "
            "copy or write it again."
        )
    if nbytes > MEMORY_BYTES:
        raise LoadError(
            f"{where} takes {nbytes / 2**30:,.3g} GiB. Expected at most {MEMORY_BYTES / 2**30:.3g} GiB, which fits "
            "into memory: give a part of it."
        )


def read_arrays(path: Path, trust: Trust) -> Mapping[str, Tensor]:
    """Return the arrays of a file made by `torch.save` or safetensors, by name."""
    content = read_torch_file(path, trust).value
    if isinstance(content, list | tuple) and len(content) == 2:
        content = dict(zip(("x", "y"), content, strict=True))
    if not isinstance(content, Mapping):
        raise LoadError(
            f"{path} holds {type(content).__name__}. Expected named tensors: `torch.save({{'x': x, 'y': y}}, path)`."
        )
    return {
        str(name): to_tensor(v, f"{path}: `{name}`")
        for name, v in content.items()
        if isinstance(v, Tensor | np.ndarray)
    }


def read_npz(path: Path) -> Mapping[str, Tensor]:
    """Return the arrays of an archive by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    except Exception:  # a damaged archive can raise anything
        raise LoadError(f"{path} is damaged or no .npz file. Write it again: `np.savez(path, x=x, y=y)`.") from None

    def read(name: str) -> Tensor:
        info = members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # no bound on what it unpacks to
            raise LoadError(
                f"{path}: `{name}` is packed by another method. Expected `np.savez` or np.savez_compressed."
            )
        held = min(info.file_size, DEFLATE_RATIO * info.compress_size)
        with _sound(path), zipfile.ZipFile(path) as archive, archive.open(info) as file:
            check_size(_declared(file), f"{path}: `{name}`", held=held)
        with _sound(path), zipfile.ZipFile(path) as archive, archive.open(info) as file:
            return to_tensor(np.lib.format.read_array(file, allow_pickle=False), f"{path}: `{name}`")

    return Lazy(list(members), read)


def read_npy(path: Path) -> Tensor:
    """Return the array of one `.npy` file."""
    with _sound(path):
        with path.open("rb") as file:
            check_size(_declared(file), str(path), held=path.stat().st_size)
        return to_tensor(np.load(path, allow_pickle=False), str(path))


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Say of a file whose arrays cannot be read why that is."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if str(error) == _PICKLED:
            raise LoadError(
                f"{path} holds pickled objects. Loading those could run code, so nothing was loaded. "
                "Expected arrays of numbers: `np.savez(path, x=x, y=y)`."
            ) from None
        raise LoadError(f"{path} is damaged ({str(error)[:80]}). Copy or write it again.") from None


def _declared(file: IO[bytes]) -> int:
    """Return the bytes of the array whose header comes next."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(_PICKLED)
    return math.prod(shape) * dtype.itemsize


def to_tensor(value: Any, where: str) -> Tensor:
    """Return numbers as a tensor; PIL images, text and nested objects are refused."""
    tensor: Tensor
    if isinstance(value, Tensor):
        return dense(value).detach().cpu()
    try:
        array = np.asarray(value)
        if array.dtype.kind == "u" and array.dtype != np.uint8:
            array = array.astype(np.int64 if array.max(initial=0) < 2**63 else np.float64)
        if type(value).__module__.startswith("PIL."):
            raise TypeError
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)
        # torch shares no memory that it may not write to
        tensor = torch.as_tensor(array if array.flags.writeable else array.copy())
        # a float in Python is a float64 only for want of another type
        return tensor.float() if isinstance(value, float) else tensor
    except (TypeError, ValueError):
        if isinstance(value, np.ndarray) and value.dtype.kind in "US":
            raise LoadError(
                f"{where} holds text. Expected numbers, of classes 0, 1, 2, ...: "
                "`np.unique(names, return_inverse=True)[1]` numbers names in sorted order."
            ) from None
        raise LoadError(
            f"{where} is {type(value).__module__}.{type(value).__qualname__}, not numbers. Expected a tensor, array or "
            "number; for images add `torchvision.transforms.ToTensor()`."
        ) from None


def pick_pair(
    arrays: Mapping[str, Tensor], split: Split, where: str, *, whole: bool = False, keys: Keys = USUAL
) -> Pair | None:
    """Find inputs and targets among named arrays; None for the test split of a source that has none.

    Several inputs are given in the order of `keys`; by name where one of them is called as in Hugging Face models.
    """
    own = _named(arrays, _SPLITS[split], keys, where)
    if own:
        return own
    if split == "test" and not whole:
        return None
    unsplit = _named(arrays, ("",), keys, where)
    if unsplit:
        return unsplit
    shown = ", ".join(f"`{name}`" for name in list(arrays)[:12]) or "none"
    asked = [*keys.inputs, *([keys.target] if keys.target else [])]
    wanted = next((name for name in asked if name not in arrays), None)
    meant = did_you_mean(wanted, arrays) if wanted else ""
    raise LoadError(
        f"{where} has the arrays {shown}.{meant} Expected inputs and targets under "
        + (f"{' and '.join(f'`{name}`' for name in asked)}. " if asked else "`x` and `y` ")
        + "(or inputs/targets, images/labels, x_train/y_train/x_test/y_test). "
        + "Name them: `--x-key NAME --y-key NAME`, twice the same for an autoencoder."
    )


def _named(arrays: Mapping[str, Tensor], endings: tuple[str, ...], keys: Keys, where: str) -> Pair | None:
    # of an HDF5 file, train/x is found as train_x
    flat = {name.strip("/").replace("/", "_"): name for name in arrays} | {name: name for name in arrays}

    def first(*names: str) -> str | None:
        spelled = (f"{name}{ending}" for name, ending in itertools.product(names, endings))
        prefixed = (f"{ending[1:]}_{name}" for name, ending in itertools.product(names, endings) if ending)
        return next((flat[name] for name in itertools.chain(spelled, prefixed) if name in flat), None)

    target = first(*((keys.target,) if keys.target else TARGET_NAMES))
    if keys.inputs:
        found = {name: first(name) for name in keys.inputs}
    else:
        found = {name: place for name in HF_NAMES if (place := first(name))}
        plain = first(*(name for name in INPUT_NAMES if name not in HF_NAMES))
        found = {"x": plain} if plain else found
    if target is None or not found or None in found.values():
        return None
    used = {target, *found.values()}
    idle = [name for name in arrays if name not in used and (keys.inputs or not _of_a_split(name))]
    notes = (f"data: {where}: not used: {', '.join(f'`{name}`' for name in idle[:8])}",) if idle else ()
    inputs = {name: arrays[place] for name, place in found.items() if place}
    same = list(found.values()) == [target]
    return Pair(given(inputs, by_name=any(name in HF_NAMES for name in inputs)), arrays[target], notes, same=same)


def _of_a_split(name: str) -> bool:
    flat = name.strip("/").replace("/", "_")
    return any(flat.endswith(end) or flat.startswith(f"{end[1:]}_") for ends in _SPLITS.values() for end in ends)


def given(inputs: dict[str, Tensor], *, by_name: bool) -> Inputs:
    """Return one input as a tensor, several as a model is called with them."""
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    return inputs if by_name else tuple(inputs.values())
