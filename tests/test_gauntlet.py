import warnings

import numpy as np
import pytest
import torch

import gapscope
from gapscope.errors import ProblemError
from gapscope.measure import differentiable
from gapscope.measure.checks import check
from tests.gauntlet import ROWS, true_hessian

TOLERANCE = 1e-4  # of float32 models; the truth, by Richardson's differences in float64, is known to 1e-8 or so


def ready(row):
    if row.needs:
        pytest.importorskip(row.needs)
    return row


@pytest.mark.parametrize("row", [row for row in ROWS if not row.expected.startswith("refused")], ids=lambda r: r.name)
@pytest.mark.filterwarnings("ignore:.*weights_only|.*jit|.*swig:DeprecationWarning")
def test_curvature_comes_out_right_and_says_how(row):
    ready(row)
    truth = true_hessian(row)
    problem = row.problem()
    rng = np.random.default_rng(0)
    operator = problem.hessian()
    for v in rng.standard_normal((2, problem.size)):
        found = operator.matvec(torch.from_numpy(v).to(problem.dtype)).double().numpy()
        assert np.linalg.norm(found - truth @ v) <= TOLERANCE * np.linalg.norm(truth @ v)
    top = gapscope.measure(problem, [gapscope.Eigenvalues()]).results["eigenvalues"].quantities["top"]
    largest = np.linalg.eigvalsh(truth)[-1]
    assert abs(top.value - largest) <= top.numerical_error + TOLERANCE * largest
    assert top.numerical_error <= 3e-3 * largest
    how = problem.derivatives
    if row.expected == "differences":
        assert how.method == "differences"
        assert 0 < how.relative_error < TOLERANCE
        assert "by central differences of the gradient in float64" in how.note
    else:
        repairs = {row.expected.partition(": ")[2]} - {""}
        assert how.method == "exact"
        assert problem.repaired == repairs
        assert repairs <= set(differentiable.NOTES)


@pytest.mark.parametrize("row", [row for row in ROWS if row.expected.startswith("refused")], ids=lambda r: r.name)
def test_what_has_no_curvature_is_refused(row):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        given = row.problem
        with pytest.raises(ProblemError) as refusal:
            check(given())
    assert row.expected.partition(": ")[2] in str(refusal.value)
