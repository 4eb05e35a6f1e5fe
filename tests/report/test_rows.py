import math
from dataclasses import replace

import h5py
import numpy as np
import pytest
import xarray
from test_groups import groups, saved

from gapscope.errors import ReportError
from gapscope.report.comparison import compare
from gapscope.report.file import read, write
from gapscope.report.terminal import text
from gapscope.report.view import comparison_document


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "c.h5"
    write(compare(groups(large=(0.3, 0.28))), path)
    return path


def test_runs_and_p_read_as_they_were_written(path):
    before, after = compare(groups(large=(0.3, 0.28))), read(path)
    assert after.subjects == before.subjects
    assert repr(after.rows) == repr(before.rows)
    assert (after.rows[0].runs[1], after.rows[0].p) == ((0.3, 0.28), pytest.approx(0.1))
    assert text(comparison_document(after)) == text(comparison_document(before))


def test_saved_epochs_read_and_show_as_they_were_written(tmp_path):
    before = compare([*saved("s", 32, (1.0, 0.2)), *saved("l", 650, (0.9, 0.2))], by_loss=True)
    write(before, tmp_path / "c.h5")
    assert text(comparison_document(read(tmp_path / "c.h5"))) == text(comparison_document(before))


def test_runs_are_labelled_for_other_readers(path):
    with xarray.open_dataset(path, group="results/comparison") as found:
        assert found["runs"].dims == ("path", "run")
        assert found["run"].values.tolist() == ["s-0", "s-1", "s-2", "l-0", "l-1"]
        assert found["runs"].sel(path="eigenvalues/top").values[3:].tolist() == [0.3, 0.28]


def test_without_runs_there_are_none_in_the_file(tmp_path):
    first, *_, last = groups()
    write(compare([first, last]), tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        assert not {"runs", "p", "run"} & set(file["results/comparison"])
        assert "runs" not in file["subjects/0"]
    row = read(tmp_path / "c.h5").rows[0]
    assert (row.runs, math.isnan(row.p)) == ((), True)


def test_what_a_row_is_reads_as_it_was_written_and_earlier_files_lack_it(path):
    before = read(path)
    write(replace(before, rows=tuple(replace(row, doc=f"what {row.path} is") for row in before.rows)), path)
    assert [row.doc for row in read(path).rows] == [f"what {row.path} is" for row in before.rows]
    with h5py.File(path, "r+") as file:
        del file["results/comparison/doc"]
    assert {row.doc for row in read(path).rows} == {""}


def refusal(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ReportError) as caught:
        read(path)
    return str(caught.value)


def test_runs_that_no_subject_has_are_damage(path):
    def change(file):
        table = file["results/comparison"]
        values = table["runs"][()]
        del table["runs"]
        table["runs"] = np.hstack([values, values])

    assert "is damaged at /results/comparison: `runs` holds 10 runs, not the 5 of the subjects." in refusal(
        path, change
    )


def test_damage_in_a_run_is_reported_with_its_place(path):
    said = refusal(path, lambda file: file.__delitem__("subjects/1/runs/0/training"))
    assert "is damaged at /subjects/1/runs/0/training: `training` is missing" in said
    said = refusal(path, lambda file: file["subjects/1/runs/0"].attrs.__setitem__("label", 3))
    assert "is damaged at /subjects/1/runs/0: `label` is a int64, not a string." in said


def test_runs_have_no_runs_of_their_own(path):
    with h5py.File(path, "r+") as file:
        file["subjects/0/runs/0/runs"] = file["subjects/0/runs"]  # a hard link back: no end of it
    assert [len(run.runs) for run in read(path).subjects[0].runs] == [0, 0, 0]
