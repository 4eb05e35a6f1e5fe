import numpy as np
import pytest

from gapscope.measure.resume import Parts


def row(index):
    return np.array([index, np.nan])


def test_rows_are_measured_in_order_and_nothing_is_written_when_all_went_well(tmp_path):
    parts = Parts(tmp_path / "report.h5")
    table, ready = parts.rows("a", 3, 2, row)
    assert table[:, 0].tolist() == [0, 1, 2]
    assert ready == 0
    assert parts.kept == []


def stopping(at):
    def measure(index):
        if index == at:
            raise KeyboardInterrupt
        return row(index)

    return measure


def test_an_interrupt_keeps_what_was_done_for_the_same_digest_only(tmp_path):
    parts = Parts(tmp_path / "report.h5")
    with pytest.raises(KeyboardInterrupt):
        parts.rows("a", 5, 2, stopping(3))
    calls = []
    table, ready = parts.rows("a", 5, 2, lambda index: calls.append(index) or row(index))
    assert (calls, ready) == ([3, 4], 3)
    assert table[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert parts.rows("b", 5, 2, row)[1] == 0
    assert [path.name for path in parts.kept] == ["report.h5.a.parts.npz"]
    assert parts.rows("a", 6, 2, row)[1] == 0  # another grid
    parts.forget()
    parts.forget()
    assert parts.rows("a", 5, 2, row)[1] == 0


def test_a_kill_costs_seconds_only(tmp_path, monkeypatch):
    parts, clock = Parts(tmp_path / "report.h5"), iter(range(0, 1000, 3))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    seen = []

    def measure(index):
        seen.append(bool(parts.kept))
        return row(index)

    parts.rows("a", 6, 2, measure)
    assert seen == [False, False, True, True, True, True]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"nonsense"])
def test_a_damaged_file_is_measured_again(tmp_path, content):
    parts = Parts(tmp_path / "report.h5")
    (tmp_path / "report.h5.a.parts.npz").write_bytes(content)
    assert parts.rows("a", 2, 2, row)[1] == 0


def test_a_place_that_cannot_be_written_does_not_end_the_work(tmp_path):
    parts = Parts(tmp_path / "none" / "p.npz")
    with pytest.raises(KeyboardInterrupt):
        parts.rows("a", 5, 2, stopping(3))
    assert Parts().rows("a", 2, 2, row)[1] == 0
