"""What the fuzzer found, each made small: what ended in a traceback, a hang or the end of the process is one error."""

import fnmatch
import json
import random
import struct

import h5py
import numpy as np
import pytest
import torch

from gapscope.cli.settings import parse_batch_size, parse_bytes, parse_seconds, read_configuration
from gapscope.errors import LoadError, ReportError, UsageError
from gapscope.measure.loading import Trust, load_data, parse_args, read_checkpoint, save_checkpoint
from gapscope.measure.loading.checkpoints.inspection import inspect
from gapscope.measure.loading.sources import holds_config
from gapscope.report import file, hdf5, html
from gapscope.report.comparison import compare
from gapscope.report.reading import reading
from gapscope.report.terminal import error_lines
from gapscope.report.thresholds import analyzers
from tests.hardening.fuzz_reports import small_report
from tests.report import example_reports as examples


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "a.h5"
    file.write(small_report(), path)
    return path


@pytest.mark.parametrize("head", [struct.pack("<HHIQ", 0, 0, 0, 0), struct.pack("<HHIQ", 1, 1, 0, 2**64 - 1)])
def test_a_heap_that_hdf5_walks_for_ever_is_refused(stored, head):
    data = bytearray(stored.read_bytes())
    at = data.index(b"GCOL\1") + 16
    data[at : at + 16] = head
    stored.write_bytes(data)
    with pytest.raises(ReportError, match=r"damaged at /: its heap at byte \d+ does not add up\. Expected what"):
        file.read(stored)


def test_other_sizes_than_of_8_bytes_are_refused():
    with pytest.raises(ValueError, match=r"offsets or lengths that are not of 8 bytes"):
        hdf5.check_heaps(b"\x89HDF\r\n\x1a\n\0\0\0\0\0\4\4\0")


def an_object(index, held, content=b""):
    return struct.pack("<HHIQ", index, 1, 0, held) + content


def a_heap(*objects, more=0):
    return b"GCOL\1\0\0\0" + struct.pack("<Q", 16 + sum(map(len, objects)) + more) + b"".join(objects)


SUPERBLOCK = b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08"
FIVE, EIGHT = an_object(1, 5, bytes(8)), an_object(2, 8, bytes(8))


@pytest.mark.parametrize(
    "content",
    [
        a_heap(FIVE, EIGHT, an_object(0, 24, bytes(8))),  # free: its size includes its head
        a_heap(an_object(0, 16), an_object(3, 0)),
        a_heap(FIVE, bytes(8)),  # too little is left for a head
        a_heap(FIVE, bytes(15)),
        a_heap(FIVE) + b"\1" + a_heap(EIGHT),
        a_heap(an_object(256, 5, bytes(8))),  # only of index 0 does the size include the head
    ],
)
def test_a_heap_that_adds_up_is_passed(content):
    for version, start in ((b"\0", SUPERBLOCK), (b"\1", SUPERBLOCK), (b"\2", SUPERBLOCK[:9] + b"\x08\x08")):
        hdf5.check_heaps(SUPERBLOCK[:8] + version + start[9:] + bytes(20) + content)


@pytest.mark.parametrize(
    "content",
    [
        a_heap(an_object(1, 9, bytes(8))),
        a_heap(FIVE, an_object(0, 25, bytes(8))),
        a_heap(FIVE, an_object(0, 0, bytes(8))),
        a_heap(FIVE, an_object(0, 0)),
        a_heap(an_object(1, 2**56)),
        a_heap(EIGHT) + a_heap(an_object(2, 9, bytes(8))),
        a_heap(an_object(1, 24, bytes(8)), more=16),  # adds up, and the file ends before
    ],
)
def test_a_heap_that_does_not_add_up_is_refused_with_its_place(content):
    at = len(SUPERBLOCK) + content.rindex(b"GCOL")
    with pytest.raises(ValueError, match=f"its heap at byte {at} does not add up"):
        hdf5.check_heaps(SUPERBLOCK + content)


@pytest.mark.parametrize("sizes", [b"\x08\x04", b"\x04\x08"])
@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_sizes_of_other_than_8_bytes_are_refused_in_every_superblock(version, sizes):
    start = SUPERBLOCK[:8] + bytes([version])
    at = 13 if version < 2 else 9
    hdf5.check_heaps(start + bytes(at - 9) + b"\x08\x08")
    with pytest.raises(ValueError, match="are not of 8 bytes"):
        hdf5.check_heaps(start + bytes(at - 9) + sizes + b"\x08\x08")


def test_the_heaps_of_reports_add_up(stored):
    hdf5.check_heaps(stored.read_bytes())
    file.write(compare([small_report(), examples.large(examples.eigenvalues(0.3))]), stored)
    hdf5.check_heaps(stored.read_bytes())


def test_labels_of_axes_that_are_numbers_do_not_end_the_process(stored):
    with h5py.File(stored, "r+") as opened:
        opened["results/curvature/median"].attrs["DIMENSION_LABELS"] = np.array([7.5])
    with pytest.raises(ReportError, match=r"damaged at /results/curvature/median"):
        file.read(stored)


@pytest.mark.parametrize("name", ["median", "layer"])
def test_values_that_nobody_stored_take_no_memory(stored, name):
    with h5py.File(stored, "r+") as opened:
        group = opened["results/curvature"]
        kind = group[name].dtype
        del group[name]
        group.create_dataset(name, shape=(2**27,), dtype=kind)
    with pytest.raises(ReportError, match=r"damaged at /results/curvature"):
        file.read(stored)


def test_a_row_of_other_subjects_than_there_are_is_damage(stored):
    file.write(compare([small_report(), examples.large(examples.eigenvalues(0.3))]), stored)
    with h5py.File(stored, "r+") as opened:
        del opened["subjects/1"]
    with pytest.raises(ReportError, match=r"`values` does not hold one entry for each row and subject"):
        file.read(stored)


def test_entries_without_their_dims_are_damage(stored):
    file.write(compare([small_report(), examples.large(examples.eigenvalues(0.3))]), stored)
    with h5py.File(stored, "r+") as opened:
        entries = opened["results/comparison/entries"]
        entries[0] = json.dumps(["a", "b", "c"])
    with pytest.raises(ReportError, match=r"`dims` and `entries` are not as many"):
        file.read(stored)


def test_a_gradient_norm_whose_square_overflows_is_still_a_slope():
    steep = examples.report(examples.eigenvalues(gradient_norm=1e200), examples.gap())
    compared = compare([steep, steep])
    sides = [[steep], [steep]]
    assert "still on a slope" in " ".join(reading(sides, compared.subjects, compared.rows, blocked="", forced=()))


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "9" * 5000, "\u0663MB"])
def test_sizes_beyond_reason_are_no_sizes(text):
    with pytest.raises(UsageError, match=r"Expected bytes, like 500MB or 4GB"):
        parse_bytes(text)
    with pytest.raises(UsageError, match=r"Expected a time, like 90s, 10min or 2h"):
        parse_seconds(text)
    with pytest.raises(UsageError, match=r"Expected a positive number or auto"):
        parse_batch_size(text)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000])
def test_numbers_too_long_and_lists_too_deep_are_no_toml(tmp_path, value):
    (tmp_path / "gapscope.toml").write_text(f"limit = {value}\n")
    with pytest.raises(UsageError, match=r"gapscope.toml cannot be read: .* Expected TOML. Mend or move it."):
        read_configuration(tmp_path)
    with pytest.raises(UsageError, match=r"is not a TOML value") if "[" in value else pytest.raises(AssertionError):
        assert parse_args([f"hidden={value}"]) != {"hidden": value}


def test_settings_nested_too_deep_are_refused(tmp_path):
    nested = []
    for _ in range(600):
        nested = [nested]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}, "metadata": nested}))
    with pytest.raises(LoadError, match=r"nested too deep.* Expected a table. Copy it again."):
        read_checkpoint(tmp_path, Trust())
    with pytest.raises(
        LoadError, match=r"is nested 32 levels deep. Expected lists and tables of few levels. Flatten it."
    ):
        save_checkpoint(tmp_path / "a.pt", torch.nn.Linear(2, 2), training={"note": nested})


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_nested_tensors_are_no_weights(tmp_path):
    torch.save({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}, tmp_path / "a.pt")
    # torch 2.15 writes them by a function of their own, which is refused before
    said = r"`w` is a nested tensor. Expected tensors of one shape each.|not plain tensors: \S*_rebuild_nested_tensor"
    with pytest.raises(LoadError, match=said):
        read_checkpoint(tmp_path / "a.pt", Trust())


def test_names_too_long_for_the_system_do_not_exist(tmp_path):
    index = {"weight_map": {"w": "x" * 5000}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"lacks the shard"):
        read_checkpoint(tmp_path, Trust())
    with pytest.raises(LoadError, match=r"cannot be read: File name too long"):
        inspect(tmp_path / ("x" * 5000))
    with pytest.raises(LoadError, match=r"is no data that gapscope knows"):
        load_data("x" * 5000, "train", recorded=False, trust=Trust())
    with pytest.raises(LoadError, match=r"does not exist"):
        load_data("x" * 5000 + ".npz", "train", recorded=False, trust=Trust())


def test_data_of_texts_are_refused_before_they_are_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened["x"] = np.array([b"a", b"b"], dtype=h5py.string_dtype())
        opened["y"] = np.arange(2)
    with pytest.raises(LoadError, match=r"`x` holds texts or lists. Expected numbers"):
        load_data(str(tmp_path / "a.h5"), "train", recorded=False, trust=Trust())


def test_a_long_line_keeps_what_was_observed_and_what_to_do():
    (said,) = error_lines("It is " + "x" * 20_000 + ". Expected less. Mend it.")
    assert len(said) < 1600
    assert said.startswith("It is x")
    assert said.endswith("Expected less. Mend it.")
    assert "[18,531 characters left out]" in said


def test_a_name_with_ends_of_lines_makes_no_lines_of_its_own():
    assert error_lines("`a\nerror: b\r\nc` is odd.\n  Mend it.") == ["`a error: b  c` is odd.", "  Mend it."]


@pytest.mark.timeout(20)
def test_a_selector_of_many_stars_gives_nothing_back():
    known = {"a": ["a" * 200]}
    assert analyzers("a/" + "*a" * 50, known) == ["a"]
    assert analyzers("a/" + "*a" * 50 + "c", known) == []


@pytest.mark.parametrize("seed", range(20))
def test_stars_find_what_a_search_of_all_ways_finds(seed):
    rng = random.Random(seed)
    for _ in range(100):
        selector = "".join(rng.choices("ab*?", k=rng.randrange(1, 8)))
        name = "".join(rng.choices("ab", k=rng.randrange(1, 10)))
        expected = ["x"] if fnmatch.fnmatchcase(name, selector) else []
        assert analyzers(f"x/{selector}", {"x": [name]}) == expected


@pytest.mark.timeout(20)
def test_a_header_of_any_length_is_searched_in_one_pass():
    assert html._head("x" * 300_000) == "x" * 300_000
    assert html._head("x 1e-3") == 'x <span style="white-space:nowrap">1e-3</span>'


def test_tables_that_are_nested_too_deep_are_no_tables(tmp_path):
    for name in ("config.json", "state.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("[" * 3000 + "]" * 3000)
    assert not holds_config(tmp_path)
    with pytest.raises(LoadError, match="has no `_data_files`"):
        load_data(str(tmp_path), "train", recorded=False, trust=Trust())
    with pytest.raises(LoadError, match="is no readable JSON"):
        read_checkpoint(tmp_path, Trust())


@pytest.mark.parametrize("name", ["a\0b.py:f", "a\ud800.py:f"])
def test_names_that_no_file_can_have_are_refused(name):
    with pytest.raises(LoadError, match=r"is no name of a file .* Expected `file.py:attr`"):
        load_data(name, "train", recorded=False, trust=Trust())
