"""Lines beside the results quote names from files: none moves the cursor, or commands the runner of a workflow."""

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import gapscope
from gapscope.callbacks.recorder import Recorder
from gapscope.cli.progress import Lines
from gapscope.cli.stderr import tell
from gapscope.measure.loading import load_data
from gapscope.measure.loading.trust import Trust
from gapscope.report.document import Document, Note
from gapscope.report.terminal import harmless, text
from gapscope.results import Quantity
from tests.report.example_reports import eigenvalues, report, with_quantity

CLI = Path(gapscope.__file__).parent / "cli"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\n::error::forged ##[error]forged ##vso[task.x]forged \u202e"


def refused_by_runners(said):
    """GitHub's runner trims a line and obeys what then begins with `::`; `##[` and `##vso[` count where they stand."""
    assert "forged" in said
    assert not [line for line in said.splitlines() if line.strip().startswith("::")]
    assert "##[" not in said
    assert "##vso[" not in said
    assert not set(said) & set("\x1b\x07\x9b\r\u202e")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("::error::x", ": :error::x"),
        ("a\n::error::x", "a : :error::x"),
        ("  ::stop-commands::x", "  : :stop-commands::x"),
        (":::: .:: ::", ":::: .:: ::"),  # shades of a map
        ("\u200b::x", ": :x"),
        ("##[error]x", "## [error]x"),
        ("#\x07#[error]x", "## [error]x"),
        ("a ##vso[task.setvariable]x", "a ##vso [task.setvariable]x"),
        ("std::vector, a: b, ## x", "std::vector, a: b, ## x"),
    ],
)
def test_a_text_that_commands_comes_apart(given, kept):
    assert harmless(given) == kept
    assert harmless(kept) == kept


def test_wrapping_puts_no_command_at_the_beginning_of_a_line():
    refused_by_runners(text(Document(blocks=((Note(text=f"{'word ' * 15}::error::forged"),),)), width=80))


@pytest.mark.parametrize("command", [("gap",), ("gate", "--max", "gap/train_loss=99"), ("compare", "--pair", "none")])
def test_names_of_arrays_are_noted_harmlessly(run, small, large, command):
    digits = load_data("digits", "train", recorded=False, trust=Trust()).limited(60, 0)
    np.savez("d.npz", x=digits.inputs.reshape(60, 64).numpy(), y=digits.targets.numpy(), **{HOSTILE: np.zeros(1)})
    subjects = (small, large) if command[0] == "compare" else (small,)
    refused_by_runners(run(command[0], *subjects, *command[1:], "-d", "d.npz").err)


def test_keys_of_weights_are_traced_harmlessly(run):
    torch.save({f"{HOSTILE}.weight": torch.ones(2, 2)}, "a.pt")
    for words in ((), ("--debug",)):
        refused_by_runners(run("gap", "a.pt", "-m", "mlp", "-d", "digits", *words).err)


@pytest.mark.parametrize("how", [(), ("-v",), ("--json",), ("--csv", "-"), ("--cite",)])
def test_what_a_report_says_is_shown_harmlessly(run, how):
    record = with_quantity(eigenvalues(), values=Quantity(value=[1.0], doc="", dims=("d",), labels={"d": (HOSTILE,)}))
    record = replace(record, notes=(HOSTILE,), analyzer="::error::forged")
    hostile = report(record, loss=HOSTILE)
    gapscope.write(replace(hostile, identity={**hostile.identity, "model": HOSTILE}), "r.h5")
    shown = run("show", "r.h5", *how).out
    refused_by_runners(shown)
    if how == ("--json",):
        assert json.loads(shown)["subject"]["identity"]["model"] == HOSTILE


@pytest.mark.parametrize("form", ["junit", "plain", "json", "github", "markdown"])
def test_the_gate_names_a_report_harmlessly(run, monkeypatch, form):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    name = "##[error]forged ##vso[task.x]forged.h5"
    for path in (name, "b.h5"):
        gapscope.write(report(eigenvalues()), path)
    outcome = run("gate", name, "b.h5", "--max", "eigenvalues/top=1e-9", "--format", form)
    assert outcome.code == 1
    refused_by_runners(re.sub(r"(?m)^::", "", outcome.out))  # of that form, its own commands are meant
    if form == "junit":
        assert ElementTree.fromstring(outcome.out.encode()).find("testsuite").get("name") == name


def test_what_to_type_next_commands_nothing(run):
    torch.save({"model": {f"{HOSTILE}.w": torch.ones(2, 2)}}, "##[error]forged.pt")
    for how in ((), ("--json",)):
        refused_by_runners(run("inspect", "##[error]forged.pt", *how).out)


def test_progress_and_long_names_are_said_harmlessly(capsys):
    Lines().plan(f"plan {HOSTILE}")
    tell(f"{HOSTILE}{'x' * 10_000}", start="\n", end="")
    said = capsys.readouterr().err
    refused_by_runners(said)
    assert len(said) < 2000
    assert said.count("\n") == 2


def test_a_callback_warns_harmlessly(tmp_path):
    class Broken(nn.Linear):
        def forward(self, x):
            raise ValueError(HOSTILE)

    recorder = Recorder((torch.randn(9, 3), torch.arange(9) % 2), every=1, folder=tmp_path)
    with pytest.warns(UserWarning, match="step 1 was not measured") as caught:
        recorder.measure(Broken(3, 2), 1)
    refused_by_runners(str(caught[0].message))


def test_nothing_is_printed_on_stderr_past_that_function():
    found = []
    for path in CLI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                said = ast.unparse(node)
                if "sys.stderr" in said and "error_lines(" not in said:
                    found.append(path.name)
    assert found == ["stderr.py"]
