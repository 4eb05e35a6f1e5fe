import dataclasses
import math

import pytest

from gapscope.errors import UsageError
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.oyedotun.runs import network, train

USUAL = {"data": "digits", "lr": 0.1, "until_loss": 1.0}
SMALL = {"model": "mlp", "model_args": {"hidden": [8]}}


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path / "runs", device="cpu") as made:
        yield made


def test_a_network_takes_what_it_does_not_say_from_the_plan(lab):
    one = network("LeNet", {"model": "lenet5", "data": "digits:size=28", "lr": 0.5}, USUAL, ("50 %", 64), lab)
    assert (one.data, one.lr, one.until_loss, one.sizes) == ("digits:size=28", 0.5, 1.0, (64, 650))
    assert network("mlp", "mlp", USUAL, (64, 128), lab).model == "mlp"


@pytest.mark.parametrize(
    ("given", "batches", "message"),
    [
        (
            {"model": "mlp", "modle_args": {}},
            (64, 128),
            "The network `X` of the plan has no `modle_args`. Did you mean `model_args`? Expected one of model, data, "
            "lr, until_loss, model_args. Mend the plan.",
        ),
        (
            {"lr": 0.1},
            (64, 128),
            'The network `X` of the plan has the model None. Expected a name. For example `model = "mlp"`.',
        ),
        (
            {"model": "mlp", "data": "teacher:samples=100,inputs=64,outputs=10"},
            (64, 128),
            "The data `teacher:samples=100,inputs=64,outputs=10` of the network `X` have 100 training samples, and "
            "those of the plan 1,300. Expected the same samples in another shape, such as `digits:size=28`. Mend "
            "`data`.",
        ),
        (
            SMALL,
            (64, "64"),
            "The batch sizes are 64. Expected two or more. Mend `batches` in the plan.",
        ),
        (SMALL, (), "The batch sizes are none. Expected two or more. Mend `batches` in the plan."),
    ],
)
def test_a_network_that_cannot_be_is_refused(lab, given, batches, message):
    with pytest.raises(UsageError) as error:
        network("X", given, USUAL, batches, lab)
    assert str(error.value) == message


def test_others_go_to_the_smallest_batchs_loss_or_as_long(lab):
    one = network("mlp", SMALL, USUAL, (65, 650), lab)
    (trained,) = train(lab, [one], seeds=2, momentum=0.5, max_epochs=200)
    assert trained.left_out == ()
    for at_loss, at_epochs in zip(trained.loss, trained.epochs, strict=True):
        assert at_loss[0] == at_epochs[0]
        assert at_loss[1].train_loss <= at_loss[0].train_loss <= 1.0
        assert at_epochs[1].epochs == at_loss[0].epochs
        assert {run.spec.recipe.seed for run in (*at_loss, *at_epochs)} == {at_loss[0].spec.recipe.seed}


def test_a_seed_whose_runs_do_not_come_to_the_loss_is_left_out_and_said(lab):
    slow = dataclasses.replace(network("mlp", SMALL, USUAL, (65, 1300), lab), until_loss=1.5)
    (trained,) = train(lab, [slow], seeds=1, momentum=0.0, max_epochs=12)
    assert trained.loss == trained.epochs == ()
    assert len(trained.left_out) == 1
    assert trained.left_out[0].startswith("seed 0 of mlp: batch 1300 did not come to the loss 1.")
    assert trained.left_out[0].endswith(" in 12 epochs")


def test_a_seed_that_diverges_is_left_out_and_said(lab):
    wild = dataclasses.replace(network("mlp", SMALL, USUAL, (65, 650), lab), lr=1e30)
    (trained,) = train(lab, [wild], seeds=1, momentum=0.9, max_epochs=3)
    assert trained.loss == ()
    assert trained.left_out == ("seed 0 of mlp: batch 65 diverged",)
    assert not math.isnan(wild.lr)
