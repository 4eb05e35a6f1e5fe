import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from example_reports import eigenvalues, epsilon_sharpness, gap, large, report, with_quantity

from gapscope.errors import ReportError
from gapscope.report.comparison import compare
from gapscope.report.file import merge, read, read_report, write
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


def test_a_comparison_reads_as_it_was_written(tmp_path):
    comparison = compare([large(dtype="float64"), report()], force=True)
    write(comparison, tmp_path / "c.h5")
    after = read(tmp_path / "c.h5")
    assert (after.subjects, after.reading, after.forced) == (comparison.subjects, comparison.reading, ("dtype",))
    assert repr(after.rows) == repr(comparison.rows)  # NaN is not equal to itself


def test_nan_infinity_and_odd_strings_survive(tmp_path):
    odd = Quantity(value=[math.nan, -math.inf], doc="a\0b \udcff ü", dims=("d",), labels={"d": ("", "λ")})
    write(report(with_quantity(eigenvalues(), odd=odd), name="bad\udcff"), tmp_path / "r.h5")
    after = read_report(tmp_path / "r.h5")
    same_quantity(after.results["eigenvalues"].quantities["odd"], replace(odd, doc="a\\0b \\udcff ü"))
    assert after.conditions["name"] == "bad\\udcff"


def test_a_report_without_results_is_a_report(tmp_path):
    write(replace(report(), results={}), tmp_path / "r.h5")
    assert read_report(tmp_path / "r.h5").results == {}


def test_the_file_is_byte_reproducible(path, tmp_path):
    time.sleep(1.1)  # HDF5's own time stamps have a resolution of a second
    write(report(), tmp_path / "again.h5")
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


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
        assert file.attrs["default"] == "results"
        assert file["results"].attrs["default"] == "eigenvalues"
        assert file["results/eigenvalues"].attrs["signal"] == "values"


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
}


@pytest.mark.parametrize("message", UNFIT)
def test_quantities_that_the_format_cannot_hold_are_refused(message, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
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


def test_a_folder_is_refused(tmp_path):
    assert "cannot be opened: " in refusal(tmp_path)


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
    assert "was never finished. Expected a complete report." in damage(path, lambda file: file.attrs.pop("complete"))


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


TOP = "/results/eigenvalues/top"
DAMAGES = [
    (lambda file: file.__delitem__(TOP), TOP, "`top` is missing"),
    (put(TOP, h5py.SoftLink("/results")), TOP, "`top` is a soft link, which is never followed"),
    (put(TOP, h5py.ExternalLink("other.h5", "/x")), TOP, "`top` is an external link, which is never followed"),
    (unstore(TOP), TOP, "keeps its values in other files, which are never followed"),
    (put(TOP, "text"), TOP, "which is not what a report holds"),
    (put(f"{TOP}__numerical_error", np.zeros(3)), TOP, "numerical_error has shape (3,)"),
    (put("/results/eigenvalues/values", np.zeros(2)), "/results/eigenvalues/values", "`` is not the name of a member"),
    (attribute(TOP, "better", "sideways"), TOP, "`better` is 'sideways', not one of lower, higher, none"),
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


def test_damage_in_a_comparison_is_reported_with_its_place(tmp_path):
    path = tmp_path / "c.h5"
    write(compare([report(), large()]), path)

    def change(file):
        file["results/comparison/verdict"][0] = "maybe"

    assert "is damaged at /results/comparison: `verdict` holds ['maybe'], not only higher, lower" in damage(
        path, change
    )


def test_members_that_nobody_names_are_ignored(path):
    with h5py.File(path, "r+") as file:
        file["results/later"] = h5py.ExternalLink("other.h5", "/")
        file["results/gap/later"] = 3.0
    assert next(iter(read_report(path).results["gap"].quantities)) == "train_loss"


# Refusals while writing: real mechanisms, and the old file stays


def test_a_place_that_cannot_be_written_is_refused(tmp_path, path):
    before = path.read_bytes()
    for place in (tmp_path / "no folder" / "r.h5", path / "r.h5"):
        with pytest.raises(ReportError, match=r"r\.h5 cannot be written: .*Nothing was lost: .*`--output`"):
            write(report(), place)
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs a device file")
def test_devices_and_folders_are_not_replaced(tmp_path):
    for place in ("/dev/null", tmp_path):
        with pytest.raises(ReportError, match=r"is not a regular file\. Expected a place for a report"):
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


# Merging


def test_merging_keeps_the_other_results():
    merged, said = merge(report(eigenvalues(), gap()), report(epsilon_sharpness(), gap()))
    assert list(merged.results) == ["eigenvalues", "gap", "epsilon-sharpness"]
    assert said == ()


def test_a_replaced_result_says_which_settings_changed():
    merged, said = merge(report(eigenvalues()), report(eigenvalues(k=3, delta=0.1)))
    assert merged.results["eigenvalues"].settings["k"] == 3
    assert said == ("replaced eigenvalues: settings changed: delta none -> 0.1, k 1 -> 3",)
    _, said = merge(report(eigenvalues()), report(replace(eigenvalues(), version="2")))
    assert said == ("replaced eigenvalues: settings changed: version 1 -> 2",)


def test_reports_of_other_subjects_or_conditions_do_not_merge():
    with pytest.raises(ReportError, match=r"measures something else: checkpoint \(small.pt there, large.pt now\)"):
        merge(report(), large())
    with pytest.raises(ReportError, match=r"dtype \(float32 there, float64 now\), limit \(none there, 64 now\)\. Exp"):
        merge(report(), report(dtype="float64", limit=64))
