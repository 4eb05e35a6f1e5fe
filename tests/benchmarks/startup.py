"""How long commands take to start, and what `gapscope sharpness` takes beyond the bare numerics."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.machine import seconds

FIXTURES = Path(__file__).parents[2] / "fixtures"
REPORT, CHECKPOINT = FIXTURES / "reports" / "v1.report.h5", FIXTURES / "digits-small-batch.pt"
BUDGET, OVERHEAD = 0.5, 2.0  # seconds
# what `sharpness` measures, on the same problem, in a process that has torch and gapscope in it already
BARE = """
import time, torch, gapscope
from gapscope.measure.analyzers import analyzer_class
problem = gapscope.load({checkpoint!r})
gapscope.measure(problem, [analyzer_class("gap")()])
began = time.perf_counter()
gapscope.measure(gapscope.load({checkpoint!r}), [analyzer_class(name)() for name in {names!r}])
print(time.perf_counter() - began)
"""


def startup_table(repeats: int) -> list[dict[str, Any]]:
    """Return the median seconds of whole processes, taken in turns."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "made.h5"
        command = [sys.executable, "-m", "gapscope"]
        words = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "gapscope --help": [*command, "--help"],
            "gapscope show": [*command, "show", str(REPORT)],
            "gapscope gate": [*command, "gate", str(REPORT), "--max", "eigenvalues/top=1e9"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
            "gapscope sharpness": [*command, "sharpness", str(CHECKPOINT), "--output", str(report)],
        }
        names = _measured_by(words["gapscope sharpness"], report)
        words["bare numerics"] = [sys.executable, "-c", BARE.format(checkpoint=str(CHECKPOINT), names=names)]
        taken: dict[str, list[float]] = {name: [] for name in words}
        for _ in range(repeats):
            for name, one in words.items():
                if name == "bare numerics":
                    ended = subprocess.run(one, capture_output=True, text=True, check=True)
                    taken[name].append(float(ended.stdout))
                else:
                    taken[name].append(seconds(lambda one=one: subprocess.run(one, capture_output=True, check=False)))
    middle = {name: statistics.median(found) for name, found in taken.items()}
    rows = []
    for name, spent in middle.items():
        row = {"command": name, "seconds": f"{spent:.2f}", "target": "", "met": ""}
        if name in ("gapscope --help", "gapscope show", "gapscope gate"):
            row |= {"target": f"{BUDGET} s", "met": "yes" if spent <= BUDGET else "NO"}
        if name == "gapscope sharpness":
            over = spent - middle["bare numerics"]
            row |= {"target": f"{OVERHEAD:.0f} s over the bare numerics", "met": f"{over:.2f} s"}
        rows.append(row)
    return rows


def _measured_by(words: list[str], report: Path) -> list[str]:
    import gapscope

    subprocess.run(words, capture_output=True, check=True)
    return list(gapscope.read(report).results)
