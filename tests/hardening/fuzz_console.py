"""Damaged files and odd words through the console script itself: exit codes, one error, nothing run, no hang."""

import random
import resource
import subprocess
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

from tests.hardening.fuzz import BOUND, SEED, Tally
from tests.hardening.mutations import SONG, changed_archive, changed_pickle, changed_text, damaged

CODES = (0, 1, 2, 3)
STARTED = 30  # seconds that starting Python and importing torch may take on a busy machine, beyond the bound


def console(inputs: int) -> Tally:
    """Try so many command lines."""
    failures, codes, slowest = [], dict.fromkeys(CODES, 0), 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seeds = _seeds(folder)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        for i in range(inputs):
            words = _prepared(folder, seeds, random.Random(f"{SEED} console {i}"))
            start = time.perf_counter()
            said = _tried(folder, words, codes)
            slowest = max(slowest, time.perf_counter() - start)
            failures += [(i, f"{said} of {words}")] if said else []
        grown = (resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before) / 1024
    refused = {f"exit {code}": count for code, count in codes.items() if code}
    return Tally("console script", inputs, codes[0], refused, failures, slowest, 0.0, grown)


def _seeds(folder: Path) -> dict[str, bytes]:
    from gapscope.measure.loading import save_checkpoint
    from gapscope.report.file import write
    from tests.hardening.fuzz_checkpoints import network
    from tests.hardening.fuzz_reports import small_report

    write(small_report(), folder / "a.h5")
    about = {"factory": "mlp", "model_args": {"hidden": [3]}, "data": "digits"}
    save_checkpoint(folder / "a.pt", network(), **about)  # type: ignore[arg-type]  # a dict of all kinds
    return {name: (folder / name).read_bytes() for name in ("a.h5", "a.pt")}


def _prepared(folder: Path, seeds: dict[str, bytes], rng: random.Random) -> list[str]:
    """Write a damaged file, and return the words that read it."""
    from tests.hardening.fuzz_words import PLAIN, TOKENS

    (folder / "gapscope.toml").unlink(missing_ok=True)
    way = rng.randrange(8)
    if way < 4:
        (folder / "x.h5").write_bytes(damaged(seeds["a.h5"], rng))
        ways = (
            ["show", "x.h5"],
            ["show", "x.h5", "--json"],
            ["show", "x.h5", "--html", "x.html", "-v"],
            ["baseline", "diff", "x.h5", "--baseline", "a.h5"],
        )
        return (
            [*rng.choice(ways)]
            if rng.random() < 0.7
            else ["gate", "x.h5", "--max", "*/*=1", "--format", rng.choice(("junit", "markdown", "github"))]
        )
    if way == 4:
        (folder / "gapscope.toml").write_text(changed_text(PLAIN, rng, TOKENS), "utf-8", "replace")
        return ["gate", "a.h5"]
    if way == 5:
        word = changed_text(rng.choice(("eigenvalues/top=50", "a.h5", "--max", "x")), rng, TOKENS).replace("\0", "")
        word = word.encode("utf-8", "replace").decode()
        return rng.choice((["show", word], ["gate", "a.h5", "--max", word], ["gate", word], [word], ["inspect", word]))
    data = seeds["a.pt"]
    data = (
        changed_archive(data, rng, lambda _, c, r: changed_pickle(c, r))
        if rng.random() < 0.7
        else damaged(data, rng, words=(SONG,))
    )
    (folder / "x.pt").write_bytes(data)
    return rng.choice((["inspect", "x.pt"], ["inspect", "x.pt", "--json"], ["gap", "x.pt", "-q", "-o", "out.h5"]))


def _tried(folder: Path, words: list[str], codes: dict[int, int]) -> str:
    """Run the console script; return what is wrong with how it ended."""
    script = Path(sys.executable).with_name("gapscope")
    try:
        done = subprocess.run([script, *words], cwd=folder, capture_output=True, timeout=BOUND + STARTED, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {BOUND + STARTED} s"
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    if done.returncode not in CODES:
        return f"exit {done.returncode}: {err[-300:]}"
    codes[done.returncode] += 1
    wrong = [word for word in ("Traceback", "Unexpected ", "Segmentation") if word in err]
    bad = {c for c in out + err if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    if wrong or bad:
        return f"{wrong or bad}: {err[-300:]!r}"
    if done.returncode == 2 and "error: " not in err and "cannot be judged" not in out:
        return f"exit 2 without an error: {err[-300:]!r}"
    if err.count("error: ") > 1 and err.startswith("error: ") and "\nerror: " in err:
        return "two errors"
    if (folder / "sang").exists():
        return "something in the file ran"
    return ""
