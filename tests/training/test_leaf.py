"""Training is a leaf: without it, all else works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
END_TO_END = ("test_readme.py", "test_end_to_end.py")
SOME = (
    "report/test_verdicts.py",
    "report/test_comparison.py",
    "cli/test_track.py::test_every_checkpoint_is_measured_in_order_against_its_limit",
    "cli/test_together.py::test_compare_measures_the_pair_when_both_are_checkpoints",
    "measure/test_interface.py",
    "test_architecture.py::test_public_names_resolve",
    "test_architecture.py::test_torch_stops_at_the_file",
)


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """A copy of the repository without the training package and its tests."""
    copy = tmp_path_factory.mktemp("without") / "gapscope"
    leave = shutil.ignore_patterns(".*", "__pycache__", "training", "screenshots", *END_TO_END)
    shutil.copytree(ROOT, copy, ignore=leave)
    shutil.copytree(ROOT / ".github", copy / ".github")
    for name in (".pre-commit-hooks.yaml",):
        shutil.copy(ROOT / name, copy / name)
    return copy


def pytest_in(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_every_other_test_is_found_without_it(without):
    done = pytest_in(without, "--collect-only", "tests")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "gapscope/training" not in done.stdout


def test_commands_and_measurements_work_without_it(without):
    done = pytest_in(without, "-x", *(f"tests/{name}" for name in SOME))
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_commands_that_train_are_not_offered(without):
    environment = {**os.environ, "PYTHONPATH": str(without)}
    words = [sys.executable, "-m", "gapscope", "--help"]
    done = subprocess.run(words, cwd=without, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"compare", "gate", "track"} <= listed
    assert not {"train", "demo", "study"} & listed
