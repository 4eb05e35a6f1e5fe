"""Shards are put together exactly as their index says, and from nowhere else."""

import functools
import hashlib
import json
import re

import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.checkpoints.folders import read_folder
from gapscope.measure.loading.trust import Trust


def read(path):
    return read_folder(path, Trust())


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    for i in (1, 2):
        safetensors.torch.save_file({f"fc{i}.weight": torch.full((2, 2), float(i))}, folder / f"m-{i}.safetensors")
    write(folder, {"fc1.weight": "m-1.safetensors", "fc2.weight": "m-2.safetensors"})
    (folder / "config.json").write_text('{"architectures": ["Net"], "width": 2}')
    return folder


def write(folder, places, name="model.safetensors.index.json"):
    (folder / name).write_text(json.dumps({"weight_map": places}))


def test_shards_settings_and_digest_of_a_folder(sharded):
    found = read(sharded)
    assert {name: float(t[0, 0]) for name, t in found.tensors.items()} == {"fc1.weight": 1, "fc2.weight": 2}
    assert found.settings["width"] == 2
    shards = sorted(sharded.glob("*.safetensors"))
    lines = "".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in shards)
    assert found.sha256 == hashlib.sha256(lines.encode()).hexdigest()


def test_the_index_file_names_its_folder(sharded):
    by_index = read_checkpoint(sharded / "model.safetensors.index.json", Trust())
    assert by_index.sha256 == read_checkpoint(sharded, Trust()).sha256
    assert by_index.folder == sharded
    write(sharded, {"fc2.weight": "m-2.safetensors"}, "other.safetensors.index.json")
    assert set(read(sharded / "other.safetensors.index.json").tensors) == {"fc2.weight"}


def test_a_folder_with_one_file_and_one_with_pickled_shards(tmp_path):
    for name, save in (
        ("model.safetensors", safetensors.torch.save_file),
        ("pytorch_model.bin", torch.save),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save({"w": torch.ones(2)} | ({"epoch": 3} if save is torch.save else {}), folder / name)
        assert read_checkpoint(folder, Trust()).format == "Hugging Face folder"
        assert {key: tensor.tolist() for key, tensor in read(folder).tensors.items()} == {"w": [1, 1]}
    torch.save({"v": torch.ones(3)}, folder / "part.bin")
    write(folder, {"w": "pytorch_model.bin", "v": "part.bin"}, "pytorch_model.bin.index.json")
    (folder / "pytorch_model.bin").rename(folder / "other.bin")
    write(folder, {"w": "other.bin", "v": "part.bin"}, "pytorch_model.bin.index.json")
    assert set(read(folder).tensors) == {"w", "v"}


def test_of_a_whole_file_and_pickled_shards_the_file_of_safetensors_is_read(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"w": torch.zeros(2)}, tmp_path / "part.bin")
    write(tmp_path, {"w": "part.bin"}, "pytorch_model.bin.index.json")
    assert read(tmp_path).tensors["w"].tolist() == [1, 1]


def test_of_a_shard_only_what_the_index_places_there_is_read(sharded):
    more = {"fc1.weight": torch.zeros(2, 2), "fc2.weight": torch.full((2, 2), 2.0), "fc3.weight": torch.ones(1)}
    safetensors.torch.save_file(more, sharded / "m-2.safetensors")
    found = read(sharded).tensors
    assert {name: float(t[0, 0]) for name, t in found.items()} == {"fc1.weight": 1, "fc2.weight": 2}


class One:
    """A class that a shard names."""


class Two:
    """And another."""


def test_what_the_shards_were_trusted_with_is_said_of_the_folder(sharded):
    names = tuple(f"{__name__}.{kind.__name__}" for kind in (One, Two))
    for i, kind in enumerate((One, Two, One), 1):
        torch.save({f"fc{i}.weight": torch.ones(2, 2), "config": kind()}, sharded / f"m-{i}.safetensors")
    torch.save({"fc4.weight": torch.ones(2, 2)}, sharded / "m-4.safetensors")
    write(sharded, {f"fc{i}.weight": f"m-{i}.safetensors" for i in (1, 2, 3, 4)})
    trust = read_folder(sharded, Trust(allowed_globals=names)).trust
    assert trust == f"allowed globals: {names[0]}; allowed globals: {names[1]}"
    write(sharded, {"fc4.weight": "m-4.safetensors"})
    assert read_folder(sharded, Trust(allowed_globals=names)).trust == "nothing from the file runs"


def test_a_shard_that_is_no_table_holds_nothing(sharded):
    torch.save([torch.ones(2)], sharded / "m-1.safetensors")
    with pytest.raises(LoadError, match=r"m-1.safetensors lacks `fc1.weight`, which the index of"):
        read(sharded)


def test_an_index_may_have_another_beginning(sharded):
    """As those of the parts of a pipeline have."""
    (sharded / "model.safetensors.index.json").rename(sharded / "text_encoder.safetensors.index.json")
    assert set(read(sharded).tensors) == {"fc1.weight", "fc2.weight"}


def test_looking_reads_no_numbers(sharded):
    assert read_folder(sharded, Trust(), values=False).tensors["fc1.weight"].device.type == "meta"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\0b", "a\\b"]
)
def test_a_shard_is_the_plain_name_of_a_file_in_the_folder(sharded, name):
    write(sharded, {"w": name})
    with pytest.raises(LoadError, match=r"names the shard .* Expected the plain name of a file in that folder"):
        read(sharded)


def test_a_link_that_leads_outside_is_refused(sharded, tmp_path):
    (sharded / "m-1.safetensors").rename(tmp_path / "secret.safetensors")
    (sharded / "m-1.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(LoadError, match=r"m-1.safetensors is a link to .*secret.safetensors, outside its folder"):
        read(sharded)


def test_the_links_of_the_hub_cache_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "blobs" / "123")
    (tmp_path / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/123")
    assert set(read(tmp_path / "snapshots" / "abc").tensors) == {"w"}
    (tmp_path / "snapshots").rename(tmp_path / "other")  # no such cache
    with pytest.raises(LoadError, match=r"model.safetensors is a link to .*blobs.*, outside its folder"):
        read(tmp_path / "other" / "abc")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"fc1.weight": "m-1.safetensors", "fc3.weight": "m-3.safetensors"}, "lacks the shard `m-3.safetensors`"),
        ({"fc1.weight": "m-2.safetensors"}, "m-2.safetensors lacks `fc1.weight`, which the index of"),
        ({}, "names no shards. Expected a `weight_map` from tensors to files"),
        ({"fc1.weight": 3}, "names no shards"),
        (["m-1.safetensors"], "names no shards"),
    ],
)
def test_an_index_that_does_not_agree_with_its_shards_is_an_error(sharded, places, message):
    write(sharded, places)
    with pytest.raises(LoadError, match=re.escape(message)):
        read(sharded)


def test_a_config_is_read_up_to_a_length(sharded, monkeypatch):
    size = (sharded / "model.safetensors.index.json").stat().st_size
    assert size > (sharded / "config.json").stat().st_size
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.folders._LONGEST", size)
    assert set(read(sharded).tensors) == {"fc1.weight", "fc2.weight"}
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.folders._LONGEST", size - 1)
    with pytest.raises(LoadError, match=r"index.json is no readable JSON \(ValueError: it is too long\)"):
        read(sharded)


def test_a_config_is_read_up_to_a_depth(sharded):
    nested = functools.reduce(lambda inner, level: [inner] if level % 2 else {"a": inner}, range(31), 3)
    (sharded / "config.json").write_text(json.dumps(nested))
    assert read(sharded).settings == nested
    (sharded / "config.json").write_text(json.dumps({"a": nested}))
    with pytest.raises(
        LoadError, match=r"config.json is no readable JSON \(ValueError: its lists or tables are nested"
    ):
        read(sharded)


def test_a_damaged_index_or_config_is_an_error(sharded):
    (sharded / "config.json").write_text("[1]")
    with pytest.raises(LoadError, match=r"config.json holds list. Expected a table"):
        read(sharded)
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(LoadError, match=r"index.json is no readable JSON \(JSONDecodeError"):
        read(sharded)
