"""Distributed folders are put together exactly, by whomever they were written, and never run."""

import io
import os
import pickle
import re
import subprocess
import sys
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.checkpoints.distributed import ADMITTED, _place, read_distributed
from gapscope.measure.loading.checkpoints.pickles import names_in
from gapscope.measure.loading.trust import Trust

RANKS = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))
if rank == 0:
    torch.save(model.state_dict(), f"{folder}/whole.pt")
fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
weights, state = get_state_dict(model, optimizer)
dcp.save({"model": weights, "optim": state, "epoch": 3}, checkpoint_id=f"{folder}/sharded")
dist.barrier()
os._exit(0)  # gloo may abort a rank whose peer has left first
"""


def save(folder, content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save(content, checkpoint_id=folder)
    return folder


def test_a_tensor_is_placed_at_the_end_of_its_path():
    content = {}
    for at, path in enumerate((["w"], ["a", "w"], ["a", "b", "w"])):
        _place(content, path, at)
    assert content == {"w": 0, "a": {"w": 1, "b": {"w": 2}}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2).bfloat16())


@pytest.fixture
def folder(tmp_path, model):
    return save(tmp_path / "saved", {"model": model.state_dict(), "lr": 0.1, "config": {"a": [1, "b"]}})


def rewrite(folder, change):
    """Write `.metadata` again after a change, as torch would."""
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_one_process_writes_and_every_tensor_is_read_back(folder, model):
    checkpoint = read_checkpoint(folder, Trust())
    assert checkpoint.format == "torch distributed checkpoint"
    assert list(checkpoint.tensors) == ["model"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.tensors["model"][name], tensor)
        assert checkpoint.tensors["model"][name].dtype == tensor.dtype
    assert (checkpoint.trust, checkpoint.optimizer) == ("nothing from the file runs", None)


def test_two_ranks_write_and_their_pieces_are_put_together(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, tmp_path / "ranks.py", str(rank), tmp_path], env=environment)
        for rank in (0, 1)
    ]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    checkpoint = read_checkpoint(tmp_path / "sharded", Trust())
    assert list(checkpoint.tensors) == ["model"]
    for name, tensor in torch.load(tmp_path / "whole.pt", weights_only=True).items():
        assert torch.equal(checkpoint.tensors["model"][name], tensor)


def test_tensors_without_a_plan_of_their_tables_keep_the_names_of_their_entries(folder, model):
    rewrite(folder, lambda metadata: setattr(metadata, "planner_data", None))
    assert torch.equal(read_distributed(folder).content["model.0.weight"], model[0].weight)


def test_a_tensor_without_numbers_needs_no_piece(folder):
    def empty(metadata):
        drop_piece(metadata)
        entry = metadata.state_dict_metadata["model.0.weight"]
        entry.size, entry.chunks = torch.Size([0, 3]), []

    rewrite(folder, empty)
    assert read_distributed(folder).content["model"]["0.weight"].shape == (0, 3)


def test_looking_reads_no_numbers(folder):
    seen = read_distributed(folder, values=False).content["model"]["0.weight"]
    assert (seen.device.type, seen.shape) == ("meta", (4, 3))


def test_the_digest_changes_with_any_file_that_was_read(folder):
    before = read_distributed(folder).sha256
    assert read_distributed(folder).sha256 == before
    rewrite(folder, lambda metadata: metadata.planner_data.pop("lr"))
    assert read_distributed(folder).sha256 != before


class Evil:
    def __reduce__(self):
        return os.system, ("touch sang",)


def test_metadata_that_would_run_a_command_is_refused_and_not_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(folder, lambda metadata: metadata.state_dict_metadata.update(evil=Evil()))
    with pytest.raises(LoadError, match=r".metadata would run (posix|nt).system when loaded"):
        read_distributed(folder)
    assert not (tmp_path / "sang").exists()


def test_bytes_are_never_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "__0_9.distcp").write_bytes(pickle.dumps(Evil()))

    def point(metadata):
        info = next(iter(metadata.storage_data.values()))
        metadata.state_dict_metadata["lr"] = BytesStorageMetadata()
        metadata.storage_data[MetadataIndex("lr")] = type(info)("__0_9.distcp", 0, 30)

    rewrite(folder, point)
    assert "lr" not in read_distributed(folder).content
    assert not (tmp_path / "sang").exists()


def test_genuine_metadata_names_only_what_is_admitted(folder):
    with (folder / ".metadata").open("rb") as file:
        named = names_in(file)
    assert {name for name in named if not re.fullmatch(r"torch\.(Size|\w+\d+)", name)} <= ADMITTED


PATHS = ("pathlib PosixPath", "pathlib WindowsPath", "pathlib PurePosixPath", "pathlib PureWindowsPath")


@pytest.mark.parametrize("name", [*PATHS, "pathlib._local PosixPath", "pathlib._local WindowsPath"])
def test_where_it_was_saved_may_be_a_path_of_any_system_and_python(folder, model, name):
    with (folder / ".metadata").open("rb") as file:
        content = pickle.dumps(pickle.load(file), 2)
    content, found = re.subn(rb"cpathlib(\._local)?\n\w+Path\n", b"c%s\n" % name.replace(" ", "\n").encode(), content)
    assert found
    (folder / ".metadata").write_bytes(content)
    assert torch.equal(read_distributed(folder).content["model"]["0.weight"], model[0].weight)


def test_the_layout_of_memory_may_be_named_as_earlier_versions_of_torch_name_it(folder, model):
    with (folder / ".metadata").open("rb") as file:
        content = pickle.dumps(pickle.load(file), 2)
    now, before = "checkpoint.metadata\n_MEM_FORMAT", "_shard.sharded_tensor.metadata\nMEM_FORMAT"
    assert now.encode() in content
    (folder / ".metadata").write_bytes(content.replace(now.encode(), before.encode()))
    assert torch.equal(read_distributed(folder).content["model"]["0.weight"], model[0].weight)


def place(folder, metadata, content, at, name="__0_1.distcp"):
    """Let a file of its own be the piece of a tensor that begins at a place."""
    (folder / name).write_bytes(content)
    info = type(next(iter(metadata.storage_data.values())))(name, 0, len(content))
    metadata.storage_data[MetadataIndex("model.0.weight", torch.Size(at))] = info


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_an_empty_piece_overlaps_with_none(folder, model):
    def add(metadata):
        chunks = metadata.state_dict_metadata["model.0.weight"].chunks
        chunks.append(type(chunks[0])(torch.Size([2, 0]), torch.Size([0, 3])))
        place(folder, metadata, saved(torch.empty(0, 3)), [2, 0])

    rewrite(folder, add)
    assert torch.equal(read_distributed(folder).content["model"]["0.weight"], model[0].weight)


@pytest.mark.parametrize("starts", [(0, 2), (2, 0)])
def test_pieces_may_be_listed_in_any_order(folder, model, starts):
    def split(metadata):
        drop_piece(metadata)
        entry = metadata.state_dict_metadata["model.0.weight"]
        entry.chunks = [type(entry.chunks[0])(torch.Size([at, 0]), torch.Size([2, 3])) for at in starts]
        for at in starts:
            place(folder, metadata, saved(model[0].weight.detach()[at : at + 2].clone()), [at, 0], f"__{at}_1.distcp")

    rewrite(folder, split)
    assert torch.equal(read_distributed(folder).content["model"]["0.weight"], model[0].weight)


def test_a_piece_that_would_unpack_to_far_more_is_refused_by_its_file(folder):
    content = bytearray(saved(torch.ones(4, 3)))
    at = content.index(b"PK\1\2") + 24  # the size of the first entry in the table of the archive
    content[at : at + 4] = (2**31).to_bytes(4, "little")
    rewrite(folder, lambda metadata: place(folder, metadata, content, [0, 0]))
    with pytest.raises(LoadError, match=r"__0_1\.distcp has [\d,]+ bytes and declares 2,147,48\d,\d+ of content"):
        read_distributed(folder)


def drop_piece(metadata):
    index = next(index for index in metadata.storage_data if index.fqn == "model.0.weight")
    del metadata.storage_data[index]


def elsewhere(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = "../secret"


def numbered(metadata):
    for info in metadata.storage_data.values():
        info.relative_path = 3


def beyond(metadata):
    for info in metadata.storage_data.values():
        info.length = 10**9


def before(metadata):
    for info in metadata.storage_data.values():
        info.offset = -1


def backwards(metadata):
    for info in metadata.storage_data.values():
        info.length = -1


def hollow(metadata):
    for info in metadata.storage_data.values():
        info.length = 0


def twice(metadata):
    index = next(index for index in metadata.storage_data if index.fqn == "model.0.weight")
    metadata.storage_data[MetadataIndex("model.0.weight", torch.Size([]))] = metadata.storage_data[index]


def grow(metadata, *size):
    entry = metadata.state_dict_metadata["model.0.weight"]
    entry.size = entry.chunks[0].sizes = torch.Size(size)


def cut(metadata):
    entry = metadata.state_dict_metadata["model.0.weight"]
    entry.size = entry.chunks[0].sizes = torch.Size([3, 3])


def repeat(metadata):
    entry = metadata.state_dict_metadata["model.0.weight"]
    entry.size = torch.Size([8, 3])
    entry.chunks *= 2


def overlap(metadata):
    """Two pieces of three rows each for six rows, of which the second begins too early."""
    entry = metadata.state_dict_metadata["model.0.weight"]
    kind = type(entry.chunks[0])
    entry.size = torch.Size([8, 3])
    entry.chunks = [kind(torch.Size([at, 0]), torch.Size([4, 3])) for at in (0, 2)]
    index = next(index for index in metadata.storage_data if index.fqn == "model.0.weight")
    metadata.storage_data[MetadataIndex("model.0.weight", [2, 0])] = metadata.storage_data[index]


def same_place(metadata):
    """Two pieces for two places, both of them said to begin at the first."""
    overlap(metadata)
    metadata.state_dict_metadata["model.0.weight"].chunks[1].offsets = torch.Size([4, 0])
    second = next(index for index in metadata.storage_data if index.offset == torch.Size([2, 0]))
    object.__setattr__(second, "offset", torch.Size([0, 0]))


def beside(*at):
    """One of four rows of its own is said to begin at a place beside the tensor."""

    def change(metadata):
        entry = metadata.state_dict_metadata["model.0.bias"]
        kind, index = type(entry.chunks[0]), next(i for i in metadata.storage_data if i.fqn == "model.0.bias")
        entry.chunks = [kind(torch.Size([i]), torch.Size([1])) for i in (0, 1, 2)] + [kind(torch.Size(at), [1])]
        info = metadata.storage_data.pop(index)
        for chunk in entry.chunks:
            metadata.storage_data[MetadataIndex("model.0.bias", chunk.offsets)] = info

    return change


def compressed(metadata):
    for info in metadata.storage_data.values():
        info.transform_descriptors = ["zstd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_piece, "`model.0.weight` has 1 pieces of 12 numbers in `.metadata` and 0 on the disk, for 12 numbers"),
        (twice, "`model.0.weight` has 1 pieces of 12 numbers in `.metadata` and 2 on the disk, for 12 numbers"),
        (repeat, "`model.0.weight` has 1 pieces of 12 numbers in `.metadata` and 1 on the disk, for 24 numbers"),
        (overlap, "`model.0.weight` has 2 pieces of 24 numbers in `.metadata` and 2 on the disk, for 24 numbers"),
        (same_place, "`model.0.weight` has 2 pieces of 24 numbers in `.metadata` and 2 on the disk, for 24 numbers"),
        (beside(4), "`model.0.bias` has 4 pieces of 4 numbers in `.metadata` and 4 on the disk, for 4 numbers"),
        (beside(-1), "`model.0.bias` has 4 pieces of 4 numbers in `.metadata` and 4 on the disk, for 4 numbers"),
        (beside(3, 0), "is damaged, or of an unknown version (ValueError: zip()"),
        (elsewhere, "names the shard '../secret'. Expected the plain name of a file in that folder"),
        (numbered, "names the shard '3'. Expected the plain name of a file in that folder"),
        (beyond, "ends before the piece of `model.0."),
        (before, "ends before the piece of `model.0."),
        (backwards, "ends before the piece of `model.0."),
        (hollow, "`model.0.weight` is declared as 12 numbers, more than its files hold"),
        (lambda m: grow(m, 10**6, 10**6), "is declared as 1,000,000,000,000 numbers, more than its files hold"),
        (lambda m: grow(m, 100, 10), "`model.0.weight` is declared as 1,000 numbers, more than its files hold"),
        (cut, "a piece of `model.0.weight` has the shape (4, 3), not (3, 3)"),
        (compressed, "is compressed by an extension of torch.distributed.checkpoint"),
        (lambda metadata: vars(metadata).pop("storage_data"), "is damaged, or of an unknown version (KeyError"),
    ],
)
def test_a_table_that_does_not_agree_with_the_files_is_an_error(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(LoadError, match=re.escape(message)):
        read_distributed(folder)


def test_a_lost_rank_is_an_error(folder):
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(LoadError, match=r"lacks the shard `__0_0.distcp`"):
        read_distributed(folder)


def test_a_piece_that_is_no_tensor_is_an_error(folder):
    content = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(bytes(len(content)))
    with pytest.raises(LoadError, match=r"is damaged, or of an unknown version"):
        read_distributed(folder)


def test_a_piece_of_another_kind_is_an_error(folder):
    torch.save([0] * 100, folder / "__0_1.distcp")

    def point(metadata):
        index = next(index for index in metadata.storage_data if index.fqn == "model.0.weight")
        info = metadata.storage_data[index]
        info.relative_path, info.offset = "__0_1.distcp", 0
        info.length = (folder / "__0_1.distcp").stat().st_size

    rewrite(folder, point)
    with pytest.raises(LoadError, match=r"ValueError: a piece is list"):
        read_distributed(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\x80\x04", r"is damaged \("), (pickle.dumps([1]), r"holds no table of tensors. Expected what `torch.distrib")],
)
def test_damaged_metadata_is_an_error(folder, content, message):
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(LoadError, match=message):
        read_distributed(folder)


def test_metadata_of_another_kind_is_an_error(folder):
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(state_dict_metadata={})))
    with pytest.raises(LoadError, match=r"is damaged, or of an unknown version"):
        read_distributed(folder)
