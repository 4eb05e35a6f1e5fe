"""One tool on one problem in a process of its own: `python -m tests.benchmarks.one JOB`, the job and its row as JSON.

A gradient, one forward and backward pass over the same data in the same batches, is timed before, between and after
the runs; a run costs its time over the mean of its two neighbours.  Time has the set-up in it, and no import.  Settings
are tried from the loosest on, until all seeds are within the tolerance or the seconds are spent.
"""

import contextlib
import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from statistics import mean, median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import cases, truth
from tests.benchmarks.machine import peak_memory, seconds
from tests.benchmarks.own import GROWTH, OWN
from tests.benchmarks.peers import PEERS, Ask
from tests.benchmarks.sharpness import MORE

ASKED: dict[str, dict[str, Ask]] = (
    {task: {**OWN.get(task, {}), **PEERS.get(task, {})} for task in OWN} | MORE | {"growth": GROWTH}
)
LADDER = 5
TOLERANCE = {"top": 1e-3, "top5": 1e-3, "trace": 5e-2}


@dataclass(frozen=True)
class Job:
    """What a process is asked."""

    task: str
    tool: str
    case: str
    batch: int | None = None
    seeds: int = 5
    seconds: float = 30.0  # after so many no further seed is begun, and after LADDER times as many no further setting
    device: str = "cpu"
    threads: int = 1
    flops: bool = False
    setting: float | None = None  # instead of those of the tool
    sizes: dict[str, int] = field(default_factory=dict)


def measure(job: Job, case: cases.Case) -> dict[str, Any]:
    """Return the row of a job."""
    ask, reference = ASKED[job.task][job.tool], truth.truth(job.task, case)

    def gradient() -> None:
        for x, y in case.batches(job.batch):
            torch.autograd.grad(case.loss(case.model(x), y), case.parameters)

    _warm(ask, job)
    began = time.perf_counter()
    before = seconds(gradient, job.device)
    gradients = [before]
    for setting in ask.settings if job.setting is None else (job.setting,):
        runs: list[dict[str, Any]] = []
        started = time.perf_counter()
        for seed in range(job.seeds):
            with peak_memory(job.device) as peak:
                made: list[Any] = []
                spent = seconds(
                    lambda made=made, seed=seed, setting=setting: made.append(ask.way(case, job.batch, seed, setting)),
                    job.device,
                )
            after = seconds(gradient, job.device)
            gradients.append(after)
            off = truth.error(job.task, made[0], reference) if reference is not None else None
            runs.append(
                {
                    "cost": 2 * spent / (before + after),
                    "seconds": spent,
                    "error": off,
                    "found": made[0],
                    "peak": peak.size,
                }
            )
            before = after
            if time.perf_counter() - started > job.seconds or _missed(job.task, off):
                break
        if _reached(job.task, runs) is not False or time.perf_counter() - began > LADDER * job.seconds:
            break
    row = _row(job, ask, setting, runs, median(gradients))
    if job.flops:
        row["gradients by FLOPs"] = _flops(lambda: ask.way(case, job.batch, 0, setting)) / _flops(gradient)
    return row


def _warm(ask: Ask, job: Job) -> None:
    """Import whatever the way imports, on a problem of no size."""
    with contextlib.suppress(Exception):
        ask.way(cases.tiny().to(job.device), None, 0, ask.settings[0])


def _missed(task: str, off: float | None) -> bool:
    """Return whether one run settles that the setting is too loose: of a random estimate it does not."""
    return off is not None and task in ("top", "top5") and not off <= TOLERANCE[task]


def _reached(task: str, runs: list[dict[str, Any]]) -> bool | None:
    if task not in TOLERANCE:
        return None
    return _size(task, runs) <= TOLERANCE[task]


def _size(task: str, runs: list[dict[str, Any]]) -> float:
    """Return the largest error over the seeds, or of random estimates the root of the mean square."""
    errors = [run["error"] for run in runs]
    return max(errors) if task in ("top", "top5") else mean(off * off for off in errors) ** 0.5


def _row(job: Job, ask: Ask, setting: float, runs: list[dict[str, Any]], gradient: float) -> dict[str, Any]:
    said = [run["found"].converged for run in runs]
    compared = runs[0]["error"] is not None
    return {
        "problem": job.case + "".join(f" {name}={size}" for name, size in job.sizes.items()),
        "batches": job.batch or "all",
        "tool": job.tool,
        "setting": f"{ask.of} {setting:g}" if ask.of else "",
        "seeds": len(runs),
        "reached": _reached(job.task, runs),
        "tighter left": setting not in (job.setting, ask.settings[-1]),
        "rule": ask.rule,
        "error": _size(job.task, runs) if compared else None,
        "value": None if compared else median(run["found"].value for run in runs),
        "converged": None if None in said else all(said),
        "products": mean(run["found"].products for run in runs),
        "gradients": median(run["cost"] for run in runs),
        "seconds": median(run["seconds"] for run in runs),
        "peak": max(run["peak"] for run in runs),
        "gradient seconds": gradient,
    }


def _flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def main() -> None:
    """Read a job, print its row."""
    warnings.simplefilter("ignore")
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    row = measure(job, cases.case(job.case, device=job.device, **job.sizes))
    print(json.dumps({**row, "job": asdict(job)}))


if __name__ == "__main__":
    main()
