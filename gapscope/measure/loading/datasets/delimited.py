"""CSV and TSV files: one sample per line, numbers as features, one column as the target."""

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import Keys, Pair
from gapscope.measure.loading.datasets.columns import Columns, pair_of_columns, target_name
from gapscope.measure.loading.trust import one_line

_LOOKED_AT = 50  # lines that tell numbers from text
_GAPS = ("", "na", "n/a", "null", "none", "?")  # a missing number; "nan" is read as one, and refused with the data


def read_delimited(path: Path, keys: Keys) -> Pair:
    """Return the target and the other columns of numbers side by side, (N, columns)."""
    try:
        sample = list(islice(_rows(path), _LOOKED_AT))
        header = bool(sample) and _has_header(sample)
        if len(sample) == header:
            raise LoadError(f"{path} has no rows. Expected numbers, with or without a header above them.")
        names = [cell.strip() for cell in sample[0]] if header else [str(i) for i in range(len(sample[0]))]
        if len(set(names)) < len(names):
            raise LoadError(f"{path} has two columns of one name: {', '.join(names[:12])}. Expected different names.")
        target = keys.target or target_name(dict.fromkeys(names)) or names[-1]
        if not target:  # columns without a name are left out
            raise LoadError(
                f"{path}: its last column has no name. Expected one, since no other is named as a target. Write it "
                "into the first line, or choose the target: `--y-key NAME`."
            )
        columns = _columns(path, names, sample[header:], header, target)
        wanted = {*keys.inputs, target} if keys.inputs else set(columns)
        for i, name in enumerate(names):
            if name in wanted:
                _refuse_gaps(path, name, i, sample[header:], header)
    except (UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
        raise LoadError(
            f"{path} cannot be read as a table ({one_line(error)}). Expected UTF-8 with a number in every cell of a "
            "column of numbers: repair or remove that line."
        ) from None
    notes = [] if header else [f"data: {path}: no header: its columns are called 0 to {len(names) - 1}"]
    if header and any(map(_is_number, names)):
        notes.append(f"data: {path}: its first line was read as the names of its columns")
    if "" in names:
        notes.append(f"data: {path}: the column without a name is left out")
    pair = pair_of_columns(columns, keys, str(path), table=True, last=True)
    return pair._replace(notes=(*notes, *pair.notes))


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from (row for row in csv.reader(file, delimiter=_delimiter(path)) if row)


def _delimiter(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        line = file.readline(2**16)
    return max(",;\t", key=line.count)


def _has_header(sample: list[list[str]]) -> bool:
    """Return whether the first line has text above a number, nothing but text, or names that are numbers."""
    first, below = [cell.strip() for cell in sample[0]], sample[1:2] or [[]]
    for i, (name, cell) in enumerate(zip(first, below[0], strict=False)):
        gap = _is_gap(name) and not (i == 0 and cell.strip().isdecimal())  # pandas writes row numbers under no name
        if not (gap or _is_number(name)) and _is_number(cell):
            return True
    return not any(map(_is_number, first)) or _has_numbered_columns(first, sample[1:])


def _has_numbered_columns(first: list[str], below: list[list[str]]) -> bool:
    """Return whether a line with numbers holds names: those of pandas are 0, 1, 2, ..., beside that of the target.

    A class that stands in the first line stands in others as well; a name does not.  `y` may be a class.
    """
    texts = [i for i, cell in enumerate(first) if not _is_number(cell)]
    if not (texts and below) or any(
        cell.strip() == first[i] for row in below for i in texts for cell in row[i : i + 1]
    ):
        return False
    numbers, named = [cell for cell in first if _is_number(cell)], target_name(dict.fromkeys(first)) or ""
    counted = numbers == [str(i) for i in range(len(numbers))]
    return named.lower() not in ("", "y") or (counted and (named != "" or len(numbers) > 2))


def _columns(path: Path, names: list[str], sample: list[list[str]], header: bool, target: str) -> Columns:
    ragged = next((row for row in sample if len(row) != len(names)), None)
    if ragged is not None:
        raise ValueError(f"a line has {len(ragged)} cells beside {len(names)} names")
    cells = dict(zip(names, zip(*sample, strict=True), strict=True))
    # pandas writes its row numbers under no name
    numbers = [i for i, name in enumerate(names) if name and all(map(_is_number, cells[name]))]
    table = (
        np.empty((0, 0))
        if not numbers
        else np.loadtxt(
            path,
            delimiter=_delimiter(path),
            skiprows=int(header),
            usecols=numbers,
            quotechar='"',
            comments=None,
            ndmin=2,
            encoding="utf-8-sig",
        )
    )
    columns: dict[str, list[torch.Tensor] | list[str]] = {}
    for i, name in enumerate(names):
        if i in numbers:
            column = torch.from_numpy(table[:, numbers.index(i)])
            whole = name == target and all(cell.strip().lstrip("+-").isdigit() for cell in cells[name])
            # below the lines that were looked at may be fractions, or infinity, which is no whole number
            columns[name] = [column.long() if whole and torch.equal(column, column.long().double()) else column]
        elif name == target:
            columns[name] = [row[i].strip() for row in islice(_rows(path), int(header), None)]
        elif name:
            columns[name] = list(cells[name])  # enough to say that it is text
    return columns


def _refuse_gaps(path: Path, name: str, place: int, sample: list[list[str]], header: bool) -> None:
    """Refuse a column of numbers with gaps: they would make texts of its numbers."""
    cells = [row[place] for row in sample]
    known = [cell for cell in cells if not _is_gap(cell)]
    if len(known) < len(cells) and known and all(map(_is_number, known)):
        missing = sum(_is_gap(row[place]) for row in islice(_rows(path), int(header), None))
        raise LoadError(f"{path}: `{name}` has {missing} missing values. Expected none: fill or remove them.")


def _is_gap(cell: str) -> bool:
    return cell.strip().lower() in _GAPS


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
