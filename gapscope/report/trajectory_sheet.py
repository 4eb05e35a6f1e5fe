"""The page of a training run: what its course says, the table, and its numbers drawn over the steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from gapscope.report.course import EDGE, Measure
from gapscope.report.document import Column, Document, Line, Note, Table
from gapscope.report.figures import count
from gapscope.report.illustrations import MOST, Figure, curves, errors, measured, numbers, sampled, stacked
from gapscope.report.records import Record
from gapscope.report.sheet import Sheet, about, brief, defined, docs_of, origin
from gapscope.report.trajectory import (
    LIMIT,
    RANK,
    TOP,
    Trajectory,
    every_rank,
    measures,
    reading,
    trajectory_document,
)
from gapscope.results import Array, Quantity

LOSS = ("gap/train_loss", "gap/test_loss")
OVER = "The dashed curve is the limit of stability: above it the steps of gradient descent grow along that direction. "
NAMED = 6  # places that a caption names
Curves = Mapping[str, Measure]


def trajectory_sheet(trajectory: Trajectory) -> Sheet:
    """Return the page of a run: its reading first, and the top eigenvalue before the other figures."""
    points = trajectory.points
    document, drawn = trajectory_document(trajectory), tuple(_figures(trajectory))
    first, *others = reading(trajectory)
    many = f"{count(len(points))} checkpoints" if len(points) > 1 else "1 checkpoint"
    places = " to ".join(dict.fromkeys((points[0].place, points[-1].place)))
    results = {name: record for point in points for name, record in point.report.results.items()}
    return Sheet(
        name=trajectory.name,
        lead=first,
        about=(*about(document), Note(text=f"{many} by {trajectory.axis}: {places}")),
        said=tuple(Note(text=said) for said in others),
        brief=brief(document),
        whole=Document(blocks=((_numbers(trajectory),), (_checkpoints(trajectory, list(results)),))),
        figures=drawn,
        definitions=defined(results, docs_of(results), drawn),
        origin=origin(points[-1].report.environment),
    )


# The tables


def _numbers(trajectory: Trajectory) -> Table:
    """Return every number with its error, those of all layers too."""
    found = {**measures(trajectory), **every_rank(trajectory)}
    lines = [
        Line(cells=(point.place, *(one.bounded(i) for one in found.values())))
        for i, point in enumerate(trajectory.points)
    ]
    columns = (Column(header=trajectory.axis, numeric=False), *(Column(header=one.words) for one in found.values()))
    caption = "± one standard error over the data and the numerical error together; ≥ where the solver did not finish"
    return Table(columns=columns, lines=tuple(lines), caption=caption)


def _checkpoints(trajectory: Trajectory, analyzers: Sequence[str]) -> Table:
    """Return which file each place stands for, and how each measurement of it ended."""
    heads = (trajectory.axis, "checkpoint", "SHA-256", "report", *analyzers)
    lines = []
    for point in trajectory.points:
        identity, results = point.report.identity, point.report.results
        ends = [results[name].status.name.lower().replace("_", " ") if name in results else "–" for name in analyzers]
        who = (str(identity.get("checkpoint", "")), str(identity.get("sha256", ""))[:12], point.path)
        lines.append(Line(cells=(point.place, *who, *ends)))
    columns = tuple(Column(header=head, numeric=False) for head in heads)
    return Table(columns=columns, lines=tuple(lines), caption="checkpoints, and how their measurements ended")


# The figures


def _figures(trajectory: Trajectory) -> Iterator[Figure]:
    """Yield the eigenvalue against its limit, losses on one pair of axes, and every other number on its own."""
    if len(trajectory.points) < 2:
        return
    found, ranks = measures(trajectory), every_rank(trajectory)
    named = {"top eigenvalue": TOP, "limit": LIMIT}, {"train": LOSS[0], "test": LOSS[1]}
    top, losses = ({name: found[path] for name, path in group.items() if path in found} for group in named)
    if top:
        limited = len(top) > 1
        title = f"top eigenvalue and {found[LIMIT].title}" if limited else "top eigenvalue"
        yield _figure(trajectory, title, top, OVER * limited)
    if losses:
        yield _figure(trajectory, "losses" if len(losses) > 1 else next(iter(losses.values())).title, losses)
    for path, one in found.items():
        if path not in (TOP, LIMIT, EDGE, *LOSS) and not path.startswith(RANK):
            yield _figure(trajectory, one.title, {"": one})
    if ranks:
        cut = next(iter(ranks)).rpartition(",")[2].removesuffix("]")
        layers = {one.title.removeprefix("near-rank "): one for one in ranks.values()}
        yield _figure(trajectory, f"near-rank of each layer at {cut}", layers)


def _figure(trajectory: Trajectory, title: str, several: Curves, said: str = "") -> Figure:
    """Draw numbers over the run, in as many panels as they need."""
    path, most = next(iter(several.values())).path.partition("[")[0], MOST["curves"]
    names = list(several)
    groups = [names[start : start + most] for start in range(0, len(names), most)]
    panels = []
    for group in groups[: MOST["panels"]]:
        heading = f"{group[0]} to {group[-1]}" if len(groups) > 1 else ""
        quantity = _quantity(trajectory, {name: several[name] for name in group})
        panels += [(heading, content) for _, content in curves(title, quantity, path)[0]]
    whole = _quantity(trajectory, several)
    caption = said + errors(whole) + _caption(trajectory, path.partition("/")[0], several)
    return Figure(path=path, title=title, panels=tuple(panels), caption=caption, numbers=numbers(whole))


def _quantity(trajectory: Trajectory, several: Curves) -> Quantity:
    """Return numbers over the run as one array, a curve each."""

    def known(part: str) -> Array | None:
        errors = np.array([getattr(one, part) for one in several.values()])
        return errors if np.isfinite(errors).any() else None

    quantity = stacked(
        trajectory.axis,
        [point.place for point in trajectory.points],
        list(several),
        value=np.array([one.values for one in several.values()]),
        sampling_error=known("data"),
        numerical_error=known("numerical"),
    )
    return replace(quantity, unit=next(iter(several.values())).unit)


def _caption(trajectory: Trajectory, analyzer: str, several: Curves) -> str:
    """Say how numbers were measured, and which of them say less than the others."""
    reports = [point.report for point in trajectory.points]
    records = [report.results[analyzer] for report in reports if analyzer in report.results]
    left = [any(one.open[i] for one in several.values()) for i in range(len(reports))]
    parts = (
        measured(records, sampled(reports[0].conditions)),
        _tested(records) if any("train" not in one.path for one in several.values()) else "",
        f"The solver did not finish at {_where(trajectory, left)} (≥): a bound from below." if any(left) else "",
    )
    return " ".join(filter(None, parts))


def _where(trajectory: Trajectory, chosen: Sequence[bool]) -> str:
    """Name a few places; more of them are marked in the table."""
    places = [point.place for point, one in zip(trajectory.points, chosen, strict=True) if one]
    return ", ".join(places) if len(places) <= NAMED else f"{len(places)} of {len(chosen)} checkpoints"


def _tested(records: Sequence[Record]) -> str:
    """Say how many test samples there are, as far as that is known."""
    known = [record.quantities["test_accuracy"].samples for record in records if "test_accuracy" in record.quantities]
    return next((f"Test data are {count(len(one))} samples." for one in known if one is not None), "")
