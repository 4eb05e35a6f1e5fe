"""Targets that read foreign checkpoints and data files: damage one, look at it, load it, build what it records."""

import contextlib
import io
import json
import pickle
import pickletools
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from gapscope.cli.inspect import _document, _exported
from gapscope.errors import LoadError
from gapscope.measure.loading import Reading, Request, Trust, load, load_data, save_checkpoint
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.checkpoints.inspection import inspect
from gapscope.measure.loading.networks import NETWORKS
from gapscope.report.export import dumps
from gapscope.report.terminal import text
from tests.hardening.mutations import HOSTILE, SONG, changed_archive, changed_pickle, changed_table, damaged

Attempt = Callable[[Random], Any]
WORDS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"PK\x01\x02",
    b"\x93NUMPY",
    b"'<f4'",
    b"'|O'",
    b"(9999999999,)",
    b"data.pkl",
    SONG,
)
SETTINGS = {"epochs": 3, "lr": 0.1, "batch_size": 32, "note": "text"}


def network() -> nn.Module:
    """Return the smallest network that takes the digits."""
    torch.manual_seed(0)
    return NETWORKS["mlp"](hidden=[3])


def looked_at(path: Path) -> list[str]:
    """Read a file in every way that asks for no trust, and return what was printed of it."""
    found = inspect(path)
    said = [text(_document(found)), dumps(_exported(found))]
    read_checkpoint(path, Trust())
    if path.suffix == ".own":  # a model of its own record
        load(Request(checkpoint=path))
    else:
        load(Request(checkpoint=path, model="mlp", model_args={"hidden": [3]}, data="teacher:samples=8"))
    return said


def torch_zip(folder: Path) -> Attempt:
    """What `save_checkpoint` writes, and its pickle rewritten inside the archive."""
    net = network()
    about = {"factory": "mlp", "model_args": {"hidden": [3]}, "data": "digits", "training": SETTINGS}
    save_checkpoint(folder / "own.pt", net, initial=net.state_dict(), **about)
    torch.save({"state_dict": net.state_dict(), "epoch": 3, "args": SETTINGS}, folder / "plain.pt")
    seeds = tuple((folder / name).read_bytes() for name in ("own.pt", "plain.pt"))

    def attempt(rng: Random) -> list[str]:
        data = rng.choice(seeds)
        if rng.random() < 0.3:
            data = _hostile_checkpoint(net, rng)
        elif rng.random() < 0.6:
            data = changed_archive(
                data, rng, lambda n, c, r: changed_pickle(c, r) if n.endswith(".pkl") else damaged(c, r)
            )
        else:
            data = damaged(data, rng, seeds, WORDS)
        return _written(folder / "a.own", data)

    return attempt


def _hostile_checkpoint(net: nn.Module, rng: Random) -> bytes:
    """A whole file whose tensors and records are odd: other sizes, types, strides, layouts and values."""
    state = dict(net.state_dict())
    key = rng.choice(list(state))
    state[key] = rng.choice(_ODD_TENSORS)(state[key])
    if rng.random() < 0.3:
        state[rng.choice(HOSTILE)] = state.pop(key)
    about = {
        "format_version": 1,
        "factory": "mlp",
        "model_args": {"hidden": [3]},
        "data": "digits",
        "training": SETTINGS,
    }
    about = changed_table(about, rng) if rng.random() < 0.5 else about
    content: Any = {"gapscope": about, "model": state}
    if rng.random() < 0.3:
        content = changed_settings(content, rng)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.save(content, stream)
        except RecursionError:  # pickle itself goes no deeper
            torch.save({"model": state}, stream := io.BytesIO())
    return stream.getvalue()


def changed_settings(content: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return a checkpoint with odd things beside its weights."""
    beside = changed_table(
        {"args": SETTINGS, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}, rng
    )
    return {**content, **(beside if isinstance(beside, dict) else {"args": beside})}


_ODD_TENSORS: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.to(torch.complex64),
    lambda t: t.bool(),
    lambda t: t.long(),
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: t[:0],
    lambda t: t.reshape(-1),
    lambda t: t[None, None],
    lambda t: t.flatten()[0],
    lambda t: t.expand(7, *t.shape),
    lambda t: torch.zeros(1).expand(2**40),
    lambda t: torch.zeros(1).expand(2**20, 2**20),
    lambda t: t * torch.nan,
    lambda t: t * torch.inf,
    lambda t: t * 1e-42,
    lambda t: torch.as_strided(t.clone(), t.shape, [0] * t.ndim),
    lambda t: t.numpy(),
    lambda t: [t, t],
    lambda t: {"w": t},
    lambda t: "text",
    lambda t: None,
    lambda t: torch.nested.nested_tensor([t.flatten()]),
    lambda t: t.conj().to(torch.complex64).conj(),
    lambda t: torch._neg_view(t),
)


def torch_legacy(folder: Path) -> Attempt:
    """The format of before torch 1.6: four pickles and raw storages."""
    net, stream = network(), io.BytesIO()
    torch.save({"model": net.state_dict(), "args": SETTINGS}, stream, _use_new_zipfile_serialization=False)
    data = stream.getvalue()
    cuts = [0]
    for _ in range(4):
        unread = io.BytesIO(data[cuts[-1] :])
        for _operation in pickletools.genops(unread):
            pass
        cuts.append(cuts[-1] + unread.tell())

    def attempt(rng: Random) -> list[str]:
        if rng.random() < 0.6:
            at = rng.randrange(1, 4)
            parts = [data[a:b] for a, b in zip(cuts, [*cuts[1:], len(data)], strict=True)]
            parts[at] = changed_pickle(parts[at], rng)
            return _written(folder / "a.pt", b"".join(parts))
        return _written(folder / "a.pt", damaged(data, rng, (data,), WORDS))

    return attempt


def plain_pickle(folder: Path) -> Attempt:
    """What `pickle.dump` writes of tensors and arrays."""
    state = network().state_dict()
    seeds = tuple(
        pickle.dumps(content, protocol)
        for content in ({k: v.numpy() for k, v in state.items()}, {"model": dict(state), "args": SETTINGS})
        for protocol in (2, 4, 5)
    )

    def attempt(rng: Random) -> list[str]:
        data = rng.choice(seeds)
        changed = changed_pickle(data, rng) if rng.random() < 0.7 else damaged(data, rng, seeds, WORDS)
        return _written(folder / "a.pkl", changed)

    return attempt


def safe_tensors(folder: Path) -> Attempt:
    """Safetensors: its bytes, and its header rewritten under a right length."""
    data = safetensors.torch.save(network().state_dict(), metadata={"format": "pt"})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])

    def attempt(rng: Random) -> list[str]:
        if rng.random() < 0.6:
            head = json.dumps(changed_table(header, rng)).encode()
            return _written(folder / "a.safetensors", len(head).to_bytes(8, "little") + head + data[8 + size :])
        return _written(folder / "a.safetensors", damaged(data, rng, (data,), (b'"F64"', b'"BOOL"', b"[[[[", b"{}")))

    return attempt


def numpy_archive(folder: Path) -> Attempt:
    """Weights or data of `np.savez`: bytes, and headers of arrays rewritten inside the archive."""
    seeds = []
    state = {k: v.numpy() for k, v in network().state_dict().items()}
    for arrays in (state, {"x": np.ones((9, 4), np.float32), "y": np.arange(9) % 3}):
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        seeds.append(stream.getvalue())

    def attempt(rng: Random) -> list[str]:
        data = rng.choice(seeds)
        if rng.random() < 0.6:
            return _both(folder / "a.npz", changed_archive(data, rng, _changed_array))
        return _both(folder / "a.npz", damaged(data, rng, tuple(seeds), WORDS))

    return attempt


def _changed_array(_name: str, content: bytes, rng: Random) -> bytes:
    """Rewrite the header of a .npy: another type, order or shape before the same numbers."""
    if rng.random() < 0.3:
        return damaged(content, rng, (content,), WORDS)
    descr = rng.choice(
        ("<f4", ">f8", "|O", "|b1", "<U5", "|S3", "<M8[s]", "<c16", "|V7", "<f2", "<u8", [("a", "<f4")], "x")
    )
    shape = rng.choice(
        ("(9, 4)", "()", "(2**40,)", "(-1, 4)", "(0, 0)", "(1,) * 40", "(9.5,)", "(1099511627776, 4096)", "((9,),)")
    )
    head = f"{{'descr': {descr!r}, 'fortran_order': {rng.choice((True, False, 7))}, 'shape': {shape}, }}"
    head += " " * rng.choice((0, 16, 60_000)) + "\n"
    return (
        b"\x93NUMPY"
        + bytes([rng.choice((1, 1, 2, 3, 9)), 0])
        + struct.pack("<H", len(head) % 65536)
        + head.encode()
        + content[128:]
    )


def distributed_folder(folder: Path) -> Attempt:
    """A folder of torch.distributed.checkpoint: its `.metadata` and its pieces."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": network().state_dict()}, checkpoint_id=folder / "whole", no_dist=True)
    files = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
    metadata = files[".metadata"]

    def attempt(rng: Random) -> list[str]:
        made = dict(files)
        name = ".metadata" if rng.random() < 0.75 else rng.choice(list(files))
        made[name] = (
            changed_pickle(metadata, rng) if name == ".metadata" and rng.random() < 0.75 else damaged(files[name], rng)
        )
        if rng.random() < 0.05:
            made.pop(rng.choice(list(made)))
        return _in_folder(folder / "a", made)

    return attempt


def hub_folder(folder: Path) -> Attempt:
    """A folder of sharded safetensors with an index and a config."""
    state = network().state_dict()
    shards = {f"model-{i}.safetensors": safetensors.torch.save({k: v}) for i, (k, v) in enumerate(state.items())}
    index = {"metadata": {"total_size": 9}, "weight_map": dict(zip(state, shards, strict=True))}
    config = {"model_type": "bert", "architectures": ["X"], "hidden_size": 4, "torch_dtype": "float32"}

    def attempt(rng: Random) -> list[str]:
        made = dict(shards)
        which = rng.randrange(3)
        made["model.safetensors.index.json"] = json.dumps(changed_table(index, rng) if which == 0 else index).encode()
        about = json.dumps(changed_table(config, rng) if which == 1 else config).encode()
        made["config.json"] = damaged(about, rng) if rng.random() < 0.2 else about
        if which == 2:
            name = rng.choice(list(made))
            made[name] = damaged(made[name], rng)
        return _in_folder(folder / "a", made, whole=False)

    return attempt


def programs(folder: Path) -> Attempt:
    """TorchScript and exported programs, whose weights alone are read."""
    net = nn.Linear(3, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(str(folder / "script.pt"))
    with zipfile.ZipFile(folder / "a.pt2", "w") as archive:  # as torch.export lays it out: quick to make
        table = {
            "config": {
                "weight": {
                    "path_name": "weight_0",
                    "use_pickle": False,
                    "tensor_meta": {
                        "dtype": 7,
                        "sizes": [{"as_int": 2}, {"as_int": 3}],
                        "strides": [{"as_int": 3}, {"as_int": 1}],
                        "storage_offset": {"as_int": 0},
                    },
                }
            }
        }
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/models/model.json", "{}")
        archive.writestr("a/data/weights/model_weights_config.json", json.dumps(table))
        archive.writestr("a/data/weights/weight_0", bytes(24))
    seeds = tuple((folder / name).read_bytes() for name in ("script.pt", "a.pt2"))

    def change(name: str, content: bytes, rng: Random) -> bytes:
        if name.endswith("_config.json"):
            return json.dumps(changed_table(json.loads(content), rng)).encode()
        return changed_pickle(content, rng) if name.endswith(".pkl") else damaged(content, rng)

    def attempt(rng: Random) -> list[str]:
        data = rng.choice(seeds)
        data = changed_archive(data, rng, change) if rng.random() < 0.7 else damaged(data, rng, seeds, WORDS)
        return _written(folder / "a.prog", data)

    return attempt


def data_files(folder: Path) -> Attempt:
    """Tables and arrays as data: CSV, NPY, HDF5, IDX, token streams."""
    x, y = np.ones((9, 4), np.float32), np.arange(9) % 3
    np.save(folder / "s.npy", np.ones((9, 4)))
    with h5py.File(folder / "s.h5", "w") as file:
        file["x"], file["y"] = x, y
    table = "a,b,target\n" + "".join(f"{i},{i / 2},{i % 3}\n" for i in range(9))
    (folder / "s.csv").write_text(table)
    (folder / "s-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 9, 2, 2) + bytes(36))
    (folder / "s-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 9) + bytes(9))
    (folder / "s.bin").write_bytes(np.arange(200, dtype=np.uint16).tobytes())
    seeds = {path.name: path.read_bytes() for path in folder.glob("s[.-]*")}
    everything = tuple(seeds.values())

    def attempt(rng: Random) -> list[str]:
        name = rng.choice(list(seeds))
        content = damaged(seeds[name], rng, everything, (b",,", b'"', b"\n\n", b"nan", b"1e999", b"-", *WORDS))
        for other, data in seeds.items():
            (folder / other).write_bytes(content if other == name else data)
        return _loaded(folder / name)

    return attempt


def _loaded(path: Path) -> list[str]:
    found = [
        load_data(str(path), split, recorded=False, trust=Trust(), reading=Reading()) for split in ("train", "test")
    ]
    return [note for one in found if one for note in one.notes]


def _written(path: Path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return looked_at(path)


def _both(path: Path, data: bytes) -> list[str]:
    """Read an archive of arrays as data and as weights."""
    path.write_bytes(data)
    with contextlib.suppress(LoadError):
        _loaded(path)
    return looked_at(path)


def _in_folder(folder: Path, files: dict[str, bytes], *, whole: bool = True) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if whole:
        return looked_at(folder)
    found = inspect(folder)  # building what config.json names is the other library's business
    read_checkpoint(folder, Trust())
    return [text(_document(found)), dumps(_exported(found))]


TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "checkpoint .pt (zip)": torch_zip,
    "checkpoint .pt (legacy)": torch_legacy,
    "checkpoint pickle": plain_pickle,
    "checkpoint safetensors": safe_tensors,
    "checkpoint npz": numpy_archive,
    "checkpoint DCP folder": distributed_folder,
    "checkpoint hub folder": hub_folder,
    "checkpoint program": programs,
    "data file": data_files,
}
