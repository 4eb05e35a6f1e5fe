from pathlib import Path

import pytest

from gapscope.cli.news import News, listed


def test_of_many_names_the_first_are_listed():
    assert listed(list("abcde")) == "a, b, c, d, e"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_one_failure_is_said_once_and_counted(capsys):
    news = News()
    with news.counting():
        for number in range(41):
            name = f"step-{number}.pt"
            news.failed(Path("runs") / name, f"{name} records no data. Expected some. Name them with `--data`.")
        news.failed(Path("runs/odd.pt"), "It is empty.")
        news.failed(Path("runs/odd.pt"), "It is empty.", "near-rank")
    first, empty, rank, count = capsys.readouterr().err.splitlines()
    assert first == (
        "error: runs/step-0.pt could not be measured: step-0.pt records no data. Expected some. Name them with "
        "`--data`."
    )
    assert empty == "error: runs/odd.pt could not be measured: It is empty."
    assert rank == "error: near-rank of runs/odd.pt could not be measured: It is empty."
    names = ", ".join(f"runs/step-{number}.pt" for number in range(1, 6))
    assert count == f"error: as runs/step-0.pt, 40 more checkpoints: {names} and 35 more"
    assert len(news.failures) == 43


def test_interrupted_work_is_counted_too(capsys):
    news = News()
    for name in "ab":
        news.failed(Path(f"{name}.pt"), f"{name}.report.h5 holds another subject.")
    with pytest.raises(KeyboardInterrupt), news.counting():
        raise KeyboardInterrupt
    assert capsys.readouterr().err.endswith("error: as a.pt, 1 more checkpoint: b.pt\n")


def test_quiet_says_failures_alone(capsys):
    news = News(quiet=True)
    news.tell("1 of 2")
    news.failed(Path("a.pt"), "a.pt is empty.")
    assert capsys.readouterr().err == "error: a.pt is empty.\n"
