"""The tables that compare tools: which jobs there are, a process for each, and what the rows say beside the targets."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import NAMES
from tests.benchmarks.one import ASKED, Job
from tests.benchmarks.peers import ORACLE

Row = dict[str, Any]
TITLES = {
    "top": "top eigenvalue to 1e-3",
    "top5": "five largest eigenvalues to 1e-3",
    "trace": "trace to 5 %",
    "density": "spectral density, 4 probes of 20 steps",
    "epsilon-sharpness": "epsilon-sharpness, full space, epsilon 1e-3",
    "near-rank": "near-rank of all layers",
}
PACKAGES = {"PyHessian": "pyhessian", "curvlinops": "curvlinops", "hessian-eigenthings": "hessian_eigenthings"}
BOTH = (None, 128)


def problems(task: str, *, full: bool) -> list[tuple[str, int | None]]:
    """Return what a task is measured on; not `full`: what the targets need, in the time that there is.

    All samples at once, and for the top eigenvalue in batches of 128 too: of the MLP, whose last one is ragged.
    """
    if full:
        return [(name, batch) for name in NAMES for batch in BOTH] + [("close", None)] * (task == "top")
    if task == "top":
        return [("mlp", None), ("mlp", 128), ("resnet20", None), ("transformer", None), ("close", None)]
    if task in ("top5", "trace", "density"):
        return [("mlp", None)]
    return [(name, None) for name in NAMES]


def run(jobs: Iterable[Job], python: str, at_once: int = 1) -> list[Row]:
    """Run the jobs and return their rows in order; a tool that fails has its last words in the place of figures."""

    def one(job: Job) -> Row:
        words = [python, "-m", "tests.benchmarks.one", json.dumps(asdict(job))]
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        root = str(Path(__file__).parents[2])
        ended = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
            env=os.environ | threads | {"PYTHONPATH": root},
        )
        row: Row = {"problem": job.case, "batches": job.batch or "all", "tool": job.tool, "failed": ""}
        if ended.returncode:
            row["failed"] = (ended.stderr.strip().splitlines() or [f"exit {ended.returncode}"])[-1][:120]
        else:
            row |= json.loads(ended.stdout.splitlines()[-1])
        shown = " ".join(f"{key}={value}" for key, value in row.items() if key != "job")
        print(f"{job.task}: {shown}", file=sys.stderr, flush=True)
        return row

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, jobs))


def importable(tool: str, python: str) -> bool:
    """Return whether the tool's package is in that interpreter's environment."""
    package = next((package for name, package in PACKAGES.items() if tool.startswith(name)), None)
    if package is None:
        return True
    if python == sys.executable:
        return importlib.util.find_spec(package) is not None
    return subprocess.run([python, "-c", f"import {package}"], capture_output=True, check=False).returncode == 0


def tools(task: str, asked: Sequence[str], *, full: bool) -> list[str]:
    """Return the tools of a task whose names begin as asked, or all; not `full`: but those that others stand for."""
    if asked:
        return [tool for tool in ASKED[task] if any(tool.lower().startswith(one.lower()) for one in asked)]
    return [tool for tool in ASKED[task] if full or not tool.endswith("power")]


def shown(row: Row) -> Row:
    """Return a row as it is printed."""
    told: Row = {key: row[key] for key in ("problem", "batches", "tool")}
    if row.get("failed"):
        return told | {"setting": row["failed"]}
    reached = {True: "yes", False: "no", None: ""}
    return told | {
        "setting": row["setting"] + ("" if row["rule"] else " (to be known beforehand)"),
        "seeds": row["seeds"],
        "reached": "not in time" if row["reached"] is False and row["tighter left"] else reached[row["reached"]],
        "error": "" if row["error"] is None else f"{row['error']:.1e}",
        "value": "" if row["value"] is None else f"{row['value']:.4g}",
        "says converged": reached[row["converged"]],
        "products": f"{row['products']:.1f}",
        "gradients": f"{row['gradients']:.1f}",
        "seconds": f"{row['seconds']:.2f}",
        "peak MB": f"{row['peak'] / 1e6:.0f}",
        **({"gradients by FLOPs": f"{row['gradients by FLOPs']:.1f}"} if "gradients by FLOPs" in row else {}),
    }


# --- targets


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Return per problem gapscope's time, in gradients, over that of the fastest peer and of PyHessian.

    Of the fastest among those that stop by themselves and reached the tolerance; without a tolerance, among all.
    """
    found = []
    for key in dict.fromkeys((row["problem"], row["batches"]) for row in rows):
        here = [row for row in rows if (row["problem"], row["batches"]) == key and not row.get("failed")]
        own = _own(here)
        fit = [row for row in here if not row["tool"].startswith("gapscope") and row["reached"] is not False]
        peers = [row for row in fit if row["rule"]] or fit
        if own is None:
            continue
        cost = own["gradients"] if own["reached"] is not False else math.inf
        best = min(peers, key=lambda row: row["gradients"], default=None)
        rival = next((row for row in fit if row["tool"] == "PyHessian"), None)
        found.append(
            {
                "problem": key[0],
                "batches": key[1],
                "fastest peer": best["tool"] if best else "none reaches it",
                "over fastest peer": cost / best["gradients"] if best else None,
                "over PyHessian": cost / rival["gradients"] if rival else None,
            }
        )
    return found


def _own(rows: Iterable[Row]) -> Row | None:
    """Return gapscope's row: at the loosest setting that reaches the tolerance, as of all others, if it was asked.

    In float32 or bfloat16, whichever is faster: what a device multiplies in bfloat16 decides that.
    """
    named = {row["tool"]: row for row in rows if not row.get("failed")}
    asked = [named[name] for name in ("gapscope, loosest", "gapscope, bfloat16") if name in named]
    fit = [row for row in asked if row["reached"] is not False] or asked
    return min(fit, key=lambda row: row["gradients"], default=named.get("gapscope"))


def geometric(values: Iterable[float | None]) -> float | None:
    """Return the geometric mean of those that are known."""
    known = [value for value in values if value is not None]
    return math.exp(sum(map(math.log, known)) / len(known)) if known else None


def verdicts(task: str, rows: Sequence[Row]) -> list[str]:
    """Return the targets of a task as sentences, each with its figure and whether it is met."""
    if task == "epsilon-sharpness":
        return _maxima(rows)
    each = [row for row in ratios(rows) if row["problem"] != "close"]
    peer, rival = geometric(row["over fastest peer"] for row in each), geometric(row["over PyHessian"] for row in each)
    worst = max((row["over fastest peer"] for row in each if row["over fastest peer"] is not None), default=None)
    if task in ("top", "top5"):
        keys = dict.fromkeys((row["problem"], row["batches"]) for row in rows)
        found = [_own(row for row in rows if (row["problem"], row["batches"]) == key) for key in keys]
        own = [row for row in found if row is not None]
        misses = [r["problem"] for r in rows if r["tool"].startswith("gapscope") and r.get("reached") is False]
        steps = {(r["problem"], r["batches"]): r["products"] for r in rows if r["tool"] == ORACLE and not r["failed"]}
        above = [row["products"] - steps[key] for row in own if (key := (row["problem"], row["batches"])) in steps]
        return [
            *(f"{row['problem']}, {row['batches']}: {_told(row)}" for row in each),
            _judged("time over the fastest peer's, geometric mean", peer, 0.7),
            _judged("the same on the worst problem", worst, 1.0),
            _judged("time over PyHessian's where it reaches the tolerance, geometric mean", rival, 1 / 3),
            _judged("products above the fewest that reach it, on the worst problem", max(above, default=None), 4),
            f"Problems on which gapscope missed the tolerance: {', '.join(misses) or 'none'}.",
        ]
    if task in ("trace", "density"):  # where none has a rule of its own, against those that were told
        return [
            *(f"{row['problem']}: {_told(row)}" for row in each),
            _judged("time over the fastest peer's, geometric mean", peer, 0.5),
        ]
    return [_judged("time over plain svdvals', geometric mean (no target)", peer, math.inf)]


def _told(row: Row) -> str:
    ratio = row["over fastest peer"]
    return f"fastest peer: {row['fastest peer']}" + (f", gapscope takes {ratio:.2f} of its time." if ratio else ".")


def _maxima(rows: Sequence[Row]) -> list[str]:
    found = []
    for name in dict.fromkeys(row["problem"] for row in rows):
        here = {row["tool"]: row for row in rows if row["problem"] == name and not row.get("failed")}
        own = here.get("gapscope, ascent")
        for tool, least in (
            ("SciPy L-BFGS-B, 10 iterations", 1.0),
            ("SciPy L-BFGS-B, 100 iterations", 0.995),
            ("APGD, 20 steps", 1.0),
        ):
            if own and tool in here:
                ratio = own["value"] / here[tool]["value"]
                said = "met" if ratio >= least else "MISSED"
                found.append(f"{name}: maximum over that of {tool}: {ratio:.4f}, at least {least:g}: {said}.")
        if own and "SciPy L-BFGS-B, 10 iterations" in here:
            ratio = own["gradients"] / here["SciPy L-BFGS-B, 10 iterations"]["gradients"]
            found.append(_judged(f"{name}: time over that of SciPy's 10 iterations", ratio, 1.0))
    return found


def _judged(what: str, figure: float | None, most: float) -> str:
    if figure is None:
        return f"{what}: no figure."
    said = "" if math.isinf(most) else f", at most {most:.2f}: {'met' if figure <= most else 'MISSED'}"
    return f"{what}: {figure:.2f}{said}."
