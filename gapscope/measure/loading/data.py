"""Data as two tensors with a digest of what is actually used; gapscope never splits the user's data itself."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gapscope.errors import LoadError, UsageError, did_you_mean
from gapscope.measure.batches import Inputs, taken, tensors
from gapscope.measure.loading.arrays import Pair, pick_pair, read_arrays
from gapscope.measure.loading.iterables import read_object
from gapscope.measure.loading.trust import Trust, check_recorded, resolve_recorded

Split = Literal["train", "test"]
FILES = (".npz", ".pt", ".pth", ".safetensors")
DIGITS_TRAIN = 1300


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to take what a source holds: texts as typed, applied in this order; None leaves it as it is."""

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

    def __len__(self) -> int:
        return len(self.targets)

    def limited(self, limit: int | None, seed: int) -> "Data":
        """Return a random subset in file order, the same for the same seed on every machine."""
        if limit is not None and limit < 1:
            raise UsageError(f"`--limit {limit}` leaves no samples. Expected 1 or more.")
        if limit is None or limit >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:limit].sort().values
        inputs, targets = taken(self.inputs, chosen), self.targets[chosen]
        return replace(self, inputs=inputs, targets=targets, fingerprint=fingerprint(inputs, targets))


def load_data(spec: str, split: Split, *, recorded: bool, trust: Trust, whole: bool = False) -> Data | None:
    """Return one split of the data named by `spec`, or None where it has no test split of its own.

    `whole`: the spec was named as test data, so a source without splits is all test.  `digits` and files with
    x_train, y_train, x_test, y_test have splits.  `recorded` specs come from a checkpoint, so are untrusted.
    """
    name, _, options = spec.partition(":")
    if name == "digits" and not options.isidentifier():
        return _checked(_digits(split, options, spec), spec)
    if recorded:
        check_recorded(spec, kind="test data" if whole else "data", trust=trust)
    if spec.endswith(FILES):
        arrays = read_arrays(Path(spec), trust)
        pair = pick_pair(arrays, split, spec, whole=whole)
    elif ":" in spec:
        if split == "test" and not whole:
            return None
        kind = "test data" if whole else "data"
        found = resolve_recorded(spec, kind=kind, builtins={}, trust=trust) if recorded else None
        pair = read_object(spec, found)
    else:
        raise LoadError(
            f"`{spec}` is no data that gapscope knows.{did_you_mean(spec, ['digits'])} Expected `digits`, a file "
            f"({', '.join(FILES)}), or `pkg.mod:factory` or `path/file.py:factory`."
        )
    return _checked(pair, spec) if pair else None


def data_of(found: object, name: str) -> Data:
    """Return the samples of an object at hand: a Dataset, a DataLoader, an iterable of (x, y), or two arrays."""
    return _checked(read_object(name, found), name)


def fingerprint(inputs: Inputs, targets: Tensor) -> str:
    """Return the sha256 over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    if isinstance(inputs, dict):
        digest.update(f"{sorted(inputs)};".encode())
        inputs = {name: inputs[name] for name in sorted(inputs)}
    for tensor in (*tensors(inputs), targets):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype};".encode())
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
        digest.update(raw.data)
    return digest.hexdigest()


def _digits(split: Split, options: str, spec: str) -> Pair:
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


def _checked(pair: Pair, spec: str) -> Data:
    """Bring both arrays to the types that models take, and refuse what no loss can be computed on."""
    x, y = pair.inputs, pair.targets
    notes = list(pair.notes)
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        sizes = [len(t) if t.ndim else "no" for t in (x, y)]
        raise LoadError(f"{spec}: {sizes[0]} inputs and {sizes[1]} targets. Expected one target for each input.")
    if len(x) == 0:
        raise LoadError(f"{spec} has no samples. Expected at least one.")
    if x.dtype == torch.uint8:
        x = x.float()
        notes.append(f"data: {spec} holds bytes, used as the numbers 0 to 255; no scaling was applied")
    elif not x.is_floating_point() and not x.is_complex():
        x = x.float() if x.dtype == torch.bool else x.long()
    if not y.is_floating_point():
        y = y.long()
        y = y.squeeze(1) if y.ndim == 2 and y.shape[1] == 1 else y
    for word, tensor in (("inputs", x), ("targets", y)):
        bad = next(_nonfinite(tensor), None)
        if bad is not None:
            raise LoadError(
                f"{spec}: {word} hold NaN or infinity (first in sample {bad}). Remove or repair those samples."
            )
    if not y.is_floating_point() and y.min() < 0:
        raise LoadError(
            f"{spec}: targets hold the label {int(y.min())}. Expected classes 0, 1, 2, ...; "
            "remove samples without a label, or give float targets for a regression."
        )
    return Data(x, y, spec, fingerprint(x, y), len(x), tuple(notes))


def _nonfinite(tensor: Tensor) -> Iterator[int]:
    """Yield samples with NaN or infinity, looking at some 64 MB at a time."""
    rows = max(1, 2**24 // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, len(tensor), rows):
        part = tensor[start : start + rows]
        finite = torch.isfinite(part).reshape(len(part), -1).all(1)
        yield from (start + int(i) for i in (~finite).nonzero())
