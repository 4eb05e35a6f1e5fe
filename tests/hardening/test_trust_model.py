"""The security section of README.md, claim by claim: each sentence names the tests that hold it."""

import ast
import re
import sys
from pathlib import Path

import pytest

from gapscope.measure import analyzers

ROOT = Path(__file__).parents[2]
MALICIOUS, TRUST, STATE = (
    "tests/test_malicious.py",
    "tests/measure/loading/test_trust.py",
    "tests/hardening/test_process_state.py",
)
HERE = "tests/hardening/test_trust_model.py"

# the beginning of a sentence -> the tests that would fail if it were no longer true
CLAIMS = {
    "Three levels, told by": ["tests/cli/test_inspect.py"],
    "By default nothing from": [
        f"{MALICIOUS}::test_nothing_in_a_file_runs",
        f"{MALICIOUS}::test_the_canary_would_have_sung",
    ],
    "`--allow-global NAME` admits": [f"{MALICIOUS}::test_an_allowed_class_may_not_be_one_that_runs_commands"],
    "`--trust-file` lets the": ["tests/measure/loading/checkpoints"],
    "The SHA-256 of a": ["tests/measure/loading/checkpoints"],
    "A checkpoint of `save_checkpoint`": [f"{MALICIOUS}::test_a_recorded_name_is_not_imported"],
    "Importing a name runs": [
        f"{TRUST}::test_a_recorded_builtin_needs_no_trust",
        f"{TRUST}::test_a_trusted_name_is_resolved",
        f"{TRUST}::test_an_untrusted_recorded_name_is_refused_before_any_import",
    ],
    "The text is matched": [
        f"{TRUST}::test_an_untrusted_recorded_name_is_refused_before_any_import",
        f"{TRUST}::test_a_trusted_name_for_another_modules_object_is_refused",
    ],
    "What you type yourself": [f"{TRUST}::test_a_user_may_name_a_module_a_file_and_a_dotted_attribute"],
    "So is what `gapscope.toml`": ["tests/cli/test_measuring.py::test_what_a_configuration_file_names_is_run"],
    "Commands that measure say": ["tests/cli/test_measuring.py::test_it_is_said_which_file_gives_trust"],
    "Code beside a Hugging": [f"{HERE}::test_code_beside_a_hugging_face_model_is_not_run"],
    "An installed package that": [
        f"{HERE}::test_an_analyzer_of_another_package_is_imported_when_its_class_is_asked_for",
        f"{HERE}::test_the_commands_that_import_an_analyzer_of_another_package_are_those_named",
    ],
    "Reports are data": [
        f"{MALICIOUS}::test_a_report_with_an_external_link_is_refused",
        f"{MALICIOUS}::test_hostile_names_are_printed_harmlessly",
        f"{MALICIOUS}::test_hostile_names_in_a_report_are_shown_harmlessly",
        "tests/hardening/test_said_lines.py::test_names_of_arrays_are_noted_harmlessly",
        "tests/hardening/test_said_lines.py::test_nothing_is_printed_on_stderr_past_that_function",
    ],
    "They may be published": ["tests/hardening/test_privacy.py::test_no_file_tells_where_or_by_whom_it_was_made"],
    "A checkpoint of `gapscope": [f"{HERE}::test_training_records_what_was_typed"],
    "Measuring in your own": [
        f"{STATE}::test_success_changes_nothing",
        f"{STATE}::test_a_call_that_raises_changes_nothing_whichever_it_is",
        "tests/measure/test_allocation.py",
    ],
}  # fmt: skip


def test_every_sentence_of_the_section_has_its_tests():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Security\n")[1].split("\n## ")[0]
    sentences = re.split(r"(?<=[.])\s+(?=[A-Z`])", " ".join(text.split()))
    without = [one for one in sentences if not any(one.startswith(claim) for claim in CLAIMS)]
    assert without == []
    assert len(sentences) == len(CLAIMS)
    for place in {place for places in CLAIMS.values() for place in places}:
        path, _, name = place.partition("::")
        assert (ROOT / path).exists(), place
        if name:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, place


def test_code_beside_a_hugging_face_model_is_not_run(tmp_path, run):
    pytest.importorskip("transformers")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "evil.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w').close()\nclass Config: ...\n")
    (tmp_path / "net" / "config.json").write_text(
        '{"model_type": "evil", "architectures": ["Evil"],'
        ' "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Config"}}'
    )
    from safetensors.torch import save_file
    from torch import ones

    save_file({"w": ones(2)}, tmp_path / "net" / "model.safetensors")
    outcome = run("gap", tmp_path / "net", "-m", "hf", "-d", "digits")
    assert outcome.code == 2
    assert "code of the folder is never run" in outcome.err
    assert not (tmp_path / "sang").exists()


CANARY = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

Path(__file__).with_name("sang").touch()


@dataclass(frozen=True)
class Canary:
    '''A canary.'''
    name: ClassVar[str] = "canary"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
"""


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Install a package with an analyzer, and return a function that forgets whether it was imported."""
    about = tmp_path / "canary-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: canary\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[gapscope.analyzers]\ncanary = canary_analyzer:Canary\n")
    (tmp_path / "canary_analyzer.py").write_text(CANARY)
    monkeypatch.syspath_prepend(tmp_path)

    def forget():
        (tmp_path / "sang").unlink(missing_ok=True)
        sys.modules.pop("canary_analyzer", None)
        for function in (analyzers.names, analyzers.analyzer_class, analyzers._entry_points):
            function.cache_clear()

    forget()
    yield forget
    forget()


def test_an_analyzer_of_another_package_is_imported_when_its_class_is_asked_for(canary):
    assert "canary" in analyzers.names()
    assert analyzers.analyzer_class("gap").name == "gap"
    assert "canary_analyzer" not in sys.modules
    assert analyzers.analyzer_class("canary").name == "canary"
    assert "canary_analyzer" in sys.modules


def test_the_commands_that_import_an_analyzer_of_another_package_are_those_named(canary, tmp_path, run, small):
    def sings(*words):
        canary()
        assert run(*words).code == 0
        return (tmp_path / "sang").exists()

    report = "digits-small-batch.report.h5"
    assert all(
        [
            sings("gap", small, "-q"),
            sings("sharpness", "--help"),
            sings("analyze", small, "-q", "--only", "gap"),
            sings("gate", report, "--max", "gap/loss_gap=9"),
            sings("--help"),
        ]
    )
    assert not any(
        [
            sings("inspect", small),
            sings("convert", small, "weights.safetensors"),
            sings("show", report),
            sings("baseline", "accept", report, "--reason", "the first"),
        ]
    )


def test_training_records_what_was_typed(tmp_path, run):
    import torch

    (tmp_path / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(64, 10)\n")
    assert run("train", "-m", "net.py:build", "--steps", 1, "-q", "-o", "a.pt").code == 0
    assert torch.load(tmp_path / "a.pt", weights_only=True)["gapscope"]["factory"] == "net.py:build"
