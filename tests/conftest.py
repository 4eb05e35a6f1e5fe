"""One torch thread, no colour, no leakage of the caller's gapscope settings; and the command line in this process."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gapscope.__main__ import main

FIXTURES = Path(__file__).parents[1] / "fixtures"

torch.set_num_threads(1)
os.environ.update(NO_COLOR="1", TERM="dumb", COLUMNS="80", OMP_NUM_THREADS="1")  # of processes, too
for name in [name for name in os.environ if name.startswith("GAPSCOPE_") or name in ("FORCE_COLOR", "GITHUB_ACTIONS")]:
    del os.environ[name]
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a job in the background ignores Ctrl-C, and so would the processes that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restore_torch_state():
    """Leave the default dtype and the global generator as they were."""
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)


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
