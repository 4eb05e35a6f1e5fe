from collections import namedtuple

import pytest
import torch
from torch import nn

from gapscope.measure import batches
from gapscope.measure.batches import fitting

X, Y, M = torch.arange(12.0).view(4, 3), torch.arange(4), torch.ones(4, 2, dtype=torch.bool)
KINDS = {"one": X, "several": (X, M), "named": {"x": X, "mask": M}}


class Product(nn.Module):
    def forward(self, x, mask=None):
        return x.sum(1) if mask is None else x.sum(1) * mask.sum(1)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_put_together_again_are_the_whole(kind):
    inputs = KINDS[kind]
    parts = list(batches.pieces(inputs, Y, 3))
    assert [len(y) for _, y in parts] == [3, 1]
    whole = batches.joined([x for x, _ in parts])
    assert type(whole) is type(inputs)
    assert all(map(torch.equal, batches.tensors(whole), batches.tensors(inputs)))
    assert batches.count(inputs) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_called_as_its_inputs_ask(kind):
    expected = X.sum(1) * (1 if kind == "one" else 2)
    assert torch.equal(batches.called(Product(), KINDS[kind]), expected)
    assert torch.equal(batches.called(Product(), KINDS[kind], {}), expected)


def test_some_samples_and_a_single_one():
    some = batches.taken(KINDS["named"], torch.tensor([2, 0]))
    assert torch.equal(some["x"], X[[2, 0]])
    one = batches.single(batches.mapped(KINDS["several"], lambda tensor: tensor[1]))
    assert [tuple(tensor.shape) for tensor in one] == [(1, 3), (1, 2)]


def test_only_real_numbers_change_their_type():
    mixed = {"x": X, "ids": Y, "phase": X + 1j}
    found = batches.placed(mixed, torch.device("cpu"), torch.float64)
    assert [tensor.dtype for tensor in found.values()] == [torch.float64, torch.int64, torch.complex64]


def test_scores_are_found_in_what_models_return():
    output = namedtuple("Output", "logits")(X)
    for found in (X, output, {"logits": X, "loss": Y}, {"out": X, "aux": Y}, (X, Y), [X]):
        assert batches.scores(found) is X
    for nothing in (None, {}, (), ["x"], {"loss": X}):
        with pytest.raises(TypeError, match="holds no scores"):
            batches.scores(nothing)


def test_descriptions_name_every_input():
    assert batches.described(X) == "shape (3,), float32"
    assert batches.described(KINDS["named"]) == "x: shape (3,), float32; mask: shape (2,), bool"
    assert batches.described(KINDS["several"]).startswith("0: shape")


@pytest.mark.parametrize(
    ("room", "each", "device", "samples"),
    [
        (100_000_000, 3_000_000, "cpu", 32),
        (100_000_000, 6_344, "cpu", 2048),  # not 8,192
        (100_000_000, 48_829, "cpu", 1024),
        (100_000_000, 1_000, "cpu", 8192),  # an eighth of 65,536
        (100_000_000, 6_344, "cuda", 8192),
        (10, 1_000, "cpu", 1),
    ],
)
def test_a_micro_batch_fits_its_room_and_on_a_cpu_has_no_more_samples_than_pay(room, each, device, samples):
    assert fitting(room, each, torch.device(device)) == samples
