"""Which names may become code: the user's always, a checkpoint's own only when they are built in or trusted.

A name recorded in a checkpoint is untrusted, and importing its module already runs code.  So the string
is matched first, and the object that it resolves to is matched again: `logging:os.system` is posix:system.
Reading the checkpoint itself never imports: `HARMLESS` lists the few classes it may hold besides tensors.
"""

import argparse
import builtins as python_builtins
import collections
import datetime
import fnmatch
import hashlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import re
import shlex
import sys
import types
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading import stand_ins

FLAGS = {"model": "-m", "data": "-d", "test data": "--test-data", "loss": "--loss"}
_NAME = r"[^\W\d]\w*"
_DOTTED = rf"{_NAME}(\.{_NAME})*"
_PATH = r"(?!.*\.\.)[\w ./-]+"  # `trusted = ["models/*"]` must not admit models/../elsewhere.py
_RECORDED = re.compile(
    rf"(?:{_DOTTED}|{_PATH}\.py):{_DOTTED}"
    rf"|{_PATH}\.(?:npz|npy|pt|pth|safetensors|h5|hdf5|csv|tsv|parquet|arrow)"
)
# what runs commands or reaches any object; a file of weights has no use for them
_DANGEROUS = re.compile(
    r"(os|posix|nt|subprocess|sys|runpy|importlib|shutil|socket|ctypes|pty|code|webbrowser|operator|pickle|functools)\."
    r"|(builtins|__builtin__)\.(eval|exec|compile|__import__|getattr|setattr|open|input|globals|breakpoint|map|apply)$"
)


@dataclass(frozen=True)
class Trust:
    """What the user allows: patterns of trusted names, all of a checkpoint's names, extra classes in its pickle.

    `file`: whatever the file itself does when it is loaded (a full pickle, TorchScript, an exported program).
    """

    trusted: tuple[str, ...] = ()
    embedded: bool = False
    allowed_globals: tuple[str, ...] = ()
    file: bool = False

    def matches(self, name: str) -> bool:
        """Return whether a trusted pattern matches `module:qualname` (or a path)."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.trusted)


def resolve(spec: str, *, cwd_first: bool = True) -> object:
    """Import what the user named as `pkg.mod:attr` or `path/file.py:attr`."""
    place, _, attribute = spec.rpartition(":")  # without a colon, all of it is the attribute
    if not (place and attribute):
        raise LoadError(f"`{spec}` names no object. Expected `pkg.mod:attr` or `path/file.py:attr`.")
    with importable(spec, cwd_first=cwd_first):
        module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise LoadError(f"`{place}` has no `{attribute}`.{did_you_mean(part, dir(found)) or _offer(module)}")
        found = getattr(found, part)
    return found


def resolve_recorded(spec: str, *, kind: str, builtins: Mapping[str, object], trust: Trust) -> object:
    """Import what a checkpoint recorded, if it is built in or trusted before the import, and still is after it."""
    if spec in builtins:
        return builtins[spec]
    check_recorded(spec, kind=kind, trust=trust)
    found = resolve(spec, cwd_first=False)  # an installed package is not shadowed by a file beside the checkpoint
    real = _real_name(found, spec)
    if not (trust.embedded or trust.matches(real)):
        raise LoadError(
            f"The checkpoint records the {kind} `{spec}`, which is really `{real}`, and no trusted pattern "
            "matches that. Expected an object that a trusted module defines. "
            f"{_ways(real, spec, kind)}"
        )
    return found


def check_recorded(spec: str, *, kind: str, trust: Trust) -> None:
    """Refuse a recorded name (or file) that the user does not trust; looks at the string only."""
    named = isinstance(spec, str) and len(spec) <= 300
    if not (named and _RECORDED.fullmatch(unicodedata.normalize("NFC", spec))):  # some systems write ä as two signs
        if "data" in kind:
            raise LoadError(
                f"The checkpoint records the {kind} {str(spec)[:60]!r}, a name that gapscope does not open on a "
                "checkpoint's word alone. Expected a file below this folder. Name it: "
                f"`{FLAGS[kind]} {shlex.quote(spec) if named and spec.isprintable() and spec else 'NAME'}`."
            )
        raise LoadError(
            f"The checkpoint records the {kind} {str(spec)[:60]!r}, which is not of the form `pkg.mod:attr`. "
            f"Nothing was imported. Name the {kind} yourself: `{FLAGS[kind]} NAME`."
        )
    if not (trust.embedded or trust.matches(spec)):
        raise LoadError(
            f"The checkpoint records the {kind} `{spec}`, which is neither built into gapscope nor trusted by you. "
            f"Nothing was imported. {_ways(spec, spec, kind)}"
        )


def _ways(pattern: str, spec: str, kind: str) -> str:
    if is_dangerous(pattern.replace(":", ".")):
        return (
            f"That name can run any command: the file may be an attack. Name the {kind} yourself: `{FLAGS[kind]} NAME`."
        )
    return (
        f"If you know it, name it yourself: `{FLAGS[kind]} {spec}`; "
        f'or trust it from now on: `trusted = ["{pattern}"]` in gapscope.toml; '
        "or trust all that this checkpoint names: `--trust-embedded`."
    )


@contextmanager
def importable(spec: str, *, cwd_first: bool = True) -> Iterator[None]:
    """Make the current folder, and the folder of a named file, importable for a while."""
    place = spec.rpartition(":")[0]
    try:
        folders = [str(Path.cwd())] + ([str(Path(place).resolve().parent)] if place.endswith(".py") else [])
    except ValueError as error:  # a null byte, or half of a letter
        raise LoadError(f"{spec!r} is no name of a file ({error}). Expected `file.py:attr`. Mend it.") from error
    before = list(sys.path)
    sys.path[:] = folders[::-1] + before if cwd_first else before + folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        added = [path for path in sys.path if path not in before and path not in folders]
        sys.path[:] = added + before


def one_line(error: BaseException) -> str:
    """Return `Kind: message` on one line of moderate length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def _import(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if name == error.name or name.startswith(f"{error.name}."):
            siblings = [module.name for module in pkgutil.iter_modules([str(Path.cwd())])]
            raise LoadError(
                f"There is no module `{name}` here or among the installed packages."
                f"{did_you_mean(name, siblings)} Run from its folder, install it, or give `path/file.py:attr`."
            ) from None
        raise LoadError(f"Importing `{name}` raised {one_line(error)}. Fix that import first.") from error
    except (Exception, SystemExit) as error:
        raise LoadError(f"Importing `{name}` raised {one_line(error)}. Fix that import first.") from error


def _load_file(path: Path) -> types.ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        beside = [str(other) for other in path.parent.glob("*.py")] if os.path.isdir(path.parent) else []
        raise LoadError(
            f"Cannot read `{path}`: {error.strerror}.{did_you_mean(str(path), beside)} Expected `path/file.py:attr`."
        ) from None
    # named after its content too: an edited file is a new module, an unedited one keeps its classes
    package = "gapscope_file_" + hashlib.sha256(str(path.resolve()).encode() + b"\0" + source).hexdigest()[:16]
    folder, inside = path.resolve().parent, [path.stem.replace(".", "_")]
    while (folder / "__init__.py").is_file():
        folder, inside = folder.parent, [folder.name, *inside]
    names = [".".join([package, *inside[:i]]) for i in range(len(inside) + 1)]
    name, known = names[-1], set(sys.modules)
    if name in known:
        return sys.modules[name]
    root, module = types.ModuleType(package), types.ModuleType(name)
    root.__path__ = [str(folder)]  # for `from . import sibling`; of a package, its outermost folder, for `from ..`
    module.__file__, module.__package__ = str(path.resolve()), names[-2]
    sys.modules[package] = root
    try:
        sys.modules[name] = module  # dataclasses and pickling look their module up
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        for left in sys.modules.keys() - known:
            if left == package or left.startswith(f"{package}."):
                del sys.modules[left]
        raise LoadError(f"Importing `{path}` raised {one_line(error)}. Fix that file first.") from error
    return module


def _offer(module: types.ModuleType) -> str:
    own = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("__")
    ]
    return f" It defines {', '.join(own[:8])}." if own else " It defines no function or class."


def _real_name(found: object, spec: str) -> str:
    """Return where an object was defined; an instance (a partial, say) counts as its class."""
    named = found if isinstance(getattr(found, "__qualname__", None), str) else type(found)
    module, qualname = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    place = spec.rpartition(":")[0]
    if place.endswith(".py") and module == _load_file(Path(place)).__name__:
        module = place
    return f"{module}:{qualname}"


def is_dangerous(name: str) -> bool:
    """Return whether a global named in a pickle has no business beside weights."""
    return bool(_DANGEROUS.match(name))


def safe_globals(trust: Trust) -> list[Any]:
    """Return the (class, name) pairs that `torch.load(weights_only=True)` may meet besides tensors."""
    known = {name for _, name in HARMLESS}  # these stay what they are
    return HARMLESS + [(_resolve_global(name), name) for name in trust.allowed_globals if name not in known]


def _resolve_global(name: str) -> object:
    if is_dangerous(name):
        raise LoadError(f"`--allow-global {name}` would let the file run any code. Weights need no such name.")
    if name.startswith("__main__."):
        raise LoadError(
            f"`--allow-global {name}` was defined by the script that saved the file and cannot be imported. "
            "Save the weights alone where it was made."
        )
    module, dot, attribute = name.rpartition(".")
    while dot:
        if module in sys.modules or _is_importable(module):
            return resolve(f"{module}:{attribute}")
        module, dot, rest = module.rpartition(".")
        attribute = f"{rest}.{attribute}"
    if hasattr(python_builtins, name):
        return getattr(python_builtins, name)
    raise LoadError(f"`--allow-global {name}` names nothing importable. Expected `package.module.Class`.")


def _is_importable(module: str) -> bool:
    try:
        with importable(f"{module}:"):
            return importlib.util.find_spec(module) is not None
    except (Exception, SystemExit):  # of the package above it, which is imported on the way, and said when it is
        return False


def _plain_dict(*_: object) -> dict[object, object]:
    """Return a dictionary to fill in the place of a defaultdict, which torch's reader of weights does not fill."""
    return {}


def _no_bytes() -> bytes:
    """Return what protocol 2 calls the class for."""
    return b""


def _harmless() -> list[tuple[object, str]]:
    pairs: list[tuple[object, str]] = [
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (_plain_dict, "collections.defaultdict"),
        (collections.OrderedDict, "collections.OrderedDict"),
        *((getattr(python_builtins, name), f"builtins.{name}") for name in ("list", "dict", "set", "int", "float")),
        (_no_bytes, "builtins.bytes"),
        *(
            (getattr(datetime, name), f"datetime.{name}")
            for name in ("datetime", "date", "time", "timedelta", "timezone")
        ),
        *((stand_ins.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
        *((stand_ins.reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        (stand_ins.Array, "numpy.ndarray"),
        (stand_ins.Dtype, "numpy.dtype"),
    ]
    # a Windows path cannot be built on Linux, its pure form can; Python 3.13 pickles them from pathlib._local
    for module in ("pathlib", "pathlib._local"):
        for name, kind in (("Posix", pathlib.PurePosixPath), ("Windows", pathlib.PureWindowsPath)):
            pairs += [(kind, f"{module}.{name}Path"), (kind, f"{module}.Pure{name}Path")]
    return pairs


HARMLESS: list[tuple[object, str]] = _harmless()


# annotations may name what is imported for type checkers alone, and Python 3.14 looks them up when they are asked for
_AS_THEY_STAND: dict[str, Any] = {}
if sys.version_info >= (3, 14):
    import annotationlib

    _AS_THEY_STAND["annotation_format"] = annotationlib.Format.FORWARDREF


def signature(function: object) -> inspect.Signature | None:
    """Return a callable's signature, or None where Python knows none."""
    try:
        return inspect.signature(function, **_AS_THEY_STAND) if callable(function) else None
    except (TypeError, ValueError):
        return None
