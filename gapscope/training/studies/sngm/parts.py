"""The SNGM study's tables and figures: the grids of rates, accuracies, untuned rates, and sharpness."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.epsilon_sharpness import EpsilonSharpness
from gapscope.measure.analyzers.gap import Gap
from gapscope.report.contrasts import UNKNOWN, Contrasted, deviation
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import count, number, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record
from gapscope.results import Contrast, Quantity, Status
from gapscope.training.recipe import counted
from gapscope.training.studies.numbers import averaged, contrast, mean_std, numbers
from gapscope.training.studies.sngm.runs import Bench, Cell, Group, Tuned

Made = tuple[Part, tuple[Claim, ...]]
LOSS, TRAIN, TEST = "gap/train_loss", "gap/train_accuracy", "gap/test_accuracy"
EPSILON = "1e-3"
MEASURES: Mapping[str, tuple[str, Mapping[str, str]]] = {  # of the sharpness at the ends: place in a report
    "training_loss": (LOSS, {}),
    "top_eigenvalue": ("eigenvalues/top", {}),
    "epsilon_sharpness": ("epsilon-sharpness/full", {"solver": "keskar", "epsilon": EPSILON}),
}
RIVALS = ("sgd", "lars")  # that the paper compares it with
DRAWN = 100.0  # a larger loss would leave no room for the others
SHARPNESS = EpsilonSharpness(epsilons=(float(EPSILON),), solvers=("keskar",), manifold=0)


def apart(first: Group, last: Group, path: str, kind: Contrast, **labels: str) -> Contrasted:
    """Return the contrast of two groups, last over or minus first; without runs there is none."""
    if not (first.reports and last.reports):
        return math.nan, UNKNOWN
    return contrast(first.reports, last.reports, path, kind, **labels)


def _said(contrasted: Contrasted) -> str:
    estimate, interval = spread(*contrasted)
    return f"{estimate} ({interval})" if not math.isnan(contrasted[1][0]) else estimate


# The grids


def tuning(bench: Bench, tuned: Mapping[Cell, Tuned]) -> Made:
    """Return the training loss of every rate, and which was taken."""
    seeds, names, multiples = bench.plan.tuning_seeds, bench.optimizers, bench.multiples.tolist()
    lines: list[Line] = []
    for name in names:
        lines.append(Line(cells=(f"{name}, rates times {number(bench.plan.scales[name])}",)))
        lines += [_grid_line(size, tuned[name, size]) for size in bench.sizes]
    edges = [f"{name} at {count(size)} ({one.edge})" for (name, size), one in tuned.items() if one.edge]
    notes = (
        "Losses of the tuning seeds: the lowest of several is by luck below what other seeds come to.",
        f"Taken at an end of the grid: {', '.join(edges)}: a better rate may lie beyond."
        if edges
        else "No rate that was taken is an end of its grid.",
    )
    table = Table(
        columns=(Column(header="batch", numeric=False), *(Column(header=f"×{number(one, 2)}") for one in multiples)),
        lines=tuple(lines),
        caption=f"training loss by rate, mean over {counted(seeds, 'tuning seed')}; * is taken, – diverged",
    )
    losses = np.array([one.losses.mean(axis=1) for one in tuned.values()]).reshape(len(names), len(bench.sizes), -1)
    labels = {"optimizer": names, "batch size": tuple(map(str, bench.sizes))}
    along = {**labels, "rate over scale": tuple(number(one, 2) for one in multiples)}
    doc = "training loss at the end by rate, in units of the optimizer's scale, mean over the tuning seeds"
    record = _record(
        "sngm-tuning",
        loss_by_rate=Quantity(
            value=np.where(losses <= DRAWN, losses, math.nan),
            doc=f"{doc}; above {DRAWN:g} none is drawn",
            drawn="line",
            dims=tuple(along),
            labels=along,
        ),
        every_loss_by_rate=Quantity(value=losses, doc=doc, drawn="detail", dims=tuple(along), labels=along),
        rate_taken=Quantity(
            value=np.array([one.rate or math.nan for one in tuned.values()]).reshape(len(names), -1),
            doc="rate taken",
            drawn="detail",
            dims=tuple(labels),
            labels=labels,
        ),
    )
    return Part(record=record, title="Rates", tables=(table,), notes=notes), ()


def _grid_line(size: int, one: Tuned) -> Line:
    means = (number(float(loss), 2) for loss in one.losses.mean(axis=1))
    return Line(cells=(count(size), *(f"{said}{'*' * (i == one.best)}" for i, said in enumerate(means))), level=1)


# Accuracy


def minding_edges(claim: Claim, found: Mapping[Cell, Group], cells: Sequence[Cell]) -> Claim:
    """Return a claim with which of its rates are ends of their grids, beyond which a better one may lie."""
    ends = [f"{name} at {count(size)} ({edge})" for name, size in cells if (edge := found[name, size].edge)]
    return replace(claim, because=f"{claim.because}; at an end of its grid: {', '.join(ends)}") if ends else claim


def accuracy(bench: Bench, found: Mapping[Cell, Group]) -> Made:
    """Return losses and accuracies of every optimizer and batch size, after as many gradient computations."""
    seeds = bench.plan.seeds
    lines: list[Line] = []
    for size in bench.sizes:
        lines.append(Line(cells=(f"batch {count(size)}, {count(bench.steps(size))} steps",)))
        lines += [_accuracy_line(name, found[name, size], seeds) for name in bench.optimizers]
    heads = ("rate", "training loss", "training accuracy %", "test accuracy %", "diverged")
    table = Table(
        columns=(Column(header="", numeric=False), *(Column(header=head) for head in heads)),
        lines=tuple(lines),
        caption=f"after {bench.plan.epochs} epochs; {averaged(seeds)}",
    )
    record = _record(
        "sngm-accuracy",
        test_accuracy=over_seeds(found, TEST, "test accuracy", "%"),
        training_accuracy=over_seeds(found, TRAIN, "training accuracy", "%"),
        training_loss=over_seeds(found, LOSS, "training loss"),
    )
    notes = ["Training losses differ: an accuracy tells how far training came as much as how well it generalizes."]
    if any(group.diverged for group in found.values()):
        notes.append("Diverged runs are left out of the means, which favours the optimizers that they belong to.")
    if any(group.rate is None for group in found.values()):
        notes.append("No rate: with each of its grid a tuning seed diverged, so there is nothing to judge.")
    title = "Test accuracy after as many gradient computations"
    part = Part(record=record, title=title, tables=(table,), notes=tuple(notes))
    return part, (_falling(bench, found),)


def _accuracy_line(name: str, group: Group, seeds: int) -> Line:
    rate = number(math.nan if group.rate is None else group.rate, 3)
    means = (mean_std(numbers(group.reports, path)) for path in (LOSS, TRAIN, TEST))
    diverged = f"{group.diverged} of {seeds}" if group.rate else "no rate"
    return Line(cells=(name, rate, *means, diverged), level=1)


def _falling(bench: Bench, found: Mapping[Cell, Group]) -> Claim:
    """Judge the loss of accuracy that SNGM is to mend, by the other optimizers."""
    least, most = bench.sizes[0], bench.sizes[-1]
    others = [name for name in bench.optimizers if name != "sngm"]
    each = [
        judged(
            name,
            apart(found[name, least], found[name, most], TEST, "difference"),
            "lower",
            source="",
            ratio=False,
            what="points",
        )
        for name in others
    ]
    *first, last = map(str.upper, others)
    lose = f"{', '.join(first)} and {last} lose" if first else f"{last} loses"
    text = f"{lose} test accuracy from batch {count(least)} to {count(most)}"
    return minding_edges(
        all_of(text, each, source="abstract"), found, [(name, size) for name in others for size in (least, most)]
    )


def rivals(bench: Bench, found: Mapping[Cell, Group]) -> Made:
    """Return SNGM's test accuracy minus every other optimizer's, and judge it at the largest batch."""
    others, most = [name for name in bench.optimizers if name != "sngm"], bench.sizes[-1]
    apart_by = {
        (name, size): apart(found[name, size], found["sngm", size], TEST, "difference")
        for name in others
        for size in bench.sizes
    }
    table = Table(
        columns=(Column(header="batch", numeric=False), *(Column(header=f"sngm - {name}") for name in others)),
        lines=tuple(
            Line(cells=(count(size), *(_said(apart_by[name, size]) for name in others))) for size in bench.sizes
        ),
        caption="difference of test accuracies in points (95 % interval)",
    )
    record = _record(
        "sngm-rivals",
        accuracy_difference=Quantity(
            value=np.array([one for one, _ in apart_by.values()]).reshape(len(others), -1),
            doc="SNGM's test accuracy minus the other optimizer's, means over seeds",
            unit="points",
            drawn="detail",
            dims=("optimizer", "batch size"),
            labels={"optimizer": tuple(others), "batch size": tuple(map(str, bench.sizes))},
        ),
    )
    claims = tuple(
        minding_edges(
            judged(
                f"at batch {count(most)} SNGM's test accuracy is above {name.upper()}'s",
                apart_by[name, most],
                "higher",
                source="abstract",
                ratio=False,
                what="difference in points",
            ),
            found,
            [("sngm", most), (name, most)],
        )
        for name in RIVALS
        if name in others
    )
    note = f"Judged at batch {count(most)} alone; the other differences are shown, and would be as many more tests."
    return Part(record=record, title="SNGM beside the others", tables=(table,), notes=(note,)), claims


# Untuned rates


def scaled(bench: Bench, found: Mapping[Cell, Group], by_rule: Mapping[str, Mapping[Cell, Group]]) -> Made:
    """Return the test accuracy with the smallest batch's rate, scaled by a rule, beside the tuned one."""
    lines: list[Line] = []
    for name in bench.optimizers:
        lines.append(Line(cells=(name,)))
        for size in bench.sizes[1:]:
            groups = (found[name, size], *(groups[name, size] for groups in by_rule.values()))
            lines.append(Line(cells=(count(size), *map(_accuracy_and_failures, groups)), level=1))
    table = Table(
        columns=(Column(header="batch", numeric=False), *(Column(header=head) for head in ("tuned", *by_rule))),
        lines=tuple(lines),
        caption=f"test accuracy %, {averaged(bench.plan.seeds)}",
    )
    least = bench.sizes[0]
    rest = {cell: group for cell, group in found.items() if cell[1] != least}
    curves = [over_seeds(groups, TEST, "") for groups in (rest, *by_rule.values())]
    errors = [curve.sampling_error for curve in curves if curve.sampling_error is not None]
    names, sizes = curves[0].labels.values()
    record = _record(
        "sngm-untuned",
        untuned_accuracy=Quantity(
            value=np.stack([curve.value for curve in curves], axis=1),
            sampling_error=np.stack(errors, axis=1),
            doc="test accuracy with tuned rates and with those of the smallest batch scaled; errors are over seeds",
            unit="%",
            drawn="line",
            dims=("optimizer", "rates", "batch size"),
            labels={"optimizer": names, "rates": ("tuned", *by_rule), "batch size": sizes},
        ),
    )
    tries = bench.plan.points * bench.plan.tuning_seeds
    note = (
        f"linear: the rate of batch {count(least)} times B / {count(least)}; sqrt: times its square root. A tuned rate "
        f"cost {tries} runs more. What tuning gains tells how sensitive an optimizer is, which the tuned table hides."
    )
    return Part(record=record, title="Rates scaled instead of tuned", tables=(table,), notes=(note,)), ()


def _accuracy_and_failures(group: Group) -> str:
    failed = f", {group.diverged} diverged" if group.diverged else ""
    return mean_std(numbers(group.reports, TEST)) + failed


# Sharpness


def sharpness(bench: Bench, found: Mapping[Cell, Group]) -> Made:
    """Return the top eigenvalue and epsilon-sharpness of the smallest and the largest batch's minima."""
    ends = (bench.sizes[0], bench.sizes[-1])
    cells = [(name, size) for name in bench.optimizers for size in ends]
    runs = [run for cell in cells for run in found[cell].runs]
    left = iter(bench.lab.measure(runs, (Gap(), Eigenvalues(), SHARPNESS), "the smallest and the largest batch"))
    groups = {cell: Group(rate=found[cell].rate, reports=tuple(next(left) for _ in found[cell].runs)) for cell in cells}
    lines: list[Line] = []
    for name in bench.optimizers:
        small, large = (groups[name, size] for size in ends)
        lines.append(Line(cells=(name,)))
        for size, group in zip(ends, (small, large), strict=True):
            means = (mean_std(numbers(group.reports, path, **labels)) for path, labels in MEASURES.values())
            lines.append(Line(cells=(count(size), *means), level=1))
        ratios = (_said(apart(small, large, path, "ratio", **labels)) for path, labels in MEASURES.values())
        lines.append(Line(cells=("ratio", *ratios), level=1))
    heads = ("batch", "training loss", "top eigenvalue", "epsilon-sharpness %")
    table = Table(
        columns=tuple(Column(header=head, numeric=place > 0) for place, head in enumerate(heads)),
        lines=tuple(lines),
        caption=f"{averaged(bench.plan.seeds)}; ratio: large / small (95 % interval)",
    )
    note = (
        f"Epsilon-sharpness in the full space at {EPSILON}. All ran for the same epochs, not to one loss: sharpness "
        "differs by training progress alone, and its ratio beside a ratio of losses far from 1 says nothing of the "
        "optimizer or the batch size."
    )
    kept = {name: over_seeds(groups, path, name.replace("_", " "), **own) for name, (path, own) in MEASURES.items()}
    record = _record("sngm-sharpness", **{name: replace(one, drawn="detail") for name, one in kept.items()})
    return Part(record=record, title="Sharpness at the ends", tables=(table,), notes=(note,)), ()


# Records


def _record(name: str, **quantities: Quantity) -> Record:
    return Record(analyzer=name, version="1", status=Status.EXACT, quantities=quantities)


def over_seeds(groups: Mapping[Cell, Group], path: str, doc: str, unit: str = "", **labels: str) -> Quantity:
    """Return the mean over seeds of one number by optimizer and batch size, NaN without runs; errors are over seeds."""
    values = [numbers(group.reports, path, **labels) for group in groups.values()]
    means = np.array([one.mean() if one.size else math.nan for one in values])
    errors = np.array([deviation(one) / math.sqrt(one.size) if one.size > 1 else math.nan for one in values])
    names, sizes = (tuple(dict.fromkeys(key[place] for key in groups)) for place in (0, 1))
    return Quantity(
        value=means.reshape(len(names), -1),
        sampling_error=errors.reshape(len(names), -1),
        doc=f"{doc}, mean over seeds; errors are over seeds",
        unit=unit,
        drawn="line",
        dims=("optimizer", "batch size"),
        labels={"optimizer": tuple(map(str, names)), "batch size": tuple(map(str, sizes))},
    )
