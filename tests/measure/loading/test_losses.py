"""One loss per sample, equal to torch's own where torch has it."""

import re

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from gapscope.errors import LoadError
from gapscope.measure.loading.losses import LOSSES, build_loss, infer_loss
from gapscope.measure.loading.trust import Trust

CE, MSE = LOSSES["cross-entropy"], LOSSES["mse"]


def build(spec, recorded=False, trusted=()):
    return build_loss(spec, recorded=recorded, trust=Trust(trusted))


def test_the_mean_over_samples_is_torchs_mean():
    outputs, targets = torch.randn(5, 4), torch.randint(0, 4, (5,))
    assert torch.allclose(CE.per_sample(outputs, targets).mean(), F.cross_entropy(outputs, targets))
    assert CE.correct(outputs, targets).dtype == torch.bool
    real = torch.randn(5, 4)
    assert torch.allclose(MSE.per_sample(outputs, real).mean(), F.mse_loss(outputs, real))


def test_tokens_and_pixels_are_averaged_within_a_sample():
    tokens, targets = torch.randn(3, 7, 4), torch.randint(0, 4, (3, 7))
    pixels, mask = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    for outputs, scores, wanted in ((tokens, tokens.transpose(1, 2), targets), (pixels, pixels, mask)):
        each = CE.per_sample(outputs, wanted)
        assert torch.allclose(each, F.cross_entropy(scores, wanted, reduction="none").flatten(1).mean(1))
        assert torch.allclose(CE.correct(outputs, wanted), (scores.argmax(1) == wanted).double().flatten(1).mean(1))


def test_a_column_of_outputs_is_not_broadcast_against_a_row_of_targets():
    assert MSE.per_sample(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])).tolist() == [0, 4]


def test_the_loss_follows_the_kind_of_target():
    assert infer_loss(torch.tensor([1])) is CE
    assert infer_loss(torch.tensor([1.0])) is MSE


def test_a_users_loss_is_used_as_it_is(folder):
    outputs, targets = torch.randn(3, 2), torch.tensor([0, 1, 1])
    assert build("zoo:l1").per_sample(outputs, targets).shape == (3,)
    assert build("zoo:l1").correct is None
    each = build("torch.nn:CrossEntropyLoss").per_sample(outputs, targets)
    assert torch.allclose(each, CE.per_sample(outputs, targets))
    assert build("zoo:l1", recorded=True, trusted=("zoo:*",)).name == "zoo:l1"
    assert build("mse", recorded=True) is MSE


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross_entropy", "There is no built-in loss `cross_entropy`. Did you mean `cross-entropy`? Expected one of"),
        ("math:pi", "`math:pi` is an object of class float. Expected a function of (outputs, targets)."),
        ("zoo:Needy", "`zoo:Needy` without arguments raised TypeError"),
    ],
)
def test_what_is_no_loss_says_why(folder, spec, message):
    with (folder / "zoo.py").open("a") as file:
        file.write("\nclass Needy:\n    def __init__(self, x): pass\n")
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec)


@pytest.mark.parametrize("spec", ["zoo:scalar", "torch.nn.functional:cross_entropy"])
def test_a_loss_that_returns_one_number_is_refused(folder, spec):
    with pytest.raises(
        LoadError, match=r'returned a scalar for 3 samples. Return one loss per sample.*reduction="none"'
    ):
        build(spec).per_sample(torch.randn(3, 2), torch.tensor([0, 1, 1]))


def test_outputs_of_another_shape_are_shown_beside_the_targets():
    with pytest.raises(
        LoadError, match=r"returns \(3, 2, 2\) for targets \(3,\). Cross-entropy expects one score per class"
    ):
        CE.per_sample(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(
        LoadError, match=r"returns \(3, 2\) for targets \(3,\). Mean squared error expects equal shapes"
    ):
        MSE.per_sample(torch.zeros(3, 2), torch.zeros(3))


def test_a_recorded_loss_that_is_not_trusted_is_not_imported(folder):
    for spec in ("os:system", "canary:build", "zoo:run"):
        with pytest.raises(LoadError, match=f"records the loss `{spec}`"):
            build(spec, recorded=True)
    assert not (folder / "sang").exists()
