"""Curvature medians and SGD's steps by layer, at each run's own weights, against its batch size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.measure.analyzers.curvature import Curvature
from gapscope.report.document import Line, Table
from gapscope.report.outcome import Claim, Part, judged
from gapscope.report.records import Record, Report
from gapscope.results import Array, Quantity, Status
from gapscope.training.studies.gao_zhong.runs import (
    Bench,
    Made,
    headed,
    over_seeds,
    per_doubling,
    tens,
    told,
)
from gapscope.training.studies.gao_zhong.steps import SOURCE, whole
from gapscope.training.studies.lab import Run
from gapscope.training.studies.numbers import averaged, mean_std

NAME = "gao-zhong-layers"


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What `curvature` finds at the end of every run, (seeds, sizes, layers); `fall` is minus its loss step."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    median: Array
    step: Array
    fall: Array

    @property
    def span(self) -> Array:
        """How many times the smallest median of a run's layers the largest is, (seeds, sizes)."""
        return np.asarray(self.median.max(axis=-1) / self.median.min(axis=-1))


def layers(bench: Bench, ends: Mapping[int, Sequence[Run]], left: Sequence[str]) -> Made:
    """Measure curvature and steps of every batch size where its training came to the loss."""
    runs = [run for several in ends.values() for run in several]
    reports = bench.lab.measure(runs, (Curvature(top_matvecs=0),), "layers")
    found = _found(reports, tuple(ends)) if reports else None
    said = dict.fromkeys(note for report in reports for note in report.results["curvature"].notes)
    part = Part(
        record=Record(analyzer=NAME, version="1", status=Status.EXACT, quantities=_quantities(found) if found else {}),
        title="Layers at equal training loss",
        tables=_tables(bench, found) if found else (),
        notes=(
            *left,
            *([_spans(found)] if found else []),
            "Each run at its own end, with its own batch size; the rate is one for all, and a larger batch took more "
            "epochs to the loss. The abstract calls the curvature of layers a sensitive factor and gives no direction, "
            "so none is judged; no number here is invariant to rescaling the layers.",
            "A fall is that of one layer's step alone: layers that step together do not add up.",
            *said,
        ),
    )
    return part, (claim(found),)


def _found(reports: Sequence[Report], sizes: tuple[int, ...]) -> Layers:
    every = [report.results["curvature"].quantities for report in reports]
    names = every[0]["median"].labels["layer"]

    def values(name: str) -> Array:
        unknown = np.full(len(names), np.nan)  # steps where samples have no gradients of their own
        rows = np.array([one[name].value if name in one else unknown for one in every])
        return np.moveaxis(rows.reshape(len(sizes), -1, len(names)), 0, 1)

    return Layers(
        names=names, sizes=sizes, median=values("median"), step=values("step_length"), fall=-values("loss_step")
    )


def claim(found: Layers | None) -> Claim:
    """Judge whether steps shrink as the batch grows, each run at its own weights."""
    text = "parameter steps shrink as the batch grows, each run at its own weights"
    if found is None:
        return Claim(text=text, source=SOURCE, verdict="cannot tell", because="no batch size came to the loss")
    contrast = per_doubling(found.sizes, whole(found.step))
    return judged(text, contrast, "lower", source=SOURCE, ratio=True, what="per doubling times")


def _tables(bench: Bench, found: Layers) -> tuple[Table, ...]:
    names = (*found.names, "all layers")
    steps = np.concatenate([found.step, whole(found.step)[..., None]], axis=-1)
    curved = [told(per_doubling(found.sizes, found.median[:, :, i])) for i in range(len(found.names))]
    slopes = zip(names, (*curved, ""), np.moveaxis(steps, -1, 0), strict=True)
    caption = f"at equal training loss; {averaged(bench.plan.seeds)}"
    return (
        _by_size(found, "curvature median", found.names, found.median, f"by batch size, {caption}"),
        _by_size(found, "fall of the loss", found.names, found.fall, f"one step, by the formula, {caption}"),
        Table(
            columns=headed("per doubling", "curvature, times", "parameter step, times"),
            lines=tuple(
                Line(cells=(name, curvature, told(per_doubling(found.sizes, step)))) for name, curvature, step in slopes
            ),
            caption="per doubling of the batch size, with 95 % intervals over seeds",
        ),
    )


def _by_size(found: Layers, title: str, names: Sequence[str], values: Array, caption: str) -> Table:
    """Return a table of values (seeds, sizes, names) in units of a power of ten."""
    power = tens(values)
    return Table(
        columns=headed(f"{title}, 1e{power}", *map(str, found.sizes)),
        lines=tuple(
            Line(cells=(name, *map(mean_std, values[:, :, i].T / 10.0**power))) for i, name in enumerate(names)
        ),
        caption=caption,
    )


def _spans(found: Layers) -> str:
    said = ", ".join(f"{mean_std(span)} at {size}" for span, size in zip(found.span.T, found.sizes, strict=True))
    return f"Largest over smallest median of a run's layers: {said}."


def _quantities(found: Layers) -> dict[str, Quantity]:
    dims = {"layer": found.names, "batch size": tuple(map(str, found.sizes))}
    every = (
        ("curvature_median", found.median, "median of the layer's curvature per parameter", "line"),
        ("layer_step", found.step, "length of a layer's step, eta sqrt(|G|^2 + tr(Sigma) / B)", "detail"),
        ("layer_fall", found.fall, "by how much the step of one layer lowers the loss, by the formula", "detail"),
    )
    return {name: over_seeds(np.moveaxis(values, 1, 2), doc, dims, drawn=drawn) for name, values, doc, drawn in every}
