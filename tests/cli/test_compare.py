import itertools
import json

import pytest
import torch
from safetensors.torch import save_file

from gapscope.cli import compare
from gapscope.report.file import Comparison, read
from tests.loop import make_checkpoint


@pytest.fixture
def reports(run, small, large, tmp_path):
    for path in (small, large):
        assert run("gap", path, "-q").code == 0
    return [tmp_path / f"{path.stem}.report.h5" for path in (small, large)]


def test_labels_come_from_the_recorded_batch_sizes(run, reports):
    outcome = run("compare", *reversed(reports))
    assert outcome.code == 0
    assert "small batch 8" in outcome.out
    assert outcome.out.index("small batch 8") < outcome.out.index("large batch 650")
    assert "Reading" in outcome.out
    assert "reports:" in outcome.out


def test_checkpoints_and_reports_mix_freely(run, reports, large, tmp_path):
    (tmp_path / "gapscope.toml").write_text("[measure.epsilon-sharpness]\nmanifold = 0")
    outcome = run("compare", reports[0], large, "--labels", "one, two", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["format"] == "gapscope-comparison"
    assert [subject["label"] for subject in found["subjects"]] == ["one", "two"]
    assert "gap/test_loss" in [row["path"] for row in found["rows"]]
    assert set(found["rows"][0]) >= {"path", "values", "errors", "contrast", "estimate", "interval", "verdict"}
    assert "measuring" in outcome.err


def test_a_comparison_is_written_shown_and_replaced(run, reports, tmp_path):
    assert "comparison: c.h5" in run("compare", *reports, "-o", "c.h5").out
    assert isinstance(read(tmp_path / "c.h5"), Comparison)
    shown = run("show", "c.h5")
    assert shown.code == 0
    assert "Reading" in shown.out
    assert run("compare", *reports, "-o", "c.h5").code == 0


def test_a_picture_is_written_and_refused_before_the_work(run, reports, large, tmp_path):
    done = run("compare", *reports, "-o", "c.h5", "--plot", "c.pdf")
    assert (done.code, done.out.endswith("comparison: c.h5\npicture: c.pdf\n")) == (0, True)
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF-")
    for name, message in (("c.tex", "names no kind of picture"), ("no/c.png", "The folder of no/c.png does not exist")):
        refused = run("compare", reports[0], large, "--plot", name)
        assert refused.code == 2
        assert message in refused.err
        assert "measuring" not in refused.err


def test_a_report_is_never_replaced_by_a_comparison(run, reports, tmp_path):
    before = reports[0].read_bytes()
    outcome = run("compare", *reports, "-o", reports[0].name)
    assert outcome.code == 2
    assert "is a report, not a comparison" in outcome.err
    assert reports[0].read_bytes() == before


def test_unlike_conditions_are_refused_before_any_measurement(run, reports, large, tmp_path):
    outcome = run("compare", reports[0], large, "--split", "test")
    assert outcome.code == 2
    assert "split: train / test" in outcome.err
    assert "--force" in outcome.err
    assert "measuring" not in outcome.err


def test_force_compares_all_the_same_and_says_so(run, reports, small, tmp_path):
    run("gap", small, "-q", "--limit", "300", "-o", "part.h5")
    outcome = run("compare", reports[1], "part.h5", "--force")
    assert outcome.code == 0
    assert "Forced" in outcome.out
    assert "limit" in outcome.out


def test_two_checkpoints_of_one_name_get_two_reports(run, small, large, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(compare, "SHARPNESS", ("gap",))
    for folder, source in (("a", small), ("b", large)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "best.pt")
    outcome = run("compare", "a/best.pt", "b/best.pt")
    assert outcome.code == 0, outcome.err
    assert "reports: best.report.h5, b-best.report.h5" in outcome.out


def test_a_shared_output_is_no_place_for_a_comparison(run, reports, tmp_path):
    (tmp_path / "gapscope.toml").write_text('output = "all.h5"')
    assert run("compare", *reports).code == 0
    assert not (tmp_path / "all.h5").exists()
    (tmp_path / "gapscope.toml").write_text('output = "all.h5"\n[compare]\noutput = "pair.h5"')
    assert run("compare", *reports).code == 0
    assert isinstance(read(tmp_path / "pair.h5"), Comparison)


def test_a_comparison_is_never_written_over_a_report_of_the_same_command(run, small, large, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SHARPNESS", ("gap",))
    for name in ("digits-small-batch.report.h5", "./digits-large-batch.report.h5"):
        refused = run("compare", small, large, "--pair", "none", "-o", name)
        assert refused.code == 2
        assert ".report.h5 is where the report of " in refused.err
        assert "measuring" not in refused.err
    assert not list(tmp_path.glob("*.h5"))


def test_folders_are_checkpoints_too(run, small, large, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "SHARPNESS", ("gap",))
    for step, source in ((9, small), (40, large)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        weights = torch.load(source, weights_only=True)["model"]
        save_file(weights, tmp_path / f"checkpoint-{step}" / "model.safetensors")
    arguments = ("-a", "inputs=64", "-a", "hidden=[64]", "-a", "outputs=10")
    how = ("-m", "mlp", *arguments, "-d", "digits", "--loss", "cross-entropy")
    outcome = run("compare", "checkpoint-9", "checkpoint-40", *how, "--pair", "none")
    assert outcome.code == 0, outcome.err
    assert "reports: checkpoint-9.report.h5, checkpoint-40.report.h5" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("REPORT",), "Expected two or more: `gapscope compare A B`"),
        (("REPORT", "nowhere.pt"), "nowhere.pt is no file. Expected a checkpoint or a report."),
        (("REPORT", "REPORT", "--labels", "a"), "`--labels a` names 1 different columns for 2 subjects."),
        (("REPORT", "REPORT", "-o", "no/where.h5"), "mend `--output`"),
    ],
)
def test_nonsense_is_refused(run, reports, words, message):
    outcome = run("compare", *[str(reports[0]) if word == "REPORT" else word for word in words])
    assert outcome.code == 2
    assert message in outcome.err


def test_the_comparison_is_shown_although_it_cannot_be_written(run, reports, monkeypatch):
    import gapscope.report.file as file
    from gapscope.errors import ReportError

    def full(content, path):
        raise ReportError("the disk is full")

    monkeypatch.setattr(file, "write", full)
    outcome = run("compare", *reports, "-o", "c.h5")
    assert outcome.code == 2
    assert "Reading" in outcome.out
    assert outcome.err == "error: the disk is full\n"


def test_other_settings_are_refused_before_any_measurement(run, small, large, tmp_path):
    assert run("eigenvalues", small, "--k", "2", "-q").code == 0
    outcome = run("compare", "digits-small-batch.report.h5", large)
    assert outcome.code == 2
    assert "digits-small-batch.report.h5 was measured with eigenvalues.k = 2, and 1 would be used now" in outcome.err
    assert "[measure.eigenvalues] of gapscope.toml" in outcome.err
    assert "measuring" not in outcome.err


# Regimes of several runs


STEPS = {16: (60, 120), 650: (80, 160)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of two batch sizes, each saved twice: a small network on the digits, a second of training."""
    folder = tmp_path_factory.mktemp("runs")
    model = {"inputs": 64, "hidden": [8], "outputs": 10}
    for size, seed in itertools.product(STEPS, (1, 2, 3)):
        for steps in STEPS[size]:
            path = folder / f"b{size}-seed{seed}-{steps}.pt"
            make_checkpoint(path, model_args=model, batch_size=size, lr=0.2, steps=steps, seed=seed)
    return folder


@pytest.fixture
def few(monkeypatch):
    """Only the cheap analyzers, to the same effect."""
    monkeypatch.setattr(compare, "SHARPNESS", ("eigenvalues", "gap"))


def last_epochs(runs):
    return [runs / f"b{size}-seed{seed}-{STEPS[size][-1]}.pt" for size in STEPS for seed in (1, 2, 3)]


QUICK = ("--limit", "200", "-q")


def test_checkpoints_of_two_batch_sizes_are_compared_over_their_seeds(run, runs, few, tmp_path):
    outcome = run("compare", *last_epochs(runs), *QUICK, "-o", "groups.h5", "--html", "groups.html")
    assert outcome.code == 0, outcome.err
    assert "small batch 16 large batch 650" in outcome.out
    assert "95 % interval: over seeds (3 and 3 runs)" in " ".join(outcome.out.split())
    first, *_ = " ".join(outcome.out.partition("Reading")[2].split()).split(" · ")
    assert "large batch 650" in first
    assert "over seeds, 3 and 3 runs)" in first
    assert "3 against 3 runs reach no smaller one than 0.1." in " ".join(outcome.out.split())
    assert outcome.out.endswith("comparison: groups.h5\npage: groups.html\n")
    assert max(map(len, outcome.out.splitlines())) <= 80
    shown = run("show", "groups.h5").out
    assert outcome.out.startswith(shown.rstrip("\n"))
    assert "over seeds" in (tmp_path / "groups.html").read_text()
    again = run("compare", *sorted(tmp_path.glob("*.report.h5")), "-q").out  # from reports alone: the same numbers
    assert again.startswith(shown.rstrip("\n"))


def test_several_epochs_of_a_run_are_refused_before_any_measurement(run, runs, few):
    outcome = run("compare", *sorted(runs.glob("*.pt")))
    assert outcome.code == 2
    assert "record the same recipe and seed: saved epochs of one run" in outcome.err
    assert "measuring" not in outcome.err


def test_matching_by_loss_measures_only_the_loss_of_what_it_leaves_out(run, runs, few, tmp_path):
    outcome = run("compare", *sorted(runs.glob("*.pt")), *QUICK, "--match-loss")
    assert outcome.code == 0, outcome.err
    assert "95 % interval: over seeds (3 and 3 runs)" in " ".join(outcome.out.split())
    assert "those nearest in training loss are compared" in " ".join(outcome.out.split())
    held = [tuple(read(path).results) for path in tmp_path.glob("*.report.h5")]
    assert (len(held), held.count(("gap",))) == (12, 6)


def test_by_loss_shows_every_saved_epoch(run, runs, few):
    outcome = run("compare", *sorted(runs.glob("*seed1*.pt")), *QUICK, "--by-loss", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["results"]["by-loss"]["quantities"]
    assert len(found["eigenvalues top"]["value"]) == 4
    assert found["gap train_loss"]["value"] == sorted(found["gap train_loss"]["value"], reverse=True)


def test_patterns_name_the_regimes(run, runs, few):
    early, late = (str(runs / f"b{size}-*-{STEPS[size][1]}.pt") for size in (16, 650))
    outcome = run("compare", "--small", early, "--large", late, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "small batch 16 large batch 650" in outcome.out


def test_a_recorded_key_makes_regimes_of_a_pair_too(run, runs, few):
    outcome = run("compare", *(runs / f"b16-seed1-{steps}.pt" for steps in STEPS[16]), "--by", "steps", *QUICK)
    assert outcome.code == 0, outcome.err
    header = next(line for line in outcome.out.splitlines() if "steps" in line)
    assert header.index("steps 60") < header.index("steps 120")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "There is nothing to compare. Expected two or more: `gapscope compare A B`."),
        (("--small", "*.h5"), "There is only `--small`. Expected `--small` and `--large` and nothing else"),
        (("REPORT", "--small", "*", "--large", "*"), "stands beside `--small`. Expected `--small` and `--large`"),
        (("--small", "*", "--large", "*", "--by", "lr"), "`--by` stands beside `--small`. Expected"),
        (("--small", "*.h5", "--large", "*.xyz"), "No file matches `--large *.xyz`. Expected one or more. Mend the"),
        (("REPORT", "OTHER", "--by", "rate"), "records no `rate` of its training, only:"),
        (("REPORT", "OTHER", "--match-loss"), "The 2 subjects are no saved epochs of two regimes."),
        (("REPORT", "OTHER", "--html", "no/where.html"), "The folder of no/where.html does not exist."),
    ],
)
def test_regimes_that_make_no_sense_are_refused(run, reports, words, message):
    names = {"REPORT": str(reports[0]), "OTHER": str(reports[1])}
    outcome = run("compare", *[names.get(word, word) for word in words])
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
