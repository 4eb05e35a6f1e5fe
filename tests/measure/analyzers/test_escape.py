from dataclasses import replace

import numpy as np
import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.escape import Escape
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.analyzers.path import Path
from gapscope.measure.loading import Loss
from gapscope.measure.problem import Origin
from gapscope.results import Status
from tests.problems import Well, both, problem

HEIGHT, SAMPLES = 0.25, 64
TRAINING = {"optimizer": "sgd", "lr": 0.1, "batch_size": 8, "momentum": 0.0}


def basin(x, training=TRAINING):
    """L_i = (x^2 - 1)^2 / 4 + (2 + x) y^2 + xi_i x with xi = +-0.3: a double well, one side flatter across."""

    def per_sample(outputs, targets):
        first, second = outputs[:, 0], outputs[:, 1]
        return HEIGHT * (first.square() - 1).square() + (2 + first) * second.square() + targets[:, 0] * first

    xi = 0.3 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(SAMPLES // 2)[:, None]
    theta = torch.tensor([x, 0.0], dtype=torch.float64)
    return problem(Well(theta), xi.clone(), xi, Loss("basin", per_sample), origin=Origin(training=training))


def measured(first, last, k=0, found=2):
    known = (Noise(), Eigenvalues(k=found), Path())
    context = both(first, last, analyzers=known)
    singles = tuple(replace(one, analyzers={a.name: a for a in known}) for one in context.singles)
    return Escape(k=k)(replace(context, singles=singles))


def test_the_exponent_of_a_double_well_is_its_saddle_over_the_diffusion_constant():
    result = measured(basin(-1.0), basin(1.0))
    variance = 0.3**2  # of the gradient of one sample, along x alone
    d = 0.1 * variance / (2 * 8 * 2)
    assert result.diffusion.value == pytest.approx([d, d])
    assert result.rise.value == pytest.approx([HEIGHT, HEIGHT])
    assert result.exponent.value == pytest.approx([HEIGHT / d, HEIGHT / d])
    assert result.rate_over_batch.value == pytest.approx([0.1 / 8] * 2)
    assert "not an escape time" in result.exponent.doc
    assert any("not an escape time" in note for note in result.notes)
    assert result.status is not Status.NONFINITE  # both Hessians are alike for all samples: no noise to converge on


def test_the_odds_are_those_of_the_determinants():
    result = measured(basin(-1.0), basin(1.0))
    # Hessians diag(2, 2) and diag(2, 6)
    assert result.log10_odds.value == pytest.approx(0.5 * np.log10(3), rel=1e-6)
    assert result.directions.value == 1  # copies of one eigenvalue count once at x = -1
    other = measured(basin(1.0), basin(-1.0))
    assert other.log10_odds.value == pytest.approx(-0.5 * np.log10(3), rel=1e-6)


def test_more_directions_are_measured_where_they_are_asked_for():
    result = measured(basin(1.0), basin(1.0), k=2, found=1)
    assert result.directions.value == 2
    assert result.log10_odds.value == pytest.approx(0.0, abs=1e-9)
    assert result.matvecs > 0
    assert measured(basin(1.0), basin(1.0), k=2, found=2).matvecs == 0


def test_errors_add_relatively():
    result = measured(basin(-1.0), basin(1.0))
    noise = Noise()(both(basin(-1.0)).singles[0])
    relative = float(noise.diffusion.sampling_error / noise.diffusion.value)
    rise = result.rise.sampling_error / result.rise.value
    assert result.exponent.sampling_error / result.exponent.value == pytest.approx(np.hypot(rise, relative))


def test_without_a_recorded_rate_there_is_no_exponent():
    result = measured(basin(-1.0), basin(1.0, {"optimizer": "sgd", "batch_size": 8}))
    assert result.exponent is None
    assert result.diffusion is None
    assert result.notes[0] == "no exponent: the second checkpoint has no diffusion constant"
    assert any("does not record" in note for note in result.notes)
    assert result.log10_odds.value == pytest.approx(0.5 * np.log10(3), rel=1e-6)


def test_a_negative_number_of_eigenvalues_is_refused():
    with pytest.raises(UsageError, match=r"escape got k=-1. Expected 0 or more eigenvalues. Mend `--k`"):
        measured(basin(-1.0), basin(1.0), k=-1)


def test_the_odds_are_of_the_hessian_whatever_else_was_measured():
    first, last = basin(-1.0), basin(1.0)
    known = (Noise(), Eigenvalues(k=2, gauss_newton=True), Path())
    context = both(first, last, analyzers=known)
    singles = tuple(replace(one, analyzers={a.name: a for a in known}) for one in context.singles)
    result = Escape()(replace(context, singles=singles))
    assert result.log10_odds.value == pytest.approx(0.5 * np.log10(3), rel=1e-6)
    assert result.matvecs > 0


def test_fewer_directions_than_were_measured_may_be_asked_for():
    result = measured(basin(1.0), basin(1.0), k=1, found=2)
    assert result.directions.value == 1
