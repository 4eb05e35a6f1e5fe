import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from example_reports import large, report

from gapscope.errors import ReportError
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


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a device file")
def test_devices_and_folders_are_not_replaced(tmp_path):
    for place in ("/dev/null", tmp_path):
        with pytest.raises(ReportError, match=r"is not a regular file\. Expected a regular file"):
            write(report(), place)
    assert not Path("/dev/null").is_file()


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
