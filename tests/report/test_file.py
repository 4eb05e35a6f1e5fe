import math
import re
import time
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from example_reports import eigenvalues, gap, large, plane, report, together, with_quantity
from example_reports import path as path_record

from gapscope.errors import ReportError
from gapscope.report import hdf5
from gapscope.report.comparison import compare
from gapscope.report.file import _at, read, read_report, write
from gapscope.results import Quantity, Status


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "small.report.h5"
    write(report(), path)
    return path


def same_quantity(a, b):
    for field in fields(Quantity):
        np.testing.assert_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_a_report_reads_as_it_was_written(path):
    before, after = report(), read_report(path)
    for part in ("identity", "training", "conditions", "environment"):
        assert dict(getattr(after, part)) == dict(getattr(before, part))
        assert {k: type(v) for k, v in getattr(after, part).items()} == {
            k: type(v) for k, v in getattr(before, part).items()
        }
    assert list(after.results) == ["eigenvalues", "epsilon-sharpness", "gap"]
    for name, record in before.results.items():
        assert replace(after.results[name], quantities={}) == replace(record, quantities={})
        assert list(after.results[name].quantities) == list(record.quantities)
        for key, quantity in record.quantities.items():
            same_quantity(after.results[name].quantities[key], quantity)


def test_the_message_is_the_sentence_of_the_status(path):
    assert read_report(path).results["gap"].message == Status.EXACT.value
    with h5py.File(path, "r") as file:
        assert file["results/gap"].attrs["message"] == Status.EXACT.value


def test_what_other_readers_rely_on(tmp_path):
    """Settings with sorted keys, 0 and 1 in one byte each and packed, a scale of the chunks where there are any."""
    alone, outcomes = eigenvalues().quantities["top"], np.array([0, 1, 1])
    record = with_quantity(gap(), rate=Quantity(value=0.5, doc="", samples=outcomes, dims=()))
    empty = with_quantity(eigenvalues(), top=Quantity(value=0.5, doc="", samples=np.zeros(0)))
    write(report(replace(record, settings={"z": 1, "a": 2}), empty), tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "r") as file:
        assert file["results/gap"].attrs["settings"] == '{"a": 2, "z": 1}'
        stored = file["results/gap/samples/rate"]
        assert (stored.dtype, stored.compression, stored[()].tolist()) == (np.uint8, "gzip", [0, 1, 1])
        assert "chunk" not in file["results/gap"]
        axis = file["results/gap/samples/rate__sample"]  # netCDF's name for a dimension without values
        assert axis.attrs["NAME"] == b"This is a netCDF dimension but not a netCDF variable.         3"
    assert read_report(tmp_path / "r.h5").results["eigenvalues"].quantities["top"].samples.shape == (0,)
    write(report(with_quantity(eigenvalues(), top=alone)), tmp_path / "r.h5")
    with h5py.File(tmp_path / "r.h5", "r") as file:
        assert file["results/eigenvalues/chunk"][()].tolist() == list(range(32))
        assert file["results/eigenvalues/chunk"].attrs["NAME"] == b"chunk"
        assert file["results/eigenvalues/chunks/top"].dims[0].label == "chunk"


def test_a_comparison_reads_as_it_was_written(tmp_path):
    comparison = compare([large(dtype="float64"), report()], force=True)
    write(comparison, tmp_path / "c.h5")
    after = read(tmp_path / "c.h5")
    assert (after.subjects, after.reading, after.forced) == (comparison.subjects, comparison.reading, ("dtype",))
    assert repr(after.rows) == repr(comparison.rows)  # NaN is not equal to itself


@pytest.mark.parametrize("changes", [{}, {"rows": (), "reading": ()}], ids=["rows", "no rows"])
def test_results_of_the_subjects_together_read_as_they_were_written(changes, tmp_path):
    comparison = together(**changes)
    write(comparison, tmp_path / "c.h5")
    after = read(tmp_path / "c.h5")
    assert (repr(after.rows), after.reading) == (repr(comparison.rows), comparison.reading)
    assert dict(after.environment) == {"device": "cpu"}
    assert list(after.results) == ["path", "plane"]
    for name, record in comparison.results.items():
        assert replace(after.results[name], quantities={}) == replace(record, quantities={})
        for key, quantity in record.quantities.items():
            same_quantity(after.results[name].quantities[key], quantity)
    with h5py.File(tmp_path / "c.h5", "r") as file:
        assert file["results"].attrs["default"] == ("path" if changes else "comparison")


def test_a_comparison_without_rows_and_results_is_one(tmp_path):
    write(replace(together(), rows=(), reading=(), results={}), tmp_path / "c.h5")
    after = read(tmp_path / "c.h5")
    assert (after.rows, after.results) == ((), {})
    with h5py.File(tmp_path / "c.h5", "r") as file:
        assert file["results"].attrs["default"] == "comparison"


def test_a_comparison_is_byte_reproducible_outside_the_environment(tmp_path):
    write(together(), tmp_path / "a.h5")
    time.sleep(1.1)
    write(together(), tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    slow = replace(together(replace(path_record(), seconds=99.0), plane()), environment={"device": "another"})
    write(slow, tmp_path / "c.h5")
    assert contents(tmp_path / "c.h5") == contents(tmp_path / "a.h5")


def test_no_result_may_take_the_place_of_the_rows(tmp_path):
    with pytest.raises(ValueError, match="`comparison` cannot be stored"):
        write(together(replace(path_record(), analyzer="comparison")), tmp_path / "c.h5")


def test_nan_infinity_and_odd_strings_survive(tmp_path):
    odd = Quantity(value=[math.nan, -math.inf], doc="a\0b \udcff ü", dims=("d",), labels={"d": ("", "λ")})
    write(report(with_quantity(eigenvalues(), oddX=odd), name="bad\udcff"), tmp_path / "r.h5")
    after = read_report(tmp_path / "r.h5")
    same_quantity(after.results["eigenvalues"].quantities["oddX"], replace(odd, doc="a\\0b \\udcff ü"))
    assert after.conditions["name"] == "bad\\udcff"


def test_a_report_without_results_is_a_report(tmp_path):
    write(replace(report(), results={}), tmp_path / "r.h5")
    assert read_report(tmp_path / "r.h5").results == {}


def test_the_file_is_byte_reproducible(path, tmp_path):
    time.sleep(1.1)  # HDF5's own time stamps have a resolution of a second
    write(report(), tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


def test_a_report_is_written_where_it_belongs_and_nowhere_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(report(), "r.h5")
    assert [one.name for one in tmp_path.iterdir()] == ["r.h5"]


def test_the_environment_changes_nothing_outside_itself(path, tmp_path):
    other = replace(report(), environment={"device": "a much longer description of a device", "rank": 3})
    results = {name: replace(record, seconds=99.0) for name, record in other.results.items()}
    write(replace(other, results=results), tmp_path / "other.h5")
    assert contents(tmp_path / "other.h5") == contents(path)


def contents(path):
    found = {}

    def visit(name, member):
        if not name.startswith("environment"):
            links = ("DIMENSION_LIST", "REFERENCE_LIST")  # addresses
            found[name] = {k: repr(v) for k, v in member.attrs.items() if k not in links}
            if isinstance(member, h5py.Dataset):
                found[name]["data"] = (member.dtype, member[()].tobytes() if member.dtype != object else list(member))

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def test_xarray_opens_a_result_with_labels(path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    with xarray.open_dataset(path, group="/results/epsilon-sharpness", engine="h5netcdf") as data:
        assert data["full"].dims == ("solver", "epsilon")
        assert float(data["full"].sel(solver="ascent", epsilon="5e-4")) == 0.22
        assert not [name for name in data.sizes if "phony" in name]
        assert data["full"].attrs["unit"] == "%"
    with xarray.open_dataset(path, group="/results/eigenvalues", engine="h5netcdf") as data:
        assert list(data["rank"].values) == ["1", "2"]
        assert float(data["top"]) == 0.154
    with xarray.open_dataset(path, group="/results/epsilon-sharpness/chunks", engine="h5netcdf") as data:
        assert data["full"].dims == ("chunk", "solver", "epsilon")
    with xarray.open_dataset(path, group="/results/gap/samples", engine="h5netcdf") as data:
        assert data.sizes == {"test_accuracy__sample": 497}


def test_viewers_find_the_first_array(path):
    with h5py.File(path, "r") as file:
        assert (file.attrs["format"], file.attrs["default"]) == ("gapscope-report", "results")
        assert file["results"].attrs["default"] == "eigenvalues"
        assert file["results/eigenvalues"].attrs["signal"] == "values"
        kinds = [file[name].attrs["NX_class"] for name in ("/", "results", "results/eigenvalues")]
        assert kinds == ["NXroot", "NXentry", "NXdata"]
    numbers = with_quantity(gap(), **{k: q for k, q in gap().quantities.items() if not q.dims})
    write(report(numbers, eigenvalues()), path)  # the first that is an array, not the first
    with h5py.File(path, "r") as file:
        assert file["results"].attrs["default"] == "eigenvalues"
        assert dict(file["results/gap"].attrs)["NX_class"] == "NXcollection"
        assert "signal" not in file["results/gap"].attrs
    write(compare([report(), large()]), path)
    with h5py.File(path, "r") as file:
        assert file["results"].attrs["default"] == "comparison"
        assert file.attrs["format"] == "gapscope-comparison"
        table = file["results/comparison"].attrs
        assert (table["NX_class"], table["signal"]) == ("NXdata", "values")


LABELS = {"rank": ("1", "2")}
UNFIT = {
    "labels of `rank` differ": {
        "a": Quantity(value=[1, 2], doc="", dims=("rank",), labels=LABELS),
        "b": Quantity(value=[1], doc="", dims=("rank",), labels={"rank": ("1",)}),
    },
    "`rank` is both a quantity and a dimension": {
        "a": Quantity(value=[1, 2], doc="", dims=("rank",), labels=LABELS),
        "rank": Quantity(value=1, doc=""),
    },
    "`a/b` cannot be stored": {"a/b": Quantity(value=1, doc="")},
    "`chunk` cannot be stored": {"a": Quantity(value=[1], doc="", dims=("chunk",), labels={"chunk": ("1",)})},
    **{f"`{name}` cannot be stored": {name: Quantity(value=1, doc="")} for name in ("", ".", "a\0b", "a__b")},
    **{f"`{name}` cannot be stored": {name: Quantity(value=1, doc="")} for name in ("samples", "chunks", "comparison")},
}


@pytest.mark.parametrize("message", UNFIT)
def test_quantities_that_the_format_cannot_hold_are_refused(message, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(message)):
        write(report(with_quantity(eigenvalues(), **UNFIT[message])), path)
    assert path.read_bytes() == before


def test_only_single_values_describe_a_subject(path):
    with pytest.raises(ValueError, match=r"/subject/conditions: `shape` is \[1, 2\]; expected one string, number"):
        write(report(shape=[1, 2]), path)


# Refusals while reading


def refusal(path):
    with pytest.raises(ReportError) as caught:
        read(path)
    return str(caught.value)


def test_a_missing_report_is_refused(tmp_path):
    assert "none.h5 does not exist. Expected a report. Make one: `gapscope sharpness" in refusal(tmp_path / "none.h5")


@pytest.mark.parametrize(("content", "observed"), [(b"", "empty"), (b"PK\3\4 a checkpoint", "not HDF5")])
def test_a_foreign_file_is_refused(content, observed, tmp_path):
    (tmp_path / "x.h5").write_bytes(content)
    assert f"is not a gapscope report ({observed}). Expected a file that gapscope wrote" in refusal(tmp_path / "x.h5")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    h5py.File(tmp_path / "x.h5", "w").close()
    assert "HDF5, but its `format` is 'missing'" in refusal(tmp_path / "x.h5")


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_truncated_report_is_refused(tenths, path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenths // 10])
    assert "cannot be opened: " in refusal(path)
    assert "move it away and measure again" in refusal(path)


def damage(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return refusal(path)


def test_a_newer_report_is_refused(path):
    said = damage(path, lambda file: file.attrs.modify("format_version", 2))
    assert "has format version 2; this gapscope reads up to version 1; upgrade" in said


def test_an_unfinished_report_is_refused(path):
    for change in (
        lambda file: file.attrs.pop("complete"),
        attribute("/", "complete", 0),
        attribute("/", "format_version", 0),
        lambda file: file.attrs.pop("format_version"),
    ):
        write(report(), path)
        assert "was never finished. Expected a complete report." in damage(path, change)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("a name"), "a name"),
        (IndexError("out of range"), "out of range"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (RuntimeError("first line\nsecond"), "first line"),
        (OverflowError("infinite"), "infinite"),
        (ValueError(""), "unreadable"),
        (KeyError(), "unreadable"),
        (TypeError("an array"), "an array"),
        (AttributeError("None"), "None"),
    ],
)
def test_whatever_damage_raises_becomes_one_error_of_one_line(error, said):
    with pytest.raises(ReportError) as caught, _at(Path("r.h5"), "/x"):
        raise error
    assert str(caught.value).startswith(f"r.h5 is damaged at /x: {said}. Expected what gapscope wrote.")


def test_a_lock_keeps_nobody_from_reading(path):
    """Reports are replaced, never changed; some network drives leave locks behind."""
    fcntl = pytest.importorskip("fcntl")
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert read_report(path).results


def test_a_comparison_is_no_report(tmp_path):
    write(compare([report(), large()]), tmp_path / "c.h5")
    with pytest.raises(ReportError, match=r"c\.h5 is a comparison\. Expected the report of one checkpoint\."):
        read_report(tmp_path / "c.h5")


def put(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


def attribute(name, key, value):
    return lambda file: file[name].attrs.__setitem__(key, value)


def unstore(name):
    def change(file):
        del file[name]
        layout = h5py.VirtualLayout((), dtype="f8")
        layout[()] = h5py.VirtualSource("other.h5", "secret", ())
        file.create_virtual_dataset(name, layout)

    return change


def outside(name):
    def change(file):
        del file[name]
        file.create_dataset(name, (2,), "f8", external=[("secret.bin", 0, 16)])

    return change


def misname(name):
    """An attribute whose name is no text."""

    def change(file):
        h5py.h5a.create(file[name].id, b"\xff", h5py.h5t.NATIVE_DOUBLE, h5py.h5s.create(h5py.h5s.SCALAR))

    return change


TOP, VALUES = "/results/eigenvalues/top", "/results/eigenvalues/values"
DAMAGES = [
    (lambda file: file.__delitem__(TOP), TOP, "`top` is missing"),
    (put(TOP, h5py.SoftLink("/results")), TOP, "`top` is a soft link, which is never followed"),
    (put(TOP, h5py.ExternalLink("other.h5", "/x")), TOP, "`top` is an external link, which is never followed"),
    (unstore(TOP), TOP, "keeps its values in other files, which are never followed"),
    (outside(VALUES), VALUES, "keeps its values in other files, which are never followed"),
    (put(TOP, "text"), TOP, "which is not what a report holds"),
    (put(TOP, h5py.Empty("f8")), TOP, "holds None elements of float64, which is not what a report holds"),
    (put(VALUES, np.zeros(0, "S1")), VALUES, "holds 0 elements of |S1, which is not what a report holds"),
    (misname("/subject/training"), "/subject/training", "the name b'\\xff' is not UTF-8"),
    (attribute("/results", "order", ["."]), "/results/.", "`.` is not the name of a member"),
    (attribute("/results", "order", [""]), "/results/", "`` is not the name of a member"),
    (put(f"{TOP}__numerical_error", np.zeros(3)), TOP, "numerical_error has shape (3,)"),
    (put("/results/eigenvalues/values", np.zeros(2)), "/results/eigenvalues/values", "`` is not the name of a member"),
    (attribute(TOP, "better", "sideways"), TOP, "`better` is 'sideways', not one of lower, higher, none"),
    (attribute(TOP, "bound", "sideways"), TOP, "`bound` is 'sideways', not one of none, lower, upper"),
    (attribute(TOP, "contrast", "sideways"), TOP, "`contrast` is 'sideways', not one of ratio, difference"),
    (attribute(TOP, "doc", 3), TOP, "`doc` is a int64, not a string"),
    (attribute("/results/gap", "status", "FINE"), "/results/gap", "`status` is 'FINE', not one of EXACT"),
    (attribute("/results/gap", "settings", "[]"), "/results/gap", "`settings` is not a JSON object"),
    (attribute("/results/gap", "settings", "{"), "/results/gap", "Expecting property name"),
    (attribute("/results/gap", "matvecs", np.inf), "/results/gap", "cannot convert float infinity"),
    (attribute("/results", "order", ["../x"]), "/results/../x", "`../x` is not the name of a member"),
    (put("/results/gap", 3.0), "/results/gap", "`gap` is a Dataset, not a Group"),
    (attribute("/subject/training", "lr", [1, 2]), "/subject/training", "`lr` is a ndarray, not one string"),
    (put("/environment/seconds", 1.0), "/environment/seconds", "`seconds` is a Dataset"),
    (put("/subject/identity", h5py.ExternalLink("o.h5", "/")), "/subject/identity", "is an external link"),
]


@pytest.mark.parametrize(("change", "where", "observed"), DAMAGES)
def test_damage_is_reported_with_its_place(change, where, observed, path):
    said = damage(path, change)
    assert f"is damaged at {where}: " in said
    assert observed in said
    assert "Expected what gapscope wrote" in said


def test_a_hostile_size_is_refused_before_it_is_read(path):
    def change(file):
        del file[TOP]
        file.create_dataset(TOP, (2**40,), chunks=(2**20,), dtype="f8")

    assert f"holds {2**40} elements" in damage(path, change)


def test_values_that_nobody_wrote_are_refused_whatever_their_size(path):
    def change(file):
        del file[TOP]
        file.create_dataset(TOP, (2**10,), chunks=(2**10,), dtype="f8")

    assert "holds 1024 elements of float64, which is not what a report holds" in damage(path, change)


def test_too_many_values_are_refused_however_well_they_are_packed(path, monkeypatch):
    write(report(with_quantity(eigenvalues(), values=eigenvalues().quantities["values"])), path)
    monkeypatch.setattr(hdf5, "LARGEST", 2)
    assert read_report(path).results
    monkeypatch.setattr(hdf5, "LARGEST", 1)
    assert "holds 2 elements of float64, which is not what a report holds" in refusal(path)


ROW_DAMAGES = [
    ("verdict", "maybe", "`verdict` holds ['maybe'], not only higher, lower"),
    ("drawn", "crayon", "`drawn` holds ['crayon'], not only numbers, detail, line, bars, strip, map"),
    ("entries", "{}", "`entries` holds '{}', not a JSON array of strings"),
    ("dims", "[1]", "`dims` holds '[1]', not a JSON array of strings"),
    ("dims", "[", "Expecting value"),
]


@pytest.mark.parametrize(("name", "value", "observed"), ROW_DAMAGES)
def test_damage_in_a_comparison_is_reported_with_its_place(name, value, observed, tmp_path):
    write(compare([report(), large()]), tmp_path / "c.h5")

    def change(file):
        file[f"results/comparison/{name}"][0] = value

    said = damage(tmp_path / "c.h5", change)
    assert "is damaged at /results/comparison: " in said
    assert observed in said


LOSS = "/results/plane/loss"
JOINT_DAMAGES = [
    (lambda file: file.__delitem__(LOSS), LOSS, "`loss` is missing"),
    (put(LOSS, h5py.ExternalLink("other.h5", "/x")), LOSS, "is an external link, which is never followed"),
    (
        attribute(LOSS, "drawn", "crayon"),
        LOSS,
        "`drawn` is 'crayon', not one of numbers, detail, line, bars, strip, map",
    ),
    (attribute("/results/path", "status", "FINE"), "/results/path", "`status` is 'FINE', not one of EXACT"),
    (attribute("/results", "order", ["path", "gone"]), "/results/gone", "`gone` is missing"),
    (lambda file: file["results"].attrs.pop("order"), "/", "order"),
    (put("/environment/seconds", 1.0), "/environment/seconds", "`seconds` is a Dataset"),
    (lambda file: file.__delitem__("results/comparison"), "/results/comparison", "`comparison` is missing"),
]


@pytest.mark.parametrize(("change", "where", "observed"), JOINT_DAMAGES)
def test_damage_in_results_of_the_subjects_together_is_reported_with_its_place(change, where, observed, tmp_path):
    write(together(), tmp_path / "c.h5")
    said = damage(tmp_path / "c.h5", change)
    assert f"is damaged at {where}: " in said
    assert observed in said


@pytest.mark.parametrize("tenths", range(1, 10))
def test_a_truncated_comparison_is_refused(tenths, tmp_path):
    path = tmp_path / "c.h5"
    write(together(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * tenths // 10])
    assert "cannot be opened: " in refusal(path)


def test_members_that_nobody_names_are_ignored(path):
    with h5py.File(path, "r+") as file:
        file["results/later"] = h5py.ExternalLink("other.h5", "/")
        file["results/gap/later"] = 3.0
    assert next(iter(read_report(path).results["gap"].quantities)) == "train_loss"


def test_a_folder_is_no_report(tmp_path):
    with pytest.raises(ReportError, match=r"is a folder. Expected a report. Name one: `gapscope show NAME.report.h5`"):
        read(tmp_path)
