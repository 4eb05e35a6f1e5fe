"""The rows of a comparison as a table in HDF5, /results/comparison: its columns, written and read (format: `file`)."""

import itertools
import json
from collections.abc import Sequence
from typing import Any, get_args

import h5py
import numpy as np

from gapscope.report import hdf5
from gapscope.report.records import Comparison, Row, RowVerdict
from gapscope.results import Better, Contrast, Drawn

TEXTS = ("path", "title", "unit", "contrast", "verdict", "better", "higher_is", "drawn")
DOC = "doc"  # earlier files lack it
LISTS = ("dims", "entries")
NUMBERS = ("values", "errors", "interval", "estimate")
CHOICES: dict[str, tuple[str, ...]] = {
    "drawn": get_args(Drawn),
    "contrast": get_args(Contrast),
    "better": get_args(Better),
    "verdict": get_args(RowVerdict),
}


def put_rows(table: h5py.Group, comparison: Comparison) -> None:
    """Write the rows, and with runs their p and the value of each run."""
    rows = comparison.rows
    path = hdf5.put_scale(table, "path", tuple(row.path for row in rows))
    labels = hdf5.put_scale(table, "subject", tuple(subject.label for subject in comparison.subjects))
    bound = hdf5.put_scale(table, "bound", ("low", "high"))
    axes = {"values": (path, labels), "errors": (path, labels), "interval": (path, bound), "estimate": (path,)}
    for name, scales in axes.items():
        data = np.array([getattr(row, name) for row in rows], dtype=np.float64)
        hdf5.put_array(table, name, data.reshape([scale.size for scale in scales]), scales)
    for name in (*TEXTS[1:], DOC):
        hdf5.put_array(table, name, hdf5.texts([getattr(row, name) for row in rows]), [path])
    for name in LISTS:
        hdf5.put_array(table, name, hdf5.texts([json.dumps(getattr(row, name)) for row in rows]), [path])
    if any(subject.runs for subject in comparison.subjects):
        names = [run.label for subject in comparison.subjects for run in subject.runs or (subject,)]
        run = hdf5.put_scale(table, "run", tuple(names))
        values = [list(itertools.chain.from_iterable(row.runs)) for row in rows]
        hdf5.put_array(table, "runs", np.array(values, dtype=np.float64).reshape(len(rows), len(names)), [path, run])
        hdf5.put_array(table, "p", np.array([row.p for row in rows], dtype=np.float64), [path])


def get_rows(table: h5py.Group, sizes: Sequence[int]) -> tuple[Row, ...]:
    """Return the rows of subjects that stand for so many runs each."""
    given = (*TEXTS, DOC) if hdf5.has(table, DOC) else TEXTS
    columns: dict[str, Any] = {name: hdf5.get_strings(table, name) for name in given}
    for name, choices in CHOICES.items():
        if unknown := set(columns[name]) - set(choices):
            raise ValueError(f"`{name}` holds {sorted(unknown)}, not only {', '.join(choices)}")
    for name in LISTS:
        columns[name] = [_strings(name, text) for text in hdf5.get_strings(table, name)]
    for name in NUMBERS:
        numbers = hdf5.get_array(table, name).tolist()
        columns[name] = numbers if name == "estimate" else [tuple(row) for row in numbers]
        wanted = () if name == "estimate" else (2,) if name == "interval" else (len(sizes),)
        if any(np.shape(entry) != wanted for entry in columns[name]):
            raise ValueError(f"`{name}` does not hold one entry for each row and subject")
    if any(len(dims) != len(entries) for dims, entries in zip(columns["dims"], columns["entries"], strict=True)):
        raise ValueError("`dims` and `entries` are not as many")
    if hdf5.has(table, "runs"):
        columns["runs"] = [_dealt(values, sizes) for values in hdf5.get_array(table, "runs").tolist()]
        columns["p"] = hdf5.get_array(table, "p").tolist()
    return tuple(Row(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True))


def _dealt(values: Sequence[float], sizes: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    if len(values) != sum(sizes):
        raise ValueError(f"`runs` holds {len(values)} runs, not the {sum(sizes)} of the subjects")
    rest = iter(values)
    return tuple(tuple(itertools.islice(rest, size)) for size in sizes)


def _strings(name: str, text: str) -> tuple[str, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError(f"`{name}` holds {text!r}, not a JSON array of strings")
    return tuple(found)
