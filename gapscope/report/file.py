"""The report file: its format, version 1, and the only code that reads and writes it.

A report is an HDF5 file.  MUST, SHOULD and MAY are meant as in RFC 2119; strings are UTF-8 of variable length.

    /                        attrs  format, format_version, complete, NX_class, default
    /subject/identity        attrs  who was measured (checkpoint, sha256, model, parameters ...): never has to agree
    /subject/training        attrs  how it was trained, as far as the checkpoint recorded it
    /subject/conditions      attrs  what it was measured on and how: must agree between compared reports
    /environment             attrs  versions, device, time of day: never compared
    /environment/seconds     attrs  one float per analyzer
    /results                 attrs  order, NX_class, default
    /results/NAME            attrs  analyzer, version, status, message, matvecs, settings, notes, quantities
    /results/NAME/DIM        dimension scale of strings: the labels along one dimension
    /results/NAME/chunk      dimension scale 0 ... 31, where a quantity has per-chunk values
    /results/NAME/QUANTITY   float64   attrs  unit, better, bound, contrast, higher_is, drawn, doc
    /results/NAME/QUANTITY__numerical_error, QUANTITY__sampling_error    float64, the shape of QUANTITY
    /results/NAME/chunks/QUANTITY     float64 (chunk, *shape of QUANTITY)
    /results/NAME/samples/QUANTITY    uint8 (samples,), 0 or 1

A comparison has the same root, and

    /subjects/0, /subjects/1 ...  attrs label, short;  groups identity, training, conditions as above
    /subjects/0/runs/0 ...   the same of each training run, where a subject is a regime of several
    /environment, /results/NAME   as above: what was measured on the subjects together
    /results/comparison      attrs  reading, forced: arrays of strings, MAY be empty; `order` does not name it
        path (rows,), subject, bound                       dimension scales of strings; there MAY be no rows
        values, errors (path, subject);  interval (path, bound);  estimate (path,)              float64
        title, unit, contrast, verdict, better, higher_is, drawn (path,)                        strings
        dims, entries (path,): which element of which array a row is                            JSON arrays of strings
        p (path,);  runs (path, run): those of the first subject, of the second ...             float64, with runs only

Rules
- `format` MUST be "gapscope-report" or "gapscope-comparison" and `format_version` an integer.  A reader MUST refuse a
  newer version than it knows, and MUST read all older ones.
- `complete` MUST be 1, and a writer MUST set it last.  A reader MUST refuse a file without it.
- Attributes of subject and environment MUST be single strings, integers, floats or booleans; any key is allowed.  An
  integer beyond 64 bits is a string.
- `order` lists the results in the order in which they were measured, `quantities` the quantities of a result in order
  of importance: the first is the headline.  Readers MUST ignore members that neither of them names.
- `status` MUST be the name of a `gapscope.results.Status`; `message` is its sentence, for people.
- `settings` MUST be a JSON object with sorted keys.
- Each axis of a quantity MUST carry its dimension scale, and the scale's name as its dimension label: xarray opens any
  result group by itself.  Two quantities that share a dimension MUST share its labels.
- Values MAY be NaN or infinite.  An error that is not known MUST be absent rather than NaN.
- `NX_class`, `signal` and `default` MAY be present; they let NeXus viewers (h5web) open a plot.
- Everything outside /environment MUST be a function of what was measured: no times, no random names.
- Readers MUST NOT follow soft or external links, nor read external or virtual storage.
- A writer MUST replace a file in one step, so that nobody ever sees half of one.

Version history: 1, the first.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np

from gapscope.errors import ReportError
from gapscope.report import hdf5
from gapscope.report.atomic import replace
from gapscope.report.records import Comparison as Comparison
from gapscope.report.records import Facts, Subject
from gapscope.report.records import Record as Record
from gapscope.report.records import Report as Report
from gapscope.report.records import Row as Row
from gapscope.report.records import merge as merge
from gapscope.report.records import merge_comparison as merge_comparison
from gapscope.report.rows import get_rows, put_rows
from gapscope.results import CHUNKS, Better, Bound, Contrast, Drawn, Quantity, Status

FORMAT_VERSION = 1
REPORT, COMPARISON = "gapscope-report", "gapscope-comparison"
RESERVED = ("chunk", "chunks", "samples", "comparison")
PARTS = ("identity", "training", "conditions")
CHOICES: dict[str, tuple[str, ...]] = {
    "bound": get_args(Bound),
    "drawn": get_args(Drawn),
    "contrast": get_args(Contrast),
    "better": get_args(Better),
}
QUANTITY_TEXTS = ("unit", "better", "bound", "contrast", "higher_is", "drawn", "doc")


# Writing


def write(content: Report | Comparison, path: str | os.PathLike[str]) -> None:
    """Write a report or comparison in one step: a reader, a crash or a full disk finds the old file or the new one.

    Raises: ReportError if the place cannot be written; ValueError if the content breaks the format's rules.
    """
    try:
        image = _image(content)
    except MemoryError as error:
        raise ReportError(
            f"{path} cannot be written: out of memory. Nothing was lost: what was there is unchanged. Free memory, and "
            "run the same command again."
        ) from error
    replace(path, image)


def _image(content: Report | Comparison) -> bytes:
    # Built in memory: HDF5 notices a full disk while closing, when nothing can be saved any more.
    with h5py.File(secrets.token_hex(8), "w", driver="core", backing_store=False) as file:
        kind = REPORT if isinstance(content, Report) else COMPARISON
        file.attrs.update(format=kind, format_version=FORMAT_VERSION, NX_class="NXroot", default="results")
        if isinstance(content, Report):
            _put_report(file, content)
        else:
            _put_comparison(file, content)
        file.attrs["complete"] = 1
        file.flush()
        return bytes(file.id.get_file_image())


def _put_report(file: h5py.File, report: Report) -> None:
    _put_subject(file.create_group("subject"), report)
    _put_results(file, report)


def _put_results(file: h5py.File, content: Report | Comparison) -> None:
    results = file.create_group("results")
    results.attrs["NX_class"] = "NXentry"
    hdf5.put_texts(results, "order", tuple(content.results))
    for name, record in content.results.items():
        _check_name(results, name)
        _put_record(results.create_group(name), record)
        if "signal" in results[name].attrs:
            results.attrs.setdefault("default", name)
    environment = file.create_group("environment")
    hdf5.put_facts(environment, content.environment)
    seconds = {name: float(record.seconds) for name, record in content.results.items()}
    hdf5.put_facts(environment.create_group("seconds"), seconds)


def _put_subject(group: h5py.Group, subject: Report | Subject) -> None:
    for part in PARTS:
        hdf5.put_facts(group.create_group(part), getattr(subject, part))


def _put_subjects(group: h5py.Group, subjects: Sequence[Subject]) -> None:
    for index, subject in enumerate(subjects):
        side = group.create_group(str(index))
        side.attrs.update(label=hdf5.text(subject.label), short=hdf5.text(subject.short))
        _put_subject(side, subject)
        if subject.runs:
            _put_subjects(side.create_group("runs"), subject.runs)


def _check_name(group: h5py.Group, name: str) -> None:
    if not name or set("/\0") & set(name) or name == "." or "__" in name or name in RESERVED:
        raise ValueError(
            f"{group.name}: `{name}` cannot be stored; expected a name without `/` and `__`, and none of {RESERVED}"
        )


def _put_record(group: h5py.Group, record: Record) -> None:
    group.attrs.update(
        analyzer=record.analyzer,
        version=record.version,
        status=record.status.name,
        message=record.message,
        matvecs=record.matvecs,
        settings=json.dumps(record.settings, sort_keys=True),
    )
    hdf5.put_texts(group, "notes", record.notes)
    hdf5.put_texts(group, "quantities", tuple(record.quantities))
    labels = _shared_labels(group, record.quantities)
    scales = {dim: hdf5.put_scale(group, dim, tuple(names)) for dim, names in labels.items()}
    if any(quantity.chunks is not None for quantity in record.quantities.values()):
        scales["chunk"] = hdf5.put_scale(group, "chunk", np.arange(CHUNKS))
    for name, quantity in record.quantities.items():
        _put_quantity(group, name, quantity, scales)
    arrays = [name for name, quantity in record.quantities.items() if quantity.dims]
    group.attrs["NX_class"] = "NXdata" if arrays else "NXcollection"
    if arrays:
        group.attrs["signal"] = arrays[0]


def _shared_labels(group: h5py.Group, quantities: Mapping[str, Quantity]) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for name, quantity in quantities.items():
        _check_name(group, name)
        for dim in quantity.dims:
            _check_name(group, dim)
            if dim in quantities:
                raise ValueError(f"{group.name}: `{dim}` is both a quantity and a dimension; rename one")
            if labels.setdefault(dim, quantity.labels[dim]) != quantity.labels[dim]:
                raise ValueError(
                    f"{group.name}/{name}: the labels of `{dim}` differ from another quantity's; rename one"
                )
    return labels


def _put_quantity(group: h5py.Group, name: str, quantity: Quantity, scales: Mapping[str, Any]) -> None:
    axes = [scales[dim] for dim in quantity.dims]
    data = hdf5.put_array(group, name, quantity.value, axes)
    for key in QUANTITY_TEXTS:
        data.attrs[key] = hdf5.text(getattr(quantity, key))
    for key in ("numerical_error", "sampling_error"):
        if (error := getattr(quantity, key)) is not None:
            hdf5.put_array(group, f"{name}__{key}", error, axes)
    if quantity.chunks is not None:
        hdf5.put_array(group.require_group("chunks"), name, quantity.chunks, [scales["chunk"], *axes])
    if quantity.samples is not None:
        samples, parent = np.asarray(quantity.samples, dtype=np.uint8), group.require_group("samples")
        axis = hdf5.put_bare_scale(parent, f"{name}__sample", samples.size)
        hdf5.put_array(parent, name, samples, [axis], **({"compression": "gzip"} if samples.size else {}))


def _put_comparison(file: h5py.File, comparison: Comparison) -> None:
    _put_subjects(file.create_group("subjects"), comparison.subjects)
    _put_results(file, comparison)
    if comparison.rows or not comparison.results:
        file["results"].attrs["default"] = "comparison"
    table = file["results"].create_group("comparison")
    table.attrs.update(NX_class="NXdata", signal="values")
    hdf5.put_texts(table, "reading", comparison.reading)
    hdf5.put_texts(table, "forced", comparison.forced)
    put_rows(table, comparison)


# Reading


def read(path: str | os.PathLike[str]) -> Report | Comparison:
    """Read a report or a comparison.

    Raises: ReportError if it is missing, foreign, unfinished, damaged (naming the place) or from the future.
    """
    path = Path(path)
    if path.is_dir():
        raise ReportError(f"{path} is a folder. Expected a report. Name one: `gapscope show NAME.report.h5`.")
    with _opened(path) as file, _at(path, "/"):
        kind = str(hdf5.attribute(file, "format") if "format" in file.attrs else "missing")
        if kind not in (REPORT, COMPARISON):
            raise _foreign(path, f"HDF5, but its `format` is {kind!r}")
        version = int(hdf5.attribute(file, "format_version") if "format_version" in file.attrs else 0)
        if version > FORMAT_VERSION:
            raise ReportError(
                f"{path} has format version {version}; this gapscope reads up to version {FORMAT_VERSION}; upgrade: "
                "`pip install --upgrade gapscope`."
            )
        if version < 1 or "complete" not in file.attrs or hdf5.attribute(file, "complete") != 1:
            raise ReportError(f"{path} was never finished. Expected a complete report. Measure again to replace it.")
        return _get_report(path, file) if kind == REPORT else _get_comparison(path, file)


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report, and nothing else."""
    content = read(path)
    if isinstance(content, Comparison):
        raise ReportError(f"{path} is a comparison. Expected the report of one checkpoint. `gapscope show` shows it.")
    return content


def _foreign(path: Path, observed: str) -> ReportError:
    return ReportError(
        f"{path} is not a gapscope report ({observed}). Expected a file that gapscope wrote. "
        "Make one: `gapscope sharpness CHECKPOINT`."
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    if not os.path.exists(path):
        raise ReportError(f"{path} does not exist. Expected a report. Make one: `gapscope sharpness CHECKPOINT`.")
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
            if start != b"\x89HDF\r\n\x1a\n":
                raise _foreign(path, "not HDF5" if start else "empty")
            content = start + stream.read()
        file = h5py.File(path, "r", locking=False)  # reports are replaced, never changed: nothing to lock
    except (OSError, RuntimeError) as error:
        raise ReportError(
            f"{path} cannot be opened: {_first_line(error)}. Expected a whole report. "
            "Copy it again, or move it away and measure again."
        ) from error
    with file:
        with _at(path, "/"):
            longest = hdf5.check_heaps(content)
        with hdf5.bounded(longest):
            yield file


@contextlib.contextmanager
def _at(path: Path, where: str) -> Iterator[None]:
    """Turn whatever damage raises into a ReportError that names the place; the innermost place wins."""
    try:
        yield
    except (LookupError, OSError, RuntimeError, ArithmeticError, ValueError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is damaged at {where}: {_first_line(error)}. Expected what gapscope wrote. "
            "Copy it again, or move it away and measure again."
        ) from error


def _first_line(error: Exception) -> str:
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (said.splitlines() or ["unreadable"])[0]


def _get_report(path: Path, file: h5py.File) -> Report:
    return Report(**_get_subject(path, hdf5.member(file, "subject", h5py.Group)), **_get_results(path, file))


def _get_results(path: Path, file: h5py.File) -> dict[str, Any]:
    environment = hdf5.member(file, "environment", h5py.Group)
    with _at(path, "/environment/seconds"):
        seconds = hdf5.get_facts(hdf5.member(environment, "seconds", h5py.Group))
    results, records = hdf5.member(file, "results", h5py.Group), {}
    for name in hdf5.get_texts(results, "order"):
        with _at(path, f"/results/{name}"):
            records[name] = _get_record(path, hdf5.member(results, name, h5py.Group), float(seconds[name]))
    return {"environment": hdf5.get_facts(environment), "results": records}


def _get_subject(path: Path, group: h5py.Group) -> dict[str, Any]:
    parts: dict[str, Facts] = {}
    for part in PARTS:
        with _at(path, f"{group.name}/{part}"):
            parts[part] = hdf5.get_facts(hdf5.member(group, part, h5py.Group))
    return parts


def _get_record(path: Path, group: h5py.Group, seconds: float) -> Record:
    settings = json.loads(hdf5.get_text(group, "settings"))
    if not isinstance(settings, dict):
        raise ValueError("`settings` is not a JSON object")
    quantities = {}
    for name in hdf5.get_texts(group, "quantities"):
        with _at(path, f"{group.name}/{name}"):
            quantities[name] = _get_quantity(group, name)
    return Record(
        analyzer=hdf5.get_text(group, "analyzer"),
        version=hdf5.get_text(group, "version"),
        status=Status[hdf5.get_text(group, "status", tuple(Status.__members__))],
        matvecs=int(hdf5.attribute(group, "matvecs")),
        seconds=seconds,
        notes=hdf5.get_texts(group, "notes"),
        settings=settings,
        quantities=quantities,
    )


def _get_quantity(group: h5py.Group, name: str) -> Quantity:
    data = hdf5.member(group, name, h5py.Dataset)
    # h5py's own `dims` hands whatever DIMENSION_LABELS is to C as texts: numbers there end the process
    labelled = data.ndim and "DIMENSION_LABELS" in data.attrs
    dims = hdf5.get_texts(data, "DIMENSION_LABELS") if labelled else ("",) * data.ndim
    return Quantity(
        value=hdf5.get_array(group, name),
        numerical_error=hdf5.get_optional(group, f"{name}__numerical_error"),
        sampling_error=hdf5.get_optional(group, f"{name}__sampling_error"),
        chunks=hdf5.get_optional(group, "chunks", name),
        samples=hdf5.get_optional(group, "samples", name),
        dims=dims,
        labels={dim: hdf5.get_strings(group, dim) for dim in dims},
        **{key: hdf5.get_text(data, key, CHOICES.get(key, ())) for key in QUANTITY_TEXTS},
    )


def _get_comparison(path: Path, file: h5py.File) -> Comparison:
    subjects = _get_subjects(path, hdf5.member(file, "subjects", h5py.Group))
    results = _get_results(path, file)
    with _at(path, "/results/comparison"):
        table = hdf5.member(hdf5.member(file, "results", h5py.Group), "comparison", h5py.Group)
        return Comparison(
            subjects=subjects,
            rows=get_rows(table, [subject.size for subject in subjects]),
            reading=hdf5.get_texts(table, "reading"),
            forced=hdf5.get_texts(table, "forced"),
            **results,
        )


def _get_subjects(path: Path, sides: h5py.Group, *, grouped: bool = True) -> tuple[Subject, ...]:
    """Return the subjects; those of several runs with each run, which has none itself."""
    found = []
    for index in range(len(sides)):
        with _at(path, f"{sides.name}/{index}"):
            side = hdf5.member(sides, str(index), h5py.Group)
            nested = grouped and hdf5.has(side, "runs")
            runs = _get_subjects(path, hdf5.member(side, "runs", h5py.Group), grouped=False) if nested else ()
            label, short = hdf5.get_text(side, "label"), hdf5.get_text(side, "short")
            found.append(Subject(label=label, short=short, runs=runs, **_get_subject(path, side)))
    return tuple(found)
