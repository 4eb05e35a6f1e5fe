import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from example_reports import large, report

from gapscope import replacing
from gapscope.errors import ReportError
from gapscope.report import atomic
from gapscope.report.atomic import replace, replace_together, withheld
from gapscope.report.file import read_report, write

# Real mechanisms, and the old file stays


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.report.h5"
    write(report(), path)
    return path


def test_a_place_that_cannot_be_written_is_refused(tmp_path, path):
    before = path.read_bytes()
    for place in (tmp_path / "no folder" / "r.h5", path / "r.h5"):
        with pytest.raises(ReportError, match=r"r\.h5 cannot be written: .*Nothing was lost: .*`--output`"):
            write(report(), place)
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a file that is not a regular one")
def test_devices_and_folders_are_not_replaced(tmp_path):
    """A pipe stands for a device: were this broken, root would rename a file over /dev/null."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (pipe, tmp_path):
        with pytest.raises(ReportError, match=r"is not a regular file\. Expected a regular file"):
            write(report(), place)
    assert pipe.is_fifo()


def test_a_symbolic_link_is_followed(tmp_path, path):
    (tmp_path / "link.h5").symlink_to(path)
    write(large(), tmp_path / "link.h5")
    assert (tmp_path / "link.h5").is_symlink()
    assert read_report(path).identity["checkpoint"] == "large.pt"


def child(script, path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\nfrom example_reports import *\nfrom gapscope.report import file\n"
    )
    arguments = [sys.executable, "-c", code + textwrap.dedent(script), str(path), str(Path(__file__).parent)]
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_full_disk_leaves_the_old_report(path):
    before = path.read_bytes()
    script = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    try:
        file.write(large(), sys.argv[1])
    except file.ReportError as error:
        print(error)
    """
    done = child(script, path)
    assert "cannot be written: File too large. Nothing was lost: what was there is unchanged." in done.stdout, done
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_kill_at_the_last_moment_leaves_the_old_report(how, path):
    before = path.read_bytes()
    script = f"""
    import os, signal
    os.replace = lambda *_: os.kill(os.getpid(), signal.{how})
    file.write(large(), sys.argv[1])
    """
    done = child(script, path)
    killed = -signal.SIGKILL if how == "SIGKILL" else -signal.SIGINT
    assert done.returncode == killed, done
    assert path.read_bytes() == before
    left = sorted(set(os.listdir(path.parent)) - {path.name})
    assert left == [] if how == "SIGINT" else len(left) == 1


def test_nothing_is_written_while_it_is_withheld(tmp_path, path):
    before = path.read_bytes()
    with contextlib.suppress(RuntimeError), withheld(True):
        write(large(), path)
        with withheld(False):
            write(report(), tmp_path / "inner.h5")
        write(large(), path)
        raise RuntimeError
    assert path.read_bytes() == before == (tmp_path / "inner.h5").read_bytes()
    write(large(), path)
    assert path.read_bytes() != before


def test_a_file_is_whole_on_the_disk_before_it_takes_its_name_and_the_folder_after(tmp_path, monkeypatch):
    seen, sync, rename = [], os.fsync, os.replace

    def watched(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append("folder" if folder else os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(os, "replace", lambda *paths: (seen.append("name"), rename(*paths)))
    replace(tmp_path / "a", b"content")
    assert seen == [7, "name", "folder"]
    seen.clear()
    replace_together({tmp_path / "a": b"one", tmp_path / "b": b"other"})
    assert seen == [3, 5, "name", "name", "folder"]  # both are on the disk before either takes its name


@pytest.fixture
def pair(tmp_path):
    """Two files and one that does not exist yet, with new contents."""
    for name in "ab":
        (tmp_path / name).write_bytes(f"old {name}".encode())
    return {tmp_path / name: f"new {name}".encode() for name in "abc"}


def contents(pair):
    return [path.read_bytes().decode() if path.exists() else "" for path in pair]


def test_files_are_replaced_together(pair):
    replace_together(pair)
    assert contents(pair) == ["new a", "new b", "new c"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    ("renamed", "after"),
    [
        (0, ["old a", "old b", ""]),
        (1, ["old a", "old b", ""]),
        (2, ["old a", "old b", ""]),
        (3, ["new a", "new b", "new c"]),  # the first is the last: then it is done
    ],
)
def test_a_stop_between_two_renamings_puts_the_old_ones_back(renamed, after, stop, pair, monkeypatch):
    done, rename = [], os.replace

    def stopped(*paths):
        if len(done) < renamed:
            rename(*paths)
        done.append(paths)
        if len(done) == max(renamed, 1):
            monkeypatch.setattr(os, "replace", rename)
            raise stop("stopped")

    monkeypatch.setattr(os, "replace", stopped)
    expected = ReportError if stop is OSError else stop
    with pytest.raises(expected, match="a cannot be written: stopped" if stop is OSError else "stopped"):
        replace_together(pair)
    assert contents(pair) == after
    assert len(os.listdir(next(iter(pair)).parent)) == sum(map(bool, after))


def test_what_is_no_file_among_several_is_refused_and_stays(pair, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ReportError, match=r"pipe is not a regular file\. Expected a regular file\. Name one with"):
        replace_together({**pair, tmp_path / "pipe": b"content"})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert contents(pair) == ["old a", "old b", ""]


def test_a_full_disk_after_the_first_renaming_needs_no_room_to_put_it_back(pair, tmp_path, monkeypatch):
    rename, done = os.replace, []

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def renamed(*paths):
        done.append(paths)
        if len(done) == 2:  # from now on nothing is written any more
            for name in ("write", "fsync"):
                monkeypatch.setattr(os, name, full)
            monkeypatch.setattr(atomic, "replacing", full)
            monkeypatch.setattr(Path, "write_bytes", full)
            full()
        rename(*paths)

    monkeypatch.setattr(os, "replace", renamed)
    with pytest.raises(ReportError, match=r"No space left on device\. Nothing was lost"):
        replace_together(pair)
    monkeypatch.undo()
    assert contents(pair) == ["old a", "old b", ""]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_place_among_several_that_cannot_be_written_changes_none(pair, tmp_path):
    with pytest.raises(ReportError, match=r"a cannot be written: No such file .* another place with `--html`"):
        replace_together({**pair, tmp_path / "none" / "d": b""}, option="--html")
    assert contents(pair) == ["old a", "old b", ""]
    new = tmp_path / "c"
    with pytest.raises(ReportError, match=r"c cannot be written: No such file .* another place with `--output`"):
        replace_together({new: b"", tmp_path / "none" / "d": b""})
    assert not new.exists()
    with pytest.raises(ReportError, match="another place with `--plot`"):
        replace(tmp_path / "none" / "d", b"", option="--plot")


def test_one_at_a_time_changes_the_files_of_a_folder(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "r.h5")
    (tmp_path / "real").mkdir()
    folder = os.open(tmp_path / "real", os.O_RDONLY)
    with replacing.in_turn(tmp_path / "link"), pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it was let go
    os.close(folder)
    with replacing.in_turn(tmp_path / "none" / "r.h5"):  # nothing to lock: nobody waits
        pass


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_no_file_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    replace(tmp_path / "a", b"content")
    with replacing.in_turn(tmp_path / "a"):
        pass
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_folder_that_cannot_be_synced_stops_nothing(tmp_path, monkeypatch):
    sync = os.fsync

    def watched(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("not here")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    replace(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_what_stops_the_writing_is_what_is_raised(tmp_path):
    """Only of a RuntimeError what it was raised from: that is torch, which cannot finish its archive."""
    with pytest.raises(RuntimeError, match="own"), replacing.replacing(tmp_path / "a"):
        raise RuntimeError("own")
    with pytest.raises(RuntimeError, match="own"), replacing.replacing(tmp_path / "a"):
        raise_from(KeyError("first"), RuntimeError("own"))
    with pytest.raises(ValueError, match="own"), replacing.replacing(tmp_path / "a"):
        raise_from(OSError("first"), ValueError("own"))
    with pytest.raises(OSError, match="first"), replacing.replacing(tmp_path / "a"):
        raise_from(OSError("first"), RuntimeError("own"))
    with pytest.raises(FileNotFoundError), replacing.replacing(tmp_path / "a") as stream:
        os.unlink(stream.name)  # by somebody else: there is nothing left to rename or to remove
    assert os.listdir(tmp_path) == []


def raise_from(first, second):
    try:
        raise first
    except type(first):
        raise second  # noqa: B904 (as torch does)
