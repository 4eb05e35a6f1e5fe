import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gapscope.measure.loading import Trust, load_data

NET = """
from torch import nn


class Net(nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.idle = nn.Parameter(self.bias.detach().clone())  # without a gradient it must not decay either


class Half(Net):
    def __init__(self):
        super().__init__()
        self.bfloat16()
"""
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gapscope")


def gapscope(command, folder, *words):
    done = subprocess.run(
        [*command, "train", "--threads", "1", "--device", "cpu", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "GAPSCOPE_RANK_TIMEOUT": "60"},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("parallel")
    data = load_data("digits", "train", recorded=False, trust=Trust()).limited(134, 0)
    (found / "net.py").write_text(NET)
    np.savez(found / "data.npz", x=data.inputs.numpy(), y=data.targets.numpy())
    return found


def test_two_processes_train_as_one_does(folder):
    """Batches of 133, shared as 67 and 66, and of 1, shared as 1 and 0; weights with momentum, in another order."""
    words = (
        "-d",
        "data.npz",
        "-m",
        "net.py:Net",
        "--momentum",
        "0.9",
        "--weight-decay",
        "0.1",
        "--batch-size",
        "133",
        "--epochs",
        "3",
    )
    words += ("--log-every", "1", "--batch-schedule", "2@2")
    code, out, err = gapscope(TORCHRUN, folder, *words, "-o", "two.pt")
    assert code == 0, err
    assert out.count("two.pt: 3 epochs done, after 5 steps") == 1
    assert gapscope((sys.executable, "-m", "gapscope"), folder, *words, "-o", "one.pt")[0] == 0
    one, two = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for name, weights in one["model"].items():
        slack = 5 * 134 * torch.finfo(torch.float32).eps  # five steps, of sums of up to 134 samples in another order
        assert torch.allclose(two["model"][name], weights, rtol=slack, atol=slack * float(weights.abs().max())), name
    assert torch.equal(two["model"]["idle"], two["initial"]["idle"])
    losses = [found["gapscope"]["training"]["train_loss"] for found in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=slack)
    assert sorted(path.name for path in folder.glob("two*")) == ["two.pt", "two.training.h5"]


def test_two_processes_train_a_model_in_half_precision(folder):
    words = ("-d", "data.npz", "-m", "net.py:Half", "--batch-size", "67", "--steps", "4", "--no-log")
    code, _, err = gapscope(TORCHRUN, folder, *words, "-o", "half-two.pt")
    assert code == 0, err
    assert gapscope((sys.executable, "-m", "gapscope"), folder, *words, "-o", "half-one.pt")[0] == 0
    one, two = (torch.load(folder / f"half-{name}.pt", weights_only=True)["model"] for name in ("one", "two"))
    for name, weights in one.items():
        assert two[name].dtype == torch.bfloat16
        slack = 4 * torch.finfo(torch.bfloat16).eps * float(weights.abs().max())  # four steps, each rounded
        assert torch.allclose(two[name].float(), weights.float(), rtol=0, atol=slack), name


APART = """
import os
import sys

os.chdir(("one", "two")[int(os.environ["RANK"])])

from gapscope.__main__ import main

main(sys.argv[1:])
"""


def test_the_first_process_says_for_all_whether_a_run_is_finished(tmp_path):
    """The second has a folder of its own, in which there is no run."""
    (tmp_path / "apart.py").write_text(APART)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    words = ("--seeds", "2", "--epochs", "1", "--no-log", "-q")
    assert gapscope((sys.executable, "-m", "gapscope"), tmp_path / "one", *words)[0] == 0
    code, out, err = gapscope((*TORCHRUN[:-2], "apart.py"), tmp_path, *words)
    assert code == 0, err
    assert " ".join(out.split()).count("(trained already)") == 2
    assert not list((tmp_path / "two").rglob("*.pt"))
