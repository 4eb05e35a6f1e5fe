import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gapscope.cli.gate import quantities
from gapscope.errors import ReportError
from gapscope.report.file import read, write

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "fixtures"
ACTION = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
CONSOLE = Path(sys.executable).with_name("gapscope")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Real reports: small.h5 and large.h5, the small one with another seed, in part, and stopped early."""
    from gapscope.__main__ import main

    folder = tmp_path_factory.mktemp("measured")

    def measure(command, side, name, *more):
        words = [command, FIXTURES / f"digits-{side}-batch.pt", "-q", "-o", folder / name, *more]
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        assert left.value.code == 0

    for side in ("small", "large"):
        for command in ("eigenvalues", "gap"):
            measure(command, side, f"{side}.h5")
    for seed in range(3):
        measure("eigenvalues", "small", f"seed{seed}.h5", "--seed", seed)
        measure("adaptive-sharpness", "small", f"seed{seed}.h5", "--seed", seed)
        measure("trace", "small", f"seed{seed}.h5", "--seed", seed)
    measure("eigenvalues", "small", "part.h5", "--limit", 300)
    measure("eigenvalues", "small", "early.h5", "--max-matvecs", 4)
    measure("eigenvalues", "small", "differences.h5", "--hvp", "differences")
    return folder


@pytest.fixture
def here(measured, tmp_path):
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        *((("gate", "small.h5", "--max", "eigenvalues/top=0.1", "--format", kind), 1) for kind in ("plain", "rich")),
        (("gate", "small.h5", "--max", "eigenvalues/top=0.8884", "--format", "json"), 3),
        (("gate", "small.h5", "--max", "eigenvalues/top=1"), 0),
        (("show", "small.h5"), 0),
    ],
)
def test_a_verdict_stays_what_it_is_when_its_reader_has_left(here, words, code, unbuffered):
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(write_end, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "gapscope", *words],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            cwd=here,
            env=environment,
            timeout=120,
        )
    assert done.returncode == code
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("small.h5", "--max", "eigenvalues/top=1"), 0, "1 pass"),
        (("small.h5", "large.h5", "--max", "eigenvalues/top=1"), 1, "1 fail, 1 pass"),
        (("small.h5", "--max", "eigenvalues/top=0.8884"), 3, "1 unsure"),
        (("part.h5", "--max", "eigenvalues/top=1.2"), 3, "a larger `--limit`, or none"),
        (("early.h5", "--max", "eigenvalues/top=1"), 3, "more `--max-matvecs` of `gapscope eigenvalues"),
        (("early.h5", "--max", "eigenvalues/top=0.1"), 1, "1 fail"),
        (("small.h5", "--max", "trace/trace=1"), 2, "it is not in the report"),
        (("differences.h5", "--max", "eigenvalues/top=1"), 2, "`--allow-differences`"),
        (("differences.h5", "--max", "eigenvalues/top=1", "--allow-differences"), 0, "1 pass"),
        (("small.h5", "--max-increase", "eigenvalues/top=25%"), 0, "gapscope baseline accept small.h5 --reason"),
        (("large.h5", "--max-increase", "eigenvalues/top=25%", "--baseline", "small.h5"), 1, "+93.2"),
        (("large.h5", "--max-increase", "gap/loss_gap=25%", "--baseline", "small.h5"), 0, "1 pass"),
        (("part.h5", "--max-increase", "eigenvalues/top=25%", "--baseline", "small.h5"), 2, "limit: none / 300"),
        (("small.h5", "large.h5", "--max", "eigenvalues/top=1", "--exit-zero"), 0, "1 fail"),
        (("small.h5", "--max", "eigenvalues/top=0.8884", "--on-unsure", "pass"), 0, "1 unsure"),
        (("small.h5", "--max", "eigenvalues/top=0.8884", "--on-unsure", "fail"), 1, "1 unsure"),
        (("small.h5", "--max", "eigenvalues/top=0.8884", "--max", "*/top=0.1"), 1, "1 fail, 1 unsure"),
    ],
)
def test_verdicts_and_exit_codes_of_real_reports(run, here, words, code, said):
    done = run("gate", *words)
    assert done.code == code, done.err
    assert said in " ".join(done.out.split())
    assert done.err == ""


def test_the_installed_command_exits_likewise(here):
    done = subprocess.run(
        [CONSOLE, "gate", "small.h5", "--max", "eigenvalues/top=0.8884"],
        capture_output=True,
        text=True,
        cwd=here,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert "1 unsure" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("small.h5",), "There are no thresholds. Expected one or more."),
        (("none.h5", "--max", "eigenvalues/top=1"), "none.h5 does not exist, so nothing can be judged."),
        (("none.pt", "--max", "eigenvalues/top=1"), "none.pt does not exist, so nothing can be judged."),
        (("small.h5", "--max-increase", "eigenvalues/top=1", "--baseline", "b.h5"), "b.h5 does not exist"),
        (("small.h5", "--max", "eigenvalues/tip=1"), "Did you mean `eigenvalues/top`?"),
        (("small.h5", "--max", "*/tip=1"), 'The threshold "*/tip" selects nothing.'),
        (("small.h5", "--max", "eigenvalues/top"), "has no limit. Expected SELECTOR=NUMBER"),
        (
            ("small.h5", FIXTURES / "digits-small-batch.pt", "--max", "*/tip=1", "--max", "*/tap=1"),
            f"The thresholds (*/tip, */tap) name no analyzer that could measure {FIXTURES / 'digits-small-batch.pt'}.",
        ),
        (
            ("small.h5", "--max", "eigenvalues/top=1", "--min", "eigenvalues/top=2"),
            '"eigenvalues/top" in the thresholds has min = 2.0 above max = 1.0.',
        ),
        (("small.h5", "--max", "eigenvalues/top=1", "--json"), "No such option: --json"),
        (("small.h5", "--max", "eigenvalues/top=1", "--output", "x.h5"), "No such option: --output"),
        (("small.h5", "--max-increase", "eigenvalues/top"), "`--max-increase eigenvalues/top=25%`"),
        ((FIXTURES / "reports" / "v1.comparison.h5", "--max", "eigenvalues/top=1"), "comparison"),
    ],
)
def test_a_mistake_exits_with_2(run, here, words, said):
    outcome = run("gate", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err


def test_a_mistake_is_one_even_with_exit_zero(run, here):
    assert run("gate", "none.h5", "--max", "eigenvalues/top=1", "--exit-zero").code == 2


def test_thresholds_of_files_and_options(run, here):
    (here / "pyproject.toml").write_text(
        "[tool.gapscope.gate.thresholds]\n"
        '"eigenvalues/top" = { max = 0.1, level = "warn" }\n"gap/loss_gap" = { max = 1 }'
    )
    warned = run("gate", "small.h5")
    assert warned.code == 0
    assert "1 fail (of them 1 only warns), 1 pass" in warned.out
    (here / "gapscope.toml").write_text(
        '[gate]\non-unsure = "pass"\n[gate.thresholds]\n"eigenvalues/top" = { level = "error", max = 0.2 }'
    )
    assert run("gate", "small.h5").code == 1
    assert run("gate", "small.h5", "--max", "eigenvalues/top=1").code == 0  # the option wins
    assert run("gate", "small.h5", "--max", "eigenvalues/top=0.8884").code == 0  # on-unsure
    (here / "gapscope.toml").write_text('[gate.thresholds]\n"eigenvalues/top" = { mx = 0.2 }')
    refused = run("gate", "small.h5")
    assert refused.code == 2
    assert "in [gate.thresholds] of gapscope.toml has an unknown key `mx`. Did you mean `max`?" in refused.err


def test_measuring_again_with_another_seed_never_turns_a_pass_into_a_failure(run, here):
    """Limits far from, at, and between what three seeds measured: no limit is passed by one and failed by another."""
    from gapscope.report.thresholds import elements, threshold
    from gapscope.report.verdicts import judge

    reports = {f"seed{seed}.h5": read(here / f"seed{seed}.h5") for seed in range(3)}
    estimated = ("trace/trace", "trace/frobenius", "adaptive-sharpness/average[0.1]")
    for path in ("eigenvalues/top", "eigenvalues/bottom", *estimated):
        values = [next(e for e in elements(r) if e.path == path) for r in reports.values()]
        values = sorted(float(e.at(e.quantity.value)) for e in values)
        middles = [(a + b) / 2 for a, b in itertools.pairwise(values)]
        assert values[0] < values[-1], path  # the seed does make a difference
        far = values[0] - 10 * abs(values[0]), values[-1] + 10 * abs(values[-1])
        for limit, rule in itertools.product((*values, *middles, *far), ("max", "min")):
            found = {c.verdict for c in judge(reports, [threshold(path, {rule: limit}, "")])}
            assert not {"pass", "fail"} <= found, (path, rule, limit)
            assert limit not in far or len(found) == 1


def test_the_same_weights_pass_every_change(run, here):
    for seed in (1, 2):
        outcome = run("gate", f"seed{seed}.h5", "--baseline", "seed0.h5", "--max-increase", "eigenvalues/top=1%")
        assert outcome.code == 0, outcome.out


def test_a_checkpoint_is_measured_first_by_what_the_limits_name(run, small, tmp_path):
    outcome = run("gate", small, "--max", "gap/loss_gap=1", "--min", "gap/test_accuracy=99", "-q")
    assert (outcome.code, outcome.err) == (1, "")
    assert list(read(tmp_path / "digits-small-batch.report.h5").results) == ["gap"]
    again = run("gate", small, "digits-small-batch.report.h5", small, "--max", "gap/loss_gap=1")
    assert again.code == 0
    assert again.err.count("measuring ") == 1
    assert "1 pass" in again.out  # all are the same report
    assert [path.name for path in tmp_path.glob("*.h5")] == ["digits-small-batch.report.h5"]


def test_a_report_that_cannot_be_written_is_not_judged(run, small, monkeypatch):
    def full(report, path):
        raise ReportError(f"{path} cannot be written: no space. Expected room for it. Make some.")

    monkeypatch.setattr("gapscope.report.file.write", full)
    outcome = run("gate", small, "--max", "gap/loss_gap=1", "--exit-zero")
    assert (outcome.code, outcome.out) == (2, "")
    assert "digits-small-batch.report.h5 cannot be written: no space." in outcome.err


def test_verbose_lists_every_pass(run, here):
    words = ("gate", "seed0.h5", "--max", "adaptive-sharpness/*=1e9", "--max", "eigenvalues/*=1e9", "--max", "*/*=1e9")
    brief, whole = run(*words), run(*words, "-v")
    assert "more pass" in brief.out
    assert "more pass" not in whole.out
    assert whole.out.count("\u2264") > 20


def test_nan_in_a_report_never_passes(run, here):
    import dataclasses

    report = read(here / "small.h5")
    record = report.results["gap"]
    broken = dataclasses.replace(record.quantities["loss_gap"], value=float("nan"))
    changed = dataclasses.replace(record, quantities={**record.quantities, "loss_gap": broken})
    write(dataclasses.replace(report, results={**report.results, "gap": changed}), here / "small.h5")
    for limit in ("--max", "--min"):
        assert run("gate", "small.h5", limit, "gap/loss_gap=0").code == 2


def test_formats(run, here, monkeypatch):
    words = ("gate", "small.h5", "large.h5", "--max", "eigenvalues/top=1")
    found = json.loads(run(*words, "--format", "json").out)
    assert (found["verdict"], found["exit_code"]) == ("fail", 1)
    for form, start in (("junit", "<?xml"), ("markdown", "### gapscope gate")):
        out = run(*words, "--format", form).out
        assert out.startswith(start)
        assert out == out.rstrip("\n") + "\n"
    plain = run(*words).out
    assert plain == run(*words, "--format", "plain").out == run(*words, "--format", "rich").out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    (here / "summary.md").write_text("before\n")
    annotated = run(*words)
    assert annotated.code == 1
    stop, *table, go, error = annotated.out.splitlines()
    assert "\n".join([*table, ""]) == plain
    assert stop.startswith("::stop-commands::")
    assert go == f"::{stop.removeprefix('::stop-commands::')}::"
    assert error.startswith("::error title=gapscope gate%3A top eigenvalue::large.h5: fail:")
    assert (here / "summary.md").read_text().startswith("before\n### gapscope gate\n")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    passed = run("gate", "small.h5", "--max", "eigenvalues/top=1")  # nothing to annotate, and no summary to write
    assert passed.code == 0
    assert passed.out.startswith("::stop-commands::")
    assert passed.out.endswith(f"{passed.out.partition(chr(10))[0].removeprefix('::stop-commands')}::\n")


def test_auto_is_rich_on_a_terminal_alone(run, here, monkeypatch):
    shown = []
    monkeypatch.setattr("gapscope.report.terminal.output", shown.append)
    words = ("gate", "small.h5", "--max", "eigenvalues/top=1")
    assert run(*words).out.endswith("gate: 1 pass\n")
    assert shown == []
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run(*words).out == ""
    assert len(shown) == 1


def test_own_options_may_come_from_the_environment(run, here, monkeypatch):
    monkeypatch.setenv("GAPSCOPE_GATE_ON_UNSURE", "fail")
    assert run("gate", "small.h5", "--max", "eigenvalues/top=0.8884").code == 1


def test_a_summary_that_cannot_be_written_is_an_error(run, here, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here))
    outcome = run("gate", "small.h5", "--max", "eigenvalues/top=1", "--format", "github")
    assert outcome.code == 2
    assert "cannot be written: Is a directory. Expected the file that GITHUB_STEP_SUMMARY names." in outcome.err


def test_reports_are_judged_without_torch_and_without_scipy(here):
    watch = (
        "import sys\nfrom gapscope.__main__ import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as left:\n    assert left.code == 0\n"
        "print(*[m for m in ('torch', 'scipy', 'pyhessian') if m in sys.modules], file=sys.stderr)"
    )

    def loaded(*words):
        done = subprocess.run(
            [sys.executable, "-c", watch, *words], capture_output=True, text=True, cwd=here, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stderr.split()

    assert loaded("gate", "small.h5", "--max", "eigenvalues/top=1") == []
    changes = ("gate", "large.h5", "--max-increase", "gap/loss_gap=25%", "--baseline", "small.h5")
    assert loaded(*changes) == []


def test_every_analyzer_of_one_checkpoint_declares_its_quantities():
    from gapscope.measure.analyzers import analyzer_class, names

    known = quantities()
    assert set(known) == {name for name in names() if analyzer_class(name).arity == 1}
    assert known["eigenvalues"][0] == "top"
    assert "loss_gap" in known["gap"]
    assert all(known.values())


def test_an_analyzer_that_cannot_be_imported_or_declares_nothing_has_no_quantities(monkeypatch):
    """Those of other packages."""
    from gapscope.cli import gate

    class Number:
        arity = 1

        def __call__(self, context) -> int:
            return 1

    class Idle:
        arity = 1  # and nothing to call

    classes = {"number": Number, "idle": Idle, "gap": gate.analyzer_class("gap")}
    monkeypatch.setattr(gate, "names", lambda: ["broken", *classes])
    monkeypatch.setattr(gate, "analyzer_class", lambda name: classes[name])
    assert list(quantities()) == ["gap"]


def step(text, folder, **environment):
    """Run one step's script as a runner does, with the command of this environment."""
    path = f"{CONSOLE.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env={**os.environ, "PATH": path, **environment},
    )


def test_the_action_s_step_judges(here):
    (script,) = (one["run"] for one in ACTION["runs"]["steps"] if "gapscope gate" in one.get("run", ""))
    assert "${{" not in script
    inputs = {"SUBJECTS": "small.h5 large.h5", "BASELINE": "", "ARGS": "--max eigenvalues/top=1"}
    assert step(script, here, **inputs).returncode == 1
    changed = {"SUBJECTS": "seed[12].h5", "BASELINE": "seed0.h5", "ARGS": "--max-increase eigenvalues/top=1%"}
    done = step(script, here, **changed)
    assert done.returncode == 0, done.stderr
    assert "2 pass" in done.stdout
    missing = step(script, here, **{**changed, "BASELINE": "my baseline.h5"})
    assert missing.returncode == 2
    assert "my baseline.h5 does not exist" in missing.stderr


def test_the_action_is_a_composite_one_and_uses_every_input():
    assert ACTION["runs"]["using"] == "composite"
    text = json.dumps(ACTION["runs"])
    assert {"subjects", "baseline", "args", "python-version", "install"} == set(ACTION["inputs"])
    assert all(f"inputs.{name}" in text for name in ACTION["inputs"])
    assert all("shell" in one for one in ACTION["runs"]["steps"] if "run" in one)


def test_the_pre_commit_hook_runs(run, here):
    import re

    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert {"id", "name", "entry", "language", "files"} <= set(hook)
    assert re.search(hook["files"], "runs/best.report.h5")
    assert not re.search(hook["files"], "baseline.h5")
    (here / "gapscope.toml").write_text('[gate.thresholds]\n"eigenvalues/top" = { max = 1 }')
    assert run(*shlex.split(hook["entry"])[1:], "small.h5").code == 0
    assert run(*shlex.split(hook["entry"])[1:], "small.h5", "large.h5").code == 1
