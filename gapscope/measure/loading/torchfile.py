"""Read a `.pt` or `.safetensors` file without running anything that it names."""

import hashlib
import json
import re
import struct
import warnings
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.trust import Trust, is_dangerous, one_line, safe_globals

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_SIGNATURES = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file. If it is a gapscope report: `gapscope show {path}`",
    b"\x93NUMPY": "a NumPy array. Give data with `-d`",
    b"\x1f\x8b": "gzip-compressed. Unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself. Fetch it: `git lfs pull`",
    b"GGUF": "a GGUF file, whose weights are quantized. Give the PyTorch or safetensors original",
    b"<": "a web page or XML: the download probably failed. Fetch it again",
    b"\x80": "a plain pickle, not made by `torch.save`, and loading it could run code. Save the state_dict again",
}


class Content(NamedTuple):
    """What a file held, and the digest of its bytes."""

    value: object
    sha256: str


def read_torch_file(path: Path, trust: Trust) -> Content:
    """Load tensors and plain values from a file; digest and content come from the same open file."""
    with _open(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        head = file.read(64)
        file.seek(0)
        if _is_safetensors(head):
            return Content(_load_safetensors(file, path), digest)
        if not head.startswith((b"PK", _LEGACY)):
            raise LoadError(f"{path} is {_identify(head, path)}. Expected a file made by `torch.save` or safetensors.")
        return Content(_load_torch(file, path, trust), digest)


def _open(path: Path) -> BufferedReader:
    if path.is_dir():
        if (path / ".metadata").exists():
            raise LoadError(
                f"{path} is a distributed-checkpoint folder. Expected one file. Convert it where it was made: "
                "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch IN OUT.pt`."
            )
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".safetensors"))
        raise LoadError(f"{path} is a folder. Expected a file" + (f", such as {path / inside[0]}." if inside else "."))
    try:
        file = path.open("rb")
    except FileNotFoundError:
        beside = [str(p) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise LoadError(
            f"{path} does not exist.{did_you_mean(str(path), beside)} Expected a checkpoint file."
        ) from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}. Expected a readable file.") from None
    if path.stat().st_size == 0:
        file.close()
        raise LoadError(f"{path} is empty (0 bytes). The save or the copy probably failed; make it again.")
    return file


def _identify(head: bytes, path: Path) -> str:
    for magic, meaning in _SIGNATURES.items():
        if head.startswith(magic):
            return meaning.format(path=path)
    return f"not a checkpoint (it starts with {head[:16]!r})"


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 100_000_000


def _load_safetensors(file: BufferedReader, path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(file.read())
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, ValueError) as error:
        raise LoadError(f"{path} is damaged or truncated ({one_line(error)}). Copy or save it again.") from None


def _load_torch(file: BufferedReader, path: Path, trust: Trust) -> object:
    if file.read(2) == b"PK":
        _check_archive(file, path)
    with torch.serialization.safe_globals(safe_globals(trust)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickle protocol, TypedStorage: nothing a user can act on
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can raise anything
            offenders = _unsafe_globals(file, error)
            if offenders:
                raise _unsafe_error(path, offenders) from None
            raise LoadError(
                f"{path} is damaged or truncated (torch: {_first_sentence(error)}). Copy or save it again."
            ) from None


def _check_archive(file: BufferedReader, path: Path) -> None:
    file.seek(0)
    try:
        names = zipfile.ZipFile(file).namelist()
    except zipfile.BadZipFile:
        raise LoadError(f"{path} is truncated: the end of its archive is missing. Copy or save it again.") from None
    if any(name.endswith("constants.pkl") for name in names) or any("/models/" in name for name in names):
        raise LoadError(f"{path} is an exported program (TorchScript or .pt2), which runs code. {_SAVE_WEIGHTS}")
    if not any(name.endswith("data.pkl") for name in names):
        kind = "NumPy data. Give it with `-d`" if all(n.endswith(".npy") for n in names) else "a zip of something else"
        raise LoadError(f"{path} is {kind}. Expected a file made by `torch.save`.")


def _unsafe_globals(file: BufferedReader, error: Exception) -> list[str]:
    file.seek(0)
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # a legacy file, or a damaged one: torch's message names the first
        found = re.findall(r"(?:GLOBAL|function|class|type) `?'?([\w.]+)`?'? was not an allowed", str(error))
    return sorted(set(found))


_SAVE_WEIGHTS = 'Save its weights where it was made: `torch.save(model.state_dict(), "weights.pt")`.'


def _unsafe_error(path: Path, names: list[str]) -> LoadError:
    dangerous = [name for name in names if is_dangerous(name)]
    if dangerous:
        return LoadError(
            f"{path} would run {', '.join(dangerous[:5])} when loaded, which weights never need: it may be an attack.\n"
            "  Nothing was loaded. Ask its maker for a plain state_dict or a .safetensors file."
        )
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if any(name.startswith(("torch.nn.", "torch.fx.")) for name in names):
        return LoadError(
            f"{path} is a whole pickled model ({shown}), not weights.\n"
            f"  Loading it could run code, so nothing was loaded. {_SAVE_WEIGHTS}"
        )
    flags = " ".join(f"--allow-global {name}" for name in names)
    importable = not any(name.startswith("__main__.") for name in names)
    return LoadError(
        f"{path} holds objects that are not plain tensors: {shown}\n"
        "  Loading them could run code, so nothing was loaded.\n"
        + (f"  You made this file?     {flags}\n" if importable else "")
        + '  Keep only the weights:  `torch.save(model.state_dict(), "weights.pt")` where it was made'
    )


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=[.:]) |\n", one_line(error))[0][:120].rstrip(".:")
