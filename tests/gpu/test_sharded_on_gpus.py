"""Parameters sharded over two GPUs: the same top eigenvalue as on one, within what is stated; skipped without two."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gapscope.report.file import read_report

SMALL = Path(__file__).parents[2] / "fixtures" / "digits-small-batch.pt"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]


def test_two_gpus_with_half_the_parameters_each_find_what_one_does(tmp_path):
    found = []
    for count, more in ((1, ("--dtype", "float64")), (2, ("--shard-parameters",))):
        output = tmp_path / f"{count}.h5"
        ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        words = ("eigenvalues", str(SMALL), "--device", "cuda", "-q", "-o", str(output), *more)
        done = subprocess.run([sys.executable, *ranks, "-m", "gapscope", *words], cwd=tmp_path)
        assert done.returncode == 0
        found.append(read_report(output).results["eigenvalues"].quantities["top"])
    one, two = found
    assert abs(one.value - two.value) <= one.numerical_error + two.numerical_error
