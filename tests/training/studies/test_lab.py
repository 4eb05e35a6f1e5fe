"""The lab on small runs of the embedded digits: what it makes, what it finds again, and what it refuses."""

import functools
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError, UsageError
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.analyzers.path import Path as Line
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.trust import Trust
from gapscope.report.file import read
from gapscope.training.recipe import Recipe
from gapscope.training.studies.lab import Lab, Spec, jobs

QUICK = Spec(recipe=Recipe(batch_size=130, epochs=2), model="mlp", model_args={"hidden": [4]}, data="digits")
WILD = replace(QUICK, recipe=Recipe(batch_size=130, lr=1e30, epochs=2))


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path / "runs", device="cpu") as lab:
        yield lab


def seeded(spec, seed):
    return replace(spec, recipe=replace(spec.recipe, seed=seed))


def times(lab):
    """Return when each file of the lab was written."""
    return {path.name: path.stat().st_mtime_ns for path in lab.folder.iterdir()}


def weights(path):
    return read_checkpoint(path, Trust()).tensors["model"]


def test_runs_come_in_the_order_asked_for_and_the_same_one_once(lab):
    runs = lab.train([seeded(QUICK, 1), QUICK, seeded(QUICK, 1)])
    assert [run.spec.recipe.seed for run in runs] == [1, 0, 1]
    assert runs[0] == runs[2]
    assert len(times(lab)) == 2
    assert all(run.epochs == 2 and run.steps == 20 and not run.diverged for run in runs)
    assert lab.train([]) == []


def test_what_is_there_is_neither_trained_nor_measured_again(lab):
    def everything():
        runs = lab.train([QUICK, replace(seeded(QUICK, 1), save_every=1), WILD])
        return lab.measure(runs[:2], [Gap()]), lab.together(runs[:2], [Line(points=5)]), runs

    reports, pair, runs = everything()
    before = times(lab)
    again = everything()
    assert times(lab) == before
    assert [report.number("gap/train_loss") for report in again[0]] == [
        report.number("gap/train_loss") for report in reports
    ]
    assert [subject.label for subject in again[1].subjects] == [subject.label for subject in pair.subjects]
    assert repr(again[2]) == repr(runs)  # a loss of NaN is not equal to itself


LOUD = """
import signal

from torch.nn.functional import cross_entropy


def loud(outputs, targets):
    if len(targets) == 1300:  # all data: the look after the last step
        signal.raise_signal(signal.SIGINT)
    return cross_entropy(outputs, targets, reduction="none")
"""


def test_ctrl_c_at_the_very_end_of_a_run_is_heeded_once_it_is_saved(lab, tmp_path):
    (tmp_path / "own.py").write_text(LOUD)
    loud = replace(QUICK, recipe=Recipe(batch_size=130, epochs=1), loss=f"{tmp_path / 'own.py'}:loud")
    with pytest.raises(KeyboardInterrupt):
        lab.train([loud, QUICK])
    assert len(times(lab)) == 1
    assert [run.stopped for run in lab.train([loud, QUICK])] == ["1 epoch done", "2 epochs done"]


def test_every_setting_has_a_name_of_its_own():
    changed = [
        QUICK,
        seeded(QUICK, 1),
        replace(QUICK, recipe=replace(QUICK.recipe, lr=0.2)),
        replace(QUICK, recipe=replace(QUICK.recipe, options={"rho": 0.1})),
        replace(QUICK, data="digits:size=8"),
        replace(QUICK, model_args={"hidden": [5]}),
        replace(QUICK, loss="mse"),
        replace(QUICK, save_every=1),
    ]
    assert len({spec.stem for spec in changed}) == len(changed)
    assert replace(QUICK, model="some/folder/net.py:net").stem.startswith("net.py-net-sgd-b130-s0-")


def test_names_are_the_same_in_every_process():
    program = "import pickle, sys; sys.stdout.write(pickle.load(sys.stdin.buffer).stem)"  # its strings hash otherwise
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(QUICK),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert done.stdout.decode() == QUICK.stem


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_made_anew(lab, damage):
    (run,) = lab.train([QUICK])
    whole = run.path.read_bytes()
    run.path.write_bytes(damage)
    lab.train([QUICK])
    assert run.path.read_bytes() == whole


def test_a_checkpoint_of_another_run_is_made_anew(lab):
    first, second = lab.train([QUICK, seeded(QUICK, 1)])
    whole = first.path.read_bytes()
    first.path.write_bytes(second.path.read_bytes())
    lab.train([QUICK])
    assert first.path.read_bytes() == whole


def test_weights_along_the_way_are_those_of_shorter_runs(lab):
    every = replace(QUICK, recipe=replace(QUICK.recipe, epochs=3), save_every=1)
    (run,) = lab.train([every])
    assert [epoch for epoch, _ in run.saved] == [1, 2, 3]
    assert run.saved[-1][1] == run.path
    (short,) = lab.train([QUICK])
    saved, made = weights(dict(run.saved)[2]), weights(short.path)
    assert all((saved[name] == made[name]).all() for name in made)
    (ended,) = lab.train([replace(every, recipe=replace(every.recipe, epochs=None, steps=25))])
    assert [epoch for epoch, _ in ended.saved] == [1, 2]  # and half an epoch more
    assert ended.path not in dict(ended.saved).values()


@pytest.mark.parametrize("damaged", [True, False])
def test_weights_along_the_way_that_are_gone_or_damaged_are_made_anew(lab, damaged):
    spec = replace(QUICK, save_every=1)
    (run,) = lab.train([spec])
    (_, along), _ = run.saved
    whole = along.read_bytes()
    along.write_bytes(b"no") if damaged else along.unlink()
    assert lab.train([spec]) == [run]
    assert along.read_bytes() == whole


def test_a_run_starts_from_the_weights_of_another_as_they_are(lab):
    (run,) = lab.train([QUICK])
    spec = replace(QUICK, start=run.path)
    name = spec.stem
    (started,) = lab.train([spec])
    assert started.train_loss < run.train_loss
    initial = read_checkpoint(started.path, Trust()).initial
    assert all((initial[name] == tensor).all() for name, tensor in weights(run.path).items())
    lab.train([replace(QUICK, recipe=replace(QUICK.recipe, epochs=1))])[0].path.replace(run.path)
    assert spec.stem != name
    run.path.unlink()
    with pytest.raises(LoadError, match=r"cannot be read: No such file .* Expected weights that a run has saved\. Run"):
        lab.train([spec])


def test_a_run_that_diverges_is_returned_and_not_tried_again(lab):
    (run,) = lab.train([replace(WILD, save_every=1)])
    assert run.diverged
    assert run.steps > 0
    assert run.stopped == "training loss became nan"
    assert run.saved == ()
    assert not run.path.exists()
    (note,) = lab.folder.iterdir()
    note.write_text("damaged")
    assert repr(lab.train([replace(WILD, save_every=1)])) == repr([run])
    for measure in (lab.measure, lab.together):
        with pytest.raises(LoadError) as refused:
            measure([run], [Gap()])
        assert "was not made: training loss became nan. Expected weights to measure. Leave the" in str(refused.value)


def test_a_damaged_report_and_one_of_other_weights_are_made_anew(lab):
    first, second = lab.train([QUICK, seeded(QUICK, 1)])
    ours, theirs = lab.measure([first, second], [Gap()])
    mine, other = sorted(lab.folder.glob("*.report.h5"), key=lambda path: not path.name.startswith(first.path.stem))
    for damage in (b"no report", other.read_bytes()):
        mine.write_bytes(damage)
        (again,) = lab.measure([first], [Gap()])
        assert again.number("gap/train_loss") == ours.number("gap/train_loss") != theirs.number("gap/train_loss")
        assert read(mine).identity == ours.identity


def test_measurements_of_other_settings_splits_and_data_have_files_of_their_own(lab):
    (run,) = lab.train([QUICK])
    lab.measure([run], [Gap()])
    lab.measure([run], [Gap()], split="test")
    lab.measure([run], [Line(points=5)][:0])
    elsewhere = replace(run.spec, data="digits:size=8", model_args={**run.spec.model_args, "inputs": 64})
    lab.measure_files([(run.spec, run.path), (elsewhere, run.path), (run.spec, run.path)], [Gap()])
    assert len([*lab.folder.glob("*.report.h5")]) == 4


def test_a_damaged_comparison_and_one_of_other_weights_are_made_anew(lab):
    small, large = lab.train([QUICK, replace(QUICK, recipe=replace(QUICK.recipe, batch_size=650))])
    pair = lab.together([large, small], [Line(points=5)])
    assert [subject.identity["checkpoint"] for subject in pair.subjects] == [large.path.name, small.path.name]
    (place,) = lab.folder.glob("*.comparison.h5")
    barrier = pair.results["path"].quantities["distance"].value
    place.write_bytes(b"no comparison")
    assert lab.together([large, small], [Line(points=5)]).results["path"].quantities["distance"].value == barrier
    (other,) = lab.train([seeded(QUICK, 1)])
    small.path.write_bytes(other.path.read_bytes())
    assert lab.together([large, small], [Line(points=5)]).results["path"].quantities["distance"].value != barrier
    many = lab.train([seeded(QUICK, seed) for seed in range(3)])
    assert lab.together(many, []).subjects[2].label == "run 3"


FACTORY = """
import numpy as np
from torch import nn

def samples():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")

def net():
    return nn.Linear(5, 2)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A model and data of the user's, a file and a factory, named from the folder that they are in."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FACTORY)
    save(0)
    recipe = Recipe(batch_size=20, epochs=1)
    return [Spec(recipe=recipe, model="own.py:net", data=data) for data in ("own.npz", "own.py:samples")]


def save(seed, test_seed=9):
    rng, other = np.random.default_rng(seed), np.random.default_rng(test_seed)
    x, x_test = rng.normal(size=(60, 5)).astype("float32"), other.normal(size=(60, 5)).astype("float32")
    np.savez("own.npz", x_train=x, y_train=(x[:, 0] > 0), x_test=x_test, y_test=(x_test[:, 0] > 0))


def test_data_that_change_are_trained_on_and_measured_again(mine, tmp_path):
    def losses():
        with Lab(tmp_path / "runs", device="cpu") as lab:  # as another command has it
            (report,) = lab.measure(lab.train(mine[:1]), [Gap()])
            return [report.number(f"gap/{name}") for name in ("train_loss", "test_loss")]

    first = losses()
    save(0, test_seed=1)
    tested_elsewhere = losses()
    save(5)
    trained_elsewhere = losses()
    assert tested_elsewhere[0] == first[0]
    assert len({tested_elsewhere[1], first[1], trained_elsewhere[1]}) == 3
    assert trained_elsewhere[0] != first[0]


def test_processes_make_the_bits_that_this_one_makes(mine, tmp_path):
    specs = [*mine, QUICK, WILD]
    runs = []
    for count in (1, 2):
        with Lab(tmp_path / f"runs{count}", jobs=count, device="cpu") as lab:
            runs.append(lab.train(specs))
            lab.measure(runs[-1][:3], [Gap()])
            with pytest.raises(LoadError, match=r"^`mlp` and digits .* do not fit: .* Check the model's arguments"):
                lab.train([replace(QUICK, model_args={"inputs": 3}), QUICK])
    assert [run.diverged for run in runs[1]] == [False, False, False, True]
    assert [run.path.read_bytes() for run in runs[0][:3]] == [run.path.read_bytes() for run in runs[1][:3]]
    names = [sorted(path.name for path in (tmp_path / f"runs{count}").iterdir()) for count in (1, 2)]
    assert names[0] == names[1]
    assert not [name for name in names[1] if name.startswith(".")]


def test_the_caller_s_threads_and_random_numbers_stay(lab):
    torch.set_num_threads(2)
    try:
        state = torch.get_rng_state()
        lab.measure(lab.train([QUICK]), [Gap()])
        with pytest.raises(LoadError):
            lab.train([replace(QUICK, model_args={"inputs": 3})])
        assert torch.get_num_threads() == 2
        assert (torch.get_rng_state() == state).all()
    finally:
        torch.set_num_threads(1)


def test_progress_says_what_is_done_and_what_is_left(lab):
    said = []
    lab.tell = said.append
    runs = lab.train([QUICK, seeded(QUICK, 1)], "small batches")
    lab.measure(runs, [Gap()])
    first, second, third = said[:3]
    assert first == "train small batches: 0 of 2, time left unknown"
    assert second.startswith("train small batches: 1 of 2, ")
    assert second.endswith(" s left")
    assert third.startswith("train small batches: 2 of 2, ")
    assert " left" not in third
    assert said[3] == "measure gap: 0 of 2, time left unknown"


def test_numbers_are_computed_once(lab):
    works = [functools.partial(np.linspace, 0.0, stop, num=2) for stop in (1.0, 2.0)]

    def found():
        return [one.tolist() for one in lab.compute(works, "lines")]

    assert found() == [[0.0, 1.0], [0.0, 2.0]]
    first, _ = sorted(lab.folder.glob("computed-*.npy"))
    np.save(first, np.array([7.0]))  # of these settings, so taken as it is
    assert [7.0] in found()
    for damaged in (b"", b"\x93NUMPY\x01\x00 and no more"):
        first.write_bytes(damaged)
        assert found() == [[0.0, 1.0], [0.0, 2.0]]
    lab.compute([functools.partial(np.linspace, 0.0, 1.0, num=3)], "another")
    assert len([*lab.folder.iterdir()]) == 3


def test_a_thousand_names_are_no_quadratic_work(lab):
    """Of equal specs each name is asked for once, and the folder is never listed."""
    asked = []

    class Counted(Spec):
        @property
        def stem(self):
            asked.append(self)
            return super().stem

    lab.train([Counted(**vars(QUICK)) for _ in range(1000)])
    assert len(asked) == 1000
    assert len(times(lab)) == 1


def test_a_lab_knows_its_data_and_surroundings(lab, tmp_path):
    assert lab.samples("digits") == 1300
    facts = lab.conditions("digits")
    assert (facts["data"], facts["samples"]) == ("digits", 1300)
    (report,) = lab.measure(lab.train([QUICK]), [Gap()])
    assert facts["data_fingerprint"] == report.conditions["data_fingerprint"]
    assert lab.environment()["device"] == "cpu"
    with pytest.raises(LoadError, match="is no data that gapscope knows"):
        lab.samples("nothing")


def test_data_without_a_training_split_are_refused(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("tests.npz", x_test=np.zeros((3, 2)), y_test=np.zeros(3, dtype=int))
    with pytest.raises(LoadError):
        lab.samples("tests.npz")


def test_there_are_as_many_processes_as_cores_unless_asked(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert jobs(None, "cpu") == 3
    assert jobs(5, "cpu") == 5
    with pytest.raises(UsageError, match=r"There are 0 processes. Expected 1 or more. Mend `--jobs`."):
        jobs(0, "cpu")
    with pytest.raises(UsageError, match=r"The device is `gpu`. Expected auto, cpu, cuda, cuda:N or mps. Mend `--dev"):
        jobs(None, "gpu")
