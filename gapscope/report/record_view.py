"""One record as a block: its headline first, then single numbers, what there is per layer, and drawings."""

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from gapscope.report.document import Column, Heat, Item, Line, Note, Series, Table, Tone
from gapscope.report.figures import NONE, count, figure, number, rounded, size
from gapscope.report.records import Facts, Record
from gapscope.report.titles import short_title
from gapscope.results import Quantity, Status

WHOLE = 24  # elements: larger arrays are shown in part
PART = 8
LAYERS = 64  # larger networks are shown in part
ABREAST = 6  # columns that one quantity may take in the table of layers
STRIP = 8  # entries from which a strip shows more than the table beside it
CURVES = 8  # curves of one quantity
MAPS = 2  # maps of one quantity
MOST = 64  # elements: larger arrays are listed in part, and drawn ones not at all, even when verbose
LISTED = ("numbers", "detail")
DIGEST = re.compile("[0-9a-f]{40,}")
BESIDE = (*LISTED, "strip")
PROVEN = (Status.EXACT, Status.CONVERGED, Status.BREAKDOWN)
Named = tuple[str, Quantity]


def record_block(record: Record, verbose: bool, *, explained: bool = True) -> tuple[Item, ...]:
    """Return what is shown of a record; when verbose, every quantity, `explained` or not."""
    items = [item for item in record.quantities.items() if verbose or item[1].drawn != "detail"]
    layered = [item for item in items if _by_layer(item[1])]
    drawn = [item for item in record.quantities.items() if _is_drawn(item[1])]
    apart = dict((*layered, *drawn))
    tabled = {name for name, quantity in record.quantities.items() if verbose and _is_table(quantity)}
    listed = [item for item in (items if verbose else _judged(items)) if item[0] not in {*apart, *tabled}]
    parts: list[tuple[list[Named], list[Item]]] = [
        (listed, _list(listed, record, verbose)),
        (layered, _layers(layered, record, verbose)),
        (drawn, [drawing for item in drawn for drawing in _drawings(*item, record, verbose)]),
    ]
    headline = next(iter(record.quantities), "")
    parts.sort(key=lambda part: headline not in dict(part[0]))  # stable: only the headline's part moves
    block: list[Item] = [Note(text=record.analyzer, tone="heading")]
    block += [item for _, part in parts for item in part]
    if verbose:
        named = [item for item in items if item[0] in {*dict(drawn), *tabled} - {*dict(layered)}]
        block += [table for item in named for table in _tables(*item, record)]
    return (*block, *_endnotes(record, verbose, explained))


def facts_line(name: str, facts: Facts) -> str:
    """Return facts as one line, with the beginnings of digests."""
    shown = {key: f"{str(value)[:12]}..." if DIGEST.fullmatch(str(value)) else value for key, value in facts.items()}
    return f"{name}: " + ", ".join(f"{key} {value}" for key, value in sorted(shown.items()))


def _endnotes(record: Record, verbose: bool, explained: bool) -> Iterator[Note]:
    cost = [f"{count(record.matvecs)} matvecs"] if record.matvecs else []
    if record.seconds:
        cost.append(f"{record.seconds:.1f}\u00a0s" if record.seconds >= 0.05 else "under 0.1\u00a0s")
    tone: Tone = "dim" if record.status in PROVEN else "warning"
    if cost or record.status is not Status.EXACT:  # what is only gathered was not computed
        yield Note(text=" · ".join([record.message, *cost]), tone=tone)
    yield from (Note(text=note, bullet=True) for note in record.notes)
    if verbose:
        docs = [(short_title(record.analyzer, name), each.doc) for name, each in record.quantities.items() if each.doc]
        yield from (Note(text=f"{name}: {doc}", tone="dim", bullet=True) for name, doc in docs if explained)
        if record.settings:
            yield Note(text=facts_line("settings", record.settings), tone="dim")


def _by_layer(quantity: Quantity) -> bool:
    """Say whether the table of layers has columns for it."""
    few = all(len(quantity.labels[dim]) <= ABREAST for dim in quantity.dims[1:])
    return quantity.dims[:1] == ("layer",) and len(quantity.dims) <= 2 and few and quantity.drawn in BESIDE


def _is_drawn(quantity: Quantity) -> bool:
    if quantity.drawn == "strip" and _by_layer(quantity):
        return len(quantity.labels["layer"]) >= STRIP
    return quantity.drawn not in LISTED and bool(quantity.dims)


def _worth(name: str, quantity: Quantity, record: Record) -> bool:
    """Say whether a reader in a hurry wants this drawing: the first of its kind, and whatever is judged."""
    kinds = {each.drawn: key for key, each in reversed(list(record.quantities.items())) if each.dims}
    return quantity.better != "none" or name == kinds[quantity.drawn]


def _is_table(quantity: Quantity) -> bool:
    """Say whether all numbers need a table of their own."""
    return len(quantity.dims) == 2 and quantity.value.size > WHOLE and not _by_layer(quantity)


def _words(name: str, quantity: Quantity, record: Record) -> str:
    return f"{short_title(record.analyzer, name)} {quantity.unit}".strip()


# Single numbers and small arrays


def _judged(items: Sequence[Named]) -> list[Named]:
    """Return the judged quantities, then single numbers without a direction, and no arrays of those."""
    judged = [item for i, item in enumerate(items) if i == 0 or item[1].better != "none"]
    return judged + [item for item in items[1:] if item[1].better == "none" and not item[1].dims]


def _list(listed: Sequence[Named], record: Record, verbose: bool) -> list[Item]:
    headline = next(iter(record.quantities), "")
    bare = [item for item in listed if verbose and item[0] != headline and _is_bare(item[1])]
    rows = [item for item in listed if item not in bare]
    lines = [line for name, quantity in rows for line in _quantity_lines(name, quantity, record, verbose)]
    tables = [Table(columns=_headed(("", "value", "± data", "± numerical")), lines=tuple(lines))] if lines else []
    return [*tables, *(_run(name, quantity, record) for name, quantity in bare)]


def _is_bare(quantity: Quantity) -> bool:
    """Say whether an array has neither errors nor a direction: its numbers need no lines of their own."""
    errors = (quantity.numerical_error, quantity.sampling_error)
    return quantity.better == "none" and quantity.value.size > ABREAST // 2 and all(error is None for error in errors)


def _run(name: str, quantity: Quantity, record: Record) -> Note:
    """Return numbers one after the other, each with its entry."""
    places = list(np.ndindex(quantity.value.shape))
    shown = places if len(places) <= MOST else places[:PART]
    said = [f"{cell(quantity, place, record.status)} at {', '.join(_entries(quantity, place))}" for place in shown]
    left = [f"{count(len(places) - len(shown))} more of {count(len(places))}: --json"] * (len(shown) < len(places))
    return Note(text=f"{_words(name, quantity, record)}: {'; '.join([*said, *left])}", tone="dim")


def _entries(quantity: Quantity, place: Sequence[int]) -> list[str]:
    return [quantity.labels[dim][i] for dim, i in zip(quantity.dims, place, strict=False)]


def _quantity_lines(name: str, quantity: Quantity, record: Record, verbose: bool) -> Iterator[Line]:
    words = _words(name, quantity, record)
    tone: Tone = "plain" if quantity.better != "none" or name == next(iter(record.quantities)) else "dim"
    total = quantity.value.size
    for position, index in enumerate(np.ndindex(quantity.value.shape)):
        if position == PART and total > (MOST if verbose else WHOLE):
            where = "--json" if total > MOST else "all with --verbose or --json"
            rest = f"{words}, {count(total - PART)} more of {count(total)}: {where}"
            yield Line(cells=(rest, "", "", ""), tone="dim")
            return
        entries = _entries(quantity, index)
        numbers = _numbers(quantity, index, record.status)
        yield Line(cells=(", ".join([words, *entries]), *numbers), tone=tone)


def _numbers(quantity: Quantity, index: tuple[int, ...], status: Status) -> tuple[str, str, str]:
    value, sampling, numerical = _at(quantity, index)
    if between := _between(quantity, value, numerical, status):
        return between, size(sampling), ""
    return _signed(quantity, rounded(value, _error(sampling, numerical)), status), size(sampling), size(numerical)


def _at(quantity: Quantity, index: tuple[int, ...]) -> tuple[float, float, float]:
    value, sampling, numerical = (
        math.nan if values is None else float(values[index])
        for values in (quantity.value, quantity.sampling_error, quantity.numerical_error)
    )
    return value, sampling, numerical


def _error(*errors: float) -> float:
    return math.hypot(*(error for error in errors if math.isfinite(error)))


def _between(quantity: Quantity, value: float, numerical: float, status: Status) -> str:
    """Return a one-sided bound whose error is larger than itself as an interval, for it is not value ± error."""
    known = math.isfinite(numerical) and numerical > abs(value) and status is not Status.NOISE_DOMINATED
    if quantity.bound == "none" or not known:
        return ""
    near, sign = number(value, 2), -1 if quantity.bound == "upper" else 1
    far = number(value + sign * numerical, 2, keep=True)
    return f"{far} to {near}" if sign < 0 else f"{near} to {far}"


def _signed(quantity: Quantity, shown: str, status: Status) -> str:
    """Mark a value that is only known to lie on one side."""
    sign = {"lower": "≥ ", "upper": "≤ ", "none": ""}[quantity.bound]
    return shown if shown == NONE or status in PROVEN else sign + shown


def cell(quantity: Quantity, index: tuple[int, ...], status: Status) -> str:
    """Return one value with its error, or as the bound or interval that it is."""
    value, sampling, numerical = _at(quantity, index)
    between = "" if sampling > 0 else _between(quantity, value, numerical, status)
    return between or _signed(quantity, figure(value, _error(sampling, numerical)), status)


# Layers


def _layers(layered: Sequence[Named], record: Record, verbose: bool) -> list[Item]:
    """Return one table: layers in network order, quantities by importance, so that a narrow window drops the last."""
    if not layered:
        return []
    headline = next(iter(record.quantities))
    ordered = sorted(layered, key=lambda item: (item[0] != headline, item[1].better == "none"))
    headers, columns = ["layer"], [layered[0][1].labels["layer"]]
    for name, quantity in ordered:
        for index in np.ndindex(quantity.value.shape[1:]):
            entries = [quantity.labels[dim][i] for dim, i in zip(quantity.dims[1:], index, strict=True)]
            headers.append(" ".join([_words(name, quantity, record), *entries]))
            layers = range(len(columns[0]))
            columns.append(tuple(cell(quantity, (layer, *index), record.status) for layer in layers))
    lines = [Line(cells=cells) for cells in zip(*columns, strict=True)]
    if len(lines) > LAYERS and not verbose:
        rest = f"{count(len(lines) - LAYERS)} more layers: --verbose"
        lines = [*lines[:LAYERS], Line(cells=(rest,), tone="dim")]
    return [Table(columns=_headed(headers), lines=tuple(lines), overflow="split" if verbose else "drop")]


def _headed(headers: Sequence[str]) -> tuple[Column, ...]:
    first, *others = headers
    return (Column(header=first, numeric=False, wraps=True), *(Column(header=header) for header in others))


# Drawings, and the numbers behind them


def _drawings(name: str, quantity: Quantity, record: Record, verbose: bool) -> Iterator[Item]:
    words = _words(name, quantity, record)
    if not verbose and not _worth(name, quantity, record):
        if not _by_layer(quantity):  # the table has those numbers
            yield Note(text=f"{words}: drawn with --verbose", tone="dim")
        return
    flat = 2 if quantity.drawn == "map" and len(quantity.dims) > 1 else 1
    lead, dims = quantity.dims[:-flat], quantity.dims[-flat:]
    labels = [quantity.labels[dim] for dim in dims]
    where = list(np.ndindex(quantity.value.shape[: len(lead)]))
    names = [", ".join(_entries(quantity, index)) for index in where]
    most = len(where) if verbose else CURVES if flat == 1 else MAPS
    if flat == 2:
        for index, title in zip(where[:most], names, strict=False):
            yield Heat(
                title=", ".join(part for part in (words, title) if part),
                axes=(dims[0], dims[1]),
                rows=labels[0],
                columns=labels[1],
                values=tuple(map(tuple, quantity.value[index].tolist())),
                marks=marks(record),
            )
    else:
        yield Series(
            title=words,
            style="strip" if quantity.drawn == "strip" else "line" if quantity.drawn == "line" else "bars",
            axis=dims[0].replace("_", " "),
            labels=labels[0],
            curves=tuple(tuple(quantity.value[index].tolist()) for index in where[:most]),
            names=tuple(names[:most]) if lead else (),
        )
    if len(where) > most:
        more = f"{count(len(where) - most)} more of {count(len(where))}"
        yield Note(text=f"{words}: {more} with --verbose", tone="dim")


def marks(record: Record, names: Sequence[str] = ()) -> tuple[tuple[str, float, float], ...]:
    """Return where subjects lie on a map, by their names where there are as many: along its rows, and its columns.

    A quantity `points` holds their places along the columns and the rows.
    """
    points = record.quantities.get("points")
    if points is None or points.dims != ("subject", "axis") or points.value.shape[1] != 2:
        return ()
    labels = names if len(names) == len(points.value) else points.labels["subject"]
    return tuple((label, y, x) for label, (x, y) in zip(labels, points.value.tolist(), strict=True))


def _tables(name: str, quantity: Quantity, record: Record) -> Iterator[Table | Note]:
    """Return the numbers of an array: one line per entry, or its longer dimension as rows and the other as columns."""
    words = _words(name, quantity, record)
    lead, dims, total = quantity.dims[:-2], quantity.dims[-2:], quantity.value.size
    if _is_drawn(quantity) and total > MOST:
        yield Note(text=f"{words}: {count(total)} numbers: --json", tone="dim")
        return
    if len(quantity.dims) == 1:
        labels = quantity.labels[dims[0]]
        lines = [Line(cells=(label, *_numbers(quantity, (i,), record.status))) for i, label in enumerate(labels)]
        columns = _headed((dims[0], "value", "± data", "± numerical"))
        yield Table(columns=columns, lines=tuple(lines), caption=words)
        return
    first, second = (quantity.labels[dim] for dim in dims)
    turned = len(first) < len(second)
    down, across = (second, first) if turned else (first, second)
    tables = list(np.ndindex(quantity.value.shape[: len(lead)]))
    if total > MOST:  # the first rows of the first table
        tables, down = tables[:1], down[:PART]
    for index in tables:
        titles = _entries(quantity, index)
        places = [[(j, i) if turned else (i, j) for j in range(len(across))] for i in range(len(down))]
        yield Table(
            columns=_headed((" \\ ".join(dims[::-1] if turned else dims), *across)),
            lines=tuple(
                Line(cells=(label, *(cell(quantity, (*index, *place), record.status) for place in row)))
                for label, row in zip(down, places, strict=True)
            ),
            overflow="split",
            caption=", ".join([words, *titles]),
        )
    if left := total - len(tables) * len(down) * len(across):
        yield Note(text=f"{words}: {count(left)} more of {count(total)}: --json", tone="dim")
