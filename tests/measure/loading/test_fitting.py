"""Weights are found whatever wrapped them, and never chosen in silence."""

import re

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoint import Checkpoint
from gapscope.measure.loading.fitting import fit
from gapscope.measure.loading.networks import mlp

ARGS = {"inputs": 64, "hidden": [8], "outputs": 10, "activation": "relu"}


def checkpoint(**tensors) -> Checkpoint:
    located = {location.replace("__", "."): t for location, t in tensors.items()}
    return Checkpoint(
        "a.pt", "0", {"(file)" if at == "file" else at: t for at, t in located.items()}, {}, {}, None, None
    )


def weights(seed: int = 0) -> dict:
    torch.manual_seed(seed)
    return dict(mlp(hidden=[8]).state_dict())


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def fitted(**tensors):
    model = mlp(hidden=[8])
    result = fit(checkpoint(**tensors), model, "mlp", ARGS)
    return result, model


@pytest.mark.parametrize(
    ("tensors", "key"),
    [
        ({"file": weights()}, "(file)"),
        ({"model": weights()}, "model"),
        ({"state_dict": weights()}, "state_dict"),
        ({"model_state_dict": prefixed("module.", weights())}, "model_state_dict"),
        ({"file": prefixed("_orig_mod.", weights())}, "(file)"),
        ({"file": prefixed("module._orig_mod.", weights())}, "(file)"),
        ({"file": {name.replace(".", "._orig_mod."): t for name, t in weights().items()}}, "(file)"),
        ({"state_dict": prefixed("model.", weights()) | {"criterion.weight": torch.ones(3)}}, "state_dict.model"),
        ({"file": prefixed("net.module.", weights())}, "net"),
        ({"ema": prefixed("module.", weights()) | {"n_averaged": torch.tensor(3)}}, "ema"),
        ({"deep__inside__net": weights()}, "deep.inside.net"),
    ],
)
def test_every_usual_shape_of_checkpoint_is_resolved(tensors, key):
    result, model = fitted(**tensors)
    assert result.key == key
    assert all(torch.equal(tensor, weights()[name]) for name, tensor in model.state_dict().items())


def test_a_wrapped_model_takes_plain_weights():
    model = nn.DataParallel(mlp(hidden=[8]))
    fit(checkpoint(file=weights()), model, "mlp", ARGS)
    assert torch.equal(model.module.fc1.weight, weights()["fc1.weight"])


def test_a_model_with_a_part_called_module_keeps_its_names():
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert fit(checkpoint(file=dict(model.state_dict())), model, "m", {}).key == "(file)"


@pytest.mark.parametrize(
    ("tensors", "key"),
    [
        ({"ema": weights(1), "model": weights()}, "model"),
        ({"model_ema": weights(1), "weights": weights()}, "weights"),
        ({"state_dict": prefixed("ema_model.", weights(1)) | prefixed("model.", weights())}, "state_dict.model"),
        ({"file": prefixed("ema.", weights(1)) | weights()}, "(file)"),
        ({"zeta": weights(), "net": weights(1)}, "net"),
    ],
)
def test_a_choice_between_two_sets_is_said(tensors, key):
    result, _ = fitted(**tensors)
    assert result.key == key
    assert any("would fit too and differ" in note for note in result.notes)


def test_two_equal_sets_are_no_choice():
    assert fitted(model=weights(), ema=weights())[0].notes == ()


def test_what_was_inferred_is_noted():
    assert fitted(ema=weights())[0].notes == ("weights: `ema`, an average over training, the only ones that fit",)
    assert fitted(net=weights())[0].notes == ("weights: `net`",)
    result, _ = fitted(state_dict=prefixed("model.", weights()) | {"criterion.weight": torch.ones(3)})
    assert "weights: 1 tensors outside `state_dict.model` were left out" in result.notes


def test_half_precision_sparse_and_integer_weights_are_converted_and_said():
    half = {name: tensor.half() for name, tensor in weights().items()}
    result, model = fitted(model=half)
    assert result.notes == ("weights: stored as float16, loaded into float32",)
    assert model.fc1.weight.dtype == torch.float32
    sparse = weights() | {"fc1.weight": weights()["fc1.weight"].to_sparse()}
    assert torch.equal(fitted(model=sparse)[1].fc1.weight, weights()["fc1.weight"])
    assert (
        fitted(model={n: torch.ones_like(t, dtype=torch.int64) for n, t in weights().items()})[1].fc1.weight.sum()
        == 512
    )


def test_batch_norm_from_before_its_counter_still_loads():
    model = nn.Sequential(nn.BatchNorm1d(3))
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert fit(checkpoint(file=tensors), model, "bn", {}).key == "(file)"


def test_lazy_layers_take_the_shape_of_the_weights():
    model = nn.Sequential(nn.LazyLinear(2))
    fit(checkpoint(file=dict(nn.Sequential(nn.Linear(3, 2)).state_dict())), model, "lazy", {})
    assert model[0].weight.shape == (2, 3)


def test_complex_weights_are_not_cut_to_their_real_part():
    with pytest.raises(LoadError, match=r"`fc1.weight` is"):
        fitted(model={name: tensor.to(torch.complex64) for name, tensor in weights().items()})


@pytest.mark.parametrize(
    ("made", "guess"),
    [
        ({"hidden": [32]}, "Try `-a hidden=[32]`."),
        ({"hidden": [8], "inputs": 100}, "Try `-a inputs=100`."),
        ({"hidden": [8], "outputs": 3}, "Try `-a outputs=3`."),
    ],
)
def test_a_shape_mismatch_shows_both_shapes_and_guesses_the_argument(made, guess):
    with pytest.raises(LoadError, match=re.escape(guess)) as error:
        fitted(model=dict(mlp(**made).state_dict()))
    assert re.search(r"`fc\d.weight` is \(\d+, \d+\) in the checkpoint and \(\d+, \d+\) in the model", str(error.value))


@pytest.mark.parametrize(("hidden", "extra"), [([6, 6], "; it also has `fc3.weight`"), ([], "; it lacks `fc2.weight`")])
def test_another_number_of_layers_is_said_and_no_argument_guessed(hidden, extra):
    with pytest.raises(LoadError, match=re.escape(extra)) as error:
        fitted(model=dict(mlp(hidden=hidden).state_dict()))
    assert "Expected the arguments it was trained with" in str(error.value)


def test_a_mismatch_without_a_guess_asks_for_the_arguments():
    with pytest.raises(LoadError, match="Expected the arguments it was trained with"):
        fit(checkpoint(file={"weight": torch.ones(2, 3)}), nn.Linear(2, 2, bias=False), "linear", {"flag": True})


def test_missing_unexpected_and_foreign_names_are_errors():
    tensors = weights()
    del tensors["fc2.bias"]
    with pytest.raises(LoadError, match=r"it lacks 1 tensor \(`fc2.bias`\). Expected exactly the names"):
        fitted(model=tensors)
    extra = weights() | {f"fc{i}.weight": torch.ones(1) for i in range(3, 10)}
    with pytest.raises(LoadError, match=r"it also has 7 tensors \(`fc3.weight`, .*`fc7.weight`, ...\)"):
        fitted(model=extra)
    with pytest.raises(
        LoadError, match=r"no name agrees. Under `model` it holds `conv.w` \(1,\), ...; the model has `fc1.weight`"
    ):
        fitted(model={"conv.w": torch.ones(1)})


def test_weights_that_torch_cannot_copy_are_an_error_with_the_location(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no kernel")

    model = mlp(hidden=[8])
    monkeypatch.setattr(model, "load_state_dict", refuse)
    with pytest.raises(LoadError, match="weights under `model` cannot be loaded into `mlp`: RuntimeError: no kernel"):
        fit(checkpoint(model=weights()), model, "mlp", ARGS)
