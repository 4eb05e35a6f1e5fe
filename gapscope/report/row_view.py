"""The rows of a comparison as tables: what is judged in one, layers in one per quantity, the rest when verbose."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from gapscope.report.document import Column, Item, Line, Note, Overflow, Table, Tone
from gapscope.report.figures import NONE, count, figure, spread
from gapscope.report.records import Comparison, Row, Subject

TOP = 5  # layers of the largest difference; one more is shown rather than announced
PART = 8  # numbers of a larger array that nobody judges; all of them are in JSON
MOST = 64  # numbers of a drawn array that are listed all the same
LISTED = ("numbers", "strip")
SHORT = 14  # letters of a verdict that stay on one line
NO_BREAK = "\u00a0"


def row_tables(comparison: Comparison, verbose: bool) -> tuple[tuple[Item, ...], ...]:
    """Return the blocks: the judged rows, the layers, and what else was measured."""
    if not comparison.rows:
        return ()
    groups = [list(group) for _, group in itertools.groupby(comparison.rows, key=_quantity)]
    headlines = {_analyzer(group[0]): group for group in reversed(groups)}
    main, layers, rest = [], [], []
    for group in groups:
        row = group[0]
        shown = row.better != "none" or headlines[_analyzer(row)] is group
        if "layer" in row.dims and row.drawn in LISTED and shown:
            layers.append(group)
        elif row.better != "none" and row.drawn in LISTED:
            main += group
        else:
            rest.append(group)
    subjects = comparison.subjects
    first, last = subjects[0].short, subjects[-1].short
    legend = Note(text=_legend(comparison), tone="dim")
    blocks: list[tuple[Item, ...]] = []
    if main:
        lines = tuple((_row_lines if verbose else _brief_lines)(main, first, last))
        table = Table(columns=_columns(subjects, "ratio"), lines=lines, overflow=_overflow(subjects))
        blocks.append((table, legend))
        if left := len(main) - sum(len(line.cells) > 1 for line in lines):
            said = f"Of an array its first number is shown: {count(left)} more with --verbose."
            blocks[-1] = (*blocks[-1], Note(text=said, tone="dim"))
    blocks += [(_layer_table(group, subjects, verbose),) for group in layers]
    if verbose:
        for _, several in itertools.groupby(rest, key=lambda group: _analyzer(group[0])):
            blocks.append((_further([row for group in several for row in group], subjects),))
    if not main and blocks:
        blocks[-1] = (*blocks[-1], legend)
    return tuple(blocks)


def _legend(comparison: Comparison) -> str:
    """Say what the contrasts are, and of runs what stands beside ± and what the intervals are over."""
    first, last = comparison.subjects[0].short, comparison.subjects[-1].short
    ratio, difference = f"ratio: {last} / {first}", f"with a sign: {last} - {first}"
    if not any(subject.runs for subject in comparison.subjects):
        return f"{ratio}; {difference}; intervals over the data"
    return (
        f"mean ± standard deviation over runs; {ratio} of geometric means; {difference}; "
        f"95 % interval: {comparison.over}"
    )


def _quantity(row: Row) -> str:
    return row.path.removesuffix(f"[{','.join(row.entries)}]")


def _analyzer(row: Row) -> str:
    return row.path.partition("/")[0]


def _columns(subjects: Sequence[Subject], contrast: str) -> tuple[Column, ...]:
    return (
        Column(header="", numeric=False, wraps=True),
        *(Column(header=subject.label) for subject in subjects),
        Column(header=contrast),
        Column(header="95 % interval"),
        Column(header="", numeric=False, wraps=True),
    )


def _overflow(subjects: Sequence[Subject]) -> Overflow:
    """Give many subjects several tables: with two, a block per row keeps what belongs together in sight."""
    return "split" if len(subjects) > 2 else "stack"


def _row_lines(rows: Sequence[Row], first: str, last: str) -> Iterator[Line]:
    """Gather the elements of an array under its title: at 80 columns there is no room to repeat it."""
    for _, group in itertools.groupby(rows, key=_quantity):
        elements = list(group)
        if len(elements) == 1:
            yield _row_line(elements[0], first, last)
            continue
        title = _title(elements) + " by layer" * ("layer" in elements[0].dims)
        yield Line(cells=(f"{title} {elements[0].unit}".strip(),))
        for row in elements:
            yield dataclasses.replace(_row_line(row, first, last, name=", ".join(row.entries)), level=1)


def _brief_lines(rows: Sequence[Row], first: str, last: str) -> Iterator[Line]:
    """Show the first number of every array with what the others say of it; arrays of one analyzer share a title."""
    for arrays in _clusters(rows):
        if len(arrays[0]) == 1:
            yield _row_line(arrays[0][0], first, last)
            continue
        titles = [_title(array) for array in arrays]
        shared = _shared_words(titles)
        yield Line(cells=(f"{shared} {arrays[0][0].unit}".strip(),))
        for title, array in zip(titles, arrays, strict=True):
            name = ", ".join(part for part in (title[len(shared) :].strip(), *array[0].entries) if part)
            line = _row_line(array[0], first, last, name=name)
            alike = sum(row.verdict == array[0].verdict for row in array)
            if alike < len(array) and line.cells[-1]:
                words = f"{line.cells[-1]} ({alike}\u00a0of\u00a0{len(array)})"
                line = dataclasses.replace(line, cells=(*line.cells[:-1], words))
            yield dataclasses.replace(line, level=1)


def _clusters(rows: Sequence[Row]) -> Iterator[list[list[Row]]]:
    """Yield arrays in a row of one analyzer and unit whose titles begin alike; a single number stands alone."""
    cluster: list[list[Row]] = []
    for _, group in itertools.groupby(rows, key=_quantity):
        array = list(group)
        alike = cluster and len(array) > 1 and len(cluster[0]) > 1
        alike = alike and (_analyzer(array[0]), array[0].unit) == (_analyzer(cluster[0][0]), cluster[0][0].unit)
        if cluster and not (alike and _shared_words([_title(one) for one in (*cluster, array)])):
            yield cluster
            cluster = []
        cluster.append(array)
    if cluster:
        yield cluster


def _title(array: Sequence[Row]) -> str:
    return array[0].title.removesuffix(", " + ", ".join(array[0].entries))


def _shared_words(titles: Sequence[str]) -> str:
    """Return the words that all titles begin with; one title is its own."""
    words = [title.split() for title in titles]
    if len(words) == 1:
        return titles[0]
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return " ".join(column[0] for column in same)


def _row_line(row: Row, first: str, last: str, name: str = "") -> Line:
    estimate, interval = spread(row.estimate, row.interval)
    if row.contrast == "difference" and row.estimate > 0:
        estimate = f"+{estimate}"
    return Line(
        cells=(
            name or f"{row.title} {row.unit}".strip().replace(" %", "\u00a0%"),
            *(figure(value, error) for value, error in zip(row.values, row.errors, strict=True)),
            estimate,
            "" if interval == NONE else interval,
            _verdict_words(row, first, last),
        ),
        tone=_verdict_tone(row),
    )


def _verdict_words(row: Row, first: str, last: str) -> str:
    if row.verdict == "":
        return "" if row.better == "none" else "no interval"
    if row.verdict == "cannot tell":
        return row.verdict
    who, word = last if row.verdict == "higher" else first, row.higher_is or "higher"
    return f"{who}{NO_BREAK if len(who) + len(word) <= SHORT else ' '}{word}"


def _verdict_tone(row: Row) -> Tone:
    if row.verdict == "":
        return "dim" if row.better == "none" else "unsure"
    if row.verdict == "cannot tell":
        return "unsure"
    return "better" if row.verdict == row.better else "worse"


# Layers


def _layer_table(rows: Sequence[Row], subjects: Sequence[Subject], verbose: bool) -> Table:
    """Return the layers, those that differ most first; of several numbers per layer the one that differs most."""
    weighed = all(not math.isnan(_error(row)) for row in rows if not math.isnan(row.estimate))
    scores = {row.path: _distance(row, weighed=weighed) for row in rows}
    by_layer: dict[str, list[Row]] = {}
    for row in rows:
        by_layer.setdefault(row.entries[row.dims.index("layer")], []).append(row)
    for several in by_layer.values():
        several.sort(key=lambda row: -scores[row.path])
    ordered = sorted(by_layer.values(), key=lambda several: -scores[several[0].path])
    most = len(ordered) if verbose or len(ordered) <= TOP + 1 else TOP
    shown = [row for several in ordered[:most] for row in (several if verbose else several[:1])]
    first, last = subjects[0].short, subjects[-1].short
    lines = [_row_line(row, first, last, name=", ".join(row.entries)) for row in shown]
    lines = [dataclasses.replace(line, tone="plain" if line.tone == "dim" else line.tone) for line in lines]
    if most < len(ordered):
        lines.append(Line(cells=(f"{count(len(ordered) - most)} more layers: --verbose",), tone="dim"))
    kind = rows[0].contrast
    order = f"largest {kind} first" + (", in units of its error" if weighed else "")
    if kind == "ratio":
        order = order.replace("ratio", "|log ratio|")
    others = [dim.replace("_", " ") for dim in rows[0].dims if dim != "layer"]
    each = f", each at the {' and '.join(others)} where it differs most" if others and not verbose else ""
    title = f"{_title(rows)} {rows[0].unit}".strip()
    return _trimmed(subjects, kind, lines, f"{title} by layer, {order}{each}")


def _distance(row: Row, *, weighed: bool) -> float:
    """Return how far apart first and last are, in units of the error if weighed; unknown ones come last."""
    if math.isnan(row.estimate):
        return -1.0
    far = abs(math.log(row.estimate)) if row.contrast == "ratio" else abs(row.estimate)
    if not weighed or not far:
        return far
    error = _error(row)
    return far / error if error else math.inf


def _error(row: Row) -> float:
    """Return half the interval of a difference or a log ratio, or else one standard error of it; NaN if unknown."""
    ends, ratio = row.interval, row.contrast == "ratio"
    if not math.isnan(ends[0]):
        if ratio and not (ends[0] > 0 and ends[1] < math.inf):
            return math.inf
        low, high = map(math.log, ends) if ratio else ends
        return (high - low) / 2
    parts = [(row.errors[i], row.values[i] if ratio else 1.0) for i in (0, -1)]
    return math.hypot(*(error / value if value else math.nan for error, value in parts))


def _trimmed(subjects: Sequence[Subject], contrast: str, lines: Sequence[Line], caption: str) -> Table:
    """Leave out the columns that say nothing."""
    columns = _columns(subjects, contrast)
    whole = [line for line in lines if len(line.cells) > 1]
    kept = [i for i in range(len(columns)) if i == 0 or any(line.cells[i] for line in whole)]
    return Table(
        columns=tuple(columns[i] for i in kept),
        lines=tuple(
            dataclasses.replace(line, cells=tuple(line.cells[i] for i in kept)) if len(line.cells) > 1 else line
            for line in lines
        ),
        overflow=_overflow(subjects),
        caption=caption,
    )


def _further(rows: Sequence[Row], subjects: Sequence[Subject]) -> Table:
    """Return the rows of one analyzer that only a thorough reader asks for."""
    first, last = subjects[0].short, subjects[-1].short
    lines: list[Line] = []
    for _, group in itertools.groupby(rows, key=_quantity):
        array = list(group)
        drawn = array[0].drawn not in (*LISTED, "detail")
        most = len(array) if len(array) <= (MOST if drawn else 2 * PART) else 0 if drawn else PART
        lines += _row_lines(array[:most], first, last)
        if left := len(array) - most:
            title = f"{_title(array)} {array[0].unit}".strip()
            said = f"{count(left)} more of {count(len(array))}" if most else f"{count(left)} numbers"
            lines.append(Line(cells=(f"{title}: {said}: --json",), tone="dim"))
    return _trimmed(subjects, "ratio", lines, f"{_analyzer(rows[0])}, further")
