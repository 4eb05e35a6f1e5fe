"""gapscope beside other tools: `python -m tests.benchmarks [--only top] [--python OTHER/bin/python] [--json FILE]`.

Every tool has the same trained network, data and number of threads, in a process of its own.  A cost is in gradients:
one forward and backward pass over the same data in the same batches, timed before, between and after, so that ratios
hold on a busy machine.  Errors are against references in float64.  Each table is followed by the targets.

The other tools (PyHessian 0.1, curvlinops-for-pytorch 3.0, hessian-eigenthings 1.0.0a5) may lie in another environment
with the same torch: `--python`.  Networks and references are made once, which takes minutes, and kept in
~/.cache/gapscope-benchmarks (`--cache`).  Prints Markdown; --json FILE writes every figure.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import cases, side_by_side, truth
from tests.benchmarks.growth import growth_table
from tests.benchmarks.machine import header, machine, markdown
from tests.benchmarks.one import Job
from tests.benchmarks.peers import ORACLE
from tests.benchmarks.products import products_table
from tests.benchmarks.side_by_side import BOTH
from tests.benchmarks.startup import startup_table

TASKS = ("products", *side_by_side.TITLES, "growth", "start-up")


def options_of(words: list[str] | None = None) -> argparse.Namespace:
    """Return what was asked."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=TASKS, help="this table; repeatable")
    parser.add_argument("--problem", action="append", choices=list(cases.PLANS), help="on this problem; repeatable")
    parser.add_argument("--tool", action="append", default=[], help="tools whose names begin so; repeatable")
    parser.add_argument("--full", action="store_true", help="every tool and task on every problem: hours")
    parser.add_argument("--samples", type=int, help="so many samples in every problem, trained and measured anew")
    parser.add_argument("--quick", action="store_true", help="the MLP alone, two seeds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="begin no further seed after so many, no setting after 5 x"
    )
    parser.add_argument("--flops", action="store_true", help="also count operations, in a run of their own")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; each times its own gradients")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment with the other tools")
    parser.add_argument("--cache", type=Path, help="folder of networks and references")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(words)


def compared(task: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a task and what they say of its targets."""
    tools = side_by_side.tools(task, options.tool, full=options.full)
    there = [tool for tool in tools if side_by_side.importable(tool, options.python)]
    missing = [f"{tool} is not in that environment." for tool in tools if tool not in there]
    measured = side_by_side.problems(task, full=options.full)
    if options.problem:
        measured = [(name, batch) for name in options.problem for batch in (BOTH if options.full else (None,))]
    elif options.quick:
        measured = [("mlp", None)]
    jobs = []
    for name, batch in measured:
        case = cases.case(name, **_sizes(options))
        truth.truth(task, case)  # made here: no process measures while it makes one
        for tool in there:
            setting = float(truth.fewest_steps(task, case)) if tool == ORACLE else None
            jobs.append(_job(options, task=task, tool=tool, case=name, batch=batch, setting=setting))
    rows = side_by_side.run(jobs, options.python, options.jobs)
    return rows, missing + side_by_side.verdicts(task, rows)


def _job(options: argparse.Namespace, **more: Any) -> Job:
    seeds = 2 if options.quick else options.seeds
    fixed = {"device": options.device, "threads": options.threads, "flops": options.flops}
    return Job(seeds=seeds, seconds=options.seconds, sizes=_sizes(options), **fixed, **more)


def _sizes(options: argparse.Namespace) -> dict[str, int]:
    return {} if options.samples is None else {"samples": options.samples}


def main() -> None:
    """Print the tables as they are made."""
    options = options_of()
    torch.set_num_threads(options.threads)
    if options.cache:
        os.environ["BENCHMARK_CACHE"] = str(options.cache.resolve())
    before = machine(options.threads, options.device)
    repeats = 1 if options.quick else 3
    told: dict[str, Any] = {}
    for task in options.only or TASKS:
        said: list[str] = []
        if task in side_by_side.TITLES:
            rows, said = compared(task, options)
            table = [side_by_side.shown(row) for row in rows]
        elif task == "growth":
            rows = table = growth_table(
                _job(options, task="growth", tool="gapscope", case="mlp"), options.python, options.jobs
            )
        elif task == "products":
            rows, said = products_table(options.quick, repeats)
            table = rows
        else:
            rows = table = startup_table(3 * repeats)
        told[task] = {"rows": rows, "targets": said}
        print(f"## {side_by_side.TITLES.get(task, task)}\n\n{markdown(table)}\n", flush=True)
        print("".join(f"- {line}\n" for line in said), flush=True)
        if options.json:  # after each, so that a run that is stopped has left something
            found = {"before": before, "after": machine(options.threads, options.device), "tables": told}
            options.json.write_text(json.dumps(found, indent=1))
    print(header(before, machine(options.threads, options.device)))


if __name__ == "__main__":
    main()
