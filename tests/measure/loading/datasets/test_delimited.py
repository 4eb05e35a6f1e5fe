"""CSV and TSV: header or none, numbers as features, one target, and nothing guessed silently."""

import re

import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import Keys
from gapscope.measure.loading.datasets.delimited import read_delimited


def read(path, text, keys=Keys()):  # noqa: B008
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_delimited(path, keys)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "a,label,b\n1,0,0.5\n2,1,1.5\n"),
        ("a.tsv", "a\tLabel\tb\r\n1\t0\t0.5\r\n2\t1\t1.5\r\n"),
        ("a.csv", "a;class;b\n1;0;0.5\n\n2;1;1.5"),
        ("a.csv", '\ufeff"a","target","b"\n"1","0","0.5"\n"2","1","1.5"\n'),
        ("a.csv", ",a,b,c\n0,1,0.5,0\n1,2,1.5,1\n"),
        ("a.csv", "1,0.5,0\n2,1.5,1\n"),
        ("a.csv", "0,7,b\n1,0.5,0\n2,1.5,1\n"),  # of an unusual one, too
        ("a.csv", f"{'a' * 40};class;b\n1;0;0.5\n2;1;1.5"),
        ("a.csv", "0,1,label\n1,0.5,0\n2,1.5,1\n"),  # text above a number is a name, though others are numbers
    ],
)
def test_features_and_classes_are_found(tmp_path, name, text):
    pair = read(tmp_path / name, text)
    assert pair.inputs.tolist() == [[1, 0.5], [2, 1.5]]
    assert (pair.inputs.dtype, pair.targets.dtype) == (torch.float64, torch.int64)
    assert pair.targets.tolist() == [0, 1]


def test_what_was_inferred_is_said(tmp_path):
    path = tmp_path / "a.csv"
    assert read(path, "1,2,0\n3,4,1\n").notes == (
        f"data: {path}: no header: its columns are called 0 to 2",
        f"data: {path}: the target is the last column, `2`",
        f"data: {path}: inputs side by side: 0, 1",
    )
    assert read(path, ",a,y\n0,1,0\n1,2,1\n").notes == (
        f"data: {path}: the column without a name is left out",
        f"data: {path}: inputs side by side: a",
    )
    assert read(path, "name,a,y\nx,1,0\nz,2,1\n").notes[0] == f"data: {path}: left out, not numbers: `name`"


def test_names_given_choose_columns(tmp_path):
    pair = read(tmp_path / "a.csv", "a,b,c,d\n1,2,3,4.5\n5,6,7,8.0\n", Keys(("c", "a"), "d"))
    assert pair.inputs.tolist() == [[3, 1], [7, 5]]
    assert pair.targets.dtype == torch.float64
    pair = read(tmp_path / "a.csv", "1,2,0\n3,4,1\n", Keys(target="0"))
    assert (pair.targets.tolist(), pair.targets.dtype) == ([1, 3], torch.int64)


@pytest.mark.parametrize("cells", [["4.0", "8.0"], ["2"] * 60 + ["2.5"], ["2"] * 60 + ["-inf"]])
def test_a_target_is_of_classes_only_where_all_of_it_is_written_as_whole_numbers(tmp_path, cells):
    pair = read(tmp_path / "a.csv", "a,y\n" + "".join(f"1,{cell}\n" for cell in cells))
    assert (pair.targets.tolist(), pair.targets.dtype) == ([float(cell) for cell in cells], torch.float64)


def test_names_of_classes_become_numbers(tmp_path):
    flowers = "5.1,3.5,setosa\n4.9,3.0,virginica\n4.7,3.2,setosa\n"
    for text in (flowers, "a,b,species\n" + flowers):
        pair = read(tmp_path / "iris.csv", text)
        assert pair.targets.tolist() == [0, 1, 0]
        assert pair.classes == ("setosa", "virginica")
    assert pair.inputs.shape == (3, 2)


@pytest.mark.parametrize("header", ["0,1,label", "350.5,351,Class", "0,1,y", "1990,1991,target"])
def test_columns_with_numbers_as_names_have_a_header_above_names_of_classes(tmp_path, header):
    path = tmp_path / "a.csv"
    pair = read(path, f"{header}\n5.1,3.5,cat\n4.9,3.0,dog\n")
    assert pair.inputs.tolist() == [[5.1, 3.5], [4.9, 3.0]]
    assert (pair.targets.tolist(), pair.classes) == ([0, 1], ("cat", "dog"))
    assert pair.notes[0] == f"data: {path}: its first line was read as the names of its columns"
    # the name of one column may stand in the cells of another
    assert read(path, "0,1,label,remark\n5.1,3.5,cat,label\n4.9,3.0,dog,odd\n").classes == ("cat", "dog")


def test_row_numbers_under_no_name_tell_that_numbers_beside_it_are_names(tmp_path):
    """As pandas writes a table whose columns have no names."""
    pair = read(tmp_path / "a.csv", ",0,1,species\n0,5.1,3.5,cat\n1,4.9,3.0,dog\n")
    assert pair.inputs.tolist() == [[5.1, 3.5], [4.9, 3.0]]
    assert pair.classes == ("cat", "dog")


def test_numbers_that_pandas_gives_as_names_are_names_beside_an_unusual_one(tmp_path):
    pair = read(tmp_path / "a.csv", "0,1,2,species\n5.1,3.5,1.4,cat\n4.9,3.0,1.3,dog\n")
    assert pair.inputs.tolist() == [[5.1, 3.5, 1.4], [4.9, 3.0, 1.3]]


@pytest.mark.parametrize(
    "text",
    [
        "0.5,1.2,y\n0.7,1.1,n\n",
        "0,1,y\n1,0,n\n1,1,y\n",
        "0,1,y\n1,0,y\n1,1,n\n",
        "0,1,2,class\n1,0,0,other\n1,1,0,class\n",
        "0,1,cat\n1,0,dog\n",
        "1,0,2,cat\n1,0,2,dog\n",
        "0,1,2,cat\n",
        "0,1,2\n3,4,1\n",
    ],
)
def test_a_first_line_with_a_class_in_it_is_a_sample(tmp_path, text):
    pair = read(tmp_path / "a.csv", text)
    assert len(pair.targets) == text.count("\n")
    assert "no header" in pair.notes[0]


def test_gaps_in_columns_that_are_not_asked_for_are_no_matter(tmp_path):
    text = "a,b,remark,y\n1,,,0\n2,3,odd,1\n"
    assert read(tmp_path / "a.csv", text, Keys(("a",))).inputs.tolist() == [[1], [2]]
    text = "a,country,y\n1,NA,0\n2,DE,1\n"
    assert read(tmp_path / "a.csv", text, Keys(("a",), "country")).classes == ("DE", "NA")


def test_a_column_without_any_number_is_left_out_and_not_filled(tmp_path):
    pair = read(tmp_path / "a.csv", "a,empty,y\n1,,0\n2,NA,1\n")
    assert pair.inputs.tolist() == [[1], [2]]
    assert pair.notes[0] == f"data: {tmp_path / 'a.csv'}: left out, not numbers: `empty`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows. Expected numbers, with or without a header above them."),
        ("a,b\n", "has no rows"),
        ("a,a\n1,2\n", "has two columns of one name: a, a. Expected different names."),
        (b"\xff\xfe\x00a,b\n1,2\n", "cannot be read as a table (UnicodeDecodeError"),
        ("a,b\n1,2\n1,2,3\n", "cannot be read as a table (ValueError: a line has 3 cells beside 2 names)"),
        ("a,b\n" + "1,2\n" * 60 + "n/a,2\n", "could not convert string 'n/a' to float64"),
        ("a,b\nx,1\ny,2\n", "`a` holds no numbers. Expected numbers as inputs"),
        ("a,y\nx,z\n", "`a` holds no numbers"),
        (
            "a,price\n1,2.5\n2,\n3,N/A\n4,NA\n5,null\n6,None\n",
            "`price` has 5 missing values. Expected none: fill or remove them.",
        ),
        ("a,b,y\n1,2.5,0\n2,?,1\n", "`b` has 1 missing values"),
        ("5.1,NA,setosa\n4.9,3.0,virginica\n", "`1` has 1 missing values"),
        (
            "a,b,\n1,3,10\n2,4,9\n",
            "its last column has no name. Expected one, since no other is named as a target. Wri",
        ),
        ("a,b,\n1,0,\n2,1,\n", "its last column has no name"),
        (",3.5,setosa\n4.9,3.0,virginica\n", "`0` has 1 missing values"),
        ("1,,0\n2,3,1\n", "`1` has 1 missing values"),
        ("a,y\n" + "1,cat\n" * 60 + "2, \n", "`y` has 1 missing values"),
        ('a,b\n"1,2\n' + "x" * 140_000, "cannot be read as a table (Error: field larger than field limit"),
    ],
)
def test_what_is_no_table_says_why(tmp_path, text, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read(tmp_path / "a.csv", text)
