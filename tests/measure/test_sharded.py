"""Sharded parameters: what ranks find of which none holds all is what one finds that does."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import RankError, UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.trace import Trace
from gapscope.measure.checks import check
from gapscope.measure.cutting import blocks, share_of
from gapscope.measure.distributed import Ranks, as_ranks
from gapscope.measure.plan import peak_bytes
from gapscope.measure.session import Session
from gapscope.measure.sharded import Sharded, _of_others
from gapscope.report.file import read_report
from tests.problems import ZOO, measure, softmax_regression
from tests.test_several_processes import torchrun

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "fixtures" / "digits-small-batch.pt"
CPU = torch.device("cpu")
KINDS = ("conv batchnorm", "fused attention", "lstm", "tied embedding", "uneven, once")
EPS = float(np.finfo(float).eps)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    done = torchrun(3, ROOT / "tests" / "shard_work.py", folder / "found.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def alone(kind="tanh mlp", **more):
    return Sharded.of(ZOO[kind].problem(**more), CPU)


# --- three ranks


@pytest.mark.parametrize("kind", KINDS)
def test_three_ranks_hold_a_third_and_find_what_one_does(found, kind):
    """Rows of 1 to 16 over 3 ranks, tied and frozen weights, one that is not used, one without second derivative."""
    one = found[kind]
    assert one["theta"]
    assert one["start"]  # drawn in parts, of which each rank keeps its own
    assert one["losses"] <= 10 * EPS
    assert one["gradient"] <= 100 * EPS
    # the stated error is that of a unit vector, as two steps disagree
    assert 0 < one["error"] < 1e-6 * one["size"]
    assert one["product"] <= one["error"]
    assert one["along"] <= one["error"]
    assert one["method"] == "differences"


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_come_back_bit_by_bit(found, kind):
    assert found[kind]["restored"]


def test_the_weights_come_back_after_an_exception(found):
    assert found["exception"] == {"said": "in the middle", "same": True, "again": True, "clear": True}


def test_parts_may_be_uneven_and_empty(found):
    assert found["uneven, once"]["shards"] == [
        [1, 2, 10, 2, 2, 10, 2, 5, 1],
        [0, 2, 10, 2, 2, 10, 2, 5, 1],
        [0, 0, 5, 1, 1, 5, 1, 5, 1],
    ]


def test_the_top_eigenvalues_of_shards_are_those_of_a_closed_form(found):
    one = found["analyzed"]
    assert one["status"] == "CONVERGED"
    assert all(abs(gap) <= error for gap, error in zip(one["values"], one["errors"], strict=True))
    assert one["above"] >= 0
    assert abs(one["loss"]) <= 10 * np.finfo(np.float32).eps
    assert (one["held"], one["size"]) == ([5, 5, 5], 15)


def test_repeated_blocks_are_gathered_one_at_a_time_but_for_shared_weights(found):
    assert found["blocks"] == [3, 0]


def test_a_model_with_constants_in_float32_is_measured_in_it(found):
    dtype, positive, error = found["narrow"]
    assert (dtype, positive) == ("torch.float32", True)
    assert 0 < error < 1e-2


def test_a_parameter_without_an_axis_is_refused(found):
    assert found["scalar"] == (
        "The parameter `shift` is one number, without an axis to cut. Expected one axis or more with "
        "`--shard-parameters`. Give it the shape (1,), or leave that option out."
    )


# --- the command line


def test_two_ranks_measure_what_one_is_refused_for_lack_of_memory(run, tmp_path):
    words = ("eigenvalues", SMALL, "--limit", "200", "--batch-size", "64", "-q")
    tight = (*words, "--shard-parameters", "--memory-budget", "300kB")
    refused = run(*tight)
    assert refused.code == 2
    assert refused.err.startswith(
        "error: A Krylov basis of 9 vectors of 4,810 entries and 2 Ritz vectors need 0.00021 GB; 0.00015 GB are "
        "allowed for them, where 5 fit. Raise `--memory-budget` to 0.1GB, ask for fewer eigenvalues, or spread the "
        "vectors over more ranks of torchrun: `--shard-parameters`."
    )
    assert run(*words, "--dtype", "float64", "-o", "exact.h5").code == 0
    done = torchrun(2, *tight, "-o", "shards.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    a, b = (read_report(tmp_path / name) for name in ("exact.h5", "shards.h5"))
    assert a.identity == b.identity
    assert {key for key in a.conditions if a.conditions[key] != b.conditions[key]} == {"dtype"}
    assert (b.environment["world_size"], bool(b.environment["sharded_parameters"])) == (2, True)
    one, two = a.results["eigenvalues"], b.results["eigenvalues"]
    assert one.quantities.keys() == two.quantities.keys()
    assert two.settings == {**one.settings, "hvp": "differences"}
    assert two.status.name == "CONVERGED"
    for name in ("values", "top"):
        exact, shards = one.quantities[name], two.quantities[name]
        assert np.all(abs(exact.value - shards.value) <= exact.numerical_error + shards.numerical_error)
    assert np.isclose(one.quantities["gradient_norm"].value, two.quantities["gradient_norm"].value, rtol=1e-6)


def test_what_needs_whole_vectors_is_refused_before_the_work(run):
    done = run("trace", SMALL, "--limit", "50", "-q", "--shard-parameters")
    assert done.code == 2
    assert errors_of(done) == [
        "error: trace needs whole vectors of all 4,810 parameters on one device. Expected what does with shares: "
        "`gapscope gap`, or `gapscope eigenvalues` without `--gauss-newton`, `--preconditioned` and `--referee`. Leave "
        "out `--shard-parameters`."
    ]
    done = run("sharpness", SMALL, "--limit", "50", "-q", "--shard-parameters")
    assert "error: epsilon-sharpness and adaptive-sharpness need whole vectors of all 4,810" in done.err


def errors_of(done):
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


# --- one rank, which has all


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"hvp_method": "exact"}, "`--hvp exact` was asked for with `--shard-parameters`. Expected `auto`"),
        ({"batchnorm": "batch", "batch_size": 10}, "`--batchnorm batch` was asked for with `--shard-parameters`."),
    ],
)
def test_what_shards_cannot_do_is_refused(more, said):
    with pytest.raises(UsageError, match=f"^{said}"):
        alone("conv batchnorm", **more)


@pytest.mark.parametrize(
    "ask",
    [lambda p: p.gauss_newton().matvec(p.theta), lambda p: p.slopes_along(p.theta), lambda p: p.hvp(p.theta, p.theta)],
)
def test_a_problem_refuses_what_needs_whole_vectors(ask):
    with pytest.raises(
        UsageError, match=r"^This needs whole vectors of all parameters on one device. Expected measure"
    ):
        ask(alone())


@pytest.mark.parametrize(
    "analyzer",
    [Trace(), Eigenvalues(gauss_newton=True), Eigenvalues(preconditioned=True), Eigenvalues(referee="scipy")],
)
def test_a_session_refuses_what_needs_whole_vectors(analyzer):
    with pytest.raises(UsageError, match=f"^{analyzer.name} needs whole vectors of all 131 parameters on one device."):
        Session(alone()).context([analyzer])


def test_the_memory_stated_is_of_the_shares():
    """Measured, in vectors of float32: 26 in the probe and 16 beside the basis, of which 30 are planned at most."""
    problem = alone(samples=10)
    size, graphs = problem.size, int(1.25 * problem.micro_batch * problem.graph_bytes_per_sample)
    assert peak_bytes(problem, Eigenvalues()) == 8 * (30 + 6) * size + 4 * 10 * size + graphs
    assert peak_bytes(problem, Eigenvalues(max_matvecs=2)) == 8 * 6 * size + 4 * 20 * size + graphs


def test_one_rank_alone_measures_by_differences():
    closed = softmax_regression()
    top = measure(Eigenvalues(), Sharded.of(closed.problem, CPU))
    assert top.hvp == "differences"
    assert abs(top.top.value - np.linalg.eigvalsh(closed.hessian)[-1]) <= top.values.numerical_error[0]


def test_a_model_in_half_precision_is_measured_with_float32_vectors():
    problem = ZOO["tanh mlp"].problem(dtype=torch.bfloat16)
    weights = problem.theta.clone()
    sharded = Sharded.of(problem, CPU)
    assert (sharded.dtype, sharded.wide) == (torch.float32, torch.float64)
    assert torch.equal(sharded.theta, weights)
    assert math.isfinite(check(sharded))


# --- its parts


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_places_are_those_of_chunks_of_rows(count):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((7, 3), (1,), (4, 2, 2), (2,))]
    indices, start = [[] for _ in range(count)], 0
    for parameter in parameters:
        whole = torch.arange(start, start + parameter.numel()).view(parameter.shape)
        for rank, chunk in enumerate(whole.chunk(count)):
            indices[rank] += chunk.flatten().tolist()
        start += parameter.numel()
    for rank in range(count):
        with as_ranks(Ranks(rank, count)):
            share = share_of(parameters)
        assert [i for place in share.places for i in range(place.start, place.stop)] == indices[rank]
        assert share.most == max(map(len, indices))


def test_blocks_are_children_of_lists_the_outermost_that_are_small():
    def stage(size):
        return nn.Sequential(*(nn.Linear(size, size) for _ in range(4)))

    nested = nn.Sequential(stage(8), nn.ReLU(), stage(3))
    assert blocks(nested) == [*nested[0], nested[2]]
    assert blocks(nn.Linear(3, 3)) == []
    shared = nn.Linear(4, 4)
    again = nn.ModuleDict({"a": nn.Linear(4, 4), "b": shared, "c": shared})
    assert blocks(again) == [again["a"], shared]


def test_a_rank_that_is_gone_is_told_from_an_error_of_the_model(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RankError, match="Rank 0 waited for the others"), _of_others():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234")
    with pytest.raises(RuntimeError, match="shapes"), _of_others():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
