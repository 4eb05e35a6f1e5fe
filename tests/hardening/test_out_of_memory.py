"""Memory that runs out, in the k-th pass over the data or in a probe: one line, exit code 2, and the old report."""

import pytest
import torch

from gapscope.measure import products, sharded
from gapscope.measure.problem import Problem
from tests.problems import ZOO

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}
SAID = "error: Out of memory. Expected the work to fit. Lower `--memory-budget` or `--batch-size`.\n"


@pytest.mark.parametrize("kind", ERRORS)
def test_the_kth_pass_runs_out_of_memory(run, small, tmp_path, monkeypatch, kind):
    words = ("trace", small, "--limit", 40, "--threads", 1, "--max-matvecs", 10, "-q", "-o", "r.h5")
    assert run("gap", small, "--limit", 40, "--threads", 1, "-q", "-o", "r.h5").code == 0
    before = (tmp_path / "r.h5").read_bytes()
    mean, left = Problem.mean, [0]

    def counted(self, *given, **options):
        left[0] -= 1
        if left[0] == 0:
            raise ERRORS[kind]
        return mean(self, *given, **options)

    monkeypatch.setattr(Problem, "mean", counted)
    ends = []
    for k in (1, 4, 1000):
        left[0] = k
        outcome = run(*words)
        ends.append(outcome.code)
        if outcome.code:
            assert outcome.err == SAID
            assert (tmp_path / "r.h5").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]
    assert ends[0] == 2
    assert ends[-1] == 0


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("what", ["gradient", "product"])
def test_a_probe_that_runs_out_of_memory_in_float64_is_repeated_in_float32(
    run, small, tmp_path, monkeypatch, what, kind
):
    """It is not taken for a model without second derivatives, and there is no other way where theta is float64."""
    left = [ERRORS[kind]]

    def once(work):
        def failing(*given, **options):
            if left:
                raise left.pop()
            return work(*given, **options)

        return failing

    gradient, hessian = products.gradient, products.hessian
    if what == "gradient":
        monkeypatch.setattr(products, "gradient", once(gradient))
    else:

        def product(*given, **options):
            found = hessian(*given, **options)
            return once(found) if left else found

        monkeypatch.setattr(products, "hessian", product)
    words = "eigenvalues", small, "--limit", 40, "--threads", 1, "-q", "-o", "r.h5"
    outcome = run(*words, "--dtype", "float64")
    assert not left
    assert (outcome.code, outcome.out, outcome.err) == (2, "", SAID)
    assert list(tmp_path.iterdir()) == []
    left.append(ERRORS[kind])
    outcome = run(*words)
    assert not left
    assert (outcome.code, outcome.err) == (0, "")
    assert "second derivatives were checked in float32 alone" in outcome.out
    assert "differences" not in outcome.out


@pytest.mark.parametrize("kind", ERRORS)
def test_a_trial_of_a_sharded_model_in_float64_runs_out_of_memory(monkeypatch, kind):
    def failing(*_):
        raise ERRORS[kind]

    monkeypatch.setattr(sharded, "called", failing)
    with pytest.raises(type(ERRORS[kind])):
        sharded.Sharded.of(ZOO["tanh mlp"].problem(), torch.device("cpu"))
