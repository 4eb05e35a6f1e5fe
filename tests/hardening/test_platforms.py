"""gapscope away from a developer's desk: old encodings, read-only homes, odd paths, no terminal, no source tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gapscope.report.file import read_report
from tests.pseudo_terminal import on_a_terminal

ROOT = Path(__file__).parents[2]
FILES = ("digits-small-batch.pt", "digits-large-batch.pt")
SEVERAL = """
import sys
from gapscope.__main__ import main
codes, given = [], sys.argv[1:]
while given:
    sys.argv[1:], given = given[: given.index(";")], given[given.index(";") + 1 :]
    try:
        main()
    except SystemExit as left:
        codes.append(left.code)
print("codes", codes)
"""
WORK = [
    ["sharpness", FILES[0], "-o", "a.h5", "--limit", "200"],
    ["sharpness", FILES[1], "-o", "b.h5", "--limit", "200"],
    ["compare", "a.h5", "b.h5", "-o", "both.h5", "--plot", "both.png"],
    ["show", "a.h5", "--verbose"],
    ["show", "both.h5", "--html", "both.html"],
    ["inspect", FILES[0]],
    ["near-rank", FILES[0], "-o", "a.h5", "--limit", "200"],
    ["gate", "a.h5", "--max", "eigenvalues/top=1e9"],
    ["baseline", "accept", "a.h5", "--reason", "première"],
]


def plain(**more):
    """Return the least that a process can be given: what a cron job has, say."""
    return {"PATH": os.environ["PATH"], "GAPSCOPE_THREADS": "1", **more}


def several(cwd, work=WORK, flags=(), python=sys.executable, **environment):
    """Run commands one after the other in a process; return their exit codes and the process."""
    command = [python, *flags, "-c", SEVERAL, *(word for words in work for word in [*words, ";"])]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, timeout=240, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    codes = done.stdout.decode(errors="replace").splitlines()[-1]
    assert codes == f"codes {[0] * len(work)}", (codes, done.stderr.decode(errors="replace"))
    return done


def folder(root, name):
    """Return a folder with copies of two checkpoints."""
    made = root / name
    made.mkdir()
    for file in FILES:
        shutil.copy(ROOT / "fixtures" / file, made / file)
    return made


def test_warnings_that_are_errors_change_nothing(tmp_path):
    several(folder(tmp_path, "run"), flags=("-W", "error"), **plain(HOME=str(tmp_path)))


def test_a_home_that_cannot_be_written_and_an_empty_environment(tmp_path):
    several(folder(tmp_path, "run"), **plain(HOME="/dev/null"))


def test_paths_with_spaces_and_letters_of_all_kinds_in_an_ascii_locale(tmp_path):
    """Python itself is told not to help: it would take UTF-8 in the C locale."""
    here = folder(tmp_path, "große Läufe 東京 [1] 'x'")
    odd = "naïve ♞ -7.pt"
    shutil.copy(here / FILES[0], here / odd)
    old = plain(HOME=str(tmp_path), LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    few = ("--limit", "100", "--pair", "none")
    done = several(here, [*WORK, ["gap", odd], ["compare", odd, FILES[1], *few, "-o", "é.h5"], ["show", "é.h5"]], **old)
    assert done.stdout.isascii()
    assert read_report(here / "naïve ♞ -7.report.h5").results["gap"].quantities
    done = several(tmp_path, [["gap", str(here / odd), "-o", "out.h5"], ["show", "out.h5"]], **plain(HOME="/dev/null"))
    assert "♞" in done.stdout.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_a_dumb_terminal_of_80_columns_gets_text_alone(tmp_path):
    here = folder(tmp_path, "run")
    words = [sys.executable, "-m", "gapscope", "sharpness", FILES[0], "--limit", "200"]
    code, text = on_a_terminal(words, plain(HOME=str(tmp_path), TERM="dumb", COLUMNS="80"), cwd=here)
    assert code == 0, text
    assert "top eigenvalue" in text
    assert "\x1b" not in text
    assert max(map(len, text.replace("\r\n", "\n").split("\n"))) <= 80


def test_streams_that_are_closed_are_no_traceback(tmp_path):
    here = folder(tmp_path, "run")
    for number, closed in enumerate(("0<&-", "1>&-", "0<&- 1>&- 2>&-")):
        line = f'"{sys.executable}" -m gapscope gap {FILES[0]} -o {number}.h5 {closed}'
        done = subprocess.run(
            ["sh", "-c", line], cwd=here, env=plain(HOME="/dev/null"), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (closed, done.stderr)
        assert "Traceback" not in done.stderr
        assert read_report(here / f"{number}.h5").results["gap"].quantities


def test_the_wheel_works_without_the_tree(tmp_path):
    """Installed beside the dependencies that are here, from a folder that has nothing of the tree."""
    pytest.importorskip("hatchling")
    dist, site = tmp_path / "dist", tmp_path / "site"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(next(dist.glob("*.whl")))], check=True, capture_output=True)
    around = plain(HOME="/dev/null", PYTHONPATH=str(site))
    where = subprocess.run(
        [sys.executable, "-c", "import gapscope; print(gapscope.__file__)"],
        cwd=tmp_path, env=around, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    several(folder(tmp_path, "run"), [*WORK, ["--version"]], **around)
    script = subprocess.run(
        [str(site / "bin" / "gapscope"), "show", "a.h5"],
        cwd=tmp_path / "run", env=around, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert script.returncode == 0, script.stderr
    assert "top eigenvalue" in script.stdout
