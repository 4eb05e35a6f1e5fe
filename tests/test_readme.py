"""README.md is run: its commands and its Python, in a scratch folder, in order."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gapscope import errors
from gapscope.__main__ import main
from gapscope.cli import app
from gapscope.cli.settings import Configuration
from gapscope.measure.analyzers import names
from gapscope.results import Status

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", README, re.M | re.S)
PARSED_ONLY = ("gpu", "cluster", "torchvision")  # tags of shell blocks that need what a test does not have
ELSEWHERE = ("files",)  # run by tests/test_real_files.py, on files that it makes


def test_every_block_says_what_it_is():
    assert len(BLOCKS) == README.count("\n```") / 2
    assert {language for language, _, _ in BLOCKS} <= {"sh", "python", "toml", "text", "yaml"}


def test_its_commands_and_its_python_run(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    commands = 0
    for language, tag, text in BLOCKS:
        if language == "python" and tag:
            (tmp_path / tag).write_text(text)
        elif language == "python":
            exec(compile(text, "README.md", "exec"), {})
        elif language == "sh":
            for line in text.splitlines():
                words = shlex.split(line)
                if tag in PARSED_ONLY + ELSEWHERE or words[:3] == ["python3", "-m", "venv"]:
                    continue
                assert words[0] == "gapscope", line
                with pytest.raises(SystemExit) as left:
                    main(words[1:])
                assert left.value.code == 0, capsys.readouterr().err
                commands += 1
    assert commands >= 5


def test_its_toml_is_read(tmp_path):
    import tomllib

    from gapscope.cli import tables
    from gapscope.cli.settings import read_configuration

    for language, _, text in BLOCKS:
        if language == "toml":
            (tmp_path / "gapscope.toml").write_text(text)
            assert tomllib.loads(text)
            read_configuration(tmp_path, tables)


def test_there_are_two_commands_for_a_fresh_machine_and_ci_runs_the_second():
    fresh = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(fresh) == 2
    assert fresh[0].endswith(".venv/bin/gapscope demo")
    assert "pytest" in fresh[1]
    assert all("-c .ci/constraints.txt" in line for line in fresh)
    assert "grep -E '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
    for line in fresh:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_it_names_every_command_analyzer_status_error_and_exit_code():
    commands = [info.name for info in app(Configuration()).registered_commands]
    for name in (*commands, *names()):
        assert f"`gapscope {name}" in README
    for status in Status:
        assert status.name in README
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.GapscopeError):
            assert error.__name__ in README
    for code in (0, 1, 2, 3, 130):
        assert f"\n| {code} |" in README


def test_the_comparison_it_shows_is_the_tool_s(tmp_path, monkeypatch, capsys):
    """Word for word but for the numbers, which another processor may round otherwise."""
    shown = next(text for language, _, text in BLOCKS if language == "text" and text.startswith("$ gapscope compare"))
    command, _, output = shown.partition("\n")
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main([*shlex.split(command)[2:], "-q"])
    assert words(capsys.readouterr().out) == words(output)
    assert max(map(len, output.splitlines())) <= 80


def words(text):
    return sorted(set(re.findall(r"[A-Za-z][\w-]+", text)))


def test_its_ci_jobs_are_yaml_whose_steps_run(tmp_path):
    console = Path(sys.executable).with_name("gapscope")
    environment = {**os.environ, "PATH": f"{console.parent}{os.pathsep}{os.environ['PATH']}"}

    def bash(line):
        words = ["bash", "-ec", line]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    fixture = ROOT / "fixtures" / "digits-small-batch.pt"
    bash(f"gapscope eigenvalues {shlex.quote(str(fixture))} -q -o weights.report.h5")
    bash('gapscope baseline accept weights.report.h5 --reason "for this test"')
    ran = 0
    for language, _, text in BLOCKS:
        if language == "yaml":
            found = yaml.safe_load(text)
            jobs = found.get("jobs", found).values()
            lines = [step["run"] for job in jobs for step in job.get("steps", []) if "run" in step]
            for line in lines + [one for job in jobs for one in job.get("script", [])]:
                if not line.startswith("pip install"):
                    bash(line)
                    ran += 1
    assert ran >= 2
    assert (tmp_path / "gate.xml").read_text().startswith("<?xml")
