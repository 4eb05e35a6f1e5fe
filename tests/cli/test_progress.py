import io
import sys

import pytest

from gapscope.cli import progress
from gapscope.measure.monitor import Monitor


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_quiet_is_silent():
    assert type(progress.monitor(quiet=True)) is Monitor


def test_a_bar_is_for_terminals_only_and_not_for_ci(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(progress.monitor(quiet=False)) is progress.Lines
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.delenv("CI", raising=False)
    assert type(progress.monitor(quiet=False)) is progress.Bar
    monkeypatch.setenv("CI", "true")
    assert type(progress.monitor(quiet=False)) is progress.Lines


def test_long_work_is_announced_once_and_spoken_of_every_half_minute(clock, capsys):
    lines = progress.Lines()
    lines.begin("eigenvalues", 20)
    for second in range(1, 100):
        clock[0] = float(second)
        lines.say(f"Ritz value {second}")
        lines.tick(0.5)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "eigenvalues: about 20 passes over the data, about 40 s at most"
    assert len(said) == 1 + 3
    assert said[1].startswith("eigenvalues: pass 16 of about 20, about 9 s left  Ritz value 3")


def test_short_work_is_not_announced(clock, capsys):
    lines = progress.Lines()
    lines.begin("gap", 4)
    for step in range(8):
        clock[0] = step / 100
        lines.tick(0.5)
    lines.end()
    lines.tick(1.0)  # after the end: ignored
    assert capsys.readouterr().err == ""


def test_a_bar_shows_passes_and_the_current_value(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress.Bar()
    bar.begin("eigenvalues", 2)
    bar.say("Ritz value 3.5")
    for step in range(1, 7):
        clock[0] = 10.0 * step
        bar.tick(0.5)
    bar.end()
    bar.end()
    drawn = sys.stderr.getvalue()
    assert "Ritz value 3.5" in drawn
    assert "about 2 passes over the data," in drawn
    assert "3/~3 passes" in drawn  # the estimate was too low and grew
