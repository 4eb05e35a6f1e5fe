"""Processes that compute, fail, die, and are left alone."""

import functools
import os
import subprocess
import sys
import time

import pytest
import torch

from gapscope.errors import LoadError, UsageError
from gapscope.training.studies.processes import Processes, one_thread

DEADLINE = 120.0  # seconds in which processes start and end, on a busy machine too


class AwkwardError(Exception):
    """An error that pickles, and cannot be unpickled."""

    def __init__(self, what, number):
        super().__init__(f"{what} number {number}")


def awkward():
    raise AwkwardError("trouble", 7)


def refused():
    raise LoadError("No such data. Expected some. Mend it.")


def slowly(seconds):
    time.sleep(seconds)
    return os.getpid(), torch.get_num_threads()


def alive(process):
    """Say whether a process is there, and no zombie."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two():
    processes = Processes(2)
    yield processes
    processes.end()


def test_results_come_as_they_are_done_each_from_one_thread(two):
    results = dict(two.each([functools.partial(slowly, seconds) for seconds in (0.2, 0, 0)]))
    assert sorted(results) == [0, 1, 2]
    assert {threads for _, threads in results.values()} == {1}
    assert os.getpid() not in {process for process, _ in results.values()}


def test_errors_keep_their_words_and_where_that_can_be_their_kind(two):
    with pytest.raises(LoadError, match=r"^No such data\. Expected some\. Mend it\.$"):
        list(two.each([refused, refused]))
    with pytest.raises(RuntimeError, match=r"^AwkwardError: trouble number 7$"):
        list(two.each([awkward, awkward]))


def test_a_process_that_dies_is_said_and_others_take_its_place(two):
    with pytest.raises(UsageError) as raised:
        list(two.each([functools.partial(os._exit, 9), functools.partial(slowly, 0)]))
    assert str(raised.value) == (
        "A process died in the middle of its work, as happens where memory runs out. Expected room for 2 at once. Ask "
        "for fewer, such as `--jobs 1`: what is finished is kept. A script of your own needs "
        '`if __name__ == "__main__":` around what starts it.'
    )
    ((_, (process, _)),) = two.each([functools.partial(slowly, 0)])
    assert alive(process)
    two.finish()
    wait_until(lambda: not alive(process))


def test_processes_at_work_end_at_once():
    processes = Processes(1)
    works = processes.each([functools.partial(slowly, 0), functools.partial(slowly, 10 * DEADLINE)])
    try:
        _, (process, _) = next(works)
    finally:
        processes.end()
    wait_until(lambda: not alive(process))


SCRIPT = """
from pathlib import Path
from gapscope.training.recipe import Recipe
from gapscope.training.studies.lab import Lab, Spec

specs = [Spec(recipe=Recipe(epochs=1, seed=seed), model="mlp", data="digits") for seed in (0, 1)]
with Lab(Path("runs"), jobs=2, device="cpu") as lab:
    lab.train(specs)
"""


def test_a_script_without_a_guard_is_told_of_it(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 1
    assert 'A script of your own needs `if __name__ == "__main__":` around what starts it.' in done.stderr
    assert not [*(tmp_path / "runs").glob("*.pt")]


def test_one_thread_is_taken_for_a_while():
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
