"""Regimes seen along an axis: three or more against their batch size, and saved epochs against the training loss.

Both are read off the rows of a comparison.  A rank correlation over regimes says that two things went together in one
sweep; batch size moves both, so it names no cause.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gapscope.report.document import Column, Item, Line, Note, Series, Table
from gapscope.report.figures import figure, number
from gapscope.report.groups import LOSS, Side, runs_of, stems
from gapscope.report.records import Comparison, Record, Report, Row, combined
from gapscope.results import Array, Quantity, Status

BY_LOSS = "by-loss"
MEASURES = (
    "gap/test_accuracy",
    "gap/accuracy_gap",
    "gap/loss_gap",
    "eigenvalues/top",
    "adaptive-sharpness/worst_l2",
    "epsilon-sharpness/full",
    "near-rank/near_rank",
    "curvature/median",
)
OUTCOMES = ("gap/loss_gap", "gap/accuracy_gap")  # the generalization gap: of the loss where both were measured
CURVES = ("gap/test_accuracy", "eigenvalues/top")  # what a reader in a hurry sees drawn
REGIMES = 3
CORRELATED = 5  # regimes: of fewer, no order at all is improbable enough (4 reach p = 0.083)
EXACT = 9  # regimes whose orders are all tried: 362,880


def swept(comparison: Comparison) -> list[Row]:
    """Return the rows of a sweep: of an array its first number."""
    found = [next((row for row in comparison.rows if _quantity(row) == path), None) for path in MEASURES]
    return [row for row in found if row is not None]


def _quantity(row: Row) -> str:
    return row.path.partition("[")[0]


def _words(row: Row) -> str:
    return f"{row.title} {row.unit}".strip()


# Against the batch size


def sweep_blocks(comparison: Comparison, verbose: bool) -> tuple[tuple[Item, ...], ...]:
    """Return the measures of three or more regimes side by side, as curves, and how they go with the gap."""
    rows = swept(comparison)
    if len(comparison.subjects) < REGIMES or not rows:
        return ()
    columns = (Column(header="", numeric=False, wraps=True), *(Column(header=s.label) for s in comparison.subjects))
    lines = [
        Line(cells=(_words(row), *(figure(v, e) for v, e in zip(row.values, row.errors, strict=True)))) for row in rows
    ]
    several = any(subject.runs for subject in comparison.subjects)
    what = "mean ± standard deviation over runs" if several else "value ± standard error over the data (one run each)"
    table = Table(columns=columns, lines=tuple(lines), overflow="split", caption=f"sweep: {what}")
    drawn = sweep_curves(comparison, rows if verbose else [row for row in rows if row.path in CURVES])
    return (table,), drawn, tuple(_correlations(comparison, rows))


def sweep_curves(comparison: Comparison, rows: Sequence[Row]) -> tuple[Series, ...]:
    """Return one curve over the regimes for each row."""
    named = [(subject, subject.label.rpartition(" ")) for subject in comparison.subjects]
    words = {word for _, (word, _, _) in named}
    axis = words.pop() if len(words) == 1 else ""
    labels = tuple(value if axis else subject.label for subject, (_, _, value) in named)
    return tuple(
        Series(
            title=_words(row),
            style="line",
            axis=axis or "regimes",
            labels=labels,
            curves=(row.values,),
            errors=(row.errors,),
            bars=bars_of(comparison),
        )
        for row in rows
        if np.isfinite(row.values).sum() > 1
    )


def bars_of(comparison: Comparison) -> str:
    """Say what one error to each side of a value is."""
    over = "one standard deviation over runs"
    data = "one error to each side: that over the data and that of the computation, combined"
    several = [subject.size > 1 for subject in comparison.subjects]
    if not any(several):
        return f"A thin bar reaches {data}."
    return f"A thin bar reaches {over} to each side{'' if all(several) else f', of a single run {data}'}."


def _correlations(comparison: Comparison, rows: Sequence[Row]) -> Iterator[Item]:
    outcome = next((row for path in OUTCOMES for row in rows if row.path == path), None)
    count = len(comparison.subjects)
    if outcome is None or count < CORRELATED:
        return
    measures = [row for row in rows if not row.path.startswith("gap/")]
    found = [(row, *spearman(row.values, outcome.values)) for row in measures]
    lines = [Line(cells=(_words(row), number(rho, 2, keep=True), number(p, 2))) for row, rho, p in found]
    if not lines:
        return
    headers = (f"rank correlation with the {outcome.title}", "p")
    yield Table(
        columns=(Column(header="", numeric=False, wraps=True), *(Column(header=header) for header in headers)),
        lines=tuple(lines),
    )
    least = f"{count} regimes reach no smaller p than {number(2 / math.factorial(count), 2)}"
    how = "all orders were tried" if count <= EXACT else "p by Student's t"
    yield Note(
        text=f"Spearman's rank correlation over {count} regimes, {how}: {least}. The batch size moves both, so this "
        "names no cause, and other recipes may order otherwise.",
        tone="dim",
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's rho, ties at their mean rank, and its two-sided p under exchange of the regimes.

    Up to `EXACT` regimes p is the share of all n! orders with |rho| as large; beyond, rho sqrt((n-2)/(1-rho^2)) has
    nearly Student's t with n - 2 degrees of freedom, but p is no smaller than 2/n!, the share of the given order and
    its reverse (ties reach no less).  NaN where a value is NaN or all are one.
    """
    a, b = (_ranks(np.asarray(side, dtype=np.float64)) for side in (first, second))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    if not scale or math.isnan(scale):
        return math.nan, math.nan
    rho, size = float(a @ b) / scale, a.size
    if size <= EXACT:
        return rho, float(np.mean(np.abs(a[_orders(size)] @ b) >= abs(rho) * scale - 1e-9))
    from scipy.special import stdtr

    freedom = size - 2
    p = 2 * float(stdtr(freedom, -abs(rho) * math.sqrt(freedom / max(1 - rho * rho, 1e-300))))
    return rho, max(p, 2 / math.factorial(size))


def _ranks(values: Array) -> Array:
    """Return ranks about their mean."""
    if np.isnan(values).any():
        return np.full(values.shape, math.nan)
    ranks = (values[:, None] > values).sum(axis=1) + ((values[:, None] == values).sum(axis=1) - 1) / 2
    return np.asarray(ranks - ranks.mean())


@functools.lru_cache(maxsize=1)
def _orders(size: int) -> Any:
    return np.array(list(itertools.permutations(range(size))))


# Against the training loss


def against_loss(sides: Sequence[Side], rows: Sequence[Row]) -> Record:
    """Return every judged number of every saved epoch, highest training loss first; of an array its first one.

    `regime` and `run` number the sides and the runs of each; a number that an epoch lacks is NaN.
    """
    places = [
        (regime, run, report, f"{side.label}, {stem}")
        for regime, side in enumerate(sides)
        for names in [dict(zip(map(id, side.reports), stems(side.reports), strict=True))]
        for run, saved in enumerate(runs_of(side))
        for report in saved
        for stem in [names[id(report)]]
    ]
    places.sort(key=lambda place: -(place[2].number(LOSS) or 0.0))
    labels = {"saved": tuple(label for *_, label in places)}

    def along(values: Sequence[float], doc: str, **more: Any) -> Quantity:
        return Quantity(value=np.array(values), doc=doc, dims=("saved",), labels=labels, drawn="detail", **more)

    def measured(row: Row) -> Quantity:
        values, *errors = np.array([_numbers(report, row) for _, _, report, _ in places]).T
        sampling, numerical = (error if np.isfinite(error).any() else None for error in errors)
        return along(values, row.title, unit=row.unit, sampling_error=sampling, numerical_error=numerical)

    first = {_quantity(row): row for row in reversed(rows) if row.better != "none"}
    order = sorted(first, key=lambda path: (path != LOSS, rows.index(first[path])))
    quantities = {path.replace("/", " "): first[path] for path in order}
    return Record(
        analyzer=BY_LOSS,
        version="1",
        status=Status.EXACT,
        quantities={
            **{name: measured(row) for name, row in quantities.items()},
            "regime": along([regime for regime, *_ in places], "which side of the comparison"),
            "run": along([run for _, run, *_ in places], "which run of it"),
        },
    )


def _numbers(report: Report, row: Row) -> tuple[float, float, float]:
    """Return value, sampling error and numerical error, NaN where unknown."""
    analyzer, name = _quantity(row).split("/")
    record = report.results.get(analyzer)
    quantity = record.quantities.get(name) if record else None
    if quantity is None or quantity.dims != row.dims:
        return math.nan, math.nan, math.nan
    if not all(entry in quantity.labels[d] for d, entry in zip(row.dims, row.entries, strict=True)):
        return math.nan, math.nan, math.nan
    where = tuple(quantity.labels[d].index(e) for d, e in zip(row.dims, row.entries, strict=True))
    parts = (quantity.value, quantity.sampling_error, quantity.numerical_error)
    value, sampling, numerical = (math.nan if part is None else float(part[where]) for part in parts)
    return value, sampling, numerical


def loss_block(comparison: Comparison, verbose: bool) -> tuple[Item, ...]:
    """Return the numbers of all saved epochs, and curves of both regimes at equal training loss."""
    quantities = comparison.results[BY_LOSS].quantities
    kept = [name for name in quantities if name not in ("regime", "run")]
    shown = [name for name in kept if verbose or name.replace(" ", "/", 1) in (LOSS, *MEASURES)]
    labels = quantities[shown[0]].labels["saved"]
    table = Table(
        columns=(
            Column(header="", numeric=False, wraps=True),
            *(Column(header=f"{quantities[name].doc} {quantities[name].unit}".strip()) for name in shown),
        ),
        lines=tuple(
            Line(cells=(label, *(number(float(quantities[name].value[i])) for name in shown)))
            for i, label in enumerate(labels)
        ),
        overflow="split",
        caption="saved epochs, highest training loss first",
    )
    drawn = [name for name in shown[1:] if verbose or name.replace(" ", "/", 1) in CURVES]
    return (Note(text=BY_LOSS, tone="heading"), table, *loss_curves(comparison, drawn))


def loss_curves(comparison: Comparison, names: Sequence[str]) -> Iterator[Series | Note]:
    """Yield curves of every regime over the training losses that all runs went through.

    Between saved epochs a number and its error are interpolated over the logarithm of the loss; a regime's curve is
    the mean of its runs, and its error their standard deviation.
    """
    quantities = comparison.results[BY_LOSS].quantities
    loss = np.log(quantities[LOSS.replace("/", " ")].value)
    keys = list(zip(quantities["regime"].value, quantities["run"].value, strict=True))
    runs = {key: [i for i, one in enumerate(keys) if one == key][::-1] for key in sorted(set(keys))}  # losses rising
    low, high = max(loss[i[0]] for i in runs.values()), min(loss[i[-1]] for i in runs.values())
    grid = [float(one) for one in loss if low <= one <= high]
    if len(grid) < 2:
        yield Note(text="No curves: the saved epochs of the runs share no range of training losses.", tone="dim")
        return
    said = f"A curve is the mean of a regime's runs. {bars_of(comparison)} Both are interpolated."
    labels = tuple(subject.label for subject in comparison.subjects)
    for name in names:
        quantity = quantities[name]
        drawn = [_regime(quantity, loss, grid, [runs[key] for key in runs if key[0] == i]) for i in range(len(labels))]
        yield Series(
            title=f"{quantity.doc} {quantity.unit}".strip(),
            style="line",
            axis="training loss, interpolated between saved epochs",
            labels=tuple(number(math.exp(one), 3) for one in grid),
            curves=tuple(tuple(curve.tolist()) for curve, _ in drawn),
            names=labels,
            errors=tuple(tuple(error.tolist()) for _, error in drawn),
            bars=said,
        )


def _regime(
    quantity: Quantity, loss: Array, grid: Sequence[float], runs: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Return the mean of a regime's runs over a grid of losses and their standard deviation; of one run its error."""
    curves = np.array([np.interp(grid, loss[places], quantity.value[places]) for places in runs])
    if len(runs) > 1:
        return curves.mean(axis=0), curves.std(axis=0, ddof=1)
    return curves[0], np.interp(grid, loss[runs[0]], combined(quantity)[runs[0]])
