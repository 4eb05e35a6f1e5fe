"""`gapscope convert` writes what the other commands read."""

import pytest
import safetensors.torch
import torch
from torch import nn

from gapscope.measure.loading.networks import mlp


def test_converted_weights_measure_as_the_original(run, small):
    outcome = run("convert", small, "a.safetensors")
    assert (outcome.code, outcome.err) == (0, "")
    assert "a.safetensors: 4 tensors of 4,810 numbers, `model` of digits-small-batch.pt" in outcome.out
    assert "next: gapscope sharpness a.safetensors -m mlp -a inputs=64 -a hidden=[64] -a outputs=10" in outcome.out
    direct = run("gap", small, "-q").out.splitlines()
    through = run("gap", "a.safetensors", "-m", "mlp", "-a", "hidden=[64]", "-d", "digits", "-q").out.splitlines()
    assert [line for line in direct if "loss" in line][1:] == [line for line in through if "loss" in line][1:]


def test_the_users_choice_is_written_and_nothing_is_replaced_unasked(run, tmp_path):
    torch.save({"model": mlp().state_dict(), "ema": {"w": torch.ones(3)}}, tmp_path / "a.pt")
    assert run("convert", "a.pt", "a.safetensors", "--weights", "ema").code == 0
    assert set(safetensors.torch.load_file("a.safetensors")) == {"w"}
    again = run("convert", "a.pt", "a.safetensors")
    assert again.code == 2
    assert "is there already" in again.err
    assert run("convert", "a.pt", "a.safetensors", "--force").code == 0
    assert set(safetensors.torch.load_file("a.safetensors")) == set(mlp().state_dict())


def test_a_pickled_module_is_converted_only_when_trusted(run, tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pt")
    refused = run("convert", "a.pt", "a.safetensors")
    assert refused.code == 2
    assert "is a whole pickled model" in refused.err
    assert not (tmp_path / "a.safetensors").exists()
    assert run("convert", "a.pt", "a.safetensors", "--trust-file").code == 0
    assert safetensors.torch.load_file("a.safetensors")["weight"].shape == (2, 2)


class Own:
    """A class of the user's own."""


@pytest.mark.parametrize("allowed", [False, True])
def test_a_class_of_the_users_is_allowed_by_name(run, tmp_path, allowed):
    torch.save({"model": nn.Linear(2, 2).state_dict(), "config": Own()}, tmp_path / "a.pt")
    flags = ["--allow-global", f"{__name__}.Own"] if allowed else []
    assert run("convert", "a.pt", "a.safetensors", *flags).code == (0 if allowed else 2)
