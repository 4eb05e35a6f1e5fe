"""Every format is told by its bytes, under any name, and those without weights say what to do."""

import pickle
import re
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import formats
from gapscope.measure.loading.checkpoints.formats import sniff


def archive(path, *names):
    with zipfile.ZipFile(path, "w") as opened:
        for name in names:
            opened.writestr(name, "x")


def hdf5(path):
    h5py.File(path, "w").close()


def tar(path):
    with tarfile.open(path, "w") as opened:
        opened.add(__file__, "sys_info")


def npz(path):
    with path.open("wb") as file:
        np.savez(file, w=np.zeros(2))


@pytest.mark.parametrize(
    ("write", "found", "name"),
    [
        (lambda p: torch.save({"w": torch.ones(2)}, p), formats.TORCH, "torch checkpoint"),
        (
            lambda p: torch.save({}, p, _use_new_zipfile_serialization=False),
            formats.LEGACY,
            "torch checkpoint of before 1.6",
        ),
        (
            lambda p: p.write_bytes(safetensors.torch.save({"w": torch.ones(2)})),
            formats.SAFETENSORS,
            "safetensors file",
        ),
        (lambda p: p.write_bytes((10**8).to_bytes(8, "little") + b"{"), formats.SAFETENSORS, "safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps({})), formats.PICKLE, "plain pickle"),
        (npz, formats.NPZ, "NumPy archive (.npz)"),
        (lambda p: torch.jit.script(torch.nn.Linear(2, 2)).save(str(p)), formats.TORCHSCRIPT, "TorchScript program"),
        (lambda p: archive(p, "a/archive_format", "a/models/model.json"), formats.EXPORTED, "exported program (.pt2)"),
        (lambda p: archive(p, "serialized_exported_program.json"), formats.EXPORTED, "exported program (.pt2)"),
        (lambda p: archive(p, "a/data.pkl", "a/constants.pkl"), formats.TORCHSCRIPT, "TorchScript program"),
        (lambda p: archive(p, "a/data.pkl", "a/code/__torch__.py"), formats.TORCHSCRIPT, "TorchScript program"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*jit")
def test_a_format_is_told_whatever_the_suffix(tmp_path, write, found, name):
    write(tmp_path / "weights.onnx")
    assert sniff(tmp_path / "weights.onnx") is found
    assert found.name == name


@pytest.mark.parametrize(
    ("write", "name", "instead"),
    [
        (hdf5, "HDF5 file", "If it is a gapscope report: `gapscope show "),
        (tar, "tar archive, perhaps of torch before 0.4", "Expected a file of a later torch. Save the weights where"),
        (
            b"sys_info\0",
            "tar archive, perhaps of torch before 0.4",
            "Expected a file of a later torch. Save the weights where",
        ),
        (
            lambda p: archive(p, "config.json", "model.weights.h5"),
            "Keras archive",
            "Expected PyTorch weights. Write them in Keras: `np.savez(path",
        ),
        (lambda p: archive(p, "a/readme"), "zip of something else", "Expected a file made by `torch.save`"),
        (archive, "zip of something else", "Expected a file made by `torch.save`"),
        (b"GGUF\3\0\0\0", "GGUF file", "Expected the PyTorch or safetensors original"),
        (b"\x08\x07\x12\x07pytorch", "ONNX graph", "Its nodes are no PyTorch modules. Save the weights where"),
        (b"\x08\x07\x1a\x072.13.0.", "ONNX graph", "Its nodes are no PyTorch modules. Save the weights where"),
        (b"\x08\x07\x22\x07ai.mine", "ONNX graph", "Its nodes are no PyTorch modules. Save the weights where"),
        (b"\x08\x07\x3a\x07graph..", "ONNX graph", "Its nodes are no PyTorch modules. Save the weights where"),
        (b"\x08\x07\x42\x02\x10\x0d", "ONNX graph", "Its nodes are no PyTorch modules. Save the weights where"),
        (
            b"\x1c\0\0\0TFL3",
            "TensorFlow model",
            "Expected PyTorch weights. Write them with `np.savez(path, **weights)`",
        ),
        (b"\x93NUMPY", "NumPy array", "Give data with `-d`; weights need names"),
        (b"\x1f\x8b\x08", "gzip-compressed file", "Expected it unpacked: `gunzip`"),
        (b"<!DOCTYPE html>", "web page or XML", "Expected a checkpoint. Fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer", "Fetch it: `git lfs pull`"),
        (
            b"hello, world, how are you?",
            "file of an unknown kind (it starts with b'hello, world, ho')",
            "Expected a checkpoint",
        ),
        (b"\x08", "file of an unknown kind", "Expected a checkpoint"),
        (b"\x08\x97\x12\x07pytorch", "file of an unknown kind", "Expected a checkpoint"),
        ((10**8 + 1).to_bytes(8, "little") + b"{", "file of an unknown kind", "Expected a checkpoint"),
        (b"{'lr': {{}}", "file of an unknown kind", "Expected a checkpoint"),
        (b"a\x07\x12\x07pytorch", "file of an unknown kind", "Expected a checkpoint"),
        (b"a\x03b", "file of an unknown kind", "Expected a checkpoint"),
        (b"\x80\x06}.", "file of an unknown kind", "Expected a checkpoint"),
    ],
)
def test_a_format_without_weights_names_what_to_use(tmp_path, write, name, instead):
    path = tmp_path / "a.pt"
    path.write_bytes(write) if isinstance(write, bytes) else write(path)
    found = sniff(path)
    assert found.name.startswith(name)
    assert found.instead.startswith(instead)
    assert "{path}" not in found.instead


@pytest.mark.parametrize(
    ("names", "found", "instead"),
    [
        ((".metadata", "__0_0.distcp"), "torch distributed checkpoint", ""),
        (("config.json", "model.safetensors"), "Hugging Face folder", ""),
        *(
            (("config.json", name), "Hugging Face folder", "")
            for name in ("pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
        ),
        (("unet.safetensors.index.json",), "sharded safetensors", ""),
        (
            ("adapter_config.json", "adapter_model.safetensors"),
            "PEFT adapter folder",
            "It holds adapters without their model. Merge them: `model.merge_and_unload()",
        ),
        *(
            (
                names,
                "DeepSpeed folder",
                "Expected weights of all ranks in one file. Convert it in that folder: `python zero_to_fp32.py . OUT`",
            )
            for names in (
                ("global_step9", "latest", "zero_to_fp32.py"),
                ("mp_rank_00_model_states.pt",),
                ("zero_pp_rank_0_mp_rank_00_optim_states.pt",),
            )
        ),
        *(
            (
                names,
                "Megatron folder",
                "Expected weights of all ranks in one place. Convert it to a Hugging Face folder with Megatron's "
                "`tools/checkpoint/convert.py`",
            )
            for names in (("latest_checkpointed_iteration.txt", "iter_0000100"), ("mp_rank_00", "mp_rank_01"))
        ),
        *(
            (names, "TensorFlow model", "Expected PyTorch weights. Write them with `np.savez(")
            for names in (("saved_model.pb",), ("checkpoint", "model.data-00000-of-00001"))
        ),
        *(
            ((f"best{suffix}",), "folder", "Expected a file, such as ")
            for suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
        ),
        ((), "folder", "Expected a file, or a folder with `model.safetensors`"),
        (("readme.md",), "folder", "Expected a file, or a folder with `model.safetensors`"),
    ],
)
def test_a_folder_is_told_by_the_names_in_it(tmp_path, names, found, instead):
    for name in names:
        (tmp_path / name).touch()
    assert sniff(tmp_path).name == found
    assert sniff(tmp_path).instead.startswith(instead)


def test_a_graph_of_tensorflow_is_told_from_one_of_onnx_by_its_name(tmp_path):
    for name, found in (("saved_model.pb", "TensorFlow model"), ("a.pb", "ONNX graph")):
        (tmp_path / name).write_bytes(b"\x08\x01\x12\x07pytorch")
        assert sniff(tmp_path / name).name == found
    (tmp_path / "saved_model.pb").write_bytes(b"\x1f\x8b\x08")
    assert sniff(tmp_path / "saved_model.pb").name == "gzip-compressed file"


def test_an_index_is_told_by_its_name_and_its_beginning(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for content, found in (
        (b"{}", "sharded safetensors"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer, not the file itself"),
    ):
        path.write_bytes(content)
        assert sniff(path).name == found


def test_where_there_is_nothing_to_read_it_is_said(tmp_path):
    torch.save({}, tmp_path / "best.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "half.pt").write_bytes((tmp_path / "best.pt").read_bytes()[:100])
    for name, message in (
        ("bets.pt", r"does not exist. Did you mean `.*best.pt`\? Expected a checkpoint file"),
        ("no/such.pt", "no/such.pt does not exist. Expected a checkpoint file"),
        ("best.pt/x.pt", "cannot be read: Not a directory"),
        ("empty.pt", re.escape("is empty (0 bytes). The save or the copy probably failed")),
        ("half.pt", "is truncated: the end of its archive is missing"),
    ):
        with pytest.raises(LoadError, match=message):
            sniff(tmp_path / name)


def test_a_folder_that_may_not_be_listed_is_said(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)  # root may list everything
    with pytest.raises(LoadError, match=r"cannot be read: Permission denied. Expected a readable folder"):
        sniff(tmp_path)
