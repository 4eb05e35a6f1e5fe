"""The three invariants of the design, and what keeps a file an idea."""

import ast
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gapscope
from gapscope.measure import analyzers

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gapscope"
FIXTURES = ROOT / "fixtures"
SMALL, LARGE = (FIXTURES / f"digits-{size}-batch.pt" for size in ("small", "large"))
TRAINS = (PACKAGE / "training").is_dir()
FILES = sorted(PACKAGE.rglob("*.py"))

# Each module may import its own layer and those above it in this table, first match wins; `report` and `measure` are
# halves that meet at `results`: only measure/session knows the report's types.
LAYERS = (
    ("gapscope.errors", ()),
    ("gapscope.replacing", ()),
    ("gapscope.results", ("gapscope.errors",)),
    ("gapscope.report", ("gapscope.errors", "gapscope.results", "gapscope.replacing")),
    ("gapscope.measure.monitor", ()),
    ("gapscope.measure.batches", ()),
    ("gapscope.measure.parameters", ("gapscope.errors", "gapscope.results")),
    ("gapscope.measure.operators", ("gapscope.errors", "gapscope.results", "gapscope.measure.parameters")),
    ("gapscope.measure.solvers", ("gapscope.errors", "gapscope.results", "gapscope.measure.operators")),
    (
        "gapscope.measure.loading",
        ("gapscope.errors", "gapscope.results", "gapscope.measure.batches", "gapscope.replacing"),
    ),
)
NEVER = {  # folder or file -> what it must not import, first match wins
    "gapscope.measure": ("gapscope.cli", "gapscope.training", "gapscope.callbacks"),
    "gapscope.report": ("gapscope.cli", "gapscope.training", "gapscope.callbacks", "gapscope.measure", "torch"),
    "gapscope.results": ("torch", "h5py", "rich"),
    "gapscope.callbacks": ("gapscope.cli", "gapscope.training"),
    "gapscope.training.studies": ("gapscope.cli", "gapscope.callbacks"),  # they measure and report what they trained
    "gapscope.training": (
        "gapscope.training.studies",
        *("gapscope.cli", "gapscope.callbacks", "gapscope.report"),
        *("gapscope.measure.analyzers", "gapscope.measure.session"),
    ),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(name, package):
    return name == package or name.startswith(f"{package}.")


def imports(path, *, top_level=False):
    """Yield the modules that a file imports, type-checking blocks left out."""
    tree = ast.parse(path.read_text())
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists()
                yield inner if is_module or (ROOT / Path(*inner.split("."))).is_dir() else node.module
        elif top_level and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if isinstance(node, ast.ClassDef):
                waiting += node.body
        else:
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.AST)]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_have_one_order(path):
    name = module_name(path)
    used = [used for used in imports(path) if within(used, "gapscope") and used != "gapscope"]
    for layer, allowed in LAYERS:
        if within(name, layer):
            late = [u for u in used if not any(within(u, ok) for ok in (layer, *allowed))]
            assert not late, f"{name} must not import {late}"
            break
    banned = next((banned for layer, banned in NEVER.items() if within(name, layer)), ())
    assert not [u for u in imports(path) if any(within(u, b) for b in banned)]
    last = name in ("gapscope.measure", "gapscope.measure.interface")  # the Python interface: beside the command line
    if within(name, "gapscope.measure") and not within(name, "gapscope.measure.analyzers") and not last:
        known = "gapscope.measure.analyzers"
        assert not [u for u in used if within(u, known)], f"{name} comes before the analyzers"
        if name != "gapscope.measure.session":
            assert not [u for u in used if within(u, "gapscope.report")], f"only the session makes reports, not {name}"


def test_only_the_command_line_imports_the_trainer():
    users = {module_name(path) for path in FILES for used in imports(path) if within(used, "gapscope.training")}
    assert {u for u in users if not within(u, "gapscope.training")} <= {
        "gapscope.cli.train",
        "gapscope.cli.demo",
        "gapscope.cli.study",
        "gapscope",
    }


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_file_is_one_idea_of_at_most_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


HOST = ("measure/loading/datasets", "measure/preconditioner.py", "training/studies/sngm")  # tensors of files alone


def receivers(node):
    """Yield the calls that a value comes from: of `x.cpu().double()` that of `double`, then that of `cpu`."""
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node
        node = node.func if isinstance(node, ast.Call) else node.value


def widens(call):
    """Say whether a call takes a tensor to float64: `double()`, `to(torch.float64)`, `sum(dtype=torch.float64)`."""
    given = [ast.unparse(one) for one in (*call.args, *(keyword.value for keyword in call.keywords))]
    return call.func.attr == "double" or (call.func.attr in ("to", "sum", "mean") and "torch.float64" in given)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_float64_is_asked_of_the_cpu_alone_unless_a_function_minds_devices_without_it(path):
    """mps has none and refuses: `.cpu().double()`, never `.double().cpu()`."""
    source = path.read_text()
    if path.relative_to(PACKAGE).as_posix().startswith(HOST):
        return
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        text = ast.get_source_segment(source, function)
        if re.search(r"\bmps\b|without float64", text):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and widens(node):
                before = [call.func.attr for call in receivers(node.func.value)]
                assert "cpu" in before, f"{function.name}: {ast.unparse(node)}"


def test_the_package_holds_only_what_the_design_lists():
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    listed = {
        "__init__.py",
        "__main__.py",
        "errors.py",
        "replacing.py",
        "results.py",
        "callbacks",
        "cli",
        "measure",
        "report",
        "training",
        "py.typed",
    }
    assert found <= listed
    forbidden = {"utils", "common", "base", "core", "helpers"}
    assert not forbidden & {path.stem for path in PACKAGE.rglob("*")}


def test_public_names_resolve():
    assert sorted(gapscope.__all__) == dir(gapscope)
    for name in gapscope.__all__:
        assert getattr(gapscope, name) is not None
    with pytest.raises(AttributeError, match="module 'gapscope' has no attribute 'nothing'"):
        gapscope.nothing  # noqa: B018


def test_one_name_everywhere():
    folder = PACKAGE / "measure" / "analyzers"
    for path in folder.glob("*.py"):
        if path.stem == "__init__":
            continue
        name = path.stem.replace("_", "-")
        assert name in analyzers.names()
        cls = analyzers.analyzer_class(name)
        assert cls.name == name
        assert cls.__name__ == "".join(word.capitalize() for word in path.stem.split("_"))
        assert (ROOT / "tests" / "measure" / "analyzers" / f"test_{path.stem}.py").exists(), f"{name} has no test file"


@pytest.mark.parametrize("path", sorted((PACKAGE / "measure" / "analyzers").glob("*.py")), ids=module_name)
def test_analyzer_files_import_no_torch_at_module_level(path):
    late = ("torch", "gapscope.measure.problem", "gapscope.measure.solvers", "gapscope.measure.loading")
    assert not [u for u in imports(path, top_level=True) if any(within(u, one) for one in late)]


WATCH = """
import json, sys
from gapscope.__main__ import main
heavy = lambda: sorted(m for m in ("torch", "scipy", "pyhessian", "h5py") if m in sys.modules)
seen = {}
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as left:
        assert left.code == 0, words
    seen[" ".join(words[:1])] = heavy()
print(json.dumps(seen), file=sys.stderr)
"""


def test_torch_stops_at_the_file(tmp_path):
    from gapscope.__main__ import main

    reports = [str(tmp_path / f"{side}.h5") for side in ("small", "large")]
    for side, report in zip(("small", "large"), reports, strict=True):
        with pytest.raises(SystemExit) as left:
            main(["gap", str(FIXTURES / f"digits-{side}-batch.pt"), "-q", "-o", report])
        assert left.value.code == 0
    commands = [
        ["--help"],
        ["eigenvalues", "--help"],
        ["track", "--help"],
        *([["study", "--help"]] if TRAINS else []),
        ["show", reports[0]],
        ["compare", *reports, "-o", str(tmp_path / "c.h5")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(commands)], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stderr.splitlines()[-1])
    assert seen["--help"] == []
    assert seen["eigenvalues"] == []
    assert seen.get("study", seen["track"]) == seen["track"]
    assert "torch" not in seen["track"]
    assert not {"torch", "pyhessian"} & set(seen["show"] + seen["compare"])


def test_without_the_trainer_every_other_command_works(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "gapscope", ignore=shutil.ignore_patterns("training", "__pycache__"))

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "gapscope", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)

    commands = {line.split()[0] for line in run("--help").stdout.splitlines() if line.startswith("  ")}
    assert {"analyze", "compare", "gap", "show"} <= commands
    assert not {"train", "study", "demo"} & commands
    assert run("gap", SMALL, "-q", "-o", "x.h5").returncode == 0
    assert run("show", "x.h5").returncode == 0
    refused = run("study", "keskar")
    assert refused.returncode == 2
    assert "No such command 'study'" in refused.stderr


PLUGIN = '''
from dataclasses import dataclass
from typing import Annotated, ClassVar
from gapscope.results import Quantity, Result, Status

@dataclass(frozen=True, kw_only=True)
class Counted(Result):
    counted: Quantity

@dataclass(frozen=True)
class Count:
    """How many samples there are: another package's analyzer."""
    name: ClassVar[str] = "sample-count"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    scale: Annotated[float, "multiply by this"] = 1.0

    def __call__(self, context):
        counted = Quantity(value=self.scale * context.problem().samples, better="lower", doc="how many")
        return Counted(status=Status.EXACT, counted=counted)

@dataclass(frozen=True, kw_only=True)
class Apart(Result):
    apart: Quantity

@dataclass(frozen=True)
class Distance:
    """How far apart two checkpoints are."""
    name: ClassVar[str] = "far-apart"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 2
    incidental: ClassVar[tuple[str, ...]] = ()

    def __call__(self, context):
        first, last = (context.problem(which=which).theta for which in (0, 1))
        return Apart(status=Status.EXACT, apart=Quantity(value=float((last - first).norm()), doc="norm"))
'''


@pytest.fixture
def other_package(tmp_path):
    """Install a tiny package beside gapscope and return a function that runs the command line in its sight."""
    (tmp_path / "counting.py").write_text(PLUGIN)
    meta = tmp_path / "counting-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1.0\n")
    points = "sample-count = counting:Count\nfar-apart = counting:Distance\n"
    (meta / "entry_points.txt").write_text(f"[gapscope.analyzers]\n{points}")
    (tmp_path / "gapscope.toml").write_text("[measure.sample-count]\nscale = 2\n")

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "gapscope", *map(str, words)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_an_analyzer_of_another_package_is_a_command(other_package):
    found = json.loads(other_package("sample-count", SMALL, "--json", "-q"))["results"]["sample-count"]
    assert found["quantities"]["counted"]["value"] == 2600
    assert found["settings"]["scale"] == 2.0
    assert "sample-count" in other_package("--help")
    assert importlib.import_module("gapscope").__version__ == importlib.metadata.version("gapscope")


def test_an_analyzer_of_another_package_is_in_analyze_report_show_and_compare(other_package):
    for checkpoint in (SMALL, LARGE):
        other_package("analyze", checkpoint, "--only", "sample-count", "--only", "gap", "-q")
    shown = other_package("show", "digits-small-batch.report.h5")
    assert "\nsample-count\n" in shown
    assert "2600" in shown
    compared = other_package("compare", "digits-small-batch.report.h5", "digits-large-batch.report.h5", "--json")
    row = next(row for row in json.loads(compared)["rows"] if row["path"] == "sample-count/counted")
    assert (row["values"], row["estimate"]) == ([2600.0, 2600.0], 1.0)
    assert "sample-count" in other_package("compare", *("digits-small-batch.report.h5",) * 2)


def test_an_analyzer_of_two_checkpoints_of_another_package_is_one_too(other_package):
    assert "far-apart" in other_package("far-apart", SMALL, LARGE, "-q", "-o", "pair.h5")
    assert "\nfar-apart\n" in other_package("show", "pair.h5")
