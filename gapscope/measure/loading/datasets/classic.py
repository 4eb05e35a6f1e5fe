"""The files of MNIST (IDX) and CIFAR-10/100 (binary and Python version), as their makers publish them."""

import gzip
import io
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading import stand_ins
from gapscope.measure.loading.checkpoints.pickles import Bounded
from gapscope.measure.loading.datasets.arrays import DEFLATE_RATIO, Pair, Split, check_size

GZIP = b"\x1f\x8b"
_ROW = 3 * 32 * 32
_IDX_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("t10k", "test")}


def is_idx(head: bytes) -> bool:
    """Return whether a file starts like an IDX file of bytes with one to four dimensions."""
    return head[:3] == b"\0\0\x08" and head[3:4] in (b"\1", b"\2", b"\3", b"\4")


def find_idx(folder: Path, split: Split) -> Path | None:
    """Return the images of a folder, or of `raw` in it, where torchvision keeps them; packed ones after unpacked ones.

    Raises: LoadError where they are those of several data sets.
    """
    for at in ("", "raw/", "*/raw/"):
        files = [path for path in sorted(folder.glob(f"{at}*images*idx3*")) if path.is_file()]
        files = [path for path in files if any(word in path.name for word in _IDX_SPLITS[split])]
        files = [path for path in files if path.suffix != ".gz" or path.with_suffix("") not in files]
        if len(files) > 1:
            names = ", ".join(path.relative_to(folder).as_posix() for path in files[:6])
            raise LoadError(
                f"{folder} holds the images of {len(files)} data sets: {names}{', ...' if len(files) > 6 else ''}. "
                f"Expected those of one. Name its file: `{files[0]}`."
            )
        if files:
            return files[0]
    return None


def read_idx(images: Path) -> Pair:
    """Return images (N, 1, height, width) and the labels of the file beside it."""
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    if name == images.name:
        raise LoadError(
            f"{images} has neither `images` nor `idx3` in its name, so no name of its labels follows from it. Expected "
            "images like `train-images-idx3-ubyte`, beside `train-labels-idx1-ubyte`. Name the images, or rename both."
        )
    beside = [images.with_name(n) for n in (name, name.removesuffix(".gz"), f"{name}.gz")]
    labels = next((path for path in beside if path.is_file()), None)
    if labels is None:
        raise LoadError(f"{images} has no labels beside it. Expected `{beside[0].name}` in the same folder.")
    x, y = _idx(images), _idx(labels)
    if x.ndim != 3 or y.ndim != 1:
        raise LoadError(
            f"{images} has {x.ndim} dimensions and {labels.name} {y.ndim}. Expected 3 and 1: images and labels."
        )
    return Pair(x.unsqueeze(1), y.long(), pixels=True)


def find_cifar(folder: Path, split: Split) -> tuple[list[Path], str]:
    """Return the files of one split and their kind: `10`, `100`, with `.bin` in the binary version; none: no CIFAR."""
    for kind, parts in (("10", ("data_batch_*", "test_batch")), ("100", ("train", "test"))):
        for suffix in ("", ".bin"):
            found = {s: sorted(folder.glob(f"{part}{suffix}")) for s, part in zip(_IDX_SPLITS, parts, strict=True)}
            files = [path for path in found[split] if path.suffix == suffix and path.is_file()]
            if files and (kind == "10" or suffix or (folder / "meta").is_file()):
                return files, kind + suffix
    return [], ""


def read_cifar(files: list[Path], kind: str) -> Pair:
    """Return images (N, 3, 32, 32) and labels; of CIFAR-100 the 100 fine ones."""
    classes = int(kind.removesuffix(".bin"))
    read = _binary if kind.endswith(".bin") else _pickled
    parts = [read(path, classes) for path in files]
    for path, (pixels, labels) in zip(files, parts, strict=True):
        if len(pixels) != len(labels) or (len(labels) and int(labels.max()) >= classes):
            raise LoadError(f"{path} has no {classes} classes of one label per image. {_DAMAGED}")
    images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
    numbers = np.concatenate([labels for _, labels in parts])
    named = f"data: {files[0].parent}: CIFAR-{classes} from {', '.join(path.name for path in files)}"
    missing = files[0].name.startswith("data_batch") and len(files) != 5
    return Pair(
        torch.from_numpy(images),
        torch.from_numpy(numbers).long(),
        (named + ("; the original has 5 batches" if missing else ""),),
        pixels=True,
    )


_DAMAGED = "It is damaged or another format: copy or download it again."


def _idx(path: Path) -> Tensor:
    with path.open("rb") as raw:
        packed = raw.read(2) == GZIP
        raw.seek(0)
        size = path.stat().st_size
        try:
            # no packed file can hold more than that; a header that promises it is not believed
            with gzip.open(raw) if packed else raw as file:
                return _idx_array(file, path, held=size * (DEFLATE_RATIO if packed else 1))
        except (OSError, EOFError, zlib.error):
            raise LoadError(f"{path} is a damaged gzip file. {_DAMAGED}") from None


def _idx_array(file: BinaryIO | gzip.GzipFile, path: Path, held: int) -> Tensor:
    head = file.read(4)
    if not is_idx(head):
        raise LoadError(f"{path} is no IDX file of bytes (it starts with {head!r}). {_DAMAGED}")
    # a header that ends early declares too much
    shape = np.frombuffer(file.read(4 * head[3]).ljust(4 * head[3], b"\xff"), ">u4").tolist()
    count = math.prod(shape)
    check_size(count, str(path), held=held)
    content = bytearray(file.read(count))
    if len(content) < count or file.read(1):
        raise LoadError(
            f"{path} declares {count:,} bytes and holds {'more' if len(content) == count else 'fewer'}. {_DAMAGED}"
        )
    return torch.frombuffer(content, dtype=torch.uint8).view(shape) if count else torch.empty(shape, dtype=torch.uint8)


def _binary(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    labels = 1 if classes == 10 else 2  # CIFAR-100: the coarse one first
    size = path.stat().st_size
    check_size(size, str(path))
    if not size or size % (_ROW + labels):
        raise LoadError(
            f"{path} has {size:,} bytes. Expected a multiple of {_ROW + labels}: {labels} for labels and 3 x 32 x 32 "
            f"pixels each. {_DAMAGED}"
        )
    rows = np.fromfile(path, np.uint8).reshape(-1, _ROW + labels)
    return rows[:, labels:], rows[:, labels - 1]


def _pickled(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    check_size(path.stat().st_size, str(path))
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        held = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        pixels = np.asarray(held["data"])
        labels = np.asarray(held["labels" if classes == 10 else "fine_labels"])
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (_ROW,) or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"pixels {pixels.shape} {pixels.dtype}, labels {labels.shape} {labels.dtype}")
    except LoadError as error:
        raise LoadError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise LoadError(f"{path} cannot be read as CIFAR-{classes} ({str(error)[:80]}). {_DAMAGED}") from None
    return pixels, labels


def _encode(text: str, encoding: str = "") -> bytes:
    """Stand in for what Python 3 writes bytes with under protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"text of the encoding {encoding!r}")
    return text.encode("latin1")


# our own functions, which can only make plain arrays; the class itself is passed but never called
_ALLOWED: dict[tuple[str, str], Callable[..., Any] | None] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): stand_ins.reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): stand_ins.frombuffer for core in ("core", "_core")},
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): stand_ins.Dtype,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(Bounded):
    """Reads what a CIFAR file holds and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise LoadError(
                f"would call {module}.{name} when loaded, which no CIFAR file does: it may be an attack. Nothing was "
                "called. Download it again from its maker."
            )
        allowed = _ALLOWED[module, name]
        # a pickle may set attributes of what it is given: let them be those of a function of its own
        return allowed and (lambda *arguments: allowed(*arguments))
