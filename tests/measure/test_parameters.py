import pytest
import torch
from torch import nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.parameters import Parameters
from tests.problems import ZOO


def test_unflatten_inverts_flatten_on_every_kind_of_model():
    for kind in ZOO.values():
        model = kind.build()
        layout = Parameters.of(model)
        theta = torch.arange(float(layout.size))
        assert torch.equal(layout.flatten(layout.unflatten(theta)), theta)
        assert torch.equal(layout.flatten(layout.split(theta)), theta)


def test_a_tied_weight_counts_once():
    layout = Parameters.of(ZOO["tied embedding"].build())
    assert layout.names == ("embed.weight", "mix.weight", "mix.bias")
    assert layout.size == 7 * 5 + 5 * 5 + 5


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    layout = Parameters.of(model)
    assert layout.names == ("0.bias", "1.weight", "1.bias")
    assert layout.sizes == [3, 3, 1]


def test_flattening_copies_even_a_single_parameter():
    model = nn.Linear(2, 1, bias=False)
    theta = Parameters.of(model).flatten(dict(model.named_parameters()))
    theta.zero_()
    assert not theta.requires_grad
    assert model.weight.abs().min() > 0


def test_scalars_and_empty_parameters_have_their_place():
    layout = Parameters(("a", "b", "c"), (torch.Size([]), torch.Size([0, 3]), torch.Size([2])))
    parts = layout.unflatten(torch.tensor([1.0, 2.0, 3.0]))
    assert layout.size == 3
    assert parts["a"] == 1
    assert parts["b"].shape == (0, 3)
    assert torch.equal(parts["c"], torch.tensor([2.0, 3.0]))


def test_blocks_are_the_layers_and_cover_theta():
    model = ZOO["lstm"].build()
    blocks = Parameters.of(model).blocks()
    assert list(blocks) == ["lstm", "head"]
    assert (blocks["lstm"].start, blocks["lstm"].stop) == (0, sum(p.numel() for p in model.lstm.parameters()))
    assert (blocks["head"].start, blocks["head"].stop) == (blocks["lstm"].stop, Parameters.of(model).size)


def test_a_parameter_of_the_model_itself_is_its_own_layer():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(torch.ones(2)), nn.Linear(2, 2)

    assert list(Parameters.of(Scaled()).blocks()) == ["scale", "inner"]


def test_patterns_choose_what_theta_is_made_of_frozen_or_not():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[1].bias.requires_grad_(False)
    assert Parameters.of(model, ["1.*"]).names == ("1.weight", "1.bias")
    assert Parameters.of(model, ["*.bias", "0.*"]).names == ("0.weight", "0.bias", "1.bias")


def test_a_tied_weight_is_chosen_by_either_name():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4))
    model[1].weight = model[0].weight
    assert Parameters.of(model, ["1.weight"]).names == ("0.weight",)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UsageError, match=r"matches `0.wieght`. Did you mean `0.weight`\? Expected a name"):
        Parameters.of(nn.Sequential(nn.Linear(2, 3)), ["0.wieght"])


def test_a_complex_parameter_is_refused_unless_others_are_chosen():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(model.weight.detach().to(torch.complex64))
    with pytest.raises(
        ProblemError, match=r"The parameter `weight` is complex\. Expected real ones\. Keep it as pairs"
    ):
        Parameters.of(model)
    with pytest.raises(ProblemError, match=r"choose the others: `--parameters 'PATTERN'`"):
        Parameters.of(model, ["*"])
    assert Parameters.of(model, ["bias"]).names == ("bias",)
    model.weight.requires_grad_(False)
    assert Parameters.of(model).names == ("bias",)
