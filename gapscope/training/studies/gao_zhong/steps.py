"""Gradient, parameter step and loss step against the batch size, at the same weights, early and late in training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.measure.analyzers.noise import Noise
from gapscope.report.contrasts import Contrasted
from gapscope.report.document import Line, Table
from gapscope.report.figures import number
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record, Report
from gapscope.results import Array, Quantity, Status
from gapscope.training.recipe import counted
from gapscope.training.studies.gao_zhong.drawn import DrawnSteps
from gapscope.training.studies.gao_zhong.runs import (
    Bench,
    Made,
    change_per_doubling,
    headed,
    over_seeds,
    per_doubling,
    told,
)
from gapscope.training.studies.lab import Run
from gapscope.training.studies.numbers import averaged, mean_std

NAME = "gao-zhong-steps"
SOURCE = "abstract; the direction is gapscope's reading"
EARLY, LATE = "early", "late"


@dataclass(frozen=True, kw_only=True)
class Place:
    """What single steps from the same weights do, as logged and by the formulas.

    `fall` is by how much the loss over all data falls, `own_fall` that of the batch which the step was taken on.
    """

    layers: tuple[str, ...]
    gradient: Array  # (seeds, sizes, layers)
    gradient_formula: Array  # (seeds, sizes, layers)
    step: Array  # (seeds, sizes, layers)
    fall: Array  # (seeds, sizes)
    fall_formula: Array  # (seeds, sizes)
    own_fall: Array  # (seeds, sizes)


Places = Mapping[str, Place]


def steps(bench: Bench, early: Sequence[Run], late: Sequence[Run], left: Sequence[str]) -> Made:
    """Take steps of every batch size from the smallest batch's weights, early and at the end of its training."""
    plan, runs = bench.plan, {EARLY: early, LATE: late}
    if soon := sum(run.epochs <= plan.early_epochs for run in late):
        ended = counted(plan.early_epochs, "epoch")
        left = (*left, f"Left out: late: {soon} of {len(late)} runs came to the loss within {ended}, where early is.")
        runs[LATE] = []
    measured = (Noise(nonuniformity="no"), DrawnSteps(bench.sizes, plan.lr, plan.draws))
    reports = iter(bench.lab.measure([run for several in runs.values() for run in several], measured, "single steps"))
    places = {when: place([next(reports) for _ in several]) for when, several in runs.items() if several}
    part = Part(
        record=Record(analyzer=NAME, version="1", status=Status.EXACT, quantities=_quantities(bench, places)),
        title="Single steps from the same weights",
        tables=tuple(_tables(bench, places)),
        notes=(
            *left,
            f"early: after epoch {plan.early_epochs} of the smallest batch; late: at its end. Logged: {plan.draws} "
            f"steps of each size at rate {number(plan.lr)}, each from these very weights. Formulas, gapscope's own: "
            "E|g|^2 = |G|^2 + tr(Sigma) s; change of the loss -eta |G|^2 + eta^2/2 (G'HG + tr(H Sigma) s); s = (N - B) "
            "/ ((N - 1) B).",
            "By the formulas gradients cannot but shrink as the batch grows, and the loss over all data cannot but "
            "fall by more where tr(H Sigma) > 0: the numbers say by how much. What a step does to its own batch's loss "
            "is no progress: a small batch fits itself.",
        ),
    )
    return part, claims(bench.sizes, places)


def place(reports: Sequence[Report]) -> Place:
    """Return the numbers of one place in training: roots of the mean squares over draws, and mean falls of the loss."""
    found = [report.results[DrawnSteps.name].quantities for report in reports]

    def values(name: str) -> Array:
        return np.array([quantities[name].value for quantities in found])

    return Place(
        layers=found[0]["gradient_square"].labels["layer"],
        gradient=np.sqrt(values("gradient_square")),
        gradient_formula=np.sqrt(values("gradient_square_formula")),
        step=np.sqrt(values("step_square")),
        fall=-values("loss_change"),
        fall_formula=-values("loss_change_formula"),
        own_fall=-values("own_loss_change"),
    )


def whole(layers: Array) -> Array:
    """Return the lengths over all layers, the last axis."""
    return np.asarray(np.sqrt((layers**2).sum(axis=-1)))


def claims(sizes: Sequence[int], places: Places) -> tuple[Claim, ...]:
    """Judge by what was logged, early and late, whether steps shrink as the batch grows."""

    def both(text: str, what: str, contrast: Callable[[Place], Contrasted], *, ratio: bool) -> Claim:
        each = [judged(when, contrast(one), "lower", source="", ratio=ratio, what=what) for when, one in places.items()]
        if not each:
            return Claim(text=text, source=SOURCE, verdict="cannot tell", because="nothing was measured")
        return all_of(text, each, source=SOURCE)

    times, change = "per doubling times", "change per doubling"
    return (
        both(
            "parameter steps shrink as the batch grows", times, lambda p: per_doubling(sizes, whole(p.step)), ratio=True
        ),
        both(
            "loss steps, of the batch's own loss, shrink as the batch grows",
            times,
            lambda p: per_doubling(sizes, p.own_fall),
            ratio=True,
        ),
        both(
            "loss steps, of the loss over all data, shrink as the batch grows",
            change,
            lambda p: change_per_doubling(sizes, p.fall),
            ratio=False,
        ),
    )


# Showing


def _tables(bench: Bench, places: Places) -> list[Table]:
    if not places:
        return []
    sizes = bench.sizes
    lines = []
    for when, one in places.items():
        rows = (
            ("gradient norm", whole(one.gradient)),
            ("norm, formula", whole(one.gradient_formula)),
            ("parameter step", whole(one.step)),
            ("fall, all data", one.fall),
            ("fall, formula", one.fall_formula),
            ("fall, own", one.own_fall),
        )
        lines.append(Line(cells=(when,)))
        lines += [Line(cells=(name, *map(mean_std, values.T)), level=1) for name, values in rows]
    caption = (
        "one step by batch size; fall: by how much it lowers the loss of all data, and of its own batch; "
        f"{averaged(bench.plan.seeds)}"
    )
    tables = [Table(columns=headed("", *map(str, sizes)), lines=tuple(lines), caption=caption)]
    lines = []
    for when, one in places.items():
        lines.append(Line(cells=(when,)))
        for i, name in enumerate(one.layers):
            found = (per_doubling(sizes, values[:, :, i]) for values in (one.step, one.gradient_formula))
            lines.append(Line(cells=(name, *map(told, found)), level=1))
    caption = "parameter step by layer: times per doubling of the batch size, with 95 % intervals over seeds"
    return [*tables, Table(columns=headed("layer", "logged", "formula"), lines=tuple(lines), caption=caption)]


def _quantities(bench: Bench, places: Places) -> dict[str, Quantity]:
    if not places:
        return {}
    every, rate = list(places.values()), bench.plan.lr
    first = {"place": tuple(places)}
    sizes = {"batch size": tuple(map(str, bench.sizes))}
    steps = [[whole(one.step), rate * whole(one.gradient_formula)] for one in every]
    falls = [[one.fall, one.fall_formula, one.own_fall] for one in every]
    return {
        "parameter_step": over_seeds(
            _seeds_first(steps),
            "length of a step of SGD, eta |g_B|: logged, and eta sqrt(|G|^2 + tr(Sigma) s), s = (N - B) / ((N - 1) B)",
            first | {"found": ("logged", "formula")} | sizes,
            drawn="line",
        ),
        "loss_fall": over_seeds(
            _seeds_first(falls),
            "by how much a step lowers the loss: of all data, as logged and by the formula, and of its own batch",
            first | {"loss": ("all data", "formula", "own batch")} | sizes,
            contrast="difference",
            drawn="line",
        ),
        "gradient_norm": over_seeds(
            np.stack([np.moveaxis(one.gradient, 1, 2) for one in every], axis=1),
            "root of the mean of |g_B|^2 over draws, by layer",
            first | {"layer": every[0].layers} | sizes,
            drawn="detail",
        ),
        "gradient_norm_formula": over_seeds(
            np.stack([np.moveaxis(one.gradient_formula, 1, 2) for one in every], axis=1),
            "sqrt(|G|^2 + tr(Sigma) s), by layer",
            first | {"layer": every[0].layers} | sizes,
            drawn="detail",
        ),
    }


def _seeds_first(rows: Sequence[Sequence[Array]]) -> Array:
    """Return arrays (seeds, sizes) in rows and columns as (seeds, rows, columns, sizes)."""
    return np.moveaxis(np.array(rows), 2, 0)
