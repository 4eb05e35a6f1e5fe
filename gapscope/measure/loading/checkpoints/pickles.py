"""Read pickles of tensors and plain values without calling anything that they name, and list what they name.

An unpickler that admits listed names only, and gives each reading stand-ins of its own: a pickle can set attributes on
whatever it is given, and must not change the classes that this process goes on using.
"""

import io
import pickle
import pickletools
import warnings
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading import stand_ins
from gapscope.measure.loading.checkpoints.archives import check_archive
from gapscope.measure.loading.trust import HARMLESS, Trust, one_line, safe_globals

PLAIN = frozenset(  # what pickled tensors name, of whatever age, besides what is harmless
    {
        *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "parameter")),
        *(
            "torch._utils._rebuild_parameter_with_state",
            "torch._utils._rebuild_sparse_tensor",
            "torch.serialization._get_layout",
        ),
        *("torch.storage._load_from_bytes", "torch.Size", "_codecs.encode", "torch.device"),
        *("torch._tensor._rebuild_from_type_v2", "torch.Tensor", "torch.nn.parameter.Parameter"),
        *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    }
)
_HEAP_TYPE = 1 << 9  # of a class whose attributes can be set


class Record:
    """An object of a pickle, kept as what it was made of; nothing of its class is imported."""

    name = ""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: Any = {}

    def __new__(cls, *_: object) -> "Record":
        made = super().__new__(cls)
        made.arguments, made.state = (), {}
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __getitem__(self, field: str) -> Any:
        return self.state[field]


class NotAdmittedError(Exception):
    """A pickle names what is not on the list."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Bounded(pickle._Unpickler):
    """The unpickler in Python: the one in C allocates what lengths and places in the file promise before it reads."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[object], None]

    def load_bytearray8(self) -> None:
        """Read an array of bytes; the inherited method, too, would allocate it first."""
        size = int.from_bytes(self.read(8), "little")
        content = self.read(size)
        if len(content) < size:
            raise pickle.UnpicklingError(f"{size:,} bytes are declared where {len(content):,} are left")
        self.append(bytearray(content))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class Restricted(Bounded):
    """An unpickler for which `admit` turns names into objects, or returns None."""

    def __init__(
        self,
        file: IO[bytes],
        admit: Callable[[str], object],
        storages: Callable[[Any], object] | None = None,
    ) -> None:
        super().__init__(file)
        self._admit, self._storages = admit, storages

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name."""
        found = self._admit(f"{module}.{name}")
        if found is None:
            raise NotAdmittedError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Return a storage that lies outside the pickle."""
        if self._storages is None:
            raise pickle.UnpicklingError("it refers to data outside itself")
        return self._storages(pid)


def record_of(name: str) -> type[Record]:
    """Return a class of records for one name, made anew."""
    return type("Record", (Record,), {"name": name})


def dtype_of(name: str) -> torch.dtype | None:
    """Return `torch.float32` and the like."""
    module, _, attribute = name.partition(".")
    found = getattr(torch, attribute, None) if module == "torch" else None
    return found if isinstance(found, torch.dtype) else None


def load_plain(file: IO[bytes], trust: Trust) -> object:
    """Read a pickle made by `pickle.dump`: tensors, arrays and plain values.

    Raises: NotAdmittedError for any other name; what unpickling raises for a damaged file.
    """
    known: dict[str, object] = {name: _stand_in(thing) for thing, name in HARMLESS}
    known |= {name: thing for thing, name in safe_globals(trust)[len(HARMLESS) :]}
    known |= {
        **TENSORS,
        "torch.storage._load_from_bytes": lambda content: load_weights(io.BytesIO(content)),
        "_codecs.encode": lambda *a: a[0].encode(*a[1:]),
    }
    known |= {f"numpy.{core}.numeric._frombuffer": _stand_in(stand_ins.frombuffer) for core in ("core", "_core")}
    known |= {name.replace("builtins.", "__builtin__."): known[name] for _, name in HARMLESS}  # as Python 2 called it
    return Restricted(file, lambda name: known.get(name) or dtype_of(name)).load()


TENSORS: Mapping[str, object] = {
    "torch._utils._rebuild_tensor_v2": lambda *a: torch._utils._rebuild_tensor_v2(*a),  # type: ignore[no-untyped-call]
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda sizes: torch.Size(sizes),
}


def _stand_in(thing: object) -> object:
    if isinstance(thing, type):
        return type(thing.__name__, (thing,), {}) if thing.__flags__ & _HEAP_TYPE else thing
    function: Any = thing
    return lambda *arguments: function(*arguments)


def load_weights(file: IO[bytes] | str, **options: Any) -> Any:
    """Read tensors and plain values with torch's own reader of weights.

    It leaves the indices of sparse tensors unchecked unless asked, and their values could be written anywhere.

    Raises: LoadError for an archive inside another file that declares far more than it holds; what reading raises.
    """
    if isinstance(file, io.BytesIO) and bytes(file.getbuffer()[:4]) == b"PK\3\4":
        check_archive(file, "holds an archive that")
    with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():  # type: ignore[no-untyped-call]  # torch's
        warnings.filterwarnings("ignore", "Validating sparse tensor invariants")  # torch 2.15 says so; it is wanted
        return torch.load(file, map_location="cpu", weights_only=True, **options)


def dense(tensor: Tensor) -> Tensor:
    """Return a tensor with its zeros written out.

    Where its numbers lie is checked again: a pickle can give a tensor other content behind its reader's back.

    Raises: LoadError for numbers that lie outside of its shape, and for a tensor without any.
    """
    if tensor.is_meta:
        raise LoadError(
            f"A tensor of the shape {tuple(tensor.shape)} was saved from the meta device, without its numbers. "
            "Expected numbers. Save it where they were loaded."
        )
    try:
        if tensor.layout == torch.strided:
            return tensor
        if tensor.layout == torch.sparse_coo:
            found = torch.sparse_coo_tensor(tensor._indices(), tensor._values(), tensor.shape, check_invariants=True)
            return found.to_dense()
        by_row = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
        places = (
            (tensor.crow_indices(), tensor.col_indices()) if by_row else (tensor.ccol_indices(), tensor.row_indices())
        )
        return torch.sparse_compressed_tensor(
            *places, tensor.values(), tensor.shape, layout=tensor.layout, check_invariants=True
        ).to_dense()
    except RuntimeError as error:
        raise LoadError(
            f"A sparse tensor of the shape {tuple(tensor.shape)} is damaged ({one_line(error)}). Expected its numbers "
            "inside of it. Save it again."
        ) from None


def names_in(file: IO[bytes]) -> set[str]:
    """Return the globals that the next pickle of a file names, `?` for a part that is not written out; runs nothing."""
    names: set[str] = set()
    memo: dict[int, object] = {}
    pushed: list[object] = [None, None]
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(part if isinstance(part, str) else "?" for part in pushed[-2:]))
        if opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
        elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument or 0)] = pushed[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            pushed.append(memo.get(int(argument or 0)))
        elif opcode.stack_after:
            pushed.append(argument)
    return names
