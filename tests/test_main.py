"""Every outcome is an exit code, and an uncaught exception is never a violated threshold."""

import errno

import pytest
import torch

import gapscope
from gapscope import cli
from gapscope.__main__ import main
from gapscope.errors import GapscopeError


def outcome(monkeypatch, error, *words):
    def run(_):
        if isinstance(error, BaseException):
            raise error
        return error

    monkeypatch.setattr(cli, "run", run)
    with pytest.raises(SystemExit) as left:
        main(list(words))
    return left.value.code


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_command_s_own_code_is_passed_on(monkeypatch, code):
    assert outcome(monkeypatch, code) == code


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (GapscopeError("seen. Expected. Do this."), 2, "error: seen. Expected. Do this.\n"),
        (GapscopeError("a\x1b[2Jb\n  c\u202ed\nerror: e"), 2, "error: a[2Jb\n  cd error: e\n"),
        (ValueError("odd\nmore"), 2, "error: Unexpected ValueError: odd. This is a bug in gapscope or a model that it"),
        (RuntimeError(""), 2, "Unexpected RuntimeError: "),
        (RuntimeError("CUDA out of memory: 3 GB"), 2, "error: Out of memory. Expected the work to fit. Lower"),
        (torch.OutOfMemoryError(), 2, "error: Out of memory."),
        (MemoryError(), 2, "error: Out of memory."),
        (FileNotFoundError(2, "gone", "x"), 2, "Unexpected FileNotFoundError"),
        (
            OSError(errno.ENOSPC, "No space left"),
            2,
            "error: The output cannot be written: No space left. Expected room",
        ),
        (SystemExit(1), 2, "error: Something asked Python to exit (1)"),
        (SystemExit(143), 143, ""),
        (KeyboardInterrupt(), 130, "interrupted: every file that was there before is whole"),
    ],
)
def test_failures(monkeypatch, capfd, error, code, message):
    monkeypatch.setattr("gapscope.__main__._to_nowhere", lambda _: None)
    assert outcome(monkeypatch, error) == code
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_debug_adds_the_traceback(monkeypatch, capsys):
    assert outcome(monkeypatch, ValueError("odd"), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("GAPSCOPE_DEBUG", "1")
    assert outcome(monkeypatch, GapscopeError("odd")) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("GAPSCOPE_DEBUG", "0")
    assert outcome(monkeypatch, GapscopeError("odd")) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_debug_may_stand_in_the_configuration(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAPSCOPE_DEBUG", "")  # put back after the test
    monkeypatch.delenv("GAPSCOPE_DEBUG")
    (tmp_path / "gapscope.toml").write_text("debug = true")
    with pytest.raises(SystemExit) as left:
        main(["gap", "none.pt"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "error: none.pt does not exist" in said
    monkeypatch.delenv("GAPSCOPE_DEBUG", raising=False)


def test_a_pipe_within_the_work_that_broke_is_no_success(monkeypatch, capsys):
    assert outcome(monkeypatch, BrokenPipeError()) == 2  # of a worker that died: standard output never raises it
    wrapped = SystemExit(1)  # as Typer and Rich turn it round
    wrapped.__context__ = BrokenPipeError()
    assert outcome(monkeypatch, wrapped) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_no_words_print_the_help_and_version_prints_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words, code, text in (([], 2, "Usage: gapscope"), (["--version"], 0, f"gapscope {gapscope.__version__}")):
        with pytest.raises(SystemExit) as left:
            main(words)
        captured = capsys.readouterr()
        assert left.value.code == code
        assert text in captured.out + captured.err
    with pytest.raises(SystemExit) as left:
        main(["sharpnes"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: No such command 'sharpnes'. Did you mean 'sharpness'")
