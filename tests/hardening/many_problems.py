"""Are stated errors honest?  `python -m tests.hardening.many_problems --problems 300` prints a table by quantity."""

import argparse
import collections
import functools
import math
import multiprocessing
import sys
import time
import traceback

import torch

from tests.hardening.random_problems import drawn
from tests.hardening.stated import ANALYZERS, Stated, stated

Found = tuple[str, list[Stated], list[str]]


def one_problem(number: int, analyzers: tuple[str, ...]) -> list[Found]:
    """Return of every analyzer how it ended, what it stated, and what to say about it."""
    torch.set_num_threads(1)
    found, one = [], drawn(number)
    for analyzer in analyzers:
        try:
            status, rows = stated(one, analyzer)
        except Exception:  # what is looked for: it is in the table
            found.append(("TRACEBACK", [], [f"{one!r}: {analyzer}: {traceback.format_exc()}"]))
            continue
        said = [f"{row.share:.3g} errors off: {row} of {one!r}" for row in rows if row.share > 3]
        if isinstance(status, str):
            said.append(f"{one!r}: {analyzer} refused: {status[:200]}")
        found.append(("refused" if isinstance(status, str) else status.name, rows, said))
    return found


def main() -> None:
    """Measure random problems, and print how many true errors lie within the stated ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--analyzer", action="append", choices=list(ANALYZERS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="what is done by then is counted")
    chosen = parser.parse_args()
    analyzers = tuple(chosen.analyzer or ANALYZERS)
    rows = collections.defaultdict[str, list[Stated]](list)
    ended = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    numbers = range(chosen.first, chosen.first + chosen.problems)
    end, done = time.monotonic() + 60 * chosen.minutes, 0
    with multiprocessing.get_context("spawn").Pool(chosen.processes) as pool:
        for found in pool.imap(functools.partial(one_problem, analyzers=analyzers), numbers):
            for analyzer, (status, all_rows, said) in zip(analyzers, found, strict=True):
                ended[analyzer][status] += 1
                for row in all_rows:
                    rows[row.quantity].append(row)
                for line in said:
                    print(line, flush=True)
            done += 1
            if time.monotonic() > end:
                break
    print(f"{done} problems")
    print(f"\n{'quantity':34} {'numbers':>8} {'within 1':>9} {'within 3':>9} {'worst':>9} {'no error':>9}")
    for name, all_of_them in rows.items():
        shares = [row.share for row in all_of_them]
        known = [share for share in shares if math.isfinite(share)]
        within = [100 * sum(share <= most for share in shares) / len(shares) for most in (1, 3)]
        none = len(shares) - len(known)
        print(f"{name:34} {len(shares):8} {within[0]:8.2f}% {within[1]:8.2f}% {max(known, default=0):9.3g} {none:9}")
    for name, counts in ended.items():
        print(f"{name:20} {dict(counts)}")


if __name__ == "__main__":
    sys.exit(main())
