"""Files of unfinished work have names that an archive may hold, too: nothing of others is followed or believed."""

import hashlib
import os
import re
import shutil
import struct

import pytest

from gapscope.measure import resume
from gapscope.measure.resume import Parts

PRECIOUS = b"precious"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)


def linked(path, victim):
    path.symlink_to(victim)


def lost(path, victim):
    path.symlink_to(path.with_name("nowhere"))


def named_twice(path, victim):
    os.link(victim, path)


def named_twice_and_ours(path, victim):
    victim.write_bytes(resume.MAGIC)
    os.link(victim, path)


def another(path, victim):
    path.write_bytes(PRECIOUS)


def pipe(path, victim):
    os.mkfifo(path)


def folder(path, victim):
    path.mkdir()


FOREIGN = [
    (linked, "is a link"),
    (lost, "is a link"),
    (named_twice, "is a file of several names"),
    (named_twice_and_ours, "is a file of several names"),
    (another, "was not written by gapscope"),
    (pipe, "is not a file"),
    (folder, "is not a file"),
]


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(("put", "what"), FOREIGN)
def test_what_is_not_ours_is_said_and_left(tmp_path, put, what, wanted):
    victim, path, said = tmp_path / "victim", tmp_path / "r.h5.state", []
    victim.write_bytes(PRECIOUS)
    put(path, victim)
    before, kind = victim.read_bytes(), path.lstat().st_mode
    parts = Parts(say=said.append)
    parts.begin(tmp_path / "r.h5", {"torch": "1"}, resume=wanted)
    assert [parts.recall(lambda i=i: str(i), lambda i=i: i) for i in range(3)] == [0, 1, 2]
    assert parts.kept is None
    parts.forget()
    assert said == [
        f"r.h5.state {what}, and stays as it is. Expected nothing there, or what gapscope kept. Move it away: this run "
        "keeps no finished parts."
    ]
    assert victim.read_bytes() == before
    assert path.lstat().st_mode == kind
    assert put is not another or path.read_bytes() == PRECIOUS
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (linked, r"r\.h5\.state cannot be written \(.*\): the work goes on, but cannot be resumed\."),
        (another, r"r\.h5\.state was not written by gapscope, and stays as it is\. .* keeps no finished parts\."),
    ],
)
def test_what_comes_during_the_work_is_left_too(tmp_path, put, why):
    victim, path, said = tmp_path / "victim", tmp_path / "r.h5.state", []
    victim.write_bytes(PRECIOUS)
    parts = Parts(say=said.append)
    parts.begin(tmp_path / "r.h5", {}, resume=False)
    put(path, victim)
    assert parts.recall(lambda: "one", lambda: 1.0) == 1.0
    parts.forget()
    assert len(said) == 1
    assert re.fullmatch(why, said[0])
    assert victim.read_bytes() == PRECIOUS
    assert path.is_symlink() or path.read_bytes() == PRECIOUS


def test_measuring_beside_a_link_touches_nothing_and_is_done(run, small, tmp_path):
    shutil.copy(small, tmp_path / "m.pt")
    (tmp_path / "victim").write_bytes(PRECIOUS)
    (tmp_path / "m.report.h5.state").symlink_to("victim")
    outcome = run("gap", "m.pt")
    assert outcome.code == 0
    assert "m.report.h5.state is a link, and stays as it is. Expected nothing there" in outcome.err
    assert (tmp_path / "victim").read_bytes() == PRECIOUS
    assert (tmp_path / "m.report.h5.state").is_symlink()
    assert (tmp_path / "m.report.h5").is_file()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"\\u001b]0;owned\\u0007\\n::error::x": 1}', "it is of other work (]0;owned : :error::x, batchnorm, "),
        (b"[]", "it is damaged. Everything is measured anew."),
        (b"nonsense", "it is damaged. Everything is measured anew."),
        (b"\xff", "it is damaged. Everything is measured anew."),
        (b"[" * 100_000, "it is damaged. Everything is measured anew."),
        (b"null", "it is damaged. Everything is measured anew."),
    ],
)
def test_facts_that_nobody_wrote_are_left_aside(run, small, tmp_path, body, said):
    head = struct.pack("<Q16s", len(body), hashlib.blake2b(body, digest_size=16).digest())
    (tmp_path / "s.h5.state").write_bytes(resume.MAGIC + head + body)
    outcome = run("gap", small, "--resume", "-o", "s.h5")
    assert outcome.code == 0
    assert f"s.h5.state was left aside: {said}" in outcome.err
    assert not {"\x1b", "\x07"} & set(outcome.err)
