"""Class numbers are found however they were written, and no loss is inferred where several fit."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from gapscope.errors import LoadError
from gapscope.measure.loading import Data, Trust, build_loss, infer_loss
from gapscope.measure.loading.targets import as_classes, is_ambiguous, is_sum, own_criterion

X, LABELS = torch.randn(12, 3), torch.arange(12) % 4


def data(targets):
    return Data(X, targets, "the data", "-", len(targets))


@pytest.mark.parametrize(
    ("targets", "how"),
    [
        (LABELS.double(), "real numbers"),
        (LABELS.float()[:, None], "real numbers"),
        (one_hot(LABELS, 4), "one-hot rows"),
        (one_hot(LABELS, 4).float(), "one-hot rows"),
    ],
)
def test_labels_in_other_dress_are_the_same_labels(targets, how):
    found = as_classes(data(targets), nn.Linear(3, 4))
    assert torch.equal(found.targets, LABELS)
    assert found.notes == (f"data: the data: targets: {how} taken as class numbers",)
    assert found.fingerprint == as_classes(data(LABELS.double()), nn.Linear(3, 4)).fingerprint


def test_one_hot_pixels_are_labels_along_the_channels():
    pixels = torch.randint(0, 2, (3, 5, 6))
    images = Data(torch.rand(3, 1, 5, 6), one_hot(pixels, 2).movedim(-1, 1), "masks", "-", 3)
    assert torch.equal(as_classes(images, nn.Conv2d(1, 2, 1)).targets, pixels)
    with pytest.raises(LoadError, match="or `--loss cross-entropy`; or"):
        infer_loss(images.targets, nn.Conv2d(1, 2, 1), images.inputs)


def test_one_hot_tokens_are_labels_along_the_last_dimension():
    labels = torch.arange(15).view(3, 5) % 4
    rows, model = torch.rand(3, 5, 6), nn.Linear(6, 4)
    found = as_classes(Data(rows, one_hot(labels, 4), "tokens", "-", 3), model)
    assert torch.equal(found.targets, labels)
    with pytest.raises(LoadError, match="or `--loss cross-entropy`; or"):
        infer_loss(one_hot(labels, 4), model, rows)


@pytest.mark.parametrize(
    "targets",
    [
        LABELS,
        torch.rand(12, 4),
        torch.eye(4).repeat(3, 1) + torch.eye(4)[0],
        torch.tensor([[1, 1, 0, 0]]).repeat(12, 1),
        torch.tensor([[2, -1, 0, 0]]).repeat(12, 1),
    ],
)
def test_other_targets_stay_as_they_are(targets):
    assert as_classes(data(targets), nn.Linear(3, 4)).targets.tolist() == targets.tolist()


def test_labels_stay_as_they_are_where_each_has_one_output():
    flat = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    assert torch.equal(as_classes(data(LABELS), flat).targets, LABELS)


def test_rows_with_a_single_one_stay_where_each_entry_has_scores_of_its_own():
    flags, model = one_hot(LABELS, 4), nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (4, 2)))
    assert torch.equal(as_classes(data(flags), model).targets, flags)


@pytest.mark.parametrize(
    ("targets", "outputs", "message"),
    [
        (
            one_hot(LABELS, 4).float(),
            4,
            "`--loss bce-with-logits` or `--loss mse` or `--loss cross-entropy`; or",
        ),
        ((X[:, :2] > -9).float(), 2, "are zeros and ones, one for each output of the model (2,). Expected to be told"),
        (LABELS % 2, 1, "Name it: `--loss bce-with-logits` or `--loss mse`; or"),
        (torch.ones(12, 1), 1, "Name it: `--loss bce-with-logits` or `--loss mse`; or"),  # flags, one each
        (
            LABELS,
            1,
            "The targets are whole numbers, one for each output of the model (1,). Expected",
        ),
    ],
)
def test_targets_that_several_losses_take_are_not_guessed(targets, outputs, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        infer_loss(targets, nn.Linear(3, outputs), X)


def test_the_outputs_tell_labels_from_real_numbers():
    assert infer_loss(LABELS.float(), nn.Linear(3, 4), X).name == "cross-entropy"
    assert infer_loss(LABELS.float(), nn.Linear(3, 1), X).name == "mse"
    rows, tokens = torch.rand(3, 5, 6), torch.arange(15.0).view(3, 5) % 4
    assert infer_loss(tokens, nn.Linear(6, 4), rows).name == "cross-entropy"
    assert infer_loss(X[:, :1], nn.Linear(3, 4), X).name == "mse"
    assert infer_loss(LABELS, nn.Linear(7, 4), X).name == "cross-entropy"  # it fails, which is not said here
    assert not is_ambiguous(LABELS, None)


CRITERIA = [
    (nn.CrossEntropyLoss(), "cross-entropy"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), "cross-entropy:label_smoothing=0.1"),
    (nn.CrossEntropyLoss(label_smoothing=1.0), "cross-entropy:label_smoothing=1"),
    (nn.CrossEntropyLoss(torch.tensor([1.0, 2, 0.5, 1])), "cross-entropy:weight=[1,2,0.5,1]"),
    (nn.CrossEntropyLoss(ignore_index=2), "cross-entropy:ignore_index=2"),
    (nn.CrossEntropyLoss(ignore_index=100), "cross-entropy:ignore_index=100"),
    (nn.NLLLoss(), "cross-entropy"),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])), "bce-with-logits:pos_weight=[3]"),
    (nn.MSELoss(), "mse"),
    (nn.L1Loss(), "torch.nn:L1Loss"),
    (nn.BCELoss(), "torch.nn:BCELoss"),
]


@pytest.mark.parametrize(("criterion", "name"), CRITERIA)
def test_a_criterion_that_the_model_holds_is_the_loss(criterion, name):
    model = nn.ModuleDict({"net": nn.Linear(3, 4), "criterion": criterion})
    found = infer_loss(LABELS, model, X)
    assert found.name == name
    if name.startswith("cross-entropy:"):
        outputs = torch.randn(12, 4)
        assert torch.allclose(found.bound(LABELS).per_sample(outputs, LABELS).mean(), criterion(outputs, LABELS))
    assert build_loss(own_criterion(model), recorded=False, trust=Trust()).name == name


SUMMED = nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1)


@pytest.mark.parametrize("held", [(nn.MSELoss(), nn.MSELoss()), (nn.HuberLoss(),), (nn.BCELoss(torch.ones(2)),)])
def test_criteria_that_do_not_say_one_loss_are_left_alone(held):
    assert own_criterion(nn.ModuleList(held)) == ""


def test_weights_of_channels_are_not_taken_for_those_of_the_last_dimension():
    weights = torch.tensor([1.0, 5, 9])
    for pos_weight in (weights.view(3, 1, 1), weights.view(3, 1), weights[:2].view(2, 1)):
        assert own_criterion(nn.BCEWithLogitsLoss(pos_weight=pos_weight)) == ""
    for pos_weight in (weights, weights.view(1, 3), weights.view(1, 1, 3)):
        assert (
            own_criterion(nn.BCEWithLogitsLoss(pos_weight=pos_weight)) == "bce-with-logits:pos_weight=[1.0, 5.0, 9.0]"
        )
    for alone in (weights[1], weights[1].view(1, 1)):
        assert own_criterion(nn.BCEWithLogitsLoss(pos_weight=alone)) == "bce-with-logits:pos_weight=[5.0]"


def test_of_a_criterion_that_sums_the_mean_is_the_loss():
    summing = nn.ModuleDict({"net": nn.Linear(3, 4), "criterion": SUMMED})
    assert infer_loss(LABELS, summing, X).name == "cross-entropy:label_smoothing=0.1"
    assert is_sum(summing)
    binary = nn.Linear(3, 1)
    binary.criterion = nn.BCEWithLogitsLoss(reduction="sum")
    assert infer_loss(LABELS % 2, binary, X).name == "bce-with-logits"
    assert not is_sum(nn.Sequential(nn.Linear(3, 1), nn.MSELoss()))
