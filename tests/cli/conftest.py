"""The command line in this process: one torch import for all tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from gapscope.__main__ import main

FIXTURES = Path(__file__).parents[2] / "fixtures"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run gapscope in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(left.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def small():
    return FIXTURES / "digits-small-batch.pt"


@pytest.fixture
def large():
    return FIXTURES / "digits-large-batch.pt"
