"""What lies where a training would keep its state, and is no such state, is neither followed nor replaced."""

import pytest
import torch

from gapscope.errors import UsageError
from gapscope.training.state import Kept
from tests.hardening.test_foreign_states import PRECIOUS, another, linked, lost


def checkpoint(path, victim):
    torch.save({"model": {"w": torch.ones(2)}}, path)


def odd(path, victim):
    torch.save({"digest": "one", "settings": [1]}, path)


def tensor(path, victim):
    torch.save(torch.ones(2), path)


@pytest.mark.parametrize(
    ("put", "what"),
    [
        (linked, "is a link"),
        (lost, "is a link"),
        (another, "is not the state of a training"),
        (checkpoint, "is not the state of a training"),
        (odd, "is not the state of a training"),
        (tensor, "is not the state of a training"),
    ],
)
def test_no_training_replaces_what_is_no_state(tmp_path, put, what):
    victim, path = tmp_path / "victim", tmp_path / "x.pt.state"
    victim.write_bytes(PRECIOUS)
    put(path, victim)
    with pytest.raises(UsageError) as error:
        Kept(path, "one", 0.0).read()
    assert str(error.value) == (
        f"{path} {what}. Expected nothing there, or what `gapscope train` keeps. Move it away, name another "
        "`--output`, or delete that file to start anew."
    )


def test_a_training_beside_a_link_is_refused_before_the_work(run, tmp_path):
    (tmp_path / "victim").write_bytes(PRECIOUS)
    (tmp_path / "x.pt.state").symlink_to("victim")
    outcome = run("train", "--steps", "1", "-o", "x.pt")
    assert outcome.code == 2
    assert "x.pt.state is a link. Expected nothing there" in outcome.err
    assert (tmp_path / "victim").read_bytes() == PRECIOUS
    assert not (tmp_path / "x.pt").exists()
