"""Which reader a data file or folder takes: by what it starts with, else by its suffix or layout."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.checkpoints.formats import UNKNOWN, sniff
from gapscope.measure.loading.datasets import classic, tables
from gapscope.measure.loading.datasets.arrays import (
    USUAL,
    Keys,
    Pair,
    Split,
    pick_pair,
    read_arrays,
    read_npy,
    read_npz,
)
from gapscope.measure.loading.datasets.delimited import read_delimited
from gapscope.measure.loading.datasets.hdf5 import read_dataset, read_hdf5
from gapscope.measure.loading.datasets.images import is_image_folder, read_image_folder
from gapscope.measure.loading.datasets.tokens import read_tokens
from gapscope.measure.loading.trust import Trust

SUFFIXES = (
    *(".npz", ".npy", ".pt", ".pth", ".safetensors", ".h5", ".hdf5", ".csv", ".tsv", ".parquet", ".arrow"),
    *(".bin", ".gz", "-ubyte"),
)
_OPTIONS = re.compile(r"\w+=[^,]*(,\w+=[^,]*)*")
_HDF5, _NUMPY, _ZIP = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PK\x03\x04"


class Place(NamedTuple):
    """Files (or one folder) named by a spec, and what was written after them."""

    paths: tuple[Path, ...]
    options: str = ""
    members: tuple[str, ...] = ()  # of an HDF5 file


def find_place(spec: str) -> Place | None:
    """Return the files that a spec names, or None if it can only be the name of an object."""
    path, _, rest = spec.partition("::")
    if rest:
        return Place((Path(path),), members=tuple(name.strip() for name in rest.split(",")))
    if not os.path.exists(spec) and all(part.endswith(".npy") for part in spec.split(",")):
        return Place(tuple(Path(part) for part in spec.split(",")))
    if os.path.exists(spec) and not spec.endswith(".py"):
        return Place((Path(spec),))
    path, _, rest = spec.rpartition(":")
    if path and _OPTIONS.fullmatch(rest):
        return Place((Path(path),), options=rest)
    return Place((Path(spec),)) if spec.endswith(SUFFIXES) else None


def read_place(place: Place, spec: str, split: Split, keys: Keys, *, whole: bool, trust: Trust) -> Pair | None:
    """Return one split, or None for the test split of a source that has none."""
    for path in place.paths:
        if not os.path.exists(path):  # of a name too long for the system, Path raises
            beside = [str(p) for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
            raise LoadError(f"{path} does not exist.{did_you_mean(str(path), beside)} Expected a data file.")
    path = place.paths[0]
    unsplit = split == "test" and not whole
    if place.options:
        return None if unsplit else _unnamed(read_tokens(path, place.options, spec), keys, spec)
    if place.members or len(place.paths) > 1:
        return None if unsplit else _unnamed(_two(place, spec), keys, spec)
    if path.is_dir():
        return _read_folder(path, split, keys, whole=whole)
    head = _head(path)
    if classic.is_idx(head) or (head.startswith(classic.GZIP) and "ubyte" in path.name):
        return None if unsplit else _unnamed(classic.read_idx(path), keys, spec)
    # a stream of Arrow starts with a mark that other files could start with too
    if head.startswith((tables.PARQUET, tables.ARROW_FILE)) or path.suffix in (".parquet", ".arrow", ".feather"):
        return None if unsplit else tables.read_table(path, keys)
    if path.suffix in (".csv", ".tsv", ".txt"):
        return None if unsplit else read_delimited(path, keys)
    return pick_pair(_arrays(path, head, trust), split, spec, whole=whole, keys=keys)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}. Expected a readable data file.") from None


def _arrays(path: Path, head: bytes, trust: Trust) -> Mapping[str, Tensor]:
    if head.startswith(_HDF5):
        return read_hdf5(path)
    if head.startswith(_NUMPY):
        return {"x": read_npy(path)}
    if path.suffix == ".npz" or (head.startswith(_ZIP) and path.suffix not in (".pt", ".pth")):
        return read_npz(path)
    if head.startswith(classic.GZIP):
        raise LoadError(f"{path} is packed. Expected its content: unpack it (`tar xzf` or `gunzip`) and give that.")
    found = sniff(path)
    if found.name.startswith(UNKNOWN):
        raise LoadError(
            f"{path} is a {found.name}. Expected arrays or a table ({', '.join(SUFFIXES[:11])}), or tokens as "
            "`tokens.bin:block=128,dtype=uint16`. Convert it, or name what reads it: `path/file.py:factory`."
        )
    return read_arrays(path, trust)


def _two(place: Place, spec: str) -> Pair:
    """Return the two arrays that the user named: inputs, targets."""
    if len(place.members or place.paths) != 2:
        raise LoadError(f"`{spec}` names {len(place.members or place.paths)} arrays. Expected two: inputs, targets.")
    if place.members:
        x, y = (read_dataset(place.paths[0], name) for name in place.members)
    else:
        x, y = (read_npy(path) for path in place.paths)
    return Pair(x, y)


def _read_folder(folder: Path, split: Split, keys: Keys, *, whole: bool) -> Pair | None:
    if tables.is_table_folder(folder):
        return tables.read_table_folder(folder, split, keys, whole=whole)
    for found in (split, "train") if whole else (split,):
        images = classic.find_idx(folder, found)
        if images:
            note = f"data: {folder}: images from {images.relative_to(folder).as_posix()}"
            return _unnamed(classic.read_idx(images)._replace(notes=(note,)), keys, str(folder))
        files, kind = classic.find_cifar(folder, found)
        if files:
            return _unnamed(classic.read_cifar(files, kind), keys, str(folder))
    if is_image_folder(folder):
        pair = read_image_folder(folder, split, whole=whole)
        return pair and _unnamed(pair, keys, str(folder))
    if split == "test" and not whole:
        return None
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise LoadError(
        f"{folder} holds {inside}. Expected images in one folder per class, the files of MNIST or CIFAR, or a data "
        "set saved by `datasets` or as parquet."
    )


def _unnamed(pair: Pair, keys: Keys, where: str) -> Pair:
    if keys != USUAL:
        raise LoadError(
            f"{where}: `--x-key` and `--y-key` name arrays or columns, and there is nothing to choose. Leave them out."
        )
    return pair
