"""One training run along its steps: losses, the top eigenvalue against its limit of stability, near-rank.

Gradient descent of rate eta and momentum m on the whole data is linearly unstable along a direction of curvature above
(2 + 2 m) / eta; training tends to raise the top eigenvalue up to there and to hover (Cohen et al. 2021).  The numbers
are those of one ordinary report per checkpoint; nothing is measured here.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gapscope.report.course import EDGE, Measure, course, ends
from gapscope.report.document import Column, Document, Item, Line, Note, Series, Table
from gapscope.report.groups import PROGRESS, shared
from gapscope.report.record_view import PROVEN
from gapscope.report.records import Record, Report
from gapscope.report.titles import title
from gapscope.report.view import report_document
from gapscope.results import Array, Quantity

FORMAT, FORMAT_VERSION = "gapscope-trajectory", 1
TOP, LIMIT = "eigenvalues/top", "limit"
LOSSES = ("gap/train_loss", "gap/test_loss", "gap/loss_gap", "gap/test_accuracy", "gap/train_accuracy")
RANK = "near-rank/near_rank"
LAYERS, MEDIAN = 3, "median"  # of more layers, their median is shown
WORDS = {"steps": "step", "epochs": "epoch", "number in the name": "number"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured checkpoint: its place along the run, its report, and where that is."""

    place: str
    report: Report
    path: str = ""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The checkpoints of one run in order; `axis` says by what they are ordered."""

    axis: str
    points: tuple[Point, ...]
    name: str = "training run"

    def at(self, index: int) -> str:
        """Return where a checkpoint is, for a sentence."""
        return f"{WORDS.get(self.axis, 'checkpoint')} {self.points[index].place}"


def measures(trajectory: Trajectory) -> dict[str, Measure]:
    """Return what there is to show by path, most telling first: of an analyzer not named here its first number."""
    reports = [point.report for point in trajectory.points]
    named: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in (*LOSSES, TOP, LIMIT, EDGE)]
    wanted = (*named, *_ranks(reports), *_others(reports))
    found = [_limit(reports) if path == LIMIT else _measure(path, entries, reports) for path, entries in wanted]
    known = {each.path: each for each in found if np.isfinite(each.values).any()}
    if "gap/test_accuracy" in known:
        del known["gap/train_accuracy"]
    return known


def _measure(path: str, entries: tuple[str, ...], reports: Sequence[Report]) -> Measure:
    name, _, key = path.partition("/")
    records = [report.results.get(name) for report in reports]
    known = [record.quantities.get(key) if record else None for record in records]
    numbers = np.array([_numbers(quantity, entries) for quantity in known])
    first = next((quantity for quantity in known if quantity is not None), None)
    shown = entries[:1] if path == RANK else entries  # the cut, which its columns share, is in the caption
    decayed = any(report.training.get("weight_decay") for report in reports)
    named = {EDGE: "(top + decay) / limit" if decayed else "top / limit", RANK: "near-rank"}
    lower = tuple(_is_lower(record, (TOP if path == EDGE else path).partition("/")[2]) for record in records)
    return Measure(
        path=path + f"[{','.join(entries)}]" * bool(entries),
        title=" ".join([named.get(path) or title(name, key), *shown]),
        unit=first.unit if first else "",
        values=numbers[:, 0],
        data=numbers[:, 1],
        numerical=numbers[:, 2],
        lower=lower,
        open=tuple(
            bound and record is not None and record.status not in PROVEN
            for bound, record in zip(lower, records, strict=True)
        ),
    )


def _is_lower(record: Record | None, key: str) -> bool:
    quantity = record.quantities.get(key) if record else None
    return quantity is not None and quantity.bound == "lower"


def _numbers(quantity: Quantity | None, entries: Sequence[str]) -> tuple[float, float, float]:
    """Return value, data error and numerical error of one entry; of the layers' median, the value alone."""
    if quantity is None or not quantity.value.size:
        return math.nan, math.nan, math.nan
    if entries[:1] == (MEDIAN,):
        return float(np.median(quantity.value[:, quantity.labels["cut"].index(entries[1])])), math.nan, math.nan
    if len(entries) != len(quantity.dims):
        return math.nan, math.nan, math.nan
    places = tuple(zip(quantity.dims, entries, strict=True))
    if not all(entry in quantity.labels[dim] for dim, entry in places):
        return math.nan, math.nan, math.nan
    where = tuple(quantity.labels[dim].index(entry) for dim, entry in places)
    parts = (quantity.value, quantity.sampling_error, quantity.numerical_error)
    value, data, numerical = (math.nan if part is None else float(part[where]) for part in parts)
    return value, data, numerical


def every_rank(trajectory: Trajectory) -> dict[str, Measure]:
    """Return the near-rank of every layer at the first cut, by path."""
    reports = [point.report for point in trajectory.points]
    found = [_measure(path, entries, reports) for path, entries in _ranks(reports, math.inf)]
    return {each.path: each for each in found}


def _ranks(reports: Sequence[Report], most: float = LAYERS) -> list[tuple[str, tuple[str, ...]]]:
    """Return the near-ranks to show, at the first cut: of few layers each, of many their median."""
    records = [report.results["near-rank"] for report in reports if "near-rank" in report.results]
    labels = shared([record.quantities["near_rank"].labels for record in records] or [{}])
    if not {"layer", "cut"} <= set(labels):
        return []
    layers = labels["layer"] if len(labels["layer"]) <= most else (MEDIAN,)
    return [(RANK, (layer, labels["cut"][0])) for layer in layers]


def _others(reports: Sequence[Report]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the first entry of the headline of each analyzer that is not named here.

    That is its first number whose entries are called the same in all reports: those of a spectrum are its own.
    """
    for name in dict.fromkeys(name for report in reports for name in report.results):
        records = [report.results[name] for report in reports if name in report.results]
        if name in ("gap", "eigenvalues", "near-rank"):
            continue
        known = {key: quantity for record in records for key, quantity in record.quantities.items()}
        alike = (
            (key, quantity)
            for key, quantity in known.items()
            if quantity.value.size
            and all(dict(one.labels) == dict(quantity.labels) for r in records if (one := r.quantities.get(key)))
        )
        for key, quantity in itertools.islice(alike, 1):
            yield f"{name}/{key}", tuple(quantity.labels[dim][0] for dim in quantity.dims)


def _limit(reports: Sequence[Report]) -> Measure:
    """Return the edge of SGD over eta where the report judged by it, else what its top eigenvalue was judged by."""
    values = np.array([_limit_of(report) for report in reports])
    unknown = np.full(len(reports), math.nan)
    heavy = [report.training for report in reports if report.training.get("momentum")]
    other = any(training.get("nesterov") or training.get("dampening") for training in heavy)
    words = "of SGD with its momentum" if other else "(2 + 2 momentum)/eta" if heavy else "2/eta"
    return Measure(
        path=LIMIT,
        title=f"limit {words}",
        unit="",
        values=values,
        data=unknown,
        numerical=unknown,
        open=(False,) * len(reports),
    )


def _limit_of(report: Report) -> float:
    edge, top = report.number(EDGE), report.number(TOP)
    if not edge or top is None:
        return math.nan
    adam = report.results["eigenvalues"].settings.get("preconditioned")
    return (top + (0.0 if adam else float(report.training.get("weight_decay") or 0.0))) / edge


# What is shown


def trajectory_document(trajectory: Trajectory, verbose: bool = False) -> Document:
    """Show who was measured, the numbers along the run, the same drawn, and what they say."""
    reports = [point.report for point in trajectory.points]
    identity = {key: value for key, value in shared([r.identity for r in reports]).items() if key != "checkpoint"}
    head = report_document(replace(reports[0], identity=identity, results={})).blocks[0]
    found = measures(trajectory)
    sentences = [Note(text=said, bullet=True) for said in reading(trajectory)]
    reads = (Note(text="Reading", tone="heading"), *sentences)
    return Document(blocks=(head, (_table(trajectory, found),), tuple(_drawn(trajectory, found, verbose)), reads))


def _table(trajectory: Trajectory, found: Mapping[str, Measure]) -> Table:
    lines = [
        Line(cells=(point.place, *(each.bounded(i) for each in found.values())))
        for i, point in enumerate(trajectory.points)
    ]
    with_errors = any("±" in cell for line in lines for cell in line.cells)
    cuts = {path.rpartition(",")[2].removesuffix("]") for path in found if path.startswith(RANK)}
    said = {
        f"trajectory by {trajectory.axis}": True,
        "± one standard error over the data and the numerical error together": with_errors,
        f"near-rank at {', '.join(cuts)}": bool(cuts),
    }
    return Table(
        columns=(Column(header=trajectory.axis, numeric=False), *(Column(header=m.words) for m in found.values())),
        lines=tuple(lines),
        overflow="split",
        caption="; ".join(text for text, applies in said.items() if applies),
    )


def _drawn(trajectory: Trajectory, found: Mapping[str, Measure], verbose: bool) -> Iterator[Item]:
    """Yield one curve per number, each on its own scale, and the share of the limit on a tall one."""
    if len(trajectory.points) < 2:
        return
    labels = tuple(point.place for point in trajectory.points)
    curves = {path: each for path, each in found.items() if path not in (LIMIT, EDGE)}
    groups = [[each] for each in curves.values()] if verbose else [list(curves.values())]
    for group in groups + ([[found[EDGE]]] if EDGE in found else []):
        alone = len(group) == 1
        yield Series(
            title=group[0].words if alone else "trajectory",
            style="line",
            axis=trajectory.axis,
            labels=labels,
            curves=tuple(tuple(each.values.tolist()) for each in group),
            names=() if alone else tuple(each.words for each in group),
        )


def reading(trajectory: Trajectory) -> tuple[str, ...]:
    """Return what the run shows, and what it cannot tell."""
    found = measures(trajectory)
    said = [*_edge(trajectory, found), *(course(found[TOP], trajectory.at) if TOP in found else ()), *ends(found)]
    keys = _unlike([point.report.training for point in trajectory.points])
    if keys:
        said.append(f"Mind that these checkpoints record different {', '.join(keys)}: they may not be of one run.")
    return (
        *said,
        "This is one run with one seed: another seed moves such numbers, and what goes together here need not cause "
        "each other.",
    )


def _edge(trajectory: Trajectory, found: Mapping[str, Measure]) -> Iterator[str]:
    if TOP not in found:
        return
    if EDGE not in found:
        yield (
            "Nothing says where the limit of stability is: no checkpoint records SGD with its rate"
            " (for Adam: [measure.eigenvalues] preconditioned = true, where the optimizer's state is saved)."
        )
        return
    edge = found[EDGE]
    error = np.nan_to_num(edge.numerical)
    # a Ritz value is a lower bound, and no error takes it back; of products that are off it is none
    above = edge.values - np.where(edge.lower, 0.0, error) > 1
    reach = np.where(edge.open, np.inf, edge.values + error)
    unsure = np.flatnonzero(~above & (reach >= 1)).tolist()
    most, where = int(np.nanargmax(edge.values)), np.flatnonzero(above)
    share, exceeds = edge.shown(most), "the top eigenvalue exceeds the limit of stability"
    if not where.size:
        text = f"The top eigenvalue stays below the limit of stability: at most {share} of it, at {trajectory.at(most)}"
    elif above.all():
        text = f"At every checkpoint {exceeds}, up to {share} times"
    elif above[where[0] : where[-1] + 1].all():
        until = "on" if above[-1] else f"to {trajectory.at(where[-1])}"
        first = trajectory.at(where[0])
        span, upto = (f"At {first}", "") if where.size == 1 else (f"From {first} {until}", "up to ")
        text = f"{span} {exceeds}, {upto}{share} times"
    else:
        text = f"At {where.size} of {len(above)} checkpoints {exceeds}, most at {trajectory.at(most)} ({share} times)"
    if unsure:
        text += f"; whether at {', '.join(map(trajectory.at, unsure))} cannot be told"
    yield f"{text}. {_of_whom(trajectory.points[0].report)}"


def _of_whom(report: Report) -> str:
    batch, samples = report.training.get("batch_size"), report.conditions.get("samples_available")
    if isinstance(batch, int) and isinstance(samples, int) and batch < samples:
        return f"That limit is one of the full batch: with batches of {batch} the noise keeps SGD below it as a rule."
    return "Beyond it the steps of gradient descent grow along that direction."


def _unlike(trainings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the recorded keys in which checkpoints of one run should agree and do not; a rate may have a schedule."""
    alike, free = shared(trainings), (*PROGRESS, "lr", "learning_rate")
    return sorted({key for training in trainings for key in training} - set(alike) - set(free))


def trajectory_json(trajectory: Trajectory, failures: Mapping[str, str]) -> dict[str, Any]:
    """Return a trajectory as plain JSON values: one row per number, in the order of the points."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "axis": trajectory.axis,
        "points": [
            {
                "place": point.place,
                "checkpoint": point.report.identity.get("checkpoint", ""),
                "sha256": point.report.identity.get("sha256", ""),
                "report": point.path,
            }
            for point in trajectory.points
        ],
        "rows": [
            {
                "path": each.path,
                "title": each.title,
                "unit": each.unit,
                "values": _plain(each.values),
                "errors": _plain(np.where(np.isnan(each.data) & np.isnan(each.numerical), math.nan, each.errors)),
                "numerical_errors": _plain(each.numerical),
            }
            for each in measures(trajectory).values()
        ],
        "reading": list(reading(trajectory)),
        "failures": dict(failures),
    }


def _plain(values: Array) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]
