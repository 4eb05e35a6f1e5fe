import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
import typer.main

import gapscope
from gapscope.cli import track
from gapscope.cli.settings import Configuration
from gapscope.errors import LoadError, RankError, ReportError, UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from tests.loop import make_checkpoint

ARGS = {"inputs": 64, "hidden": [8], "outputs": 10}
STEPS = {9: "c", 40: "a", 100: "d", 300: "b"}  # recorded steps -> names in another order
RATE = 0.8
CHEAP = ("--only", "gap", "--limit", "200")


def saved(path, **recipe):
    """Train a tiny network on the whole batch of the digits and save it."""
    return make_checkpoint(path, **{"batch_size": 1300, "lr": RATE, "model_args": ARGS, **recipe})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "wide"
    folder.mkdir()
    for steps, name in STEPS.items():
        saved(folder / f"{name}.pt", steps=steps)
    (folder / "log.txt").write_text("epoch 1 ...")
    (folder / "a.training.h5").touch()
    (folder / "a.report.h5").touch()
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """The run, copied, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "wide")


@pytest.fixture
def run(capsys):
    """Run the command by itself, as the application does."""

    def run(*words, **tables):
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command("track")(track.command(Configuration(**tables)))
        parser = typer.main.get_command(app)
        code = parser.main(args=[str(word) for word in words], prog_name="gapscope track", standalone_mode=False)
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def reports(folder="wide.track"):
    """The reports in a folder, by the stem of their checkpoint."""
    return {path.name.removesuffix(".report.h5"): gapscope.read(path) for path in sorted(Path(folder).iterdir())}


def rows(outcome):
    return {row["path"]: row["values"] for row in json.loads(outcome.out)["rows"]}


# --- what is measured and shown


def test_every_checkpoint_is_measured_in_order_against_its_limit(run, folder):
    outcome = run(folder, "--json", "-q")
    assert outcome.code == 0
    content = json.loads(outcome.out)
    assert content["axis"] == "steps"
    assert [point["place"] for point in content["points"]] == ["9", "40", "100", "300"]
    assert [point["report"] for point in content["points"]] == [f"wide.track/{n}.report.h5" for n in STEPS.values()]
    found = rows(outcome)
    for position, name in enumerate(STEPS.values()):
        alone = gapscope.measure(gapscope.load(folder / f"{name}.pt"), [gapscope.Eigenvalues(), gapscope.Gap()])
        top = alone.number("eigenvalues/top")
        assert found["eigenvalues/top"][position] == top
        assert found["eigenvalues/stability"][position] == pytest.approx(top / (2 / RATE), rel=1e-12)
        assert found["gap/loss_gap"][position] == alone.number("gap/loss_gap")
        assert found["limit"][position] == pytest.approx(2 / RATE, rel=1e-12)
    assert set(reports()["a"].results) == {"gap", "eigenvalues", "near-rank"}
    assert found["near-rank/near_rank[fc1,rel:1e-2]"] == [
        reports()[name].results["near-rank"].quantities["near_rank"].value[0, 0] for name in STEPS.values()
    ]


def test_the_plan_says_the_order_the_place_and_what_is_left_out(run, folder):
    outcome = run(folder, *CHEAP)
    plan = "4 checkpoints by steps; their reports go to wide.track"
    assert outcome.err.splitlines()[:3] == ["left out: log.txt", plan, f"1 of 4: {folder / 'c.pt'}"]
    assert "reports: wide.track · " in outcome.out.replace("\n", " ")
    assert list(reports()["a"].results) == ["gap"]


def test_what_is_said_while_loading_is_said_once(run, folder):
    for path in folder.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["gapscope"]["loss"] = None
        torch.save(content, path)
    assert run(folder, *CHEAP).err.count("loss: cross-entropy, inferred from") == 1


def test_the_output_fits_80_columns_in_a_pipe(run, folder, tmp_path):
    script = (
        "import sys, typer, typer.main\n"
        "from gapscope.cli import track\nfrom gapscope.cli.settings import Configuration\n"
        "app = typer.Typer(add_completion=False)\napp.command('track')(track.command(Configuration()))\n"
        "sys.exit(typer.main.get_command(app).main(args=sys.argv[1:], standalone_mode=False))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "wide", "-q"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    for words in ("top eigenvalue", "top / limit along steps", "Reading", "near-rank at rel:1e-2"):
        assert words in done.stdout


def test_a_page_and_a_picture_are_written_and_named_with_nothing_left_to_measure_too(run, folder, tmp_path):
    run(folder, "-q")
    outcome = run(folder, "-q", "--html", "out.html", "--plot", "out.svg")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-2:] == ["page: out.html", "picture: out.svg"]
    assert "nothing left to measure" in " ".join(outcome.out.split())
    page = (tmp_path / "out.html").read_text()
    assert "<h1>wide</h1>" in page
    assert "4 checkpoints by steps: 9 to 300" in page
    for title in ("Top eigenvalue and limit 2/eta", "Losses", "Loss gap", "Test accuracy", "Near-rank of each layer"):
        assert f"<h3>{title}" in page
        assert f">{title}" in (tmp_path / "out.svg").read_text()
    alone = run(folder, "-q", "--json", "--html", "out.html")
    assert (alone.code, json.loads(alone.out)["format"]) == (0, "gapscope-trajectory")
    assert (tmp_path / "out.html").read_text() == page


def test_a_run_is_shown_although_its_page_cannot_be_written(run, folder, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    with pytest.raises(ReportError, match=r"mine.html exists and was not written by `--html`. Expected a new name"):
        run(folder, *CHEAP, "-q", "--html", "mine.html", "--plot", "out.svg")
    assert "train loss" in capsys.readouterr().out
    assert (tmp_path / "out.svg").exists()
    with pytest.raises(UsageError, match=r"`--plot out.jpg` names no kind of picture. Expected a name that ends in"):
        run(folder, "--plot", "out.jpg", "-o", "other")
    assert not (tmp_path / "other").exists()


# --- again


def test_what_is_measured_already_is_not_measured_again(run, folder, tmp_path):
    run(folder, "-q")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "wide.track").iterdir()}
    (tmp_path / "wide.track" / "d.report.h5").unlink()
    outcome = run(folder)
    assert outcome.code == 0
    assert outcome.err.count("measured already: ") == 3
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "wide.track").iterdir()}
    assert {name for name in stamps if stamps[name] != again[name]} == {"d.report.h5"}
    assert set(reports()) == set(STEPS.values())
    assert " matvecs" in outcome.out.replace("\u00a0", " ")
    assert "nothing left to measure" in " ".join(run(folder, "-q").out.split())


def test_other_settings_and_new_analyzers_are_measured(run, folder):
    run(folder, "-q", *CHEAP, "--only", "eigenvalues")
    outcome = run(folder, *CHEAP, "--only", "eigenvalues", measure={"eigenvalues": {"k": "2"}})
    assert outcome.err.count("replaced eigenvalues: settings changed: k 1 -> 2") == 4
    assert "measured already" not in outcome.err
    outcome = run(folder, *CHEAP, "--only", "near-rank")
    assert "measured already" not in outcome.err
    assert set(reports()["a"].results) == {"gap", "eigenvalues", "near-rank"}
    assert reports()["a"].results["eigenvalues"].settings["k"] == 2
    assert run(folder, *CHEAP, "--only", "near-rank").err.count("measured already") == 4


def test_differences_are_measured_anew_where_exact_products_are_there(run, folder):
    words = (folder, "--only", "gap", "--only", "eigenvalues", "--limit", "60")
    run(*words, "-q")
    assert run(*words, "--hvp", "exact").err.count("measured already") == 4
    assert run(*words, "--hvp", "differences").err.count("measured already") == 0
    assert reports()["a"].results["eigenvalues"].settings["hvp"] == "differences"
    assert run(*words, "--hvp", "auto").err.count("measured already") == 4


def test_an_interrupt_keeps_what_is_done(run, folder, monkeypatch):
    calls = []
    whole = Eigenvalues.__call__

    def stops(self, context):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, context)

    with monkeypatch.context() as patched:
        patched.setattr(Eigenvalues, "__call__", stops)
        code = run(folder, "--limit", "200")
    assert code.code == 130
    assert "2 of 4 checkpoints are in wide.track: the same command goes on from there" in code.err
    assert set(reports()["c"].results) == {"gap", "eigenvalues", "near-rank"}
    assert set(reports()["d"].results) == {"gap"}
    assert run(folder, "--limit", "200").err.count("measured already") == 2


def test_a_report_of_another_subject_is_kept_and_named(run, folder, tmp_path):
    run(folder, "-q", *CHEAP)
    saved(folder / "a.pt", steps=41)
    outcome = run(folder, "-q", *CHEAP)
    assert outcome.code == 2
    assert "a.report.h5 holds a report of another subject (sha256 differ). Expected this checkpoint" in outcome.err
    assert reports()["a"].training["steps"] == 40
    assert outcome.err.count("error: ") == 1


# --- what cannot be measured


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_measured(run, folder):
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 half a file")
    outcome = run(folder, *CHEAP, "--json", "-q")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {folder / 'broken.pt'} is truncated")
    content = json.loads(outcome.out)
    assert list(content["failures"]) == [str(folder / "broken.pt")]
    assert len(content["points"]) == 4


def test_an_analyzer_that_cannot_measure_leaves_the_others(run, folder):
    tables = {"measure": {"near-rank": {"cuts": ["rel:5"]}}}
    outcome = run(folder, *CHEAP, "--only", "near-rank", "-q", **tables)
    assert outcome.code == 2
    path = folder / "c.pt"
    assert outcome.err.count("error: near-rank of ") == 1
    others = ", ".join(str(folder / f"{name}.pt") for name in "adb")
    assert f"error: as near-rank of {path}, 3 more checkpoints: {others}\n" in outcome.err
    assert "train loss" in outcome.out


@pytest.mark.parametrize("place", ["load", "Eigenvalues.__call__"])
def test_a_rank_that_is_gone_ends_the_run(run, folder, monkeypatch, capsys, place):
    def gone(*_):
        raise RankError("One is gone. Expected all of them. Look there.")

    monkeypatch.setattr(track if place == "load" else Eigenvalues, place.rpartition(".")[2], gone)
    with pytest.raises(RankError, match="One is gone"):
        run(folder, *CHEAP, "--only", "eigenvalues", "-q")
    assert "could not be measured" not in capsys.readouterr().err


def test_a_result_of_other_settings_does_not_stand_in_for_one_that_failed(run, folder):
    run(folder, *CHEAP, "--only", "near-rank", "-q")
    tables = {"measure": {"near-rank": {"cuts": ["rel:5"]}}}
    found = rows(run(folder, *CHEAP, "--only", "near-rank", "--json", "-q", **tables))
    assert not [path for path in found if path.startswith("near-rank/")]
    assert "near-rank" in reports()["a"].results


def test_a_checkpoint_that_changes_meanwhile_gets_no_old_place(run, folder, monkeypatch):
    load = track.load

    def overwritten(path, common):
        if path.stem == "b":
            shutil.copy(folder / "a.pt", path)
        return load(path, common)

    monkeypatch.setattr(track, "load", overwritten)
    outcome = run(folder, *CHEAP, "--json")
    assert outcome.code == 2
    (said,) = json.loads(outcome.out)["failures"].values()
    assert said.startswith("It has changed since the checkpoints were put in order.")
    assert len(json.loads(outcome.out)["points"]) == 3


def test_numbers_that_cannot_be_written_are_shown_all_the_same(run, folder, monkeypatch):
    def full(report, path):
        raise ReportError(f"{path} cannot be written: no space. Expected room for it. Make some.")

    monkeypatch.setattr("gapscope.report.file.write", full)
    outcome = run(folder, *CHEAP, "--only", "near-rank", "--json", "-q")
    assert outcome.code == 2
    assert "error: wide.track/c.report.h5 cannot be written: no space." in outcome.err
    assert {"gap/train_loss", "near-rank/near_rank[fc1,rel:1e-2]"} <= set(rows(outcome))


def test_another_network_is_no_checkpoint_of_the_run(run, folder):
    saved(folder / "e.pt", steps=500, model_args={**ARGS, "hidden": [9]})
    outcome = run(folder, *CHEAP, "-q")
    assert outcome.code == 2
    assert "e.pt could not be measured: It differs from c.pt in model_args, parameters. Expected one model on" in (
        outcome.err
    )
    assert len(reports()) == 4


def test_nothing_is_shown_where_nothing_can_be_measured(run, folder):
    outcome = run(folder, *CHEAP, "-m", "mlp", "-a", "hidden=[7]", "-q")
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("error: ") == 2
    assert f"error: as {folder / 'c.pt'}, 3 more checkpoints: {folder / 'a.pt'}, " in outcome.err
    assert not Path("wide.track").exists()
    Path("wide.track").mkdir()
    run(folder, *CHEAP, "-m", "mlp", "-a", "hidden=[7]", "-q")
    assert Path("wide.track").is_dir()  # it was there before


def test_mistakes_are_refused_before_the_work(run, folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.md").touch()
    with pytest.raises(LoadError, match=r"empty holds no checkpoints \(1 other entries\). Expected files that end in"):
        run(empty)
    with pytest.raises(LoadError, match=r"none of its checkpoints can be read. Expected one or more. Mend the path."):
        run(tmp_path / "nothing.pt")
    with pytest.raises(ReportError, match=r"a.pt cannot be made: File exists. Expected a place for the reports. Name"):
        run(folder, "-o", folder / "a.pt")
    assert not (tmp_path / "wide.track").exists()


# --- the order


def bare(folder, target, *names):
    """Weights alone, which record nothing, later ones first."""
    target.mkdir()
    for steps, name in zip(STEPS.values(), names, strict=False):
        torch.save(torch.load(folder / f"{steps}.pt", weights_only=True)["model"], target / name)
    return target


NAMED = ("-m", "mlp", "-a", "hidden=[8]", "-d", "digits", *CHEAP, "--json", "-q")


def test_without_a_record_the_number_in_the_name_orders(run, folder, tmp_path):
    content = json.loads(run(bare(folder, tmp_path / "bare", "v2-10.pt", "v2-9.pt"), *NAMED).out)
    assert content["axis"] == "number in the name"
    assert [point["place"] for point in content["points"]] == ["9", "10"]


def test_equal_steps_leave_it_to_the_epochs(run, folder):
    for number, name in enumerate("abcd"):
        content = torch.load(folder / f"{name}.pt", weights_only=True)
        content["gapscope"]["training"] |= {"steps": 7, "epochs": 9 - number}
        torch.save(content, folder / f"{name}.pt")
    content = json.loads(run(folder, *CHEAP, "--json", "-q").out)
    assert content["axis"] == "epochs"
    assert [point["checkpoint"] for point in content["points"]] == ["d.pt", "c.pt", "b.pt", "a.pt"]


def test_without_any_number_only_given_files_have_an_order(run, folder, tmp_path):
    target = bare(folder, tmp_path / "bare", "late.pt", "early.pt")
    with pytest.raises(UsageError, match=r"Nothing orders the checkpoints of .*bare: they record neither steps nor"):
        run(target, *NAMED)
    content = json.loads(run(target / "late.pt", target / "early.pt", *NAMED).out)
    assert content["axis"] == "order given"
    assert [point["place"] for point in content["points"]] == ["late", "early"]


def test_a_folder_of_several_runs_is_refused_and_its_files_by_name_are_not(run, folder, tmp_path):
    saved(folder / "b8-100.pt", steps=100, batch_size=8)
    saved(folder / "b8-300.pt", steps=300, batch_size=8)
    with pytest.raises(UsageError) as caught:
        run(folder)
    names = " ".join(str(folder / f"{name}.pt") for name in "abcd")
    assert str(caught.value) == (
        f"{folder} holds the checkpoints of 2 runs: batch_size 1300 (4), batch_size 8 (2). Expected one run. "
        f"Name its checkpoints: `gapscope track {names}`."
    )
    assert not (tmp_path / "wide.track").exists()
    content = json.loads(run(folder / "a.pt", folder / "b8-300.pt", *CHEAP, "--json", "-q").out)
    assert "Mind that these checkpoints record different batch_size" in " ".join(content["reading"])


def test_a_copy_counts_once_and_folders_are_checkpoints_too(run, folder, tmp_path):
    from safetensors.torch import save_file

    shutil.copy(folder / "b.pt", folder / "last.pt")
    outcome = run(folder, *CHEAP)
    assert f"left out: {folder / 'last.pt'} is a copy of {folder / 'b.pt'}" in outcome.err
    assert len(reports()) == 4
    target = tmp_path / "hub"
    for steps, name in STEPS.items():
        (target / f"checkpoint-{steps}").mkdir(parents=True)
        state = torch.load(folder / f"{name}.pt", weights_only=True)["model"]
        save_file(state, target / f"checkpoint-{steps}" / "model.safetensors")
    (target / "logs").mkdir()
    content = json.loads(run(target, *NAMED).out)
    assert [point["place"] for point in content["points"]] == ["9", "40", "100", "300"]


def test_files_of_one_name_get_reports_of_their_own(run, folder, tmp_path):
    for name in "cab":
        (folder / name).mkdir()
        shutil.move(folder / f"{name}.pt", folder / name / "model.pt")
    run(*folder.glob("*/model.pt"), *CHEAP, "-q", "-o", "named")
    assert set(reports("named")) == {"a-model", "b-model", "c-model"}
