"""Several processes with a GPU each measure what one does; skipped where there are not two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.report.file import read_report

SMALL = Path(__file__).parents[2] / "fixtures" / "digits-small-batch.pt"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]


def test_two_gpus_find_what_one_does(tmp_path):
    reports = []
    for count in (1, 2):
        reports.append(tmp_path / f"{count}.h5")
        ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        words = ("analyze", str(SMALL), "--device", "cuda", "--dtype", "float64", "-q", "-o", str(reports[-1]))
        done = subprocess.run([sys.executable, *ranks, "-m", "gapscope", *words], env=os.environ, cwd=tmp_path)
        assert done.returncode == 0
    one, two = map(read_report, reports)
    assert two.environment["world_size"] == 2
    for name, record in one.results.items():
        headline = next(iter(record.quantities))
        a, b = record.quantities[headline].value, two.results[name].quantities[headline].value
        assert np.allclose(a, b, rtol=1e-6, equal_nan=True), name
