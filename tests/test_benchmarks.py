"""The benchmarks' own machinery, on a problem of 27 parameters: what is counted, what is judged, what is printed."""

import json
import time

import numpy as np
import pytest
import torch

from tests.benchmarks import cases, side_by_side, truth
from tests.benchmarks.machine import markdown, peak_memory
from tests.benchmarks.one import ASKED, Job, measure
from tests.benchmarks.own import problem
from tests.benchmarks.peers import Found, plain_product
from tests.problems import dense_hessian


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCHMARK_CACHE", str(tmp_path))


def test_references_are_those_of_the_dense_hessian():
    case = cases.tiny()
    values = np.linalg.eigvalsh(dense_hessian(problem(case, None)))
    assert truth.truth("top", case)["values"][:5] == pytest.approx(values[::-1][:5], rel=1e-6)
    assert truth.truth("trace", case)["value"] == pytest.approx(values.sum(), rel=1e-10)
    assert next(iter(case.parameters)).dtype == torch.float32


def test_the_plain_product_weighs_a_ragged_last_batch_by_its_samples():
    case = cases.tiny()
    dense = torch.from_numpy(dense_hessian(problem(case, None)))
    v = torch.randn(len(dense), generator=torch.Generator().manual_seed(0))
    found = plain_product(case, case.batches(7), v)  # 7, 7, 7, 7 and 2
    assert torch.allclose(found.double(), dense @ v.double(), rtol=0, atol=50 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("tool", ["gapscope", "SciPy eigsh"])
def test_a_job_says_what_it_cost_and_how_far_it_is_off(tool):
    row = measure(Job("top", tool, "tiny", 10, seeds=2), cases.tiny())
    assert row["reached"] is True
    assert row["error"] < 1e-3
    assert row["seeds"] == 2
    assert row["products"] >= 2
    assert row["gradients"] > 0
    assert json.loads(json.dumps(row)) == row


def test_every_way_to_the_same_box_finds_about_the_same_maximum():
    rows = [
        measure(Job("epsilon-sharpness", tool, "tiny", seeds=1), cases.tiny()) for tool in ASKED["epsilon-sharpness"]
    ]
    assert [row["value"] for row in rows] == pytest.approx([rows[0]["value"]] * len(rows), rel=1e-2)  # APGD's tolerance


def test_both_ways_count_the_same_ranks_where_no_activation_follows():
    case = cases.tiny()
    linear = cases.Case("line", torch.nn.Linear(4, 3), case.inputs, case.targets, case.loss, "")
    rows = [measure(Job("near-rank", tool, "line", seeds=1), linear) for tool in ASKED["near-rank"]]
    assert rows[0]["value"] == rows[1]["value"] == 9  # full rank 3 at three cuts


def test_the_distance_of_two_points_is_the_distance_between_them():
    assert truth.wasserstein(([[1.0]], [[1.0]]), ([3.0], [2.0])) == pytest.approx(2.0)
    assert truth.error("trace", Found(0.9, None, 1), {"value": 1.0}) == pytest.approx(0.1)


def test_peak_memory_sees_what_is_freed_again():
    with peak_memory() as peak:
        held = torch.zeros(30_000_000).add_(1)
        time.sleep(0.1)  # it is looked at every 5 ms
        del held
    assert 110e6 < peak.size < 250e6


def _row(tool, gradients, *, reached=True, rule=True):
    told = {"problem": "mlp", "batches": "all", "tool": tool, "failed": "", "products": 9}
    return told | {"gradients": gradients, "reached": reached, "rule": rule}


def test_targets_leave_out_who_misses_and_who_must_be_told_when_to_stop():
    rows = [
        _row("gapscope", 20.0),
        _row("PyHessian", 10.0, reached=False),
        _row("told", 12.0, rule=False),
        _row("curvlinops", 40.0),
    ]
    assert side_by_side.ratios(rows) == [
        {
            "problem": "mlp",
            "batches": "all",
            "fastest peer": "curvlinops",
            "over fastest peer": 0.5,
            "over PyHessian": None,
        }
    ]
    said = side_by_side.verdicts("top", rows)
    assert said[0] == "mlp, all: fastest peer: curvlinops, gapscope takes 0.50 of its time."
    assert said[1] == "time over the fastest peer's, geometric mean: 0.50, at most 0.70: met."
    assert said[3].endswith("no figure.")


def test_columns_of_a_table_are_those_of_all_rows():
    assert markdown([{"a": 1}, {"b": 2}]) == "| a | b |\n| --- | --- |\n| 1 |  |\n|  | 2 |"
