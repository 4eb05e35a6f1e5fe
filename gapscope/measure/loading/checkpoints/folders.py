"""Folders of weights: sharded safetensors and those of Hugging Face, with their `config.json` as plain settings.

The digest of a folder is the SHA-256 over one line `NAME SHA256` for every file that was read, sorted by name.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import formats
from gapscope.measure.loading.checkpoints.torchfile import NOTHING_RUNS, read_torch_file
from gapscope.measure.loading.trust import Trust, one_line

DEEPEST = 32  # levels of settings
_LONGEST = 200_000_000  # bytes of an index: a million names


class Folder(NamedTuple):
    """The tensors of all shards, the digest of the files read, and what `config.json` says."""

    tensors: dict[str, Tensor]
    sha256: str
    settings: Mapping[str, Any]
    trust: str


def read_folder(path: Path, trust: Trust, *, values: bool = True) -> Folder:
    """Read a folder, or the one around an index file; safetensors before pickles, an index before a single file.

    Raises: LoadError for a shard that is missing, lies elsewhere, or holds other names than the index says.
    """
    folder = path.parent if path.is_file() else path
    index = path if path.is_file() else _index(folder)
    if index is None:
        whole = next(name for name in formats.WHOLE if (folder / name).exists())
        wanted: Mapping[str, list[str]] = {whole: []}
    else:
        wanted = _shards(index)
    tensors: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    levels: list[str] = []
    for name, keys in sorted(wanted.items()):
        content = read_torch_file(inside(folder, name), trust, values=values)
        held = content.value if isinstance(content.value, dict) else {}
        missing = [key for key in keys if not isinstance(held.get(key), Tensor)]
        if missing:
            raise LoadError(
                f"{folder / name} lacks `{missing[0]}`, which the index of {folder} places there. "
                "Expected index and shards of one save. Copy the folder again."
            )
        tensors |= {key: held[key] for key in keys or held if isinstance(held[key], Tensor)}
        digests[name] = content.sha256
        if content.trust not in (NOTHING_RUNS, *levels):
            levels.append(content.trust)
    return Folder(tensors, digest_of(digests), _config(folder), "; ".join(levels) or NOTHING_RUNS)


def digest_of(digests: Mapping[str, str]) -> str:
    """Return the digest of several files from theirs."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def inside(folder: Path, name: object) -> Path:
    """Return a file of a folder by its plain name.

    Raises: LoadError where the name, or a link behind it, leads elsewhere; the cache of the Hugging Face hub keeps
    its files in `blobs` beside its snapshots, which is no elsewhere.
    """
    if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise LoadError(
            f"{folder} names the shard {str(name)[:80]!r}. Expected the plain name of a file in that folder: it may be "
            "an attack. Nothing was read; fetch the folder again from its maker."
        )
    path = folder / name
    if not os.path.isfile(path):  # of a name too long for the system, Path raises
        raise LoadError(f"{folder} lacks the shard `{name}`. Expected all files of the save. Copy the folder again.")
    home, real = folder.resolve(), path.resolve()
    homes = [home] + ([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])
    if real.parent not in homes:
        raise LoadError(
            f"{path} is a link to {real}, outside its folder. Expected a file of the folder itself: it may be an "
            "attack. Nothing was read; put the file there."
        )
    return path


def is_too_deep(value: object, levels: int = DEEPEST) -> bool:
    """Return whether lists and tables lie in each other deeper than settings do; what walks them is recursive."""
    if levels == 0 or not isinstance(value, dict | list):
        return levels == 0
    return any(is_too_deep(one, levels - 1) for one in (value.values() if isinstance(value, dict) else value))


def _index(folder: Path) -> Path | None:
    candidates = [folder / name for name in formats.INDEXES[:1]] + [folder / formats.WHOLE[0]]
    candidates += [*sorted(folder.glob("*.safetensors.index.json")), folder / formats.INDEXES[1]]
    found = next((one for one in candidates if one.exists()), None)
    return found if found is not None and found.name.endswith(".index.json") else None


def _shards(index: Path) -> dict[str, list[str]]:
    shards: dict[str, list[str]] = {}
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise LoadError(f"{index} names no shards. Expected a `weight_map` from tensors to files. Copy it again.")
    for key, name in places.items():
        shards.setdefault(name, []).append(key)
    return shards


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LONGEST:
            raise ValueError("it is too long")
        found = json.loads(path.read_text(encoding="utf-8"))
        if is_too_deep(found):
            raise ValueError("its lists or tables are nested too deep")
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no readable JSON ({one_line(error)}). Expected a table. Copy it again.") from None
    if not isinstance(found, dict):
        raise LoadError(f"{path} holds {type(found).__name__}. Expected a table. Copy it again.")
    return found
