"""Claims on single steps, by numbers made up for each answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from gapscope.training.studies.gao_zhong.runs import Bench
from gapscope.training.studies.gao_zhong.steps import Place, claims, steps, whole
from gapscope.training.studies.lab import Lab, Run

SIZES = (16, 64, 256)
FALLING, RISING = (
    np.array([[1.0, 0.6, 0.3], [1.1, 0.6, 0.35], [0.9, 0.5, 0.3]]),
    np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.2], [1.0, 2.0, 3.9]]),
)
MIXED = np.array([[1.0, 2.0, 4.0], [4.0, 2.0, 1.0], [1.0, 1.1, 1.0]])


def place(values):
    layers = values[..., None]
    return Place(
        layers=("fc1",),
        gradient=layers,
        gradient_formula=layers,
        step=layers,
        fall=values,
        fall_formula=values,
        own_fall=values,
    )


@pytest.mark.parametrize(
    ("early", "late", "verdict"),
    [
        (FALLING, FALLING, "shows"),
        (FALLING, RISING, "does not show"),
        (FALLING, MIXED, "cannot tell"),
        (RISING, MIXED, "does not show"),
    ],
)
def test_steps_shrink_where_they_do_early_and_late(early, late, verdict):
    found = claims(SIZES, {"early": place(early), "late": place(late)})
    assert [claim.verdict for claim in found] == [verdict] * 3
    assert all("early: " in claim.because and "late: " in claim.because for claim in found)


def test_what_ended_where_early_is_has_no_late_steps(tmp_path):
    plan = SimpleNamespace(lr=0.1, draws=1, early_epochs=1)
    ended = [Run(spec=None, path=tmp_path, epochs=epochs, steps=9, train_loss=1.0, stopped="") for epochs in (1, 3)]
    with Lab(tmp_path, device="cpu") as lab:
        part, _ = steps(Bench(lab, plan, 260, SIZES), [], ended, ("Left out: batch 64: 1 of 2 runs diverged.",))
    assert part.notes[:2] == (
        "Left out: batch 64: 1 of 2 runs diverged.",
        "Left out: late: 1 of 2 runs came to the loss within 1 epoch, where early is.",
    )


def test_nothing_measured_cannot_tell():
    found = claims(SIZES, {})
    assert {claim.verdict for claim in found} == {"cannot tell"}
    assert {claim.because for claim in found} == {"nothing was measured"}


def test_lengths_of_layers_add_up_in_squares():
    assert whole(np.array([[3.0, 4.0]])).tolist() == [5.0]
