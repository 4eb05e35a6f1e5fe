"""Weights are found whatever wrapped them, and never chosen in silence."""

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.checkpoint import Checkpoint
from gapscope.measure.loading.checkpoints.fitting import fit, held
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
        *(
            ({"file": {name.replace(".", f".{word}."): t for name, t in weights().items()}}, "(file)")
            for word in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
        ),
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


class Wrapping(nn.Module):
    """A part called `module` whose weight has the name of one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.module = nn.Linear(2, 2)


def test_names_that_are_one_without_the_words_of_wrappers_are_kept_apart():
    model, stored = Wrapping(), Wrapping()
    stored.weight.data += 1
    assert fit(checkpoint(file=dict(stored.state_dict())), model, "m", {}).notes == ()
    assert all(torch.equal(tensor, stored.state_dict()[name]) for name, tensor in model.state_dict().items())
    less = {name: tensor for name, tensor in stored.state_dict().items() if name != "module.weight"}
    with pytest.raises(LoadError, match=r"it lacks 1 tensor \(`module.weight`\)"):
        fit(checkpoint(file=less), model, "m", {})


def test_an_average_may_be_the_model():
    model = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    stored = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    fit(checkpoint(file=stored), model, "m", {})
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("tensors", "key"),
    [
        ({"ema": weights(1), "model": weights()}, "model"),
        ({"model_ema": weights(1), "weights": weights()}, "weights"),
        ({"state_dict": prefixed("ema_model.", weights(1)) | prefixed("model.", weights())}, "state_dict.model"),
        ({"file": prefixed("ema.", weights(1)) | weights()}, "(file)"),
        ({"file": weights() | prefixed("module.", weights(1))}, "(file)"),
        ({"zeta": weights(), "net": weights(1)}, "net"),
        ({"zeta": weights(1), "net": prefixed("fc.", weights())}, "net.fc"),
        ({"state_dict": weights(1), "model": weights()}, "model"),
        ({"model_state_dict": weights(1), "state_dict": weights()}, "state_dict"),
        ({"model_state": weights(1), "model_state_dict": weights()}, "model_state_dict"),
        ({"net": weights(1), "model_state": weights()}, "model_state"),
        ({"params": weights(1), "network": weights()}, "network"),
    ],
)
def test_a_choice_between_two_sets_is_said(tensors, key):
    result, _ = fitted(**tensors)
    assert result.key == key
    assert any("would fit too and differ" in note for note in result.notes)
    assert not any("were left out" in note for note in result.notes)


def test_of_two_sets_the_one_under_the_better_known_name_is_taken():
    names = [
        *("file", "model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params"),
        "alpha",
    ]
    for first, second in itertools.pairwise(names):
        found = fitted(**{second: weights(1), first: weights()})[0]
        assert found.key == ("(file)" if first == "file" else first)


def test_two_equal_sets_are_no_choice():
    assert fitted(model=weights(), ema=weights())[0].notes == ()


def test_a_set_without_the_counter_of_batches_is_another():
    model = nn.Sequential(nn.BatchNorm1d(2))
    whole = dict(model.state_dict())
    less = {name: tensor for name, tensor in whole.items() if not name.endswith("num_batches_tracked")}
    notes = ("weights: `model`; `net` would fit too and differ",)
    assert fit(checkpoint(model=whole, net=less), model, "m", {}).notes == notes


def test_two_sets_of_other_types_are_a_choice():
    ones = {name: torch.ones_like(tensor) for name, tensor in weights().items()}
    half = {name: tensor.half() for name, tensor in ones.items()}
    assert fitted(model=ones, net=half)[0].notes == ("weights: `model`; `net` would fit too and differ",)


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


@pytest.mark.filterwarnings("ignore")
def test_quantized_weights_of_a_layer_are_written_out():
    packed = torch.quantize_per_tensor(weights()["fc1.weight"], 1 / 512, 0, torch.qint8)
    result, model = fitted(model=weights() | {"fc1.weight": packed})
    assert result.notes == ("weights: stored as qint8, loaded into float32",)
    assert torch.equal(model.fc1.weight, packed.dequantize())


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
        ({"hidden": [32]}, " in the model (and 2 more). Try `-a hidden=[32]`."),
        ({"hidden": [8], "inputs": 100}, " in the model. Try `-a inputs=100`."),
        ({"hidden": [8], "outputs": 3}, " in the model (and 1 more). Try `-a outputs=3`."),
        ({"hidden": [8], "inputs": 100, "outputs": 3}, "Try `-a outputs=3 -a inputs=100`."),
        ({"hidden": [32], "inputs": 100}, "Try `-a hidden=[32] -a inputs=100`."),
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


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5)])
def test_a_mismatch_without_a_guess_asks_for_the_arguments(shape):
    with pytest.raises(LoadError, match=r"in the model\. Expected the arguments it was trained with"):
        fit(checkpoint(file={"weight": torch.ones(shape)}), nn.Linear(1, 2, bias=False), "linear", {"flag": True})


def test_an_argument_is_guessed_once():
    model, stored = mlp(hidden=[8, 8]), dict(mlp(hidden=[16, 32]).state_dict())
    with pytest.raises(LoadError, match=re.escape("(and 4 more). Try `-a hidden=[16,8]`.")):
        fit(checkpoint(file=stored), model, "mlp", {**ARGS, "hidden": [8, 8]})


def test_of_two_arguments_of_one_value_one_is_guessed():
    with pytest.raises(LoadError, match=re.escape("Try `-a width=32`.")):
        fit(checkpoint(file={"weight": torch.ones(32, 1)}), nn.Linear(1, 8, bias=False), "m", {"width": 8, "batch": 8})


def test_missing_unexpected_and_foreign_names_are_errors():
    tensors = weights()
    del tensors["fc2.bias"]
    with pytest.raises(LoadError, match=r"it lacks 1 tensor \(`fc2.bias`\). Expected exactly the names"):
        fitted(model=tensors)
    for count, shown in ((5, r"`fc7.weight`\)"), (6, r"`fc7.weight`, ...\)"), (7, r"`fc7.weight`, ...\)")):
        extra = weights() | {f"fc{i}.weight": torch.ones(1) for i in range(3, 3 + count)}
        with pytest.raises(LoadError, match=rf"it also has {count} tensors \(`fc3.weight`, .*{shown}"):
            fitted(model=extra)
    beside = weights() | prefixed("ema.", weights(1) | {"extra.weight": torch.ones(1)})
    with pytest.raises(LoadError, match=r"it also has 1 tensor \(`ema.extra.weight`\)"):
        chosen("ema", file=beside)
    with pytest.raises(LoadError, match="; the model has no parameters, "):
        fit(checkpoint(file=weights()), nn.Flatten(), "flat", {})
    with pytest.raises(LoadError, match=r"it also has 1 tensor \(`other.fc1.weight`\)"):
        fitted(model=weights() | {"other.fc1.weight": weights()["fc1.weight"]})
    message = "no name agrees. Under `model` it holds `a.w` (1,), `b.w` (1,), `c.w` (1,), ...; the model has "
    with pytest.raises(LoadError, match=re.escape(message + "`fc1.weight`, `fc1.bias`, `fc2.weight`, ....")):
        fitted(model={f"{name}.w": torch.ones(1) for name in "abcd"})


def test_weights_that_torch_cannot_copy_are_an_error_with_the_location(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no kernel")

    model = mlp(hidden=[8])
    monkeypatch.setattr(model, "load_state_dict", refuse)
    with pytest.raises(LoadError, match="weights under `model` cannot be loaded into `mlp`: RuntimeError: no kernel"):
        fit(checkpoint(model=weights()), model, "mlp", ARGS)


def chosen(weights, **tensors):
    model = mlp(hidden=[8])
    return fit(checkpoint(**tensors), model, "mlp", ARGS, weights), model


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (None, "state_dict.model"),
        ("raw", "state_dict.model"),
        ("ema", "state_dict.ema_model"),
        ("state_dict", "state_dict.model"),
        ("state_dict.ema_model", "state_dict.ema_model"),
        ("best", "best"),
    ],
)
def test_the_users_choice_goes_before_every_rule(asked, key):
    tensors = {
        "state_dict": prefixed("ema_model.", weights(1)) | prefixed("model.", weights()),
        "best": weights(2),
    }
    result, model = chosen(asked, **tensors)
    assert result.key == key
    expected = weights(2) if key == "best" else weights("ema" in key)
    assert torch.equal(model.fc1.weight, expected["fc1.weight"])
    assert any("would fit too" in note for note in result.notes) == (asked is None)


def test_a_key_of_the_file_goes_before_the_word():
    assert chosen("ema", ema=weights(), model_ema=weights(1))[0].key == "ema"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("emma", "has no weights under `emma`. Did you mean `ema`? Expected raw, ema or one of `model`, `ema`"),
        ("raw", "holds no raw weights that this model knows. Expected one of `swa`. Name it: `--weights KEY`"),
    ],
)
def test_a_choice_that_is_not_there_is_an_error(asked, message):
    tensors = {"model": weights(), "ema": weights(1)} if asked == "emma" else {"swa": weights()}
    with pytest.raises(LoadError, match=re.escape(message)):
        chosen(asked, **tensors)


@pytest.mark.parametrize(("count", "more"), [(7, "`a6`"), (8, "`a6`, `a7`"), (9, "`a6`, `a7`, ...")])
def test_at_most_eight_keys_are_offered(count, more):
    with pytest.raises(LoadError, match=re.escape(f"one of `a0`, `a1`, `a2`, `a3`, `a4`, `a5`, {more}. Mend")):
        chosen("best", **{f"a{i}": weights() for i in range(count)})


def test_two_equal_modules_of_a_trusted_file_are_no_choice():
    one, said = nn.Linear(2, 2), ("weights: `model`; the file also holds `ema`: choose with `--weights KEY`",)
    for second, notes in ((one, ()), (nn.Linear(2, 2), said), (nn.Linear(3, 2), said)):
        modules = {"model": one, "ema": second}
        file = replace(checkpoint(**{at: dict(m.state_dict()) for at, m in modules.items()}), modules=modules)
        assert held(file).notes == notes


def test_a_module_that_was_asked_for_is_no_choice():
    modules = {"net": nn.Linear(2, 2), "model": nn.Linear(2, 2)}
    file = replace(checkpoint(**{at: dict(m.state_dict()) for at, m in modules.items()}), modules=modules)
    assert held(file).notes == ("weights: `model`; the file also holds `net`: choose with `--weights KEY`",)
    assert held(file, "raw").notes == ()


def test_a_chosen_key_whose_names_do_not_fit_is_shown():
    with pytest.raises(LoadError, match=r"no name agrees. Under `other` it holds `conv.w`"):
        chosen("other", model=weights(), other={"conv.w": torch.ones(1)})


class Tied(nn.Module):
    """An embedding that is its own output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_weight_may_be_absent_and_that_is_said():
    tensor, model = torch.randn(5, 3), Tied()
    result = fit(checkpoint(file={"embed.weight": tensor}), model, "tied", {})
    assert torch.equal(model.head.weight, tensor)
    assert result.notes == ("weights: `head.weight` is not in the file; the model ties it to `embed.weight`",)
    assert fit(checkpoint(file=dict.fromkeys(("embed.weight", "head.weight"), tensor)), model, "tied", {}).notes == ()


class Saving(Tied):
    """One that leaves a name out of what it saves."""

    def __init__(self, left_out: str = "head.weight") -> None:
        super().__init__()
        self.left_out = left_out

    def state_dict(self, *args, **kwargs):
        return {name: t for name, t in super().state_dict(*args, **kwargs).items() if name != self.left_out}

    def load_state_dict(self, state, **_):
        (self.embed.weight.data,) = state.values()


@pytest.mark.parametrize(("kept", "left_out"), [("embed", "head"), ("head", "embed")])
def test_a_model_may_save_a_tied_weight_once(kept, left_out):
    tensor, model = torch.randn(5, 3), Saving(f"{left_out}.weight")
    assert fit(checkpoint(file={f"{kept}.weight": tensor}), model, "saving", {}).notes == ()
    assert torch.equal(model.head.weight, tensor)


class Forgetting(nn.Linear):
    """One that saves less than it has, and takes no less than that."""

    def state_dict(self, *args, **kwargs):
        return {name: t for name, t in super().state_dict(*args, **kwargs).items() if name != "bias"}


def test_no_part_of_a_model_keeps_its_initial_weights():
    with pytest.raises(LoadError, match=r"cannot be loaded into `m`: .*Missing key\(s\) in state_dict: \"bias\""):
        fit(checkpoint(file={"weight": torch.ones(2, 2)}), Forgetting(2, 2), "m", {})


def test_what_the_model_does_not_tie_must_be_there():
    model = Tied()
    model.head.weight = nn.Parameter(torch.ones(5, 3))
    with pytest.raises(LoadError, match=r"lacks 1 tensor \(`head.weight`\)"):
        fit(checkpoint(file={"embed.weight": torch.ones(5, 3)}), model, "untied", {})


def test_different_weights_for_one_parameter_are_an_error():
    tensors = {"embed.weight": torch.ones(5, 3), "head.weight": torch.zeros(5, 3)}
    with pytest.raises(
        LoadError, match=r"different values for `embed.weight` and `head.weight`, which are one parameter"
    ):
        fit(checkpoint(file=tensors), Tied(), "tied", {})


def test_weights_of_a_run_that_diverged_are_one_parameter_still():
    """What `check` says of them: weights that are not finite."""
    tensor = torch.ones(5, 3)
    tensor[1, 1] = torch.nan
    twice = {"embed.weight": tensor, "head.weight": tensor.clone()}
    assert fit(checkpoint(model=twice, ema=dict(twice)), Tied(), "tied", {}).notes == ()
    with pytest.raises(LoadError, match=r"different values for `embed.weight` and `head.weight`"):
        fit(checkpoint(file={**twice, "head.weight": tensor.nan_to_num()}), Tied(), "tied", {})


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("new_into_old", [True, False])
def test_both_spellings_of_weight_norm_are_one(new_into_old):
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    source, model = (new, old) if new_into_old else (old, new)
    result = fit(checkpoint(file=prefixed("module.", dict(source.state_dict()))), model, "wn", {})
    assert result.notes == ("weights: weight_norm's names were translated",)
    x = torch.randn(5, 3)
    assert torch.allclose(model(x), source(x))


def test_weight_norm_of_one_spelling_needs_no_note():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    assert fit(checkpoint(file=dict(model.state_dict())), model, "wn", {}).notes == ()


@pytest.mark.parametrize("name", ["other_g", "other_v"])
def test_a_name_that_ends_as_weight_norms_but_is_alone_is_no_other(name):
    with pytest.raises(LoadError, match=rf"it also has 1 tensor \(`{name}`\)"):
        fitted(model=weights() | {name: torch.ones(1)})


def shadows(model: nn.Module, add: float) -> dict:
    return {str(i): p.detach() + add for i, p in enumerate(model.parameters())}


def test_a_list_of_averages_is_named_by_order_and_completed_by_the_raw_buffers():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()} | {
        "1.running_mean": torch.full((3,), 7.0)
    }
    file = checkpoint(model=raw, ema__shadow_params=shadows(model, 1.0))
    result = fit(file, model, "m", {}, "ema")
    assert result.key == "ema.shadow_params"
    assert result.notes == (
        "weights: named by their order in the model",
        "weights: `ema.shadow_params`, an average over training",
    )
    assert torch.equal(model[2].weight, raw["2.weight"] + 1)
    assert model[1].running_mean.tolist() == [7, 7, 7]
    assert fit(file, model, "m", {}).key == "model"
    other = raw | {"1.running_mean": torch.zeros(3)}
    fit(replace(file, tensors={"swa": other, **file.tensors}), model, "m", {}, "ema.shadow_params")
    assert model[1].running_mean.tolist() == [7, 7, 7]
    part = {"1.running_mean": torch.zeros(3)}  # what does not fit completes none
    fit(replace(file, tensors={"net": part, **file.tensors}), model, "m", {}, "ema.shadow_params")
    assert model[1].running_mean.tolist() == [7, 7, 7]


def test_averages_of_the_parameters_alone_are_completed_by_the_raw_buffers():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[1].running_mean += 1
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages = {name: p.detach() + 1 for name, p in model.named_parameters()}
    found = fit(checkpoint(model=raw, ema__shadow=averages), model, "net", {}, "ema")
    assert found.key == "ema.shadow"
    assert found.notes[0].startswith("weights: `1.running_mean` and other buffers are those of `model`: not in the av")
    assert torch.equal(model[1].running_mean, raw["1.running_mean"])
    assert torch.equal(model[0].weight, raw["0.weight"] + 1)
    other = raw | {"1.running_mean": torch.full((3,), 7.0)}
    fit(checkpoint(swa=other, model=raw, ema__shadow=averages), model, "net", {}, "ema.shadow")
    assert torch.equal(model[1].running_mean, raw["1.running_mean"])
    less = {name: p.detach() for name, p in model.named_parameters()}  # nor are raw ones, and they complete none
    fit(checkpoint(best=less, model=raw, ema__shadow=averages), model, "net", {}, "ema.shadow")
    assert torch.equal(model[1].running_mean, raw["1.running_mean"])
    assert fit(checkpoint(model=less, net=raw), model, "net", {}).key == "net"
    with pytest.raises(LoadError, match=r"it lacks 2 tensors \(`1.running_mean`"):
        fit(checkpoint(ema__shadow=averages), model, "net", {}, "ema")
    del averages["0.bias"]
    with pytest.raises(LoadError, match=r"it lacks 3 tensors \(`0.bias`"):
        fit(checkpoint(model=raw, ema__shadow=averages), model, "net", {}, "ema")


def test_a_list_of_averages_may_leave_frozen_parameters_out():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3))
    model[0].requires_grad_(False)
    raw = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = {str(i): p.detach() + 1 for i, p in enumerate(model[1].parameters())}
    fit(checkpoint(model=raw, shadow_params=averaged), model, "m", {}, "shadow_params")
    assert torch.equal(model[0].weight, raw["0.weight"])
    assert torch.equal(model[1].weight, raw["1.weight"] + 1)
    fit(checkpoint(model=raw, shadow_params=shadows(model, 2.0)), model, "m", {}, "shadow_params")
    assert torch.equal(model[0].weight, raw["0.weight"] + 2)


@pytest.mark.parametrize("raw", [{}, {"model": {name: torch.zeros(5, 3) for name in ("embed.weight", "head.weight")}}])
@pytest.mark.parametrize("kind", [Tied, Saving])
def test_a_list_of_averages_holds_a_tied_weight_once(raw, kind):
    tensor, model = torch.randn(5, 3), kind()
    fit(checkpoint(**raw, ema__shadow_params={"0": tensor}), model, "tied", {}, "ema")
    assert torch.equal(model.head.weight, tensor)


def test_a_list_of_averages_of_other_shapes_is_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    other = shadows(nn.Sequential(nn.Linear(2, 3)), 0.0)
    with pytest.raises(LoadError, match=r"no name agrees. Under `shadow_params`"):
        fit(checkpoint(shadow_params=other), model, "m", {}, "shadow_params")


def test_adapters_alone_are_never_measured():
    tensors = {f"base_model.model.fc1.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    with pytest.raises(LoadError, match=r"holds 2 tensors of LoRA adapters and no weights of the model below them"):
        fitted(file=tensors)


def test_every_part_of_the_model_must_be_in_the_file():
    for left in range(1, 4):
        partial = dict(list(weights().items())[:left])
        with pytest.raises(LoadError, match=r"it lacks \d tensor"):
            fitted(file=partial)


def test_integer_and_complex_buffers_are_kept():
    model = nn.Linear(2, 2)
    model.register_buffer("table", torch.zeros(2, dtype=torch.int64))
    model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
    stored = dict(model.state_dict()) | {"table": torch.tensor([3, 2**40]), "phase": torch.tensor([1j, 2.0])}
    assert fit(checkpoint(file=stored), model, "m", {}).notes == ()
    assert model.table.tolist() == [3, 2**40]
    assert model.phase.tolist() == [1j, 2]


def test_eight_bit_floats_are_widened_and_said():
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights().items()}
    result, model = fitted(model=stored)
    assert result.notes == ("weights: stored as float8_e4m3fn, loaded into float32",)
    assert torch.equal(model.fc1.weight, stored["fc1.weight"].float())


def test_a_place_is_found_by_names_and_shapes_alone():
    from gapscope.measure.loading.checkpoints.fitting import places

    with torch.device("meta"):
        model = mlp(hidden=[8])
    file = checkpoint(ema=weights(1), model=weights(), other={"w": torch.ones(1)})
    assert places(file, model) == ["model", "ema"]
