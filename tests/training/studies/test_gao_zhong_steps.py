"""Claims on single steps, by numbers made up for each answer."""

import numpy as np
import pytest

from gapscope.training.studies.gao_zhong.steps import Place, claims, whole

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


def test_nothing_measured_cannot_tell():
    found = claims(SIZES, {})
    assert {claim.verdict for claim in found} == {"cannot tell"}
    assert {claim.because for claim in found} == {"nothing was measured"}


def test_lengths_of_layers_add_up_in_squares():
    assert whole(np.array([[3.0, 4.0]])).tolist() == [5.0]
