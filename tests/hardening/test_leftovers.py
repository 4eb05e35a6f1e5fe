import io
import os
import time
from types import SimpleNamespace

import h5py
import pytest
import torch

from gapscope.cli.measuring import Job
from gapscope.errors import ReportError
from gapscope.measure import resume
from gapscope.measure.loading.checkpoints import checkpoint
from gapscope.measure.resume import Parts
from gapscope.replacing import ABANDONED, SUFFIX, replacing
from gapscope.report.file import write
from tests.report.example_reports import report


def test_what_a_killed_writer_left_goes_after_an_hour(tmp_path):
    old, young, other = tmp_path / f".one{SUFFIX}", tmp_path / f".two{SUFFIX}", tmp_path / ".other.tmp"
    seen = tmp_path / f"seen{SUFFIX}"  # not hidden: a name that somebody chose
    folder = tmp_path / f".folder{SUFFIX}"  # cannot be unlinked, which stops nothing
    folder.mkdir()
    os.utime(folder, (time.time() - 36000,) * 2)
    assert ABANDONED == 3600
    for path, age in ((old, 3660), (young, 3540), (other, 36000), (seen, 36000)):
        path.write_bytes(b"a part")
        os.utime(path, (time.time() - age,) * 2)
    (tmp_path / f".link{SUFFIX}").symlink_to(other)  # young itself
    with replacing(tmp_path / "r.h5") as stream:
        stream.write(b"whole")
    left = [f".link{SUFFIX}", young.name, other.name, seen.name, f".folder{SUFFIX}", "r.h5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)


class Stopped:
    """A stream whose third write is stopped."""

    def __init__(self, stream, stop):
        self.stream, self.stop, self.left = stream, stop, 2

    def write(self, content):
        self.left -= 1
        if self.left == -1:
            raise self.stop
        return self.stream.write(content)

    def flush(self):
        self.stream.flush()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), OSError(28, "No space left on device")])
def test_an_archive_that_torch_cannot_finish_says_what_stopped_it(tmp_path, stop):
    content = {"w": torch.zeros(3)}
    with pytest.raises(RuntimeError, match="unexpected pos"):  # what torch says
        torch.save(content, Stopped(io.BytesIO(), stop))
    with pytest.raises(type(stop)) as found, replacing(tmp_path / "x.pt") as stream:
        torch.save(content, Stopped(stream, stop))
    assert found.value is stop
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_for_a_report_leaves_the_old_one_and_shows_the_numbers(tmp_path, monkeypatch):
    path = tmp_path / "small.report.h5"
    write(report(), path)
    before = path.read_bytes()

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(h5py.Group, "create_dataset", exhausted)
    with pytest.raises(ReportError, match=r"cannot be written: out of memory\. Nothing was lost: what was there"):
        write(report(), path)
    session = SimpleNamespace(report=lambda records: report())
    assert "out of memory" in str(Job(session, tmp_path / "new.h5").written({}).failure)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError("CUDA out of memory"), OSError(28, "full")])
def test_no_memory_for_the_state_of_a_training_ends_no_training(tmp_path, error):
    from gapscope.training.state import Kept

    kept = Kept(tmp_path / "x.pt.state", "digest", 0.0)
    kept.write(lambda: {"steps": 1})

    def exhausted():
        raise error

    kept.write(exhausted)
    assert kept.read()["steps"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["x.pt.state"]


def test_a_state_that_cannot_be_removed_ends_nothing(tmp_path):
    from gapscope.training.state import forget

    (tmp_path / "x.pt.state").mkdir()
    forget(tmp_path / "x.pt.state")
    assert (tmp_path / "x.pt.state").is_dir()


def test_no_memory_for_a_finished_part_ends_no_work(tmp_path, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    said = []
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    parts = Parts(say=said.append)
    parts.begin(tmp_path / "r.h5", {}, resume=False)
    assert parts.recall(lambda: "one", lambda: 1.0) == 1.0
    monkeypatch.setattr(resume, "_encoded", exhausted)
    assert parts.recall(lambda: "two", lambda: 2.0) == 2.0
    assert said == ["r.h5.state cannot be written (out of memory): the work goes on, but cannot be resumed."]
    assert list(tmp_path.iterdir()) == []
    parts.close()


def test_a_checkpoint_follows_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x.pt").symlink_to(tmp_path / "elsewhere" / "real.pt")
    checkpoint._write_atomically(tmp_path / "x.pt", {"w": torch.zeros(2)})
    assert (tmp_path / "x.pt").is_symlink()
    assert torch.load(tmp_path / "elsewhere" / "real.pt", weights_only=True)["w"].shape == (2,)
