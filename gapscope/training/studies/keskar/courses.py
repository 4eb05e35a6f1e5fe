"""Keskar's experiments along training: large batches that start warm, and sharpness against the training loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gapscope.measure.analyzers.gap import Gap
from gapscope.report.contrasts import slope_over
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import number
from gapscope.report.outcome import Part, judged
from gapscope.report.records import Record, Report
from gapscope.results import Array, Quantity, Status
from gapscope.training.studies.keskar.diverged import Left, sound, untold
from gapscope.training.studies.keskar.minima import ACCURACY, SHARPNESS, Made, phi, sharpness
from gapscope.training.studies.keskar.recipes import curve, range_of
from gapscope.training.studies.numbers import averaged, mean_std, numbers

if TYPE_CHECKING:
    from gapscope.training.studies.keskar import Bench

PLACES = 8  # losses at which the courses are compared
LATER = (
    "the later the switch from the small batch, the flatter the large batch's minimum",
    "the later the switch, the better its test accuracy",
)
AGAINST = "Sharpness against the training loss"
RISES = (
    "as the loss falls, the large batch's sharpness rises",
    "as the loss falls, it grows relative to the small batch's",
)


# Warm start


def warm_start(bench: "Bench") -> Made:
    """Return large-batch runs that begin at the small batch's weights after so many of its epochs."""
    plan, lab = bench.plan, bench.lab
    switches = tuple(sorted(set(plan.switches)))
    first = [
        replace(bench.spec(seed, bench.small, until_loss=None, epochs=max(1, switches[-1])), save_every=1)
        for seed in range(plan.seeds)
    ]
    small = lab.train(first, "small batches to start from")
    specs = [
        replace(
            bench.spec(run.spec.recipe.seed, bench.large, until_loss=None, epochs=plan.warm_epochs),
            start=None if epoch == 0 else dict(run.saved)[epoch],
        )
        for run in small
        if not run.diverged
        for epoch in switches
    ]
    (small, runs), left = sound(small, lab.train(specs, "warm-started large batches"))
    if not small:
        return untold("keskar-warm-start", "Warm starts", "Figure 5", LATER)
    reports = lab.measure(runs, (Gap(), sharpness(bench)), "warm starts")
    shape = (len(small), len(switches))
    sharp = numbers(reports, f"{SHARPNESS}/full", **phi(bench)).reshape(shape)
    accurate = numbers(reports, ACCURACY).reshape(shape)
    loss = numbers(reports, "gap/train_loss").reshape(shape)
    labels = tuple(map(str, switches))
    where = list(map(float, switches))
    claims = (
        judged(
            LATER[0],
            slope_over(where, np.log2(sharp)),
            "lower",
            source="Figure 5",
            ratio=False,
            what=f"{range_of(loss)}, change of log2 sharpness per epoch",
        ),
        judged(
            LATER[1],
            slope_over(where, accurate),
            "higher",
            source="Figure 5",
            ratio=False,
            what="points per epoch",
        ),
    )
    heads = ("small-batch epochs", "training loss", f"sharpness %, full, {phi(bench)['epsilon']}", "test accuracy %")
    table = Table(
        columns=tuple(Column(header=header) for header in heads),
        lines=tuple(
            Line(cells=(labels[i], *(mean_std(values[:, i]) for values in (loss, sharp, accurate))))
            for i in range(len(switches))
        ),
        caption=f"then {plan.warm_epochs} epochs of batches of {bench.large}; {averaged(len(small))}",
    )
    record = Record(
        analyzer="keskar-warm-start",
        version="1",
        status=Status.EXACT,
        quantities={
            "sharpness": curve(sharp, "small-batch epochs", labels, "epsilon-sharpness after the large batch", "%"),
            "test_accuracy": curve(accurate, "small-batch epochs", labels, "test accuracy after the large batch", "%"),
        },
    )
    note = (
        "All end after the same large-batch epochs, not at one loss: whoever starts later has trained longer in all, "
        "and the training loss falls with it."
    )
    return Part(record=record, title="Warm starts", tables=(table,), notes=(note, *left)), claims


# Sharpness against loss


def against_loss(bench: "Bench") -> Made:
    """Return sharpness along both regimes' training, at training losses that all runs went through."""
    plan, lab = bench.plan, bench.lab
    specs = [
        replace(bench.spec(seed, size, until_loss=None, epochs=epochs), save_every=every)
        for size, epochs, every in zip((bench.small, bench.large), plan.course_epochs, plan.saved_every, strict=True)
        for seed in range(plan.seeds)
    ]
    (runs,), left = sound(lab.train(specs, "courses"))
    if not runs:
        return untold("keskar-loss", AGAINST, "Figure 6", RISES)
    seeds = len(runs) // 2
    files = [(run.spec, path) for run in runs for _, path in run.saved]
    reports = iter(lab.measure_files(files, (Gap(), sharpness(bench)), "courses"))
    courses = [_course(bench, [next(reports) for _ in run.saved]) for run in runs]
    grid = _shared(courses)
    heads = ("training loss", f"small {bench.small}", f"large {bench.large}")
    if grid is None:
        return _apart(courses, left)
    along = np.array([np.interp(np.log(grid), np.log(loss), np.log2(sharp)) for loss, sharp in courses])
    small, large = along[:seeds], along[seeds:]
    fallen = (-np.log2(grid)).tolist()
    claims = (
        judged(
            RISES[0],
            slope_over(fallen, large),
            "higher",
            source="Figure 6",
            ratio=False,
            what="change of log2 sharpness per halving of the loss",
        ),
        judged(
            RISES[1],
            slope_over(fallen, large - small),
            "higher",
            source="Figure 6",
            ratio=False,
            what="difference of these changes",
        ),
    )
    labels = tuple(number(float(loss), 3) for loss in grid)
    sides = (np.exp2(small), np.exp2(large))
    table = Table(
        columns=tuple(Column(header=header) for header in heads),
        lines=tuple(Line(cells=(labels[i], *(mean_std(side[:, i]) for side in sides))) for i in range(len(labels))),
        caption=f"sharpness %, full, {phi(bench)['epsilon']}, interpolated between saved epochs; {averaged(seeds)}",
    )
    value = np.array([side.mean(axis=0) for side in sides])
    quantity = Quantity(
        value=value,
        doc="epsilon-sharpness at equal training loss, mean over seeds",
        unit="%",
        drawn="line",
        dims=("regime", "training loss"),
        labels={"regime": (f"small {bench.small}", f"large {bench.large}"), "training loss": labels},
    )
    record = Record(analyzer="keskar-loss", version="1", status=Status.EXACT, quantities={"sharpness": quantity})
    return Part(record=record, title=AGAINST, tables=(table,), notes=left), claims


def _course(bench: "Bench", reports: Sequence[Report]) -> tuple[Array, Array]:
    """Return the losses of a run's saved epochs, rising, and the sharpness at each."""
    loss = numbers(reports, "gap/train_loss")
    order = np.argsort(loss)
    return loss[order], numbers(reports, f"{SHARPNESS}/full", **phi(bench))[order]


def _shared(courses: Sequence[tuple[Array, Array]]) -> Array | None:
    """Return losses, falling, that every course went through; None where there is no common range."""
    low, high = max(loss[0] for loss, _ in courses), min(loss[-1] for loss, _ in courses)
    return np.geomspace(high, low, PLACES) if 0 < low < high else None


def _apart(courses: Sequence[tuple[Array, Array]], left: Left = ()) -> Made:
    ranges = ", ".join(f"{number(float(loss[0]), 2)} to {number(float(loss[-1]), 2)}" for loss, _ in courses)
    why = f"the runs share no range of training losses ({ranges})"
    return untold("keskar-loss", AGAINST, "Figure 6", RISES, why, left)
