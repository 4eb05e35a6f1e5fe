"""A folder of one's own as the current one, with a model file, a data file and a hostile module in it."""

import os
import sys
from pathlib import Path

import pytest
import torch

SOURCE = """
import os, logging
from os import system as run
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc1 = nn.Linear(3, width)
        self.fc2 = nn.Linear(width, 2)
    def forward(self, x):
        return self.fc2(self.fc1(x).relu())

def not_a_module():
    return 3

def broken():
    raise ValueError("no such\\nwidth")

instance = Net()

def pairs():
    torch.manual_seed(0)
    return torch.randn(6, 3), torch.tensor([0, 1] * 3)

def l1(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, 2)).abs().sum(1)

def scalar(outputs, targets):
    return l1(outputs, targets).mean()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a current folder with `zoo.py` (honest) and `canary.py` (leaves a file when imported)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.py").write_text(SOURCE)
    (tmp_path / "canary.py").write_text("open('sang', 'w').close()\ndef build(*args, **kwargs): return None\n")
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if name in ("zoo", "canary") or name.startswith("gapscope_file_"):
            del sys.modules[name]


class Evil:
    """Runs a command when unpickled."""

    def __reduce__(self):
        return os.system, ("touch sang",)


@pytest.fixture
def evil_file(folder: Path) -> Path:
    """Return a checkpoint whose pickle calls os.system."""
    torch.save({"model": {"w": torch.zeros(2)}, "extra": Evil()}, folder / "evil.pt")
    return folder / "evil.pt"


@pytest.fixture
def pool():
    """Count what pyarrow allocates from here on."""
    pa = pytest.importorskip("pyarrow")
    usual = pa.default_memory_pool()
    counting = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counting)
    yield counting
    pa.set_memory_pool(usual)
