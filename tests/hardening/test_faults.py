"""Some of the faults of `python -m tests.hardening.faults`, which tries every one."""

import shutil
import sys

import pytest

from tests.hardening.faults import FAULTS, run

# a prime number of calls between two faults, for each attack: calls that follow each other do the same to a file
STRIDES = {"report": 113, "comparison": 179, "baseline": 67, "training": 19}
CHOSEN = [fault for fault in FAULTS if fault in ("full disk", "permission", "SIGTERM", "kill -9")]
PLAN = {attack: dict.fromkeys(CHOSEN, stride) for attack, stride in STRIDES.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs a C compiler and a library that is loaded before libc")
    return dict(run(PLAN, tmp_path_factory.mktemp("library")))


@pytest.mark.parametrize("attack", PLAN)
def test_a_failing_call_leaves_the_old_file_or_the_new_one(found, attack):
    for fault, one in found[attack].items():
        assert one.tried > 1, fault
        assert one.wrong == []
