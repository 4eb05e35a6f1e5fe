"""Keskar's other recipes: batch sizes between the two, and remedies for the large one."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gapscope.measure.analyzers.gap import Gap
from gapscope.report.contrasts import deviation, slope_over
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import number
from gapscope.report.outcome import Claim, Part, judged
from gapscope.report.records import Record
from gapscope.results import Array, Quantity, Status
from gapscope.training.regimes import Equal
from gapscope.training.studies.keskar.diverged import sound, untold
from gapscope.training.studies.keskar.minima import (
    ACCURACY,
    SHARPNESS,
    Made,
    Measure,
    Minima,
    kept,
    phi,
    sharpness,
    unless_late,
)
from gapscope.training.studies.lab import Run, Spec
from gapscope.training.studies.numbers import averaged, averaged_doc, contrast, mean_std, minding_loss, numbers

if TYPE_CHECKING:
    from gapscope.training.studies.keskar import Bench

SIZES = "Batch sizes"
WHEN: dict[Equal, str] = {"loss": "at equal loss", "samples": "after as many epochs as the smallest"}

# Sharpness against batch size


def sweep(bench: "Bench", sizes: Sequence[int]) -> Made:
    """Return sharpness and test accuracy against the batch size, at the smallest one's loss and after its epochs."""
    first = bench.lab.train([bench.spec(seed, sizes[0]) for seed in range(bench.plan.seeds)], "the smallest batch")
    asked = [bench.like(run, size, equal) for equal in WHEN for size in sizes[1:] for run in first if not run.diverged]
    (first, rest), left = sound(first, bench.lab.train(asked, "batch sizes"))
    if not first:
        return untold("keskar-sweep", SIZES, "Figure 4", [claim for equal in WHEN for claim in _claims(equal)])
    each = len(rest) // len(WHEN)
    found = [_swept(bench, first, rest[i * each : (i + 1) * each], sizes, equal) for i, equal in enumerate(WHEN)]
    record = Record(
        analyzer="keskar-sweep",
        version="1",
        status=Status.EXACT,
        quantities={name: quantity for _, quantities, _ in found for name, quantity in quantities.items()},
    )
    note = (
        "After as many epochs a larger batch has taken fewer steps, and its loss is higher: that alone moves sharpness."
    )
    part = Part(record=record, title=SIZES, tables=tuple(table for table, _, _ in found), notes=(note, *left))
    return part, tuple(claim for _, _, claims in found for claim in claims)


def _claims(equal: Equal) -> tuple[str, str]:
    return (
        f"sharpness rises with the batch size, {WHEN[equal]}",
        f"test accuracy falls with the batch size, {WHEN[equal]}",
    )


def _swept(
    bench: "Bench", first: Sequence[Run], rest: Sequence[Run], sizes: Sequence[int], equal: Equal
) -> tuple[Table, dict[str, Quantity], tuple[Claim, ...]]:
    rises, falls = _claims(equal)
    reports = bench.lab.measure([*first, *rest], (Gap(), sharpness(bench)), "batch sizes")
    shape = (len(sizes), len(first))
    loss, sharp, accurate = (
        numbers(reports, path, **labels).reshape(shape).T  # (seeds, sizes)
        for path, labels in (("gap/train_loss", {}), (f"{SHARPNESS}/full", phi(bench)), (ACCURACY, {}))
    )
    labels, doubled = tuple(map(str, sizes)), np.log2(sizes).tolist()
    claims = (
        judged(
            rises,
            slope_over(doubled, np.log2(sharp)),
            "higher",
            source="Figure 4",
            ratio=False,
            what=f"{range_of(loss)}, change of log2 sharpness per doubling",
        ),
        judged(
            falls,
            slope_over(doubled, accurate),
            "lower",
            source="Figure 4",
            ratio=False,
            what="points per doubling",
        ),
    )
    heads = ("batch size", "training loss", f"sharpness %, full, {phi(bench)['epsilon']}", "test accuracy %")
    table = Table(
        columns=tuple(Column(header=head) for head in heads),
        lines=tuple(
            Line(cells=(label, *(mean_std(values[:, i]) for values in (loss, sharp, accurate))))
            for i, label in enumerate(labels)
        ),
        caption=f"{WHEN[equal]}; {averaged(len(first))}",
    )
    name = equal.replace("samples", "epochs")
    quantities = {
        f"sharpness_equal_{name}": curve(sharp, "batch size", labels, f"epsilon-sharpness {WHEN[equal]}", "%"),
        f"test_accuracy_equal_{name}": curve(accurate, "batch size", labels, f"test accuracy {WHEN[equal]}", "%"),
    }
    return table, quantities, unless_late(claims, first, rest) if equal == "loss" else claims


def range_of(losses: Array) -> str:
    """Return from where to where the mean training losses (runs, places) go: they move sharpness by themselves."""
    first, last = (number(float(loss), 2) for loss in losses.mean(axis=0)[[0, -1]])
    return f"training losses {first} to {last}"


def curve(values: Array, dim: str, labels: tuple[str, ...], doc: str, unit: str = "") -> Quantity:
    """Return the mean over runs (runs, places) as a curve with its standard error over runs."""
    runs = values.shape[0]
    error = np.array([deviation(column) / math.sqrt(runs) if runs > 1 else math.nan for column in values.T])
    return Quantity(
        value=values.mean(axis=0),
        sampling_error=error,
        doc=averaged_doc(doc, runs),
        unit=unit,
        drawn="line",
        dims=(dim,),
        labels={dim: labels},
    )


# Remedies


def remedies(bench: "Bench", found: Minima, kinds: Mapping[str, Mapping[str, Any]]) -> Made:
    """Return what augmentation, conservative and adversarial training do for the large batch, at equal loss."""
    specs: list[Spec] = [
        bench.like(run, bench.large, "loss", **changes) for changes in kinds.values() for run in found.small
    ]
    (first, last, treated), left = sound(found.small, found.loss, bench.lab.train(specs, "remedies"))
    if not first:
        return untold("keskar-remedies", "Remedies", "Appendix E", [said for name in kinds for said in _remedied(name)])
    plain = bench.lab.measure([*first, *last], (Gap(), sharpness(bench)), "the plain regimes")
    reports = bench.lab.measure(treated, (Gap(), sharpness(bench)), "remedies")
    seeds = len(first)
    small, large = plain[:seeds], plain[seeds:]
    groups = {"small": small, "large": large}
    groups |= {name: reports[i * seeds : (i + 1) * seeds] for i, name in enumerate(kinds)}
    rows = [
        Measure("training loss", "gap/train_loss", {}),
        Measure("test accuracy %", ACCURACY, {}, "difference"),
        Measure(f"sharpness %, full, {phi(bench)['epsilon']}", f"{SHARPNESS}/full", phi(bench)),
    ]
    claims = []
    for name in kinds:
        improves, stays = _remedied(name)
        better = contrast(large, groups[name], ACCURACY, "difference")
        sharp = contrast(small, groups[name], f"{SHARPNESS}/full", "ratio", **phi(bench))
        still = judged(
            stays,
            sharp,
            "higher",
            source="Appendix E",
            ratio=True,
            what="ratio",
        )
        claims += [
            judged(
                improves,
                better,
                "higher",
                source="Appendix E",
                ratio=False,
                what="points",
            ),
            minding_loss(still, small, groups[name], judge=True),
        ]
    table = Table(
        columns=(Column(header="", numeric=False), *(Column(header=row.title) for row in rows)),
        lines=tuple(
            Line(cells=(name, *(mean_std(numbers(group, row.path, **row.labels)) for row in rows)))
            for name, group in groups.items()
        ),
        caption=f"large batch {bench.large} with each remedy; {averaged(seeds)}",
    )
    record = Record(
        analyzer="keskar-remedies",
        version="1",
        status=Status.EXACT,
        quantities={"numbers": kept(rows, groups)},
    )
    note = "Training losses are of the data as they are; a remedy that did not come to the loss shows it in its column."
    return Part(record=record, title="Remedies", tables=(table,), notes=(note, *left)), tuple(claims)


def _remedied(name: str) -> tuple[str, str]:
    return (
        f"{name} training improves the large batch's test accuracy",
        f"with {name} training its minima are still sharper than the small batch's",
    )
