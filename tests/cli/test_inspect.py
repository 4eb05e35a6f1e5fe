"""`gapscope inspect` says what a file is, in 80 columns or JSON, and ends with a command that works."""

import json
import shlex

import pytest
import torch
from torch import nn

from gapscope.measure.loading.checkpoints.checkpoint import save_checkpoint


def following(outcome) -> list[str]:
    return shlex.split(outcome.out.rpartition("next: gapscope ")[2].strip())


def test_a_checkpoint_is_described_and_the_next_command_works(run, small):
    outcome = run("inspect", small)
    assert outcome.code == 0
    assert outcome.err == ""
    for words in ("format", "torch checkpoint", "nothing from the file runs", "factory=mlp", "4,810", "float32"):
        assert words in outcome.out
    assert all(len(line) <= 80 for line in outcome.out.splitlines() if not line.startswith("next: "))
    assert run(*["gap", *following(outcome)[1:]], "-q").code == 0


def test_bare_weights_of_a_built_in_network_are_recognised(run, tmp_path, small):
    assert run("convert", small, "a.safetensors").code == 0
    words = following(run("inspect", "a.safetensors"))
    assert words == shlex.split("sharpness a.safetensors -m mlp -a inputs=64 -a hidden=[64] -a outputs=10 -d DATA")
    assert run("gap", *words[1:-1], "digits", "-q").code == 0


def test_json_alone_on_stdout_even_with_numbers_that_json_lacks(run, tmp_path):
    content = {"model": nn.Linear(2, 2).state_dict(), "config": {"best": float("nan"), "sizes": [1, float("inf")]}}
    torch.save(content, tmp_path / "a.pt")
    outcome = run("inspect", "a.pt", "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert found["settings"] == {"best": "nan", "sizes": [1, "inf"]}
    assert found["weights"][0]["key"] == "model"


def test_many_weights_are_counted_and_the_choice_is_named(run, tmp_path):
    torch.save({f"part{i}": {"w": torch.ones(2)} for i in range(20)}, tmp_path / "a.pt")
    outcome = run("inspect", "a.pt")
    assert "and 8 more: --json" in outcome.out
    assert "Choose: `--weights KEY`" in outcome.out


def test_settings_are_shown_in_part(run, tmp_path):
    save_checkpoint(tmp_path / "a.pt", nn.Linear(2, 2), training={f"key{i}": "x" * 90 for i in range(20)})
    outcome = run("inspect", "a.pt")
    assert "key11" in outcome.out
    assert "key12" not in outcome.out
    assert "and 8 more" in outcome.out
    assert "xxx..." in "".join(outcome.out.split())


def test_a_file_that_must_be_trusted_is_described_with_the_flag(run, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    outcome = run("inspect", "a.pt")
    assert outcome.code == 0
    assert "pickled module" in outcome.out
    assert following(outcome) == ["sharpness", "a.pt", "--trust-file", "-d", "DATA"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"GGUF" + bytes(60), "GGUF file", "is a GGUF file of quantized weights. Expected the PyTorch"),
        (b"\x08\x07\x12\x07pytorch", "ONNX graph", "is an ONNX graph. Its nodes are no PyTorch modules."),
        (b"\x80\x02X", "plain pickle", "is a damaged pickle"),
    ],
)
def test_a_file_without_weights_is_named_and_refused(run, tmp_path, content, name, message):
    (tmp_path / "a.pt").write_bytes(content)
    outcome = run("inspect", "a.pt")
    assert outcome.code == 2
    assert name in outcome.out
    assert outcome.err.startswith("error: a.pt")
    assert message in outcome.err
