"""What is written is what was chosen, in a file that safetensors and gapscope read alike."""

import os
import re

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from gapscope.measure.loading.checkpoints.conversion import convert
from gapscope.measure.loading.trust import Trust


def run(path, weights=None, **options):
    out = path.with_suffix(".safetensors")
    return convert(path, out, Trust(), weights, **options), safetensors.torch.load_file(out)


def state(value: float) -> dict:
    return {"fc.weight": torch.full((2, 3), value), "fc.bias": torch.full((2,), value)}


def test_weights_and_their_origin_are_written(tmp_path):
    model = nn.Linear(3, 2).bfloat16()
    save_checkpoint(tmp_path / "a.pt", model)
    said, tensors = run(tmp_path / "a.pt")
    assert said == [f"{tmp_path / 'a.safetensors'}: 2 tensors of 8 numbers, `model` of a.pt"]
    assert torch.equal(tensors["weight"], model.weight)
    assert tensors["weight"].dtype == torch.bfloat16
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "source": "a.pt",
            "source_sha256": read_checkpoint(tmp_path / "a.pt", Trust()).sha256,
            "weights": "model",
        }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


@pytest.mark.parametrize(
    ("asked", "value", "noted"),
    [
        (None, 1.0, ["other weights were left out: `ema`; choose with `--weights KEY`"]),
        ("raw", 1.0, ["other weights were left out: `ema`; choose with `--weights KEY`"]),
        ("ema", 2.0, []),
        ("model", 1.0, []),
        ("model.fc", 1.0, []),
    ],
)
def test_one_of_several_is_chosen_and_the_rest_is_named(tmp_path, asked, value, noted):
    torch.save({"ema": state(2.0), "model": state(1.0)}, tmp_path / "a.pt")
    said, tensors = run(tmp_path / "a.pt", asked)
    assert said[1:] == noted
    assert set(tensors) == ({"weight", "bias"} if asked == "model.fc" else {"fc.weight", "fc.bias"})
    assert all(float(tensor.max()) == value for tensor in tensors.values())


def test_a_prefix_of_the_whole_file_is_taken_off(tmp_path):
    torch.save({f"net.{name}": tensor for name, tensor in state(1.0).items()} | {"x": torch.ones(1)}, tmp_path / "a.pt")
    assert set(run(tmp_path / "a.pt", "net.fc")[1]) == {"weight", "bias"}


def test_a_part_is_found_beside_loose_tensors_of_the_file(tmp_path):
    loose = {name: torch.ones(1) for name in "abc"}
    torch.save(loose | {"net": state(1.0)}, tmp_path / "a.pt")
    assert set(run(tmp_path / "a.pt", "net.fc")[1]) == {"weight", "bias"}


def test_averages_are_written_where_there_are_no_others(tmp_path):
    torch.save({"swa": state(2.0), "ema": {"w": torch.ones(1)}}, tmp_path / "a.pt")
    said, _ = run(tmp_path / "a.pt")
    assert "`swa` of a.pt" in said[0]
    assert run(tmp_path / "a.pt", "ema", force=True)[1]["w"].tolist() == [1]


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    torch.save(
        {"a": whole, "b": whole, "c": whole.t(), "d": whole.to_sparse(), "e": whole[:1, 0], "f": whole[:0]},
        tmp_path / "a.pt",
    )
    said, tensors = run(tmp_path / "a.pt")
    assert said[1] == "3 tensors shared memory with others and were written apart"
    assert torch.equal(tensors["c"], whole.t())
    assert torch.equal(tensors["d"], whole)


def test_a_number_that_is_repeated_up_to_megabytes_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.conversion._EXPANSION", 1)
    torch.save({"w": torch.ones(1).expand(2**18)}, tmp_path / "a.pt")
    assert torch.equal(run(tmp_path / "a.pt")[1]["w"], torch.ones(2**18))
    torch.save({"w": torch.ones(1).expand(2**18 + 1)}, tmp_path / "b.pt")
    with pytest.raises(LoadError, match=r"`w` repeats 4 bytes as 1,048,580\. Expected its own numbers"):
        run(tmp_path / "b.pt")


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        ({"model": state(1.0)}, "modle", "has no weights under `modle`. Did you mean `model`? Expected one of `model`"),
        ({"model": state(1.0)}, "ema", "holds no ema weights. Expected one of `model`. Mend `--weights`."),
        ({"net": state(1.0), "best": state(2.0)}, "ema", "no ema weights. Expected one of `net`, `best`. Mend"),
        ({"ema": state(1.0)}, "raw", "holds no raw weights. Expected one of `ema`. Mend `--weights`."),
        ({"model": state(1.0)}, "fc", "has no weights under `fc`. Expected one of `model`. Mend `--weights`."),
        (
            {"w": torch.ones(1).expand(10**9)},
            None,
            "`w` repeats 4 bytes as 4,000,000,000. Expected its own numbers: it may be an attack",
        ),
    ],
)
def test_what_cannot_be_converted_says_why(tmp_path, content, asked, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LoadError, match=re.escape(message)):
        run(tmp_path / "a.pt", asked)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_are_refused(tmp_path):
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, tmp_path / "a.pt")
    with pytest.raises(LoadError, match=r"`w` is quantized, which safetensors cannot hold"):
        run(tmp_path / "a.pt")


def test_types_that_safetensors_lacks_are_refused(tmp_path):
    torch.save({"v": torch.ones(2), "w": torch.ones(2, dtype=torch.complex128)}, tmp_path / "a.pt")
    with pytest.raises(
        LoadError, match=r"a\.pt: `w` is complex128, which safetensors cannot hold\. Expected another t"
    ):
        run(tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_file_that_is_there_is_kept_unless_forced(tmp_path):
    torch.save(state(1.0), tmp_path / "a.pt")
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"is there already. Expected a new name. .* `--force`"):
        run(tmp_path / "a.pt")
    assert out.read_bytes() == b"mine"
    assert float(run(tmp_path / "a.pt", force=True)[1]["fc.bias"][0]) == 1


def test_a_place_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    torch.save(state(1.0), tmp_path / "a.pt")
    for out in (tmp_path, tmp_path / "absent" / "a.safetensors"):
        with pytest.raises(UsageError, match="cannot be written: it is a folder, or in none"):
            convert(tmp_path / "a.pt", out, Trust())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"No space left on device. What was there is unchanged"):
        run(tmp_path / "a.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
