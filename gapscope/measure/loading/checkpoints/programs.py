"""TorchScript and exported programs: their weights alone, which needs no trust, or the whole program, which does."""

import io
import json
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gapscope.measure.loading.checkpoints.pickles import TENSORS, Record, Restricted, load_weights, record_of

# torch.export.schema.ScalarType: part of the format, so never renumbered; others are left to `--trust-file`
_NUMBERED: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}


def run_script(file: BufferedReader) -> nn.Module:
    """Load a TorchScript program: runs its maker's code."""
    module: nn.Module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    return module


def run_exported(file: BufferedReader) -> nn.Module:
    """Load an exported program: runs its maker's code.  It has one mode, that of its export."""
    program: Any = torch.export.load(file)
    module: nn.Module = program.module()
    module.train = types.MethodType(lambda self, *_: self, module)  # type: ignore[method-assign]
    module.eval = types.MethodType(lambda self: self, module)  # type: ignore[method-assign]
    return module


def script_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return the tensors among a TorchScript program's attributes, under dotted names."""
    root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")

    def storage(pid: Any) -> object:
        kind, scalar, key, _, size = pid
        assert kind == "storage"
        raw = _bytes(archive.read(f"{root}data/{key}"))
        if size * scalar.itemsize > len(raw):
            raise ValueError(f"storage {key} has {len(raw)} bytes")
        return torch.storage.TypedStorage(  # type: ignore[no-untyped-call]
            wrap_storage=raw.untyped_storage(), dtype=scalar, _internal=True
        )

    with archive.open(f"{root}data.pkl") as opened:
        module = Restricted(io.BytesIO(opened.read()), _script_name, storage).load()
    return dict(_attributes(module, ""))


def _script_name(name: str) -> object:
    if name.startswith("__torch__."):
        return record_of(name)
    lists: dict[str, Callable[..., object]] = dict.fromkeys(
        (f"torch.jit._pickle.build_{kind}list" for kind in ("int", "tensor", "double", "bool")), lambda data: data
    )
    plain = {
        "collections.OrderedDict": dict,
        "torch.device": lambda *_: None,  # where an attribute says that the program ran
        "torch.jit._pickle.restore_type_tag": lambda value, _: value,
    }
    storages = {f"torch.{kind}Storage": dtype for kind, dtype in _STORAGES.items()}
    return (lists | plain | storages | dict(TENSORS)).get(name)


_STORAGES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
    "Bool": torch.bool,
    "Float8_e4m3fn": torch.float8_e4m3fn,
    "Float8_e5m2": torch.float8_e5m2,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}


def _attributes(value: object, at: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield at, value.detach()
    elif isinstance(value, Record) and isinstance(value.state, Mapping):
        for name, inner in value.state.items():
            yield from _attributes(inner, f"{at}.{name}" if at else str(name))


def exported_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return the weights of an exported program from its table of raw tensors, or from the older file of weights.

    That is data/weights/NAME.pt in torch 2.8, serialized_state_dict.pt before.
    """
    names = archive.namelist()
    table = next((name for name in names if name.endswith("_weights_config.json")), None)
    if table is None:
        files = (name for name in names if "/data/weights/" in name or name.endswith("serialized_state_dict.pt"))
        older = next(name for name in files if name.endswith(".pt"))
        found: dict[str, Tensor] = load_weights(io.BytesIO(archive.read(older)))
        return found
    folder = table.rpartition("/")[0]
    entries: Mapping[str, Any] = json.loads(archive.read(table))["config"]
    return {name: _raw(archive.read(f"{folder}/{entry['path_name']}"), entry) for name, entry in entries.items()}


def _raw(content: bytes, entry: Mapping[str, Any]) -> Tensor:
    if entry["use_pickle"]:
        pickled: Tensor = load_weights(io.BytesIO(content))
        return pickled
    about = entry["tensor_meta"]
    dtype = _NUMBERED[about["dtype"]]
    sizes, strides = ([one["as_int"] for one in about[key]] for key in ("sizes", "strides"))
    numbers = _bytes(content).view(dtype) if content else torch.empty(0, dtype=dtype)
    return numbers.as_strided(sizes, strides, about["storage_offset"]["as_int"])


def _bytes(content: bytes) -> Tensor:
    return torch.from_numpy(np.array(bytearray(content), dtype=np.uint8))
