"""Which figures a page has: chosen by what a quantity declares of itself, so that anybody's analyzer gets them too.

An array that is drawn as a line or bars, or has many numbered entries, becomes curves; a map becomes maps; judged
arrays and those with errors become dots.  What a comparison has of its subjects is drawn with the subjects beside each
other, and the ratios of its judged rows as one forest of intervals.
"""

import collections
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.report.canvas import rising
from gapscope.report.charts import Content, Curves, Dot, Dots
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import count, figure, number, size
from gapscope.report.groups import shared
from gapscope.report.map_chart import Map
from gapscope.report.record_view import marks
from gapscope.report.records import Facts, Record, combined
from gapscope.report.titles import place, title
from gapscope.results import Array, Quantity

MANY = 10  # numbered entries that read better as a curve than as dots
MOST = {"curves": 6, "panels": 12, "dots": 48}
LISTED = 1_000  # numbers of a figure that the page holds; all of them are in --csv
QUARTILES = ("lower_quartile", "upper_quartile")  # drawn behind the medians that they belong to
SUBJECT = "subject"
LOG = ("density/density", "near-rank/singular_values", "near-rank/centred_singular_values")  # decades are the point
AXES = {
    "a": "a: the first checkpoint at 0, the second at 1",
    "grid": "eigenvalue",
    "first": "first direction",
    "second": "second direction",
}
CAPTIONS = {
    "path/loss": "As in figures 3 and 7 of Keskar et al. (2017): 0 is the first checkpoint and 1 the second.",
    "path/accuracy": "As in figures 3 and 7 of Keskar et al. (2017): 0 is the first checkpoint and 1 the second.",
    "density/density": "A tall peak at 0 with few eigenvalues far out is usual; what lies left of 0 is a way down.",
    "near-rank/singular_values": "The faster a curve falls, the fewer directions the activations span; what is smaller "
    "than the axis lies on its foot.",
}
BOXED = "Behind each median a wide bar reaches from the lower to the upper quartile. "


@dataclass(frozen=True, kw_only=True)
class Figure:
    """What is drawn of one quantity: charts, each with a heading, their caption and their numbers."""

    path: str
    title: str
    panels: tuple[tuple[str, Content], ...]  # (heading, chart)
    caption: str
    numbers: Table


def figures(results: Mapping[str, Record], conditions: Facts, names: Sequence[str]) -> list[Figure]:
    """Return the figures of records that were measured under the same conditions, on the subjects of these names."""
    about = sampled(conditions)
    ordered = sorted(results, key=place)
    return [one for name in ordered for one in _of_record(results[name], about, names)]


def sampled(conditions: Mapping[str, object]) -> str:
    """Return " on 1,300 train samples", as far as that is known."""
    samples = conditions.get("samples")
    amount = f"{count(samples)} " if isinstance(samples, int) else ""
    return f" on {amount}{conditions['split']} samples" if "split" in conditions else ""


def _of_record(record: Record, about: str, names: Sequence[str]) -> Iterator[Figure]:
    how = measured([record], about)
    for name, quantity in record.quantities.items():
        if name not in QUARTILES and worth(quantity):
            found = [record.quantities.get(one) for one in QUARTILES if name == "median"]
            boxes = [one for one in found if one is not None and one.value.shape == quantity.value.shape]
            caption = errors(quantity) + BOXED * (len(boxes) == 2) + how
            yield illustrated(f"{record.analyzer}/{name}", quantity, caption, marks=marks(record, names), boxes=boxes)


def measured(records: Sequence[Record], about: str) -> str:
    """Say how an analyzer measured, and how its measurements ended."""
    settings = ", ".join(f"{key} {value}" for key, value in sorted(shared([r.settings for r in records]).items()))
    ends = collections.Counter(record.message for record in records)
    said = "; ".join(f"{often} of {len(records)} {end}" if len(ends) > 1 else end for end, often in ends.items())
    return f"Measured{about} by gapscope {records[0].analyzer}{f' ({settings})' if settings else ''}: {said}."


def worth(quantity: Quantity) -> bool:
    """Say whether an array deserves a figure: drawn ones do, of numbers those that are judged or have errors."""
    if quantity.value.size < 2 or quantity.dims == (SUBJECT,) or not np.isfinite(quantity.value).any():
        return False
    if quantity.drawn != "numbers":
        return quantity.drawn != "detail"
    erring = quantity.numerical_error is not None or quantity.sampling_error is not None
    return (
        quantity.better != "none"
        or numbered(quantity.labels[quantity.dims[-1]])
        or (erring and len(quantity.dims) == 1 and "layer" not in quantity.dims)
    )


def numbered(labels: Sequence[str]) -> bool:
    """Say whether entries are so many and so numbered that a curve shows them best."""
    return len(labels) >= MANY and rising(labels)


def barred(quantity: Quantity) -> bool:
    """Say whether its chart has bars: a map has none, nor has an area, which stands for mass."""
    known = (quantity.numerical_error, quantity.sampling_error)
    return kind(quantity) != "map" and quantity.drawn != "bars" and any(error is not None for error in known)


def errors(quantity: Quantity) -> str:
    """Say what the bars of a chart are."""
    if not barred(quantity):
        return ""
    return "A thin bar reaches one error to each side: that over the data and that of the computation, combined. "


def kind(quantity: Quantity) -> str:
    """Return "map", "curves" or "dots"."""
    if quantity.drawn == "map" and len(quantity.dims) > 1 and min(quantity.value.shape[-2:]) > 1:
        return "map"
    labels = quantity.labels[quantity.dims[-1]]
    drawn = quantity.drawn in ("line", "bars", "map")
    return "curves" if numbered(labels) or (drawn and len(labels) > 1) else "dots"


def illustrated(
    path: str,
    quantity: Quantity,
    caption: str,
    *,
    name: str = "",
    spread: str = "± data",
    marks: tuple[tuple[str, float, float], ...] = (),
    boxes: Sequence[Quantity] = (),
) -> Figure:
    """Return the figure of an array; without a name, that of its path.

    `boxes` are the quartiles behind its dots, `marks` the places on its maps; `spread` heads its sampling errors.
    """
    name, sort = name or title(*path.split("/", 1)), kind(quantity)
    if sort == "map":
        panels, left = _maps(name, quantity, marks)
    else:
        panels, left = curves(name, quantity, path) if sort == "curves" else _dots(name, quantity, boxes)
    rest = f" Drawn: the first {left}." if left else ""
    text = " ".join(filter(None, (CAPTIONS.get(path, ""), caption))) + rest
    return Figure(path=path, title=name, panels=tuple(panels), caption=text, numbers=numbers(quantity, spread))


def stacked(axis: str, places: Sequence[str], names: Sequence[str], **arrays: Array | None) -> Quantity:
    """Return curves of (names, places) as one quantity; a single one needs no dimension of its own."""
    several = {"curve": tuple(names)} if len(names) > 1 else {}
    labels = {**several, axis: tuple(places)}
    given = {key: array if several or array is None else array[0] for key, array in arrays.items()}
    return Quantity(doc="", drawn="line", dims=tuple(labels), labels=labels, **given)  # type: ignore[arg-type]  # arrays


Panels = tuple[list[tuple[str, Content]], str]


def curves(name: str, quantity: Quantity, path: str) -> Panels:
    """Draw one panel per entry of all dimensions but the last two, with one curve per entry of the last but one."""
    lead, dims = quantity.dims[:-2], quantity.dims[-2:]
    words = quantity.labels[dims[-1]]
    order = -1 if rising(words[::-1]) else 1  # falling places, as losses of a training, are drawn as rising ones
    words = words[::order]
    numeric = rising(words)
    places = tuple(map(float, words)) if numeric else tuple(float(i) for i in range(len(words)))
    names = quantity.labels[dims[0]] if len(dims) > 1 else ("",)
    shape = (-1, len(names), len(words))
    values, around = (array.reshape(shape)[..., ::order] for array in (quantity.value, combined(quantity)))
    axis_title = _axis(dims[-1]) + ("" if numeric else ", by number")
    panels: list[tuple[str, Content]] = []
    every = zip(_headings(quantity, lead), values, around, strict=True)
    for heading, several, bars in itertools.islice(every, MOST["panels"]):
        shown = several[: MOST["curves"]]
        content = Curves(
            said=_said(name, heading, shown, f"{len(shown)} curves over {len(words)} places of {axis_title}"),
            across=axis_title,
            upward=f"{name} {quantity.unit}".strip(),
            places=places,
            words=words,
            names=names[: MOST["curves"]],
            values=shown,
            errors=bars[: MOST["curves"]] if barred(quantity) else None,
            filled=quantity.drawn == "bars" and len(shown) == 1,
            log=True if path in LOG else None,
        )
        panels.append((heading, content))
    return panels, _left(len(names), "curves") or _left(len(values), "panels")


def _maps(name: str, quantity: Quantity, marks: tuple[tuple[str, float, float], ...]) -> Panels:
    """Draw one map per entry of all dimensions but the last two."""
    rows, columns = (_places(quantity.labels[dim]) for dim in quantity.dims[-2:])
    values = quantity.value.reshape(-1, len(rows), len(columns))
    panels: list[tuple[str, Content]] = []
    headings = _headings(quantity, quantity.dims[:-2])
    for heading, plane in itertools.islice(zip(headings, values, strict=True), MOST["panels"]):
        content = Map(
            said=_said(name, heading, plane, f"a map of {len(rows)} by {len(columns)} places"),
            across=_axis(quantity.dims[-1]),
            upward=_axis(quantity.dims[-2]),
            unit=quantity.unit or name.rpartition(" ")[2],
            columns=columns,
            rows=rows,
            values=plane,
            marks=marks,
        )
        panels.append((heading, content))
    return panels, _left(len(values), "panels")


def _axis(dim: str) -> str:
    return AXES.get(dim, dim.replace("_", " "))


def _places(labels: Sequence[str]) -> Array:
    return np.array([float(label) for label in labels] if rising(labels) else range(len(labels)), dtype=np.float64)


def _dots(name: str, quantity: Quantity, boxes: Sequence[Quantity]) -> Panels:
    """Draw one row per entry; subjects stand beside each other in it."""
    series = quantity.labels.get(SUBJECT, ()) if quantity.dims[-1:] == (SUBJECT,) else ()
    rows: dict[str, list[Dot]] = {}
    around = combined(quantity)
    for index in np.ndindex(quantity.value.shape):
        entries = [quantity.labels[dim][i] for dim, i in zip(quantity.dims, index, strict=True)]
        label = ", ".join(entries[:-1] if series else entries)
        rows.setdefault(label, []).append(
            _dot(float(quantity.value[index]), float(around[index]), index, boxes, series=index[-1] if series else 0)
        )
    shown = dict(itertools.islice(rows.items(), MOST["dots"]))
    content = Dots(
        said=_said(name, "", quantity.value, f"{len(shown)} rows of dots"),
        across=f"{name} {quantity.unit}".strip(),
        rows=tuple((label, tuple(dots)) for label, dots in shown.items()),
        series=series,
    )
    return [("", content)], _left(len(rows), "dots")


def _dot(value: float, error: float, index: tuple[int, ...], boxes: Sequence[Quantity], *, series: int) -> Dot:
    interval = (value - error, value + error) if error > 0 else (math.nan, math.nan)
    box = (float(boxes[0].value[index]), float(boxes[1].value[index])) if len(boxes) == 2 else (math.nan, math.nan)
    return Dot(value=value, words=figure(value, error), interval=interval, box=box, series=series)


def _headings(quantity: Quantity, lead: Sequence[str]) -> list[str]:
    return [", ".join(entries) for entries in itertools.product(*(quantity.labels[dim] for dim in lead))]


def _left(total: int, kind: str) -> str:
    return f"{MOST[kind]} of {count(total)}" if total > MOST[kind] else ""


def _said(name: str, heading: str, values: Array, what: str) -> str:
    finite = values[np.isfinite(values)]
    between = f", from {number(float(finite.min()))} to {number(float(finite.max()))}" if finite.size else ""
    return f"{', '.join(filter(None, (name, heading)))}: {what}{between}. The numbers are in the table below."


def numbers(quantity: Quantity, spread: str = "± data") -> Table:
    """Return the numbers of an array: its last dimension as rows, the others as columns, or a row each with errors."""
    given = [(spread, quantity.sampling_error), ("± numerical", quantity.numerical_error)]
    errors = [(name, error) for name, error in given if error is not None]
    *lead, last = quantity.dims
    wide = math.prod(len(quantity.labels[dim]) for dim in lead)
    if errors or wide > MANY or not lead:
        heads = [dim.replace("_", " ") for dim in quantity.dims]
        columns = [*(Column(header=head, numeric=False) for head in heads), Column(header="value")]
        cells = [
            (*entries, number(float(quantity.value[index]), 6), *(size(float(error[index])) for _, error in errors))
            for index, entries in _places_of(quantity)
        ]
        columns += [Column(header=name) for name, _ in errors]
    else:
        columns = [Column(header=last.replace("_", " "), numeric=False)]
        columns += [Column(header=", ".join(e)) for e in itertools.product(*(quantity.labels[dim] for dim in lead))]
        values = quantity.value.reshape(wide, -1).T.tolist()
        rows = zip(quantity.labels[last], values, strict=True)
        cells = [(label, *(number(value, 6) for value in several)) for label, several in rows]
    most = max(LISTED // len(columns), 1)
    lines = [Line(cells=one) for one in cells[:most]]
    if len(cells) > most:
        lines.append(Line(cells=(f"{count(len(cells) - most)} more rows: gapscope show FILE --csv",)))
    return Table(columns=tuple(columns), lines=tuple(lines))


def _places_of(quantity: Quantity) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    for index in np.ndindex(quantity.value.shape):
        yield index, tuple(quantity.labels[dim][i] for dim, i in zip(quantity.dims, index, strict=True))
