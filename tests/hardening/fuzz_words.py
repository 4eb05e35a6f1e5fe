"""Targets that read what a person types: configuration files, thresholds, names of data, arguments, sizes, shapes."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from gapscope.cli import _defaults, tables
from gapscope.cli.gate import Own, quantities, thresholds_of
from gapscope.cli.settings import parse_batch_size, parse_bytes, parse_seconds, read_configuration
from gapscope.measure.loading import Reading, Trust, build_loss, build_model, load_data, parse_args
from gapscope.measure.loading.trust import check_recorded
from gapscope.report import ci
from gapscope.report.terminal import text
from gapscope.report.thresholds import analyzers, parsed, threshold
from gapscope.report.verdicts import judge
from tests.hardening.fuzz_reports import harmless, small_report
from tests.hardening.mutations import HOSTILE, changed_text, damaged, odd_value

Attempt = Callable[[Random], Any]
PLAIN = """\
model = "mlp"
model-arg = ["hidden=[32]", "bias=true"]
data = "digits"
limit = 100
batch-size = "auto"
memory-budget = "4GB"
dtype = "float64"
trusted = ["models/*", "pkg.mod:*"]
quiet = true

[measure.eigenvalues]
k = 3
tolerance = 1e-3

[measure.near-rank]
cuts = ["rel:1e-2", "abs:0.5"]

[gate]
baseline = "baseline.h5"
on-unsure = "3"

[gate.thresholds]
"eigenvalues/top" = { max = 50, max_increase = "25%", min_delta = 0.5, level = "warn" }
"near-rank/near_rank[fc1,*]" = { min = 10, claim = "population" }

[compare]
labels = "a,b"
"""
TOKENS = (
    "[[",
    "]]",
    "{}",
    "[",
    "'''",
    '"""',
    "nan",
    "-inf",
    "1979-05-27T07:32:00Z",
    "0x7fff",
    "true",
    "a.b.c",
    "[measure]",
    "= {",
)


def configuration(folder: Path) -> Attempt:
    """gapscope.toml and pyproject.toml."""
    inside = PLAIN.replace("[measure", "[tool.gapscope.measure").replace("[gate", "[tool.gapscope.gate")
    project = "[project]\nname = 'x'\n[tool.gapscope]\n" + inside.replace("[compare]", "[tool.gapscope.compare]")

    def attempt(rng: Random) -> Any:
        name, whole = rng.choice((("gapscope.toml", PLAIN), ("pyproject.toml", project)))
        for path in folder.glob("*.toml"):
            path.unlink()
        if rng.random() < 0.3:
            content = damaged(whole.encode(), rng, (PLAIN.encode(),), tuple(token.encode() for token in TOKENS))
        elif rng.random() < 0.1:
            key = rng.choice(("model-arg", "limit", "trusted"))
            content = f"{key} = {'[' * rng.choice((50, 5000))}{rng.choice(('', '1' * 5000))}\n".encode()
        else:
            content = changed_text(whole, rng, TOKENS).encode("utf-8", "replace")
        (folder / name).write_bytes(content)
        found = read_configuration(folder, tables)
        _defaults(found)
        return thresholds_of(Own(), found.thresholds)

    return attempt


def limits(folder: Path) -> Attempt:
    """Selectors, limits and tables of thresholds, judged on a report."""
    report, known = small_report(), quantities()
    selectors = (
        "eigenvalues/top",
        "eigenvalues/values[1]",
        "curvature/median[transformer.*]",
        "*/*",
        "gap/train_?oss",
        "a/b[c]",
    )
    pieces = ("*", "?", "[", "]", "/", "*" * 40, "*a" * 25, "(", "\\", ".*", "[!a]", "=", "%", "e9", "25%", "x/y")

    def attempt(rng: Random) -> Any:
        selector = changed_text(rng.choice(selectors), rng, pieces) if rng.random() < 0.7 else rng.choice(selectors)
        if rng.random() < 0.5:
            flag = rng.choice(("max", "min", "max-increase", "max-decrease"))
            selector, table = parsed(
                flag, changed_text(f"{selector}={rng.choice(('50', '25%', '-1e3', '.5'))}", rng, pieces)
            )
        else:
            keys = ("max", "min", "max_increase", "max_decrease", "min_delta", "level", "claim", *HOSTILE[:4])
            table = {
                rng.choice(keys): rng.choice((1, 1.5, "25%", "warn", odd_value(rng))) for _ in range(rng.randrange(4))
            }
        built = threshold(selector, rng.choice((table, table, table, odd_value(rng))), "the fuzzer")
        analyzers(selector, known)
        checks = judge({"a": report}, [built], baseline=report, known=known)
        ci.junit(checks)
        return harmless(text(ci.gate_document(checks, verbose=True)) + ci.markdown(checks))

    return attempt


def data_names(folder: Path) -> Attempt:
    """What `-d` and a checkpoint's own record say; files with such names may be there."""
    np.savez(folder / "a.npz", x=np.ones((4, 2), np.float32), y=np.arange(4) % 2)
    (folder / "t.csv").write_text("a,b,target\n1,2,0\n3,4,1\n")
    specs = (
        *(
            "digits",
            "digits:size=9",
            "teacher:samples=20,inputs=3,outputs=2,seed=1,noise=.1",
            "teacher:samples=9,tokens=3",
        ),
        *(
            "a.npz",
            "t.csv",
            "a.npz::x,y",
            "nothing.h5::/x,/y",
            "teacher:samples=9,image=1x2x2",
            "torchvision:MNIST:root=.",
        ),
        *("a.npy,b.npy", "no_such_module_:factory", "no/such_file_.py:factory", "t.csv:target=b", "t.csv:a=1,b=2"),
    )
    pieces = (
        ":",
        ",",
        "=",
        "::",
        "..",
        "/",
        "./",
        "x",
        "x1x",
        "~",
        "size=",
        "samples=",
        "digits",
        "teacher:",
        "a.npz",
        "%",
        "*",
    )
    readings = (None, None, "x", "y", "a,b", "-1", "2,1", "scale", "mnist", "0.5/0.5", "1,2,3/4,5,6", *HOSTILE)

    def attempt(rng: Random) -> Any:
        spec = changed_text(rng.choice(specs), rng, pieces) if rng.random() < 0.8 else rng.choice(specs)
        asked = [
            changed_text(one, rng, pieces) if one and rng.random() < 0.3 else one for one in rng.choices(readings, k=4)
        ]
        reading = Reading(x_key=asked[0], y_key=asked[1], reshape=asked[2], normalize=asked[3])
        split, recorded = rng.choice(("train", "test")), rng.random() < 0.4
        if not recorded and _runs(spec):
            recorded = True  # what a person names is run, and this is no person
        found = load_data(spec, split, recorded=recorded, trust=Trust(), reading=reading, whole=rng.random() < 0.3)
        return [] if found is None else found.notes

    return attempt


def _runs(spec: str) -> bool:
    """Return whether a name may import something that is there: only names that exist nowhere are tried."""
    return ":" in spec and not spec.startswith(
        ("digits", "teacher", "a.npz", "t.csv", "torchvision:", "no_such_module_", "no/such_")
    )


def arguments(folder: Path) -> Attempt:
    """KEY=VALUE, sizes, times, names of models and losses as typed and as recorded."""
    pairs = (
        "hidden=[8]",
        "bias=true",
        "activation=relu",
        'norm="batch"',
        "inputs=4",
        "outputs=2",
        "depth=1",
        "width=1.5",
    )
    pieces = (
        "=",
        "[",
        "]",
        "{",
        "}",
        '"',
        "true",
        "True",
        "-1",
        "nan",
        "inf",
        "[1,2]",
        "\n",
        "#",
        "0x",
        "1_000",
        "1e3",
        "a.b",
    )
    quantities_ = (
        "500MB",
        "4GB",
        "2GiB",
        "1.5h",
        "10min",
        "90s",
        "auto",
        "32",
        "1e3",
        "\u00b2",
        "\u0663",
        "9" * 5000,
        "1" * 400 + "T",
    )
    names_ = (
        "mlp",
        "resnet",
        "hf",
        "timm:x",
        "torchvision:y",
        "pkg.mod:attr",
        "os:system",
        "a/b.py:c",
        "cross-entropy",
        "mse",
    )

    def attempt(rng: Random) -> Any:
        way = rng.randrange(4)
        if way == 0:
            read = rng.choice((parse_bytes, parse_seconds, parse_batch_size))
            return read(changed_text(rng.choice(quantities_), rng, pieces))
        if way == 1:
            name = changed_text(rng.choice(names_), rng, pieces)
            check_recorded(name, kind=rng.choice(("model", "loss", "data")), trust=Trust())
            return build_loss(name, recorded=True, trust=Trust())
        texts = [changed_text(rng.choice(pairs), rng, pieces) for _ in range(rng.randrange(1, 3))]
        args = parse_args(texts)
        if _small(args):
            with torch.random.fork_rng(devices=[]):
                build_model(rng.choice(("mlp", "mlp", "no-such", "pkg:mod")), args, recorded=True, trust=Trust())
        return args

    return attempt


def _small(value: Any) -> bool:
    """Return whether numbers are small, or so large that nothing has room for them: others only take long."""
    if isinstance(value, dict | list):
        return all(map(_small, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or abs(value) < 3000 or abs(value) > 2**45


TARGETS: dict[str, Callable[[Path], Attempt]] = {
    "TOML": configuration,
    "thresholds": limits,
    "data specs": data_names,
    "KEY=VALUE": arguments,
}
