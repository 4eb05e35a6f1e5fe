"""A bounded part of the fuzzer, in one process; all of it: `python -m tests.hardening.fuzz --inputs 50000`."""

import random

import pytest

from tests.hardening import fuzz
from tests.hardening.mutations import changed_archive, changed_pickle, changed_table, changed_text, damaged

NAMES = list(fuzz.targets())
FIRST = 500_000  # inputs that the long form does not reach


@pytest.fixture(scope="module")
def tallies():
    counts = fuzz.dealt(700, NAMES)
    return {one.target: one for one in fuzz.run(counts, FIRST)}


@pytest.mark.parametrize("name", NAMES)
def test_no_input_does_more_than_be_read_or_refused(tallies, name):
    one = tallies[name]
    assert one.failures == []
    assert one.read + sum(one.refused.values()) == one.inputs


def test_all_that_is_foreign_is_refused_at_times(tallies):
    assert sum(bool(one.refused) for one in tallies.values()) > 10
    assert sum(bool(one.read) for one in tallies.values()) > 4


def test_a_failure_is_seen_and_told_apart():
    def raising(error):
        def attempt(rng):
            raise error

        return fuzz._outcome(attempt, random.Random(0))

    from gapscope.errors import LoadError

    assert raising(LoadError("It is odd. Expected even. Mend it.")) == ("LoadError", "")
    assert raising(LoadError("oh"))[0] == "failure"
    assert raising(ValueError("oh"))[1].startswith("ValueError: oh (test_fuzz_short.py")


@pytest.mark.parametrize("change", [damaged, changed_pickle])
def test_the_same_seed_makes_the_same_input(change):
    import pickle

    seed = pickle.dumps({"a": [1, 2.0, "three"], "b": (None, True)})
    made = [[change(seed, random.Random(i)) for i in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 25


def test_texts_tables_and_archives_are_changed():
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a/data.pkl", b"x" * 9)
        archive.writestr("a/0", b"y" * 9)
    rngs = [random.Random(i) for i in range(40)]
    assert len({changed_text("a = 1\nb = 2", rng, ("x",)) for rng in rngs}) > 20
    assert len({str(changed_table({"a": [1, {"b": "c"}]}, rng)) for rng in rngs}) > 20
    assert len({changed_archive(stream.getvalue(), rng, lambda _, c, r: damaged(c, r)) for rng in rngs}) > 20
