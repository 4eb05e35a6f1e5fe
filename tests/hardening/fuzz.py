"""The mutation fuzzer: `python -m tests.hardening.fuzz [--inputs 50000] [--console 200] [--only TARGET] [--first I]`.

Input I of a target is made from `random.Random("SEED TARGET I")` alone, so every failure is made again by
`--only TARGET --first I --inputs 1`.  The targets run in a process of their own, its address space bounded, under a
watchdog of 10 s for each input; a process that dies is started again after the input that killed it.  An input may do
three things: be read, be refused by a `GapscopeError` whose message is sound, or fail.  Failing is any other exception,
a signal, 10 s, a control character or markup in what is drawn, a file or process that the input started, and a message
that does not say what to do.
"""

import argparse
import collections
import faulthandler
import gc
import json
import math
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from gapscope.errors import GapscopeError
from gapscope.report.terminal import error_lines

SEED = 2026
BOUND = 10  # seconds for one input
ROOM = 4 * 2**30  # bytes of address space beyond what the imports take
# by what an input costs: the whole takes minutes
SHARES = {"hostile picture": 0.02, "hostile names": 0.2, "report tree": 0.7, "checkpoint .pt (zip)": 0.7}
SHARES |= {
    "checkpoint program": 0.5,
    "data specs": 3,
    "thresholds": 4,
    "KEY=VALUE": 8,
    "TOML": 3,
    "checkpoint safetensors": 2,
}
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect", "os.startfile")
ADVICE = re.compile(
    r"expected|(copy|save|name|give|mend|check|upgrade|write|choose|fetch|convert|install|make|remove|run|move|try|set)\b",
    re.IGNORECASE,
)


class Tally(NamedTuple):
    """What became of the inputs of one target."""

    target: str
    inputs: int
    read: int
    refused: dict[str, int]
    failures: list[tuple[int, str]]
    slowest: float
    grown: float  # MB, from a quarter of the way to the end
    peak: float  # MB beyond the start


def targets() -> dict[str, Any]:
    """Return the makers of attempts by name; importing them imports torch."""
    from tests.hardening import fuzz_checkpoints, fuzz_reports, fuzz_tables, fuzz_words

    return {**fuzz_checkpoints.TARGETS, **fuzz_tables.TARGETS, **fuzz_reports.TARGETS, **fuzz_words.TARGETS}


def sound(message: str) -> str:
    """Return what is wrong with the message of an error, or an empty string."""
    if "Traceback" in message:
        return "a traceback"
    lines = error_lines(message)
    return "" if ADVICE.search(" ".join(lines)) and len(lines) < 8 else "no advice, or more than a few lines"


def work(plan: list[tuple[str, int, int]], log: Path) -> None:
    """Try inputs (target, first, count) in this process, and append a line of JSON for each event to the log."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started: list[str] = []
    known = targets()
    sys.addaudithook(lambda event, args: started.append(event) if event in FORBIDDEN else None)
    resource.setrlimit(resource.RLIMIT_AS, (_statm(0) + ROOM,) * 2)
    with log.open("a") as out:
        for target, first, inputs in plan:
            with tempfile.TemporaryDirectory() as place:
                os.chdir(place)
                attempt = known[target](Path(place))
                started.clear()  # writing the seeds may start what it likes
                _try(target, range(first, first + inputs), attempt, started, out)
                os.chdir("/")


def _try(target: str, numbers: range, attempt: Any, started: list[str], out: Any) -> None:
    def log(event: dict[str, Any]) -> None:
        print(json.dumps({"target": target, **event}), file=out, flush=True)

    events: collections.Counter[str] = collections.Counter()
    slowest, quarter = 0.0, _statm(1)
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in numbers:
        log({"at": i})
        if i == numbers[len(numbers) // 4]:
            gc.collect()
            quarter = _statm(1)
        start = time.perf_counter()
        faulthandler.dump_traceback_later(BOUND, exit=True)
        kind, said = _outcome(attempt, random.Random(f"{SEED} {target} {i}"))
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, time.perf_counter() - start)
        if started or os.path.exists("sang"):
            kind, said = "failure", f"it started {started or 'a shell'}"
            started.clear()
        events[kind] += 1
        if kind == "failure":
            log({"failure": i, "said": said})
    gc.collect()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun
    log({"end": events, "slowest": slowest, "grown": (_statm(1) - quarter) / 2**20, "peak": peak / 2**10})


def _outcome(attempt: Any, rng: random.Random) -> tuple[str, str]:
    try:
        attempt(rng)
    except GapscopeError as error:
        wrong = sound(str(error))
        return ("failure", f"{wrong} in the message: {str(error)[:300]}") if wrong else (type(error).__name__, "")
    except BaseException as error:  # whatever it is, it is a finding
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if "/gapscope/" in frame.filename] or list(where)
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
        return "failure", f"{type(error).__name__}: {str(error)[:200]} ({at})"
    return "read", ""


def _statm(field: int) -> int:
    """Return the bytes of the address space (0) or of memory in use (1)."""
    return int(Path("/proc/self/statm").read_text().split()[field]) * resource.getpagesize()


def run(counts: dict[str, int], first: int) -> list[Tally]:
    """Try so many inputs of each target in one process, or as many as it takes."""
    plan = [(name, first, count) for name, count in counts.items()]
    tallies = {name: Tally(name, count, 0, {}, [], 0.0, 0.0, 0.0) for name, count in counts.items()}
    while plan:
        with tempfile.TemporaryDirectory() as place:
            log = Path(place) / "log"
            words = ["--work", json.dumps(plan), "--log", str(log)]
            command = [sys.executable, "-m", "tests.hardening.fuzz", *words]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if not lines:
            raise RuntimeError(f"the fuzzer did not start: {done.stderr[-2000:]}")
        for line in lines:
            _count(tallies, line)
        ended = {line["target"] for line in lines if "end" in line}
        plan = [part for part in plan if part[0] not in ended]
        if plan:  # its process died
            target, begun, count = plan[0]
            reached = max((line["at"] for line in lines if line["target"] == target and "at" in line), default=begun)
            slow = "Timeout" in done.stderr
            ended_with = re.split("Timeout|Fatal", done.stderr)[-1]  # warnings of libraries come before
            frames = [part.strip() for part in ended_with.splitlines() if "/gapscope/" in part] or [ended_with[-300:]]
            said = f"{f'more than {BOUND} s' if slow else f'exit {done.returncode}'} at {frames[0]}"
            tallies[target].failures.append((reached, said))
            _count(tallies, {"target": target, "end": {"not counted": reached - begun}, "slowest": BOUND * slow})
            plan[0] = (target, reached + 1, begun + count - reached - 1)
            plan = [part for part in plan if part[2]]
    return list(tallies.values())


def _count(tallies: dict[str, Tally], line: dict[str, Any]) -> None:
    one = tallies[line["target"]]
    if "failure" in line:
        one.failures.append((line["failure"], line["said"]))
    if "end" in line:
        for kind in line["end"].keys() - {"read", "failure"}:
            one.refused[kind] = one.refused.get(kind, 0) + line["end"][kind]
        tallies[line["target"]] = one._replace(
            read=one.read + line["end"].get("read", 0),
            slowest=max(one.slowest, line["slowest"]),
            grown=one.grown + line.get("grown", 0),
            peak=max(one.peak, line.get("peak", 0)),
        )


def dealt(inputs: int, names: list[str]) -> dict[str, int]:
    """Deal inputs to targets by their shares."""
    shares = {name: SHARES.get(name, 1.0) for name in names}
    whole = sum(shares.values())
    return {name: math.ceil(inputs * share / whole) for name, share in shares.items()}


def table(tallies: list[Tally]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| target | inputs | read | refused, by kind | failed | slowest s | MB grown | MB peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in tallies:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(one.refused.items())) or "none"
        figures = f"{len(one.failures)} | {one.slowest:.2f} | {one.grown:.1f} | {one.peak:.0f}"
        lines.append(f"| {one.target} | {one.inputs:,} | {one.read:,} | {kinds} | {figures} |")
    total, read, failed = (
        sum(one) for one in zip(*((t.inputs, t.read, len(t.failures)) for t in tallies), strict=True)
    )
    return "\n".join(
        [*lines, f"| all | {total:,} | {read:,} | | {failed} | {max(t.slowest for t in tallies):.2f} | | |"]
    )


def main(words: list[str] | None = None) -> int:
    """Run what was asked; exit 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hardening.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=2000, help="inputs in this process, dealt to the targets")
    parser.add_argument("--only", action="append", help="this target; repeatable")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--console", type=int, default=0, help="inputs through the console script")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    if asked.work:
        work(json.loads(asked.work), asked.log)
        return 0
    tallies = run(dealt(asked.inputs, asked.only or list(targets())), asked.first) if asked.inputs else []
    if asked.console:
        from tests.hardening.fuzz_console import console

        tallies.append(console(asked.console))
    print(table(tallies))
    for one in tallies:
        for i, said in one.failures:
            print(f"{one.target} {i}: {said}")
    return int(any(one.failures for one in tallies))


if __name__ == "__main__":
    sys.exit(main())
