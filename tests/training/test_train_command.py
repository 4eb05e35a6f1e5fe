import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from gapscope.measure.loading import Trust, load_data
from gapscope.report.file import read_report

NET = """
from torch import nn


def net(width=4):
    layers = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36 * width, 10))
"""


def training(path):
    return torch.load(path, weights_only=True)["gapscope"]["training"]


def test_a_trained_checkpoint_is_measured_without_a_flag(run, tmp_path):
    outcome = run("train", "--epochs", "2", "-a", "hidden=[8]", "-o", "x.pt", "-q")
    assert outcome.code == 0
    assert outcome.out.startswith("x.pt: 2 epochs done, after 82 steps; training loss ")
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(content) == {"gapscope", "model", "initial"}
    assert content["gapscope"]["training"]["batch_size"] == 32
    assert run("gap", "x.pt", "-q").code == 0


def test_train_reads_its_own_table_and_the_keys_that_mean_the_same(run, tmp_path):
    (tmp_path / "gapscope.toml").write_text(
        'model-arg = { hidden = [4] }\nbatch-size = 100\noutput = "report.h5"\n'
        '[train]\nsteps = 3\nbatch-size = 13\noutput = "y.pt"'
    )
    outcome = run("train")
    assert outcome.code == 0
    assert "y.pt: 3 steps done" in outcome.out
    content = torch.load(tmp_path / "y.pt", weights_only=True)
    assert content["gapscope"]["training"]["batch_size"] == 13
    assert content["gapscope"]["model_args"] == {"hidden": [4]}


def test_it_is_said_which_file_names_the_code_that_a_training_runs(run, tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(64, 10)\n")
    (tmp_path / "gapscope.toml").write_text(
        'loss = "net.py:loss"\n[train]\nmodel = "net.py:net"\nloss = "mse"\n[study]\nplan = "own.toml"\nmodel = "mlp"'
    )
    said = run("train", "--steps", "1", "--loss", "cross-entropy", "-o", "z.pt").err.splitlines()
    assert said[:2] == [
        "trusted as if typed: model of [train] in gapscope.toml",
        "trusted as if typed: loss of gapscope.toml",
    ]
    assert run("train", "--steps", "1", "--loss", "cross-entropy", "-o", "q.pt", "-q").err == ""
    study = run("study", "keskar", "--show-plan").err.splitlines()
    assert "trusted as if typed: plan of [study] in gapscope.toml" in study


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Nothing stops this training. Expected `--epochs`, `--steps`, `--until-loss` or `--patience`."),
        (("--epochs", "0"), "epochs 0"),
        (("--epochs", "1", "--lr", "-1"), "has rate -1 (expected more than 0). Expected"),
        (
            ("--epochs", "1", "--batch-size", "99999"),
            "The batch size is `99999` of 1,300 samples. Expected 1 to 1,300. Mend `--batch-size`.",
        ),
        (("--epochs", "1", "--seeds", "2", "--batch-size", "1301"), "Expected 1 to 1,300. Mend `--batch-size`."),
        (("--epochs", "1", "--regimes", "8,1301"), "Expected 1 to 1,300. Mend `--regimes`."),
        (("--epochs", "1", "--large-batch", "99"), "`--large-batch 99` was given, and no regime `large`."),
        (("--epochs", "1", "--schedule", "cosin"), "Did you mean `cosine`?"),
        (("--epochs", "1", "--batch-size", "0"), "batch size 0"),
        (("--epochs", "1", "--check-every", "0"), "`--check-every 0` was given. Expected 1 or more."),
        (("--epochs", "1", "--threads", "0"), "`--threads 0` was given. Expected 1 or more."),
        (("--epochs", "1", "--seeds", "0"), "`--seeds 0` was given. Expected 1 or more."),
        (("--epochs", "1", "--save-state", "3x"), "The save state is `3x`. Expected a time, like 90s, 10min or 2h."),
        (("--epochs", "1", "-o", "none/x.pt"), "The folder of none/x.pt does not exist"),
        (("--epochs", "1", "-m", "mpl"), "Did you mean `mlp`?"),
        (("--epochs", "1", "-d", "digit"), "Did you mean `digits`?"),
        (("--epochs", "1", "--device", "tpu"), "The device is `tpu`"),
        (("--epochs", "1", "--optimizer", "smng"), "Did you mean `sngm`?"),
        (
            ("--epochs", "1", "--optimizer-option", "rho"),
            "The optimizer's option is `rho`. Expected a name and a number",
        ),
        (("--epochs", "1", "--optimizer-option", "rho=0.1"), "`sgd` has no option `rho`"),
        (("--epochs", "1", "--scale-rate", "sqrt", "--reference-batch", "0"), "from batch size 0 to 32"),
        (("--epochs", "1", "--augment"), "Expected images"),
        (("--epochs", "1", "--regimes", "smal"), "There is no regime `smal`. Did you mean `small`?"),
        (("--epochs", "1", "--regimes", "large,130"), "has the batch sizes 130, 130. Expected each once."),
    ],
)
def test_nonsense_is_refused_and_nothing_is_written(run, tmp_path, words, message):
    outcome = run("train", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert not list(tmp_path.rglob("*.pt"))


def test_data_without_a_training_split_are_refused(run, tmp_path):
    np.savez(tmp_path / "data.npz", x_test=np.zeros((6, 64), np.float32), y_test=np.arange(6))
    outcome = run("train", "-d", "data.npz", "--epochs", "1")
    assert outcome.code == 2
    assert "Expected" in outcome.err


def test_labels_that_the_model_has_no_output_for_are_refused_before_training(run, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((6, 64), np.float32), y=np.arange(6) + 9)
    outcome = run("train", "-d", "data.npz", "-a", "outputs=10", "--epochs", "1", "-o", "net.pt")
    assert outcome.code == 2
    assert "has labels up to 14" in outcome.err
    assert not (tmp_path / "net.pt").exists()


def test_a_training_that_diverges_says_where_and_leaves_the_weights(run, tmp_path):
    outcome = run("train", "--epochs", "3", "--lr", "1e30", "-o", "x.pt")
    assert outcome.code == 2
    assert "The training loss became " in outcome.err
    assert "after 2 steps. Expected it to fall. Lower `--lr`." in outcome.err
    assert "the weights as they are then: x.pt.diverged" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt.diverged"]
    assert training(tmp_path / "x.pt.diverged")["steps"] == 2
    assert run("inspect", "x.pt.diverged").code == 0


def test_the_log_is_an_ordinary_report(run, tmp_path):
    assert run("train", "--epochs", "2", "-o", "x.pt", "--log-every", "10", "--check-every", "20", "-q").code == 0
    report = read_report(tmp_path / "x.training.h5")
    record = report.results["training"]
    assert record.settings == {"log_every": 10, "check_every": 20}
    steps = record.quantities["gradient_norm"].labels["step"]
    assert steps == tuple(str(step) for step in range(1, 83, 10))
    assert record.quantities["gradient_norm"].labels["layer"] == ("fc1", "fc2")
    assert record.quantities["train_loss"].labels["steps"] == ("20", "40", "41", "60", "80", "82")
    assert run("gap", "x.pt", "-q").code == 0
    measured = read_report(tmp_path / "x.report.h5")
    assert {k: v for k, v in measured.identity.items() if k in report.identity} == dict(report.identity)
    assert (dict(measured.training), measured.conditions["data_fingerprint"]) == (
        dict(report.training),
        report.conditions["data_fingerprint"],
    )
    shown = run("show", "x.training.h5", "-v")
    assert shown.code == 0
    assert "train loss along steps" in shown.out
    assert "layer gradient gradient step" in " ".join(run("show", "x.training.h5").out.split())
    assert run("train", "--epochs", "1", "-o", "y.pt", "--no-log", "-q").code == 0
    assert not (tmp_path / "y.training.h5").exists()


def test_checkpoints_on_the_way_are_tracked(run, tmp_path):
    assert run("train", "--epochs", "5", "--save-every", "2", "-o", "run/../x.pt", "-q").code == 2
    (tmp_path / "run").mkdir()
    assert run("train", "--epochs", "5", "--save-every", "2", "-o", "run/x.pt", "-q").code == 0
    steps = {path.name: training(path)["steps"] for path in (tmp_path / "run").glob("*.pt")}
    assert steps == {"x-epoch2.pt": 82, "x-epoch4.pt": 164, "x.pt": 205}
    tracked = run("track", "run", "--only", "gap")
    assert tracked.code == 0
    assert "3 checkpoints by steps" in tracked.err


def test_the_options_reach_the_recipe(run, tmp_path):
    words = (
        "--steps",
        "2",
        "-d",
        "digits:size=28",
        "-m",
        "lenet5",
        "--optimizer",
        "sam",
        "--optimizer-option",
        "rho=0.1",
    )
    words += ("--batch-size", "128", "--lr", "0.1", "--scale-rate", "linear", "--momentum", "0.5", "--augment")
    words += ("--schedule", "warmup:steps=1+cosine", "--batch-schedule", "2@1", "--grad-accumulate", "2")
    words += (
        "--conservative",
        "0.01",
        "--adversarial",
        "0.125",
        "--weight-decay",
        "0.001",
        "--device",
        "cpu",
        "--seed",
        "7",
    )
    assert run("train", *words, "-o", "x.pt", "-q", "--no-log").code == 0
    found = training(tmp_path / "x.pt")
    assert found["lr"] == pytest.approx(0.4)
    wanted = {
        "optimizer": "sam",
        "options": "rho=0.1",
        "batch_size": 128,
        "momentum": 0.5,
        "augment": True,
        "schedule": "warmup:steps=1+cosine",
        "batch_schedule": "2@1",
        "accumulate": 2,
        "conservative": 0.01,
        "adversarial": 0.125,
        "weight_decay": 0.001,
        "seed": 7,
        "steps": 2,
    }
    assert {key: found[key] for key in wanted} == wanted
    assert run("train", "--steps", "1", "--discard-small-losses", "0.25", "-o", "y.pt", "-q").code == 0
    assert training(tmp_path / "y.pt")["discard"] == 0.25
    words = ("--optimizer", "mclr", "--curvature-every", "2", "--curvature-probes", "1", "--lr", "0.01")
    outcome = run("train", "--steps", "3", *words, "-o", "z.pt", "-q")
    assert "curvature took " in outcome.out
    assert (training(tmp_path / "z.pt")["curvature_every"], training(tmp_path / "z.pt")["curvature_probes"]) == (2, 1)


REGIMES = ("train", "--regimes", "small,260", "--small-batch", "26", "--until-loss", "1", "--lr", "0.2", "-q")


def test_regimes_come_to_one_loss_and_are_not_trained_again(run, tmp_path):
    outcome = run(*REGIMES, "--seeds", "2")
    assert outcome.code == 0, outcome.err
    names = [f"runs/mlp-b{size}-s{seed}.pt" for seed in (0, 1) for size in (26, 260)]
    assert outcome.out.splitlines()[-1] == f"next: gapscope compare {' '.join(names)}"
    for small, large in (names[:2], names[2:]):
        assert training(tmp_path / large)["train_loss"] <= training(tmp_path / small)["train_loss"] <= 1
        assert training(tmp_path / large)["until_loss"] == training(tmp_path / small)["train_loss"]
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    again = run(*REGIMES, "--seeds", "2")
    assert again.code == 0
    assert " ".join(again.out.split()).count("(trained already)") == 4
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    compared = run("compare", *names, "--pair", "none", "-q")
    assert compared.code == 0, compared.err
    assert "batch 260" in compared.out


def test_a_regime_that_does_not_come_to_the_loss_is_said_and_left_out(run, tmp_path):
    outcome = run(*REGIMES, "--max-epochs", "1", "-o", "x.pt", "--no-log", "--check-every", "10")
    assert outcome.code == 2
    said = " ".join(outcome.out.split())
    assert re.search(
        r"x-b260-s0\.pt has a training loss of [\d.]+ \(1 epoch done\)\. Expected at most 0\.\d+, that", said
    )
    assert "that of the first regime. Raise `--max-epochs`, or its rate, and train again." in said
    assert (tmp_path / "x-b260-s0.pt").exists()
    assert "next:" not in outcome.out


FRAGILE = """
import torch
from torch import nn


def net():
    model = nn.Linear(64, 10)
    if torch.initial_seed() == 1:
        nn.init.constant_(model.weight, 3e38)  # its first loss is not finite
    return model


def not_of_130(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") / (len(targets) != 130)
"""


def test_a_run_that_diverges_is_named_and_left_out_and_the_others_go_on(run, tmp_path):
    (tmp_path / "own.py").write_text(FRAGILE)
    words = ("-m", "own.py:net", "--regimes", "26,130", "--equal", "samples", "--epochs", "1", "--seeds", "3")
    outcome = run("train", *words, "--no-log", "-q")
    assert outcome.code == 2
    said = " ".join(outcome.out.split())
    assert "runs/net-b26-s1.pt is left out. The training loss became nan after 1 step. Expected it to fall." in said
    assert "Without the first regime of seed 1 there is nothing that the others could go as far as." in said
    names = [f"net-b{size}-s{seed}.pt" for seed in (0, 2) for size in (26, 130)]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {*names, "net-b26-s1.pt.diverged"}
    last = outcome.out.splitlines()[-1]
    assert last.startswith(f"next: gapscope compare {' '.join(f'runs/{name}' for name in names)} -m own.py:net")
    again = run("train", *words, "--no-log", "-q")
    assert " ".join(again.out.split()).count("(trained already)") == 4


def test_a_later_regime_that_diverges_leaves_the_first_one(run, tmp_path):
    (tmp_path / "own.py").write_text(FRAGILE)
    words = ("-m", "own.py:net", "--loss", "own.py:not_of_130", "--regimes", "26,130", "--equal", "samples")
    outcome = run("train", *words, "--epochs", "1", "--no-log", "-q")
    assert outcome.code == 2
    assert "runs/net-b130-s0.pt is left out. The training loss became inf" in " ".join(outcome.out.split())
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"net-b26-s0.pt", "net-b130-s0.pt.diverged"}
    assert "Without the first regime" not in outcome.out
    assert "next:" not in outcome.out


@pytest.mark.parametrize(("equal", "epochs", "steps"), [("samples", 2, 10), ("steps", 20, 100)])
def test_regimes_of_equal_length(run, tmp_path, equal, epochs, steps):
    words = (
        "--regimes",
        "26,260",
        "--epochs",
        "2",
        "--equal",
        equal,
        "--scale-rate",
        "linear",
        "--reference-batch",
        "26",
    )
    assert run("train", *words, "-o", "x.pt", "--no-log", "-q").code == 0
    small, large = (training(tmp_path / f"x-b{size}-s0.pt") for size in (26, 260))
    assert (small["epochs"], small["steps"], small["lr"]) == (2, 100, 0.1)
    assert (large["epochs"], large["steps"]) == (epochs, steps)
    assert large["lr"] == pytest.approx(1.0)


def test_seeds_alone_are_runs_of_one_regime(run, tmp_path):
    outcome = run("train", "--seeds", "2", "--seed", "5", "--epochs", "1", "-q", "--no-log")
    assert outcome.code == 0
    assert "1 epoch done" in outcome.out
    assert "next:" not in outcome.out  # nothing to compare
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mlp-b32-s5.pt", "mlp-b32-s6.pt"]


def test_a_large_batch_is_a_tenth_of_the_data_unless_it_is_given(run, tmp_path):
    for more in ((), ("--large-batch", "65")):
        assert run("train", "--regimes", "large", "--epochs", "1", *more, "-q", "--no-log").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mlp-b130-s0.pt", "mlp-b65-s0.pt"]


def test_a_folder_for_the_runs_that_cannot_be_made_is_refused(run, tmp_path):
    (tmp_path / "runs").write_text("a file")
    outcome = run("train", "--seeds", "2", "--epochs", "1")
    assert outcome.code == 2
    assert "The folder runs cannot be made: " in outcome.err


@pytest.fixture
def images(tmp_path):
    """A network with dropout and BatchNorm, images, and the words of a training that takes a while."""
    (tmp_path / "net.py").write_text(NET)
    data = load_data("digits", "train", recorded=False, trust=Trust()).limited(120, 0)
    np.savez(tmp_path / "data.npz", x=data.inputs.view(-1, 1, 8, 8).numpy(), y=data.targets.numpy())
    recipe = ("--epochs", "12", "--batch-size", "20", "--momentum", "0.9", "--augment", "--schedule", "cosine")
    more = ("--lr", "0.05", "--threads", "1", "--device", "cpu", "--log-every", "7")
    return ("train", "-m", "net.py:net", "-d", "data.npz", *recipe, *more)


def interrupted(words, folder, name, how, output=None):
    """Run the words in a process of their own until it has saved a state, end it, and return what it said."""
    state = folder / f"{name}.state"
    process = subprocess.Popen(
        [sys.executable, "-m", "gapscope", *words, "--save-state", "0.001s", "-o", output or name],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not state.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    os.kill(process.pid, how)
    _, err = process.communicate()
    assert not (folder / name).exists(), "it was over before it could be interrupted"
    return process.returncode, err


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_training_ends_with_the_bits_of_an_undisturbed_one(run, tmp_path, images, how):
    code, err = interrupted(images, tmp_path, "x.pt", how)
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert "the same command goes on from x.pt.state" in err
        assert "interrupted: every file that was there before is whole" in err
    again = run(*images, "-o", "x.pt")
    assert again.code == 0
    assert "going on from step " in again.err
    assert run(*images, "-o", "y.pt").code == 0
    x, y = ((tmp_path / f"{name}.pt").read_bytes() for name in "xy")
    assert x == y
    logs = [read_report(tmp_path / f"{name}.training.h5").results["training"].quantities for name in "xy"]
    assert all((logs[0][name].value == logs[1][name].value).all() for name in logs[1])
    assert not (tmp_path / "x.pt.state").exists()


def test_a_state_of_other_settings_is_refused_and_kept(run, tmp_path, images):
    interrupted(images, tmp_path, "x.pt", signal.SIGKILL)
    outcome = run(*images, "--seed", "1", "-o", "x.pt")
    assert outcome.code == 2
    assert "x.pt.state is the state of a training of other settings: seed. Expected one of these" in outcome.err
    assert (tmp_path / "x.pt.state").exists()
    assert not (tmp_path / "x.pt").exists()


LOUD = """
import signal

import torch
from torch import nn


def loud(outputs, targets):
    if len(targets) == 1300:  # all data: the look after the last step
        signal.raise_signal(signal.SIGINT)
    return nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


@pytest.mark.parametrize(("more", "name"), [((), "x"), (("--seeds", "2"), "x-b32-s0")])
def test_ctrl_c_at_the_very_end_is_heeded_once_the_run_is_saved(run, tmp_path, more, name):
    (tmp_path / "own.py").write_text(LOUD)
    outcome = run("train", "--loss", "own.py:loud", "--epochs", "1", "-o", "x.pt", *more)
    assert outcome.code == 130
    assert f"{name}.pt: 1 epoch done, after 41 steps" in outcome.out
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {
        "own.py",
        f"{name}.pt",
        f"{name}.training.h5",
    }


@pytest.mark.parametrize("more", [(), ("--seeds", "2")])
def test_a_state_of_an_edited_model_is_refused_and_kept(run, tmp_path, images, more):
    name = "x-b20-s0.pt" if more else "x.pt"
    interrupted((*images, *more), tmp_path, name, signal.SIGKILL, output="x.pt")
    (tmp_path / "net.py").write_text(NET.replace("nn.ReLU()", "nn.ReLU(inplace=False)"))  # the very same layers
    outcome = run(*images, *more, "-o", "x.pt")
    assert outcome.code == 2
    assert f"{name}.state is the state of a training of other settings: code. Expected one of these" in outcome.err
    assert (tmp_path / f"{name}.state").exists()
    assert not (tmp_path / name).exists()


OWN = """
import torch
from torch import nn


def net(width=4):
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


def doubled(outputs, targets):
    return 2 * nn.functional.cross_entropy(outputs, targets, reduction="none")
"""


def test_the_next_command_can_be_pasted_where_names_are_the_user_s(run, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    data = load_data("digits", "train", recorded=False, trust=Trust()).limited(60, 0)
    np.savez(tmp_path / "dätä 1.npz", x=data.inputs.numpy(), y=data.targets.numpy())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    words = ("-m", "../own.py:net", "-a", "width=3", "-d", "../dätä 1.npz", "--loss", "../own.py:doubled")
    outcome = run("train", *words, "--regimes", "10,30", "--epochs", "1", "--equal", "samples", "--no-log", "-q")
    assert outcome.code == 0, outcome.err
    names = "runs/net-b10-s0.pt runs/net-b30-s0.pt"
    line = outcome.out.splitlines()[-1]
    assert line == (f"next: gapscope compare {names} -m ../own.py:net -d '../dätä 1.npz' --loss ../own.py:doubled")
    pasted = run(*shlex.split(line)[2:], "--pair", "none", "-q")
    assert pasted.code == 0, pasted.err
    looked = run("inspect", "runs/net-b10-s0.pt")
    assert looked.out.splitlines()[-1].startswith("next: gapscope sharpness runs/net-b10-s0.pt -m ../own.py:net -d ")


@pytest.mark.parametrize("output", ["mine/", "mine"])
def test_several_runs_go_into_a_folder(run, tmp_path, output):
    assert run("train", "--seeds", "2", "--steps", "1", "-o", output, "-q", "--no-log").code == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["mlp-b32-s0.pt", "mlp-b32-s1.pt"]


def test_a_run_whose_settings_changed_is_said_to_be_trained_anew(run, tmp_path):
    words = ("train", "--seeds", "2", "--steps", "1", "-q", "--no-log")
    assert "trained anew" not in run(*words).out
    outcome = run(*words, "--lr", "0.2")
    assert outcome.out.count("was there: trained anew, for its settings changed") == 2
