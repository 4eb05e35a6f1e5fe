"""Folders of torch.distributed.checkpoint (FSDP, FSDP2, DTensor): tensors alone, from every rank's pieces.

`.metadata` is a pickle, and torch's own reader would run it.  Here it is read with a list of the names that genuine
ones hold, none of which is imported; entries of bytes are pickles in their turn and are never opened.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.archives import check_archive
from gapscope.measure.loading.checkpoints.folders import digest_of, inside
from gapscope.measure.loading.checkpoints.pickles import (
    NotAdmittedError,
    Record,
    Restricted,
    dtype_of,
    load_weights,
    record_of,
)
from gapscope.measure.loading.checkpoints.torchfile import digest_file, unsafe_error
from gapscope.measure.loading.trust import one_line

_PACKAGE = "torch.distributed.checkpoint"
ADMITTED = frozenset(  # what torch 2.3 to 2.13 write
    {
        *(f"{_PACKAGE}.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *(f"{_PACKAGE}.metadata.{kind}StorageMetadata" for kind in ("Tensor", "Bytes", "Chunk")),
        f"{_PACKAGE}.metadata._MEM_FORMAT_ENCODING",
        f"{_PACKAGE}.filesystem._StorageInfo",
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        "torch.serialization._get_layout",
        *(f"pathlib.{kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
        *(f"pathlib._local.{kind}Path" for kind in ("Posix", "Windows")),
    }
)


class Distributed(NamedTuple):
    """Tensors as nested tables, and the digest of the files read."""

    content: dict[str, Any]
    sha256: str


class _Piece(NamedTuple):
    """Where one rank's part of a tensor lies, in the tensor and on the disk."""

    start: tuple[int, ...]
    path: Path
    offset: int
    length: int


def read_distributed(folder: Path, *, values: bool = True) -> Distributed:
    """Read the tensors of a folder; without `values` they are on the meta device.

    Raises: LoadError for a damaged, incomplete or dangerous folder.
    """
    metadata = _metadata(folder)
    content: dict[str, Any] = {}
    try:
        entries = {key: one for key, one in metadata["state_dict_metadata"].items() if "chunks" in one.state}
        places = metadata.state.get("planner_data") or {}
        pieces = _pieces(folder, metadata, set(entries))
        for key, entry in entries.items():
            tensor = _tensor(key, entry, pieces.get(key, []), values=values)
            _place(content, [str(part) for part in places.get(key, (key,))], tensor)
    except LoadError:
        raise
    except Exception as error:  # a table of another shape, or a damaged piece, can raise anything
        raise LoadError(
            f"{folder} is damaged, or of an unknown version ({one_line(error)}). Copy or save it again, or convert it "
            f"where it was made: `python -m {_PACKAGE}.format_utils dcp_to_torch IN OUT.pt`."
        ) from None
    read = {folder / ".metadata"} | {piece.path for several in pieces.values() for piece in several}
    return Distributed(content, digest_of({path.name: digest_file(path) for path in read}))


def _metadata(folder: Path) -> Record:
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            found = Restricted(file, _name).load()
    except NotAdmittedError as refused:
        raise unsafe_error(path, [refused.name]) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise LoadError(f"{path} is damaged ({one_line(error)}). Copy or save the folder again.") from None
    if not isinstance(found, Record):
        raise LoadError(f"{path} holds no table of tensors. Expected what `{_PACKAGE}.save` writes. Save it again.")
    return found


def _name(name: str) -> object:
    if name == "torch.Size":
        return tuple
    return record_of(name) if name in ADMITTED else dtype_of(name)


def _pieces(folder: Path, metadata: Record, wanted: set[str]) -> dict[str, list[_Piece]]:
    """Return the pieces of every wanted tensor; each must lie inside a file of the folder."""
    pieces: dict[str, list[_Piece]] = {}
    for index, info in metadata["storage_data"].items():
        if index["fqn"] not in wanted:
            continue
        if info.state.get("transform_descriptors"):
            raise LoadError(
                f"{folder} is compressed by an extension of {_PACKAGE}. Expected plain pieces. Convert it where it was "
                f"made: `python -m {_PACKAGE}.format_utils dcp_to_torch IN OUT.pt`."
            )
        path = inside(folder, info["relative_path"])
        offset, length = int(info["offset"]), int(info["length"])
        if offset < 0 or length < 0 or offset + length > path.stat().st_size:
            raise LoadError(
                f"{path} ends before the piece of `{index['fqn']}` that `.metadata` places in it. Expected a whole "
                "file. Copy the folder again."
            )
        pieces.setdefault(index["fqn"], []).append(_Piece(tuple(index["offset"]), path, offset, length))
    return pieces


def _tensor(key: str, entry: Record, pieces: Sequence[_Piece], *, values: bool) -> Tensor:
    """Put one tensor together; pieces must cover it exactly, for what none covers would be whatever memory held."""
    size, dtype = tuple(entry["size"]), entry["properties"].state[0]
    chunks = {tuple(chunk["offsets"]): tuple(chunk["sizes"]) for chunk in entry["chunks"]}
    starts = {piece.start for piece in pieces}
    covered = sum(math.prod(sizes) for sizes in chunks.values())
    if starts != set(chunks) or len(pieces) != len(chunks) or covered != math.prod(size) or _misplaced(chunks, size):
        raise LoadError(
            f"`{key}` has {len(chunks)} pieces of {covered:,} numbers in `.metadata` and {len(pieces)} on the disk, "
            f"for {math.prod(size):,} numbers. Expected the pieces of every rank. Copy the whole folder again."
        )
    if sum(piece.length for piece in pieces) < covered * dtype.itemsize:
        raise LoadError(
            f"`{key}` is declared as {covered:,} numbers, more than its files hold. Expected as many. "
            "Copy the folder again."
        )
    if not values:
        return torch.empty(size, dtype=dtype, device="meta")
    whole = torch.empty(size, dtype=dtype)
    for piece in pieces:
        part, sizes = _load(piece), chunks[piece.start]
        if tuple(part.shape) != sizes:
            raise ValueError(f"a piece of `{key}` has the shape {tuple(part.shape)}, not {sizes}")
        whole[tuple(slice(a, a + n) for a, n in zip(piece.start, sizes, strict=True))] = part
    return whole


def _misplaced(chunks: dict[tuple[int, ...], tuple[int, ...]], size: tuple[int, ...]) -> bool:
    """Return whether a piece lies outside of the tensor, or two share a number: quadratic, for ranks are few."""
    boxes = [(a, n) for a, n in chunks.items() if math.prod(n)]
    within = all(0 <= x <= x + m <= most for a, n in boxes for x, m, most in zip(a, n, size, strict=True))
    return not within or any(
        all(x < y + m and y < x + n for x, n, y, m in zip(a, n1, b, n2, strict=True))
        for i, (a, n1) in enumerate(boxes)
        for b, n2 in boxes[:i]
    )


def _load(piece: _Piece) -> Tensor:
    with piece.path.open("rb") as file:
        file.seek(piece.offset)
        content = io.BytesIO(file.read(piece.length))
    check_archive(content, piece.path)
    part = load_weights(content)
    if not isinstance(part, Tensor):
        raise ValueError(f"a piece is {type(part).__name__}")
    return part.detach()


def _place(content: dict[str, Any], path: Sequence[str], tensor: Tensor) -> None:
    for part in path[:-1]:
        content = content.setdefault(part, {})
    content[path[-1]] = tensor
