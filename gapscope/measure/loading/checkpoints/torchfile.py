"""Read one file of weights without running anything that it names, or, where the user trusts it, with what it runs."""

import hashlib
import io
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import formats, programs
from gapscope.measure.loading.checkpoints.archives import check_archive
from gapscope.measure.loading.checkpoints.formats import Format, sniff
from gapscope.measure.loading.checkpoints.pickles import PLAIN, NotAdmittedError, load_plain, load_weights, names_in
from gapscope.measure.loading.trust import HARMLESS, Trust, importable, is_dangerous, one_line, safe_globals

NOTHING_RUNS = "nothing from the file runs"
WHOLE_FILE = "the whole file was trusted"
_SAVE_WEIGHTS = 'Save its weights where it was made: `torch.save(model.state_dict(), "weights.pt")`.'


class Content(NamedTuple):
    """What a file held, the digest of its bytes, its format, and what had to be trusted to read it."""

    value: object
    sha256: str
    format: Format = formats.TORCH
    trust: str = NOTHING_RUNS


def read_torch_file(path: Path, trust: Trust, *, values: bool = True) -> Content:
    """Load tensors and plain values from a file; digest and content come from the same open file.

    Without `values` the tensors are there to be looked at: of safetensors on the meta device, of archives mapped.
    """
    found = sniff(path)
    if found.instead:
        raise refusal(path, found)
    if found not in _READERS:
        raise LoadError(f"{path} is a folder ({found.name}). Expected a file: name one that is in it.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        if found in _ARCHIVES:
            check_archive(file, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickle protocol, TypedStorage: nothing a user can act on
            value, found, level = _READERS[found](_Source(file, path, found, trust, values))
    return Content(value, digest, found, level)


def refusal(path: Path, found: Format) -> LoadError:
    """Return the error for a format that cannot be read: what it is, and what to do."""
    article = "an" if found.name.startswith(("O", "HDF5")) else "a"
    return LoadError(f"{path} is {article} {found.name}. {found.instead}")


class _Source(NamedTuple):
    file: BufferedReader
    path: Path
    format: Format
    trust: Trust
    values: bool


_Read = tuple[object, Format, str]


def _safetensors(source: _Source) -> _Read:
    path = source.path
    try:
        if source.values:
            return safetensors.torch.load(source.file.read()), source.format, NOTHING_RUNS
        with safetensors.safe_open(path, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
            return {name: _meta(one) for name, one in slices.items()}, source.format, NOTHING_RUNS
    except Exception as error:  # a damaged header can raise anything
        raise LoadError(f"{path} is damaged or truncated ({one_line(error)}). Copy or save it again.") from None


def _meta(one: Any) -> Tensor:
    return torch.empty(one.get_shape(), dtype=_SAFETENSORS_DTYPES[one.get_dtype()], device="meta")


_SAFETENSORS_DTYPES: Mapping[str, Any] = safetensors.torch._TYPES


def _torch(source: _Source) -> _Read:
    file, path, trust = source.file, source.path, source.trust
    with torch.serialization.safe_globals(safe_globals(trust)):
        try:
            # mapped by name, not by file: pages that nobody looks at are never read
            place = file if source.values or source.format is formats.LEGACY else str(path)
            value = load_weights(place, mmap=place is not file)
        except Exception as error:  # a damaged pickle can raise anything
            offenders = _unsafe_globals(file, error)
            if not offenders and not isinstance(error, LoadError):
                raise LoadError(
                    f"{path} is damaged or truncated (torch: {_first_sentence(error)}). Copy or save it again."
                ) from None
            if trust.file:
                file.seek(0)
                return _trusted(source, lambda: torch.load(file, map_location="cpu", weights_only=False))
            raise (unsafe_error(path, offenders) if offenders else LoadError(f"{path} {error}")) from None
    return value, source.format, _level(source)


def _pickle(source: _Source) -> _Read:
    file, path, trust = source.file, source.path, source.trust
    try:
        return load_plain(file, trust), source.format, _level(source)
    except (NotAdmittedError, LoadError) as refused:
        if trust.file:
            import pickle

            file.seek(0)
            return _trusted(source, lambda: pickle.load(file))
        if isinstance(refused, LoadError):
            raise LoadError(f"{path} {refused}") from None
        file.seek(0)
        names = {refused.name}
        with suppress(Exception):  # the first is known; others only where the rest of the pickle is whole
            names |= names_in(file) - {name for _, name in HARMLESS} - PLAIN
        raise unsafe_error(path, sorted(names)) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise LoadError(f"{path} is a damaged pickle ({one_line(error)}). Copy or save it again.") from None


def _npz(source: _Source) -> _Read:
    try:
        with np.load(source.file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}, source.format, NOTHING_RUNS
    except Exception as error:  # a damaged or locked archive can raise anything
        raise LoadError(
            f"{source.path} holds arrays that cannot be read ({one_line(error)}). Nothing in it was run. "
            "Expected numbers: `np.savez(path, **{name: tensor.numpy() for name, tensor in state_dict.items()})`."
        ) from None


def _exported(source: _Source) -> _Read:
    """Return the module of an exported program where the file is trusted, else its weights alone."""
    if source.trust.file:
        return _trusted(source, lambda: programs.run_exported(source.file))
    try:
        return _read_archive(source, programs.exported_weights)
    except Exception as error:  # a layout of another version can raise anything
        raise _program_error(source, error) from None


def _script(source: _Source) -> _Read:
    """Return the weights of a TorchScript program alone; the program runs only where they cannot be had otherwise."""
    try:
        return _read_archive(source, programs.script_weights)
    except Exception as error:  # a layout of another version can raise anything
        if source.trust.file:
            source.file.seek(0)
            return _trusted(source, lambda: programs.run_script(source.file))
        raise _program_error(source, error) from None


def _read_archive(source: _Source, read: Callable[[zipfile.ZipFile], dict[str, Tensor]]) -> _Read:
    with zipfile.ZipFile(source.file) as archive:
        return read(archive), source.format, NOTHING_RUNS


def _program_error(source: _Source, error: Exception) -> LoadError:
    return LoadError(
        f"{source.path} is a program ({source.format.name}) whose weights cannot be read without running it "
        f"({one_line(error)}).\n"
        "  Running it runs its maker's code, so nothing was loaded. If you trust its maker: `--trust-file`.\n"
        f"  {_SAVE_WEIGHTS}"
    )


def _trusted(source: _Source, load: Callable[[], object]) -> _Read:
    """Run what the file runs: the user said so."""
    try:
        with importable(":"):
            value = load()
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"{source.path} was trusted, and loading it raised {one_line(error)}. Run from the folder of its classes, "
            f"or with the versions that wrote it. {_SAVE_WEIGHTS}"
        ) from error
    module = isinstance(value, torch.nn.Module) and source.format not in (formats.TORCHSCRIPT, formats.EXPORTED)
    return value, formats.MODULE if module else source.format, WHOLE_FILE


_Reader = Callable[[_Source], _Read]
_READERS: Mapping[Format, _Reader] = {
    formats.SAFETENSORS: _safetensors,
    formats.TORCH: _torch,
    formats.LEGACY: _torch,
    formats.PICKLE: _pickle,
    formats.NPZ: _npz,
    formats.TORCHSCRIPT: _script,
    formats.EXPORTED: _exported,
}
_ARCHIVES = (formats.TORCH, formats.NPZ, formats.TORCHSCRIPT, formats.EXPORTED)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pickled_names(path: Path, found: Format) -> set[str]:
    """Return the globals that the pickles of a file name, without running any."""
    names: set[str] = set()
    with path.open("rb") as file, suppress(Exception):  # what a damaged pickle still says is worth saying
        if found in _ARCHIVES:
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        names |= names_in(io.BytesIO(archive.read(name)))
        else:
            for _ in range(5 if found is formats.LEGACY else 1):  # magic, version, system, object, names of storages
                names |= names_in(file)
    return names


def _level(source: _Source) -> str:
    """Return which of the user's allowed classes the file needed."""
    allowed = source.trust.allowed_globals
    used = sorted(set(allowed) & pickled_names(source.path, source.format)) if allowed else []
    return f"allowed globals: {', '.join(used)}" if used else NOTHING_RUNS


def _unsafe_globals(file: BufferedReader, error: Exception) -> list[str]:
    file.seek(0)
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # a legacy file, or a damaged one: torch's message names the first
        found = re.findall(r"(?:GLOBAL|function|class|type) `?'?([\w.]+)`?'? was not an allowed", str(error))
    return sorted(set(found))


def unsafe_error(path: Path, names: list[str]) -> LoadError:
    """Return the error for a pickle that names what is not admitted: what would run, and the safer ways."""
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
            f"  Loading it could run code, so nothing was loaded. {_SAVE_WEIGHTS}\n"
            "  You trust its maker?    --trust-file"
        )
    flags = " ".join(f"--allow-global {shlex.quote(name)}" for name in names)
    importable_names = not any(name.startswith("__main__.") for name in names)
    return LoadError(
        f"{path} holds objects that are not plain tensors: {shown}\n"
        "  Loading them could run code, so nothing was loaded.\n"
        + (f"  You made this file?     {flags}\n" if importable_names else "")
        + '  Keep only the weights:  `torch.save(model.state_dict(), "weights.pt")` where it was made'
    )


def _first_sentence(error: Exception) -> str:
    return re.split(r"(?<=[.:]) |\n", one_line(error))[0][:120].rstrip(".:")
