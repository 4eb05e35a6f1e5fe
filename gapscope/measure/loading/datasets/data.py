"""Data as inputs and targets with a digest of what is used; gapscope never splits the user's data itself."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gapscope.errors import LoadError, UsageError, did_you_mean
from gapscope.measure.batches import Inputs, mapped, taken, tensors
from gapscope.measure.loading.datasets.arrays import Keys, Pair, Split
from gapscope.measure.loading.datasets.catalogue import PREFIX, read_catalogue
from gapscope.measure.loading.datasets.datafiles import SUFFIXES, Place, find_place, read_place
from gapscope.measure.loading.datasets.iterables import read_object
from gapscope.measure.loading.datasets.teacher import read_teacher
from gapscope.measure.loading.datasets.transforms import normalized, reshaped, scaled_pixels
from gapscope.measure.loading.trust import Trust, check_recorded, resolve_recorded

DIGITS_TRAIN = 1300


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to take what a source holds: texts as typed, applied in this order; None leaves it as it is.

    `x_key` with commas gives several inputs: by name, model(a=..., b=...), where the samples are dicts or an input is
    called as in Hugging Face models; in the order typed, model(a, b), otherwise; side by side in a table of numbers.
    """

    x_key: str | None = None
    y_key: str | None = None
    reshape: str | None = None
    normalize: str | None = None


@dataclass(frozen=True)
class Data:
    """N samples; `total` is how many there were before any limit."""

    inputs: Inputs  # (N, ...)
    targets: Tensor  # (N, ...)
    name: str
    fingerprint: str
    total: int
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()  # names of the targets 0, 1, 2, ..., where the source has them

    def __len__(self) -> int:
        return len(self.targets)

    def limited(self, limit: int | None, seed: int) -> "Data":
        """Return a random subset in file order, the same for the same seed on every machine."""
        if limit is not None and limit < 1:
            raise UsageError(f"`--limit {limit}` leaves no samples. Expected 1 or more.")
        if limit is None or limit >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        some = self.part(chosen)
        return replace(some, fingerprint=fingerprint(some.inputs, some.targets))

    def part(self, index: Tensor) -> "Data":
        """Return some of the samples, under the whole's fingerprint."""
        return replace(self, inputs=taken(self.inputs, index), targets=self.targets[index])


def load_data(
    spec: str, split: Split, *, recorded: bool, trust: Trust, whole: bool = False, reading: Reading = Reading()
) -> Data | None:
    """Return one split of the data named by `spec`, or None where it has no test split of its own.

    `whole`: the spec was named as test data, so a source without splits is all test.  `digits`, `teacher`, and files
    and folders with parts for training and for tests, have splits.  `recorded` specs come from a checkpoint, so are
    untrusted.
    """
    name, _, options = spec.partition(":")
    keys = _keys(reading)
    if name in BUILT_IN and not options.isidentifier():
        return _finished(BUILT_IN[name](options, split, spec), spec, reading)
    if recorded:
        check_recorded(spec, kind="test data" if whole else "data", trust=trust)
    if spec.startswith(PREFIX):
        pair = read_catalogue(spec, split, whole=whole)
    elif (place := find_place(spec)) is not None and not _is_misspelt(place, name):
        pair = read_place(place, spec, split, keys, whole=whole, trust=trust)
    elif ":" in spec and place is None:
        if split == "test" and not whole:
            return None
        kind = "test data" if whole else "data"
        found = resolve_recorded(spec, kind=kind, builtins={}, trust=trust) if recorded else None
        pair = read_object(spec, found, keys=keys, split=split)
    else:
        raise LoadError(
            f"`{spec}` is no data that gapscope knows.{did_you_mean(name, BUILT_IN)} Expected `digits`, "
            f"`teacher:samples=1000`, a file or folder ({', '.join(SUFFIXES)}, images by class), or "
            "`pkg.mod:factory` or `path/file.py:factory`."
        )
    return _finished(pair, spec, reading) if pair else None


def data_of(found: object, name: str, reading: Reading = Reading()) -> Data:
    """Return the samples of an object at hand: a Dataset, a DataLoader, an iterable of (x, y), or two arrays."""
    return _finished(read_object(name, found, keys=_keys(reading)), name, reading)


def same_classes(train: Data, test: Data) -> None:
    """Refuse two sources whose class names stand for different numbers."""
    if train.classes and test.classes and train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise LoadError(
            f"{test.name} and {train.name} number their classes differently: only one has `{odd[0]}`. Expected the "
            "same class names in both: write the classes as numbers 0, 1, 2, ..."
        )


def fingerprint(inputs: Inputs, targets: Tensor) -> str:
    """Return the sha256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    if isinstance(inputs, dict):
        digest.update(f"{sorted(inputs)};".encode())
        inputs = {name: inputs[name] for name in sorted(inputs)}
    for tensor in (*tensors(inputs), targets):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        # contiguous() leaves any stride to a dimension of size 1, which view() then refuses
        row = tensor.contiguous().as_strided((tensor.numel(),), (1,))
        digest.update(row.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digits(options: str, split: Split, spec: str) -> Pair:
    """Return UCI's handwritten digits: 1,300 to train, the last 497, by other writers, to test."""
    size = _digits_size(options, spec)
    with resources.files("gapscope.measure.loading").joinpath("digits.npz").open("rb") as file, np.load(file) as arrays:
        images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
    part = slice(None, DIGITS_TRAIN) if split == "train" else slice(DIGITS_TRAIN, None)
    pixels, labels = images[part].double() / 16, labels[part].long()
    if size is not None:
        # in float64 and rounded once, so that the fingerprint is the same on every machine
        pixels = F.interpolate(pixels.view(-1, 1, 8, 8), size=(size, size), mode="bilinear", align_corners=False)
    return Pair(pixels.float(), labels)


def _digits_size(options: str, spec: str) -> int | None:
    if not options and not spec.endswith(":"):
        return None
    key, _, value = options.partition("=")
    if key != "size" or not (value.isascii() and value.isdigit()) or not 1 <= int(value) <= 256:
        raise LoadError(f"`{spec}`: unknown option. Expected `digits` or `digits:size=32` (1 to 256 pixels).")
    return int(value)


BUILT_IN: Mapping[str, Callable[[str, Split, str], Pair]] = {"digits": _digits, "teacher": read_teacher}


def _is_misspelt(place: Place, name: str) -> bool:
    """Return whether a name with options was meant for built-in data, and is no file: `techer:samples=9`."""
    is_word = bool(place.options) and name.isidentifier() and not os.path.exists(place.paths[0])
    return is_word and bool(did_you_mean(name, BUILT_IN))


def _keys(reading: Reading) -> Keys:
    names = tuple(name.strip() for name in (reading.x_key or "").split(",") if name.strip())
    return Keys(names, reading.y_key)


def _finished(pair: Pair, spec: str, reading: Reading) -> Data:
    """Check the lengths, reshape and normalize, and bring all to the types that models take."""
    x, y = pair.inputs, pair.targets
    notes = list(pair.notes)
    sizes = [len(t) if t.ndim else "no" for t in (*tensors(x), y)]
    if len(set(sizes)) > 1 or sizes[-1] == "no":
        raise LoadError(
            f"{spec}: {' and '.join(map(str, sizes[:-1]))} inputs and {sizes[-1]} targets. Expected one target for "
            "each input."
        )
    if len(y) == 0:
        raise LoadError(f"{spec} has no samples. Expected at least one.")
    if reading.reshape is not None:
        x, note = reshaped(x, reading.reshape, spec)
        notes.append(note)
    if reading.normalize is not None:
        x, note = normalized(x, reading.normalize, spec)
        notes.append(note)
    x = mapped(x, lambda tensor: _typed(tensor, spec, pair.pixels, notes))
    if pair.same and isinstance(x, Tensor):  # an autoencoder's target is what the network is given
        y = x
    if not (y.is_floating_point() or y.is_complex()):
        y = y.long()
        y = y.squeeze(1) if y.ndim == 2 else y  # several columns stay
    for word, tensor in (*(("inputs", tensor) for tensor in tensors(x)), ("targets", y)):
        bad = next(_nonfinite(tensor), None)
        if bad is not None:
            raise LoadError(
                f"{spec}: {word} hold NaN or infinity (first in sample {bad}). Remove or repair those samples."
            )
    return Data(x, y, spec, fingerprint(x, y), len(y), tuple(notes), pair.classes)


def _typed(tensor: Tensor, spec: str, pixels: bool, notes: list[str]) -> Tensor:
    if tensor.dtype == torch.uint8:
        done = "divided by 255" if pixels else "used as the numbers 0 to 255; no scaling was applied"
        notes.append(f"data: {spec} holds bytes, {done}")
        return scaled_pixels(tensor) if pixels else tensor.float()
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor
    return tensor.float() if tensor.dtype == torch.bool else tensor.long()


def _nonfinite(tensor: Tensor) -> Iterator[int]:
    """Yield samples with NaN or infinity, looking at some 64 MB at a time."""
    rows = max(1, 2**24 // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        finite = torch.isfinite(part).reshape(len(part), -1).all(1)
        yield from (start + int(i) for i in (~finite).nonzero())
