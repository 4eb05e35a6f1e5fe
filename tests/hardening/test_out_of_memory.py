"""Memory that runs out in the k-th pass over the data, for every k: one line, exit code 2, and the old report."""

import pytest
import torch

from gapscope.measure.problem import Problem

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried"),
    "python": MemoryError(),
}


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
            said = "error: Out of memory. Expected the work to fit. Lower `--memory-budget` or `--batch-size`.\n"
            assert outcome.err == said
            assert (tmp_path / "r.h5").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]
    assert ends[0] == 2
    assert ends[-1] == 0
