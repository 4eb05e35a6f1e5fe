"""Whether a larger ratio of learning rate to batch size finds flatter minima of a network, and at what price."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gapscope.measure.analyzers.escape import Escape
from gapscope.report.contrasts import Contrasted, deviation, mean_over, slope_over
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import figure, number, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record, combined
from gapscope.results import Array, Quantity, Status
from gapscope.training.recipe import counted
from gapscope.training.studies.dai_zhu.agreement import Made, agrees
from gapscope.training.studies.dai_zhu.courses import ACCURACY, LOSS, MATCHED, TOP, TRACE, Chosen, Setting, Trained
from gapscope.training.studies.numbers import averaged, mean_std

FLATNESS, BARRIER = "dai-zhu-flatness", "dai-zhu-barrier"
FASTER = "larger eta / B is flatter"
MEASURES = (("training loss", LOSS, "ratio"), ("top eigenvalue", TOP, "ratio"), ("trace", TRACE, "ratio"))
ACCURATE = ("test accuracy, points", ACCURACY, "difference")


def flatness(trained: Trained) -> Made:
    """Compare the settings where they end, at equal eta x steps, and at equal training loss."""
    places = {
        "after the last epoch": trained.ends,
        "at equal eta x steps": trained.equal_time,
        "at equal training loss": trained.equal_loss,
    }
    claims = [
        judged(
            f"{FASTER} {place}",
            per_doubling(trained, chosen, TOP, "ratio"),
            "lower",
            source="abstract",
            ratio=True,
            what="per doubling of eta / B, top eigenvalue x",
        )
        for place, chosen in places.items()
    ]
    claims.append(
        judged(
            "larger eta / B generalizes worse",
            per_doubling(trained, trained.ends, ACCURACY, "difference"),
            "lower",
            source='abstract: "may"',
            ratio=False,
            what="per doubling of eta / B, points of test accuracy",
        )
    )
    record = Record(analyzer=FLATNESS, version="1", status=Status.EXACT, quantities=_curves(trained))
    shown = once(places)
    tables = (_doublings(trained, shown), *(_settings(trained, place, chosen) for place, chosen in shown.items()))
    part = Part(record=record, title="Flatness along training", tables=tables, notes=tuple(_notes(trained)))
    return part, tuple(claims)


def once(places: Mapping[str, Chosen]) -> dict[str, Chosen]:
    """Return the places, those of the very same weights as one: a short run has few saved epochs to choose from."""
    found: dict[str, Chosen] = {}
    for place, chosen in places.items():
        name = next((name for name, other in found.items() if other == chosen), None)
        found = {f"{one}, and {place}" if one == name else one: other for one, other in found.items()}
        if name is None:
            found[place] = chosen
    return found


def per_doubling(trained: Trained, chosen: Chosen, path: str, kind: str, size: int | None = None) -> Contrasted:
    """Return what a number is multiplied by, or changes by, per doubling of eta / B: a slope per seed, and their mean.

    Over all settings without momentum, or those of one batch size.  Only settings of one size are set against each
    other: sizes differ in more than eta / B, and where a setting is missing that would mix in.
    """
    counted = {
        setting: points
        for setting, points in chosen.items()
        if not setting.momentum and size in (None, setting.batch_size)
    }
    places = _within_sizes([*counted])
    if not places:
        return math.nan, (math.nan, math.nan)
    values, scales = trained.values({setting: counted[setting] for setting in places}, path), [*places.values()]
    runs = np.array([*values.values()]).T  # (seeds, settings)
    if kind == "difference":
        return slope_over(scales, runs)
    logs = np.log(runs, out=np.full(runs.shape, math.nan), where=runs > 0)
    middle, (low, high) = slope_over(scales, logs)
    return math.exp(middle), (math.exp(low), math.exp(high))


def _within_sizes(settings: Sequence[Setting]) -> dict[Setting, float]:
    """Return log2 of eta / B less its mean over the settings of the same batch size, of sizes that have several.

    Over such places a number that differs between batch sizes alone has no slope.
    """
    found: dict[Setting, float] = {}
    for size in dict.fromkeys(setting.batch_size for setting in settings):
        logs = {setting: math.log2(setting.scale) for setting in settings if setting.batch_size == size}
        mean = math.fsum(logs.values()) / len(logs)
        found |= {setting: log - mean for setting, log in logs.items() if len(logs) > 1}
    return found


def _doublings(trained: Trained, places: Mapping[str, Chosen]) -> Table:
    lines = []
    for place, chosen in places.items():
        lines.append(Line(cells=(place,)))
        for title, path, kind in (*MEASURES, *([ACCURATE] if chosen is trained.ends else [])):
            sign = "x" if kind == "ratio" else ""
            estimate, interval = spread(*per_doubling(trained, chosen, path, kind))
            lines.append(Line(cells=(title, f"{sign} {estimate}".strip(), interval), level=1))
        for size in sorted({setting.batch_size for setting in trained.plain}):
            estimate, interval = spread(*per_doubling(trained, chosen, TOP, "ratio", size))
            lines.append(Line(cells=(f"top eigenvalue, B {size} alone", f"x {estimate}", interval), level=1))
    return Table(
        columns=(
            Column(header="per doubling of eta / B", numeric=False),
            Column(header="change"),
            Column(header="95 % interval"),
        ),
        lines=tuple(lines),
        caption=f"slopes of {counted(trained.plan.seeds, 'seed')} within batch sizes, of all settings without momentum",
    )


def _settings(trained: Trained, place: str, chosen: Chosen) -> Table:
    last = chosen is trained.ends  # where the epoch is known: its room is for the accuracy
    heads = ("eta / B", "B", *(() if last else ("eta", "epoch")), "loss", "top eigenvalue", "trace")
    found = [trained.values(chosen, path) for path in (LOSS, TOP, TRACE, *(ACCURACY,) * last)]
    lines = [
        Line(
            cells=(
                f"{setting.scale:g}" + f", m {setting.momentum:g}" * bool(setting.momentum),
                f"{setting.batch_size}",
                *(() if last else (f"{setting.rate:.3g}", _epochs([point.epoch for point in points]))),
                *(mean_std(one[setting]) for one in found),
            )
        )
        for setting, points in chosen.items()
    ]
    caption = f"{place}; {averaged(trained.plan.seeds)}; with momentum m, eta / ((1 - m) B)"
    columns = tuple(Column(header=head) for head in (*heads, *("test acc. %",) * last))
    return Table(columns=columns, lines=tuple(lines), caption=caption)


def _epochs(epochs: Sequence[int]) -> str:
    return f"{min(epochs)}" if len(set(epochs)) == 1 else f"{min(epochs)}-{max(epochs)}"


def _notes(trained: Trained) -> list[str]:
    """Return what the tables cannot tell, and what is missing in them."""
    notes = [
        f"{often} of {trained.plan.seeds} runs diverged at eta {setting.rate:.3g}, B {setting.batch_size}"
        f"{f', momentum {setting.momentum:g}' if setting.momentum else ''}: that setting is in no table and no claim."
        for setting, often in trained.diverged.items()
    ]
    if far := [setting for setting in trained.courses if setting not in trained.equal_loss]:
        said = ", ".join(f"eta {setting.rate:.3g} B {setting.batch_size}" for setting in far)
        notes.append(
            f"Not at equal training loss: {said}: a seed has no saved epoch whose loss is within a factor {MATCHED:g}."
        )
    return [
        *notes,
        "After as many epochs, a larger eta / B has gone further in eta x steps and in loss, and is flatter or sharper "
        "by that alone; only the last comparison holds the loss fixed. There the epoch nearest in loss counts, on a "
        "jagged course a dip. A rate eta leaves no minimum stable above 2 / eta whatever the batch: where slopes "
        "differ between batch sizes, eta / B is not all that counts. Eigenvalue and trace change when layers are "
        "rescaled. Runs of one seed start from the same weights.",
    ]


# Pairs


def pairs(trained: Trained) -> Made:
    """Compare settings of one noise scale: batch sizes, and momentum against none, by seed."""
    compared = _compared(trained)
    claims = [
        _alike(trained, "momentum is as flat as SGD at the rate eta / (1 - m)", *pair)
        for _, *pair in compared
        if pair[1].momentum
    ]
    if sizes := [_alike(trained, title, *pair) for title, *pair in compared if not pair[1].momentum]:
        claims.insert(0, all_of("runs of one eta / B at different B are as flat", sizes, source="abstract"))
    lines = []
    for title, first, last in compared:
        lines.append(Line(cells=(title,)))
        for name, path, kind in (*MEASURES, ACCURATE):
            estimate, interval = spread(*_against(trained, path, kind, first, last))
            lines.append(Line(cells=(name, f"{'x ' * (kind == 'ratio')}{estimate}", interval), level=1))
    table = Table(
        columns=(
            Column(header="one noise scale", numeric=False),
            Column(header="contrast"),
            Column(header="95 % interval"),
        ),
        lines=tuple(lines),
        caption=f"after the last epoch, paired by seed over {counted(trained.plan.seeds, 'seed')}",
    )
    record = Record(analyzer="dai-zhu-pairs", version="1", status=Status.EXACT, quantities=_ratios(trained, compared))
    note = (
        "At one eta / B and as many epochs, the diffusion time is equal too. The theory is one of small steps: a rate "
        "near 2 / (top eigenvalue) is none, and there B matters by itself."
    )
    return Part(record=record, title="Equal eta / B at different B", tables=(table,), notes=(note,)), tuple(claims)


def _compared(trained: Trained) -> list[tuple[str, Setting, Setting]]:
    """Return pairs of settings of one noise scale: the smallest and the largest batch, and momentum after none."""
    found = []
    for scale in dict.fromkeys(setting.scale for setting in trained.plain):
        of = sorted((one for one in trained.plain if one.scale == scale), key=lambda one: one.batch_size)
        if len(of) > 1:
            title = f"eta / B {scale:g}: B {of[-1].batch_size} over {of[0].batch_size}"
            found.append((title, of[0], of[-1]))
    for heavy in trained.courses:
        without = replace(heavy, momentum=0.0)
        if heavy.momentum and without in trained.courses:
            title = f"eta / ((1 - m) B) {heavy.scale:g}: momentum {heavy.momentum:g} over none, B {heavy.batch_size}"
            found.append((title, without, heavy))
    return found


def _against(trained: Trained, path: str, kind: str, first: Setting, last: Setting) -> Contrasted:
    """Return one setting's number over or minus another's after the last epoch, by seed."""
    values = trained.values(trained.ends, path)
    if kind == "difference":
        return mean_over(values[last] - values[first])
    return mean_over(values[last] / values[first], "ratio")


def _alike(trained: Trained, text: str, first: Setting, last: Setting) -> Claim:
    contrast = _against(trained, TOP, "ratio", first, last)
    return agrees(text, contrast, source="abstract", what="top eigenvalue")


def _ratios(trained: Trained, compared: Sequence[tuple[str, Setting, Setting]]) -> dict[str, Quantity]:
    tops = trained.values(trained.ends, TOP)
    ratios = np.array([tops[last] / tops[first] for _, first, last in compared])  # (pairs, seeds)
    if not ratios.size:
        return {}
    return {
        "top_eigenvalue_ratio": Quantity(
            value=ratios.mean(axis=1),
            sampling_error=_errors(ratios),
            doc="top eigenvalue of the larger batch over that of the smaller, or with momentum over that without, "
            "after the last epoch: 1 where eta / ((1 - m) B) is all that counts; mean and errors over seeds",
            dims=("pair",),
            labels={"pair": tuple(title for title, _, _ in compared)},
        )
    }


# Curves


def _curves(trained: Trained) -> dict[str, Quantity]:
    """Return each measure against the epoch, and the top eigenvalue against eta x steps, too."""
    samples = trained.lab.samples(trained.plan.data)
    words = {
        "top_eigenvalue": (TOP, "top eigenvalue of the Hessian"),
        "hessian_trace": (TRACE, "trace of the Hessian"),
        "train_loss": (LOSS, "training loss"),
    }
    curves = {}
    for name, (path, doc) in words.items():
        found = {
            (setting, float(epoch)): one
            for epoch in trained.epochs
            for setting, one in trained.values(trained.at_epoch(epoch), path).items()
            if not setting.momentum
        }
        if found:
            curves[name] = _curve(found, "epoch", doc)
        if found and path == TOP:
            times = {(setting, epoch * setting.scale * samples): one for (setting, epoch), one in found.items()}
            curves[f"{name}_by_time"] = _curve(times, "rate_x_steps", f"{doc} against eta x steps")
    return curves


def _curve(found: Mapping[tuple[Setting, float], Array], axis: str, doc: str) -> Quantity:
    """Return means over seeds by batch size, eta / B and place; NaN where nothing was measured."""
    sizes = sorted({setting.batch_size for setting, _ in found})
    scales = sorted({setting.scale for setting, _ in found})
    places = sorted({f"{place:.4g}" for _, place in found}, key=float)
    value = np.full((len(sizes), len(scales), len(places)), math.nan)
    error = value.copy()
    for (setting, place), one in found.items():
        where = sizes.index(setting.batch_size), scales.index(setting.scale), places.index(f"{place:.4g}")
        value[where], error[where] = one.mean(), _errors(one[None])[0]
    return Quantity(
        value=value,
        sampling_error=error,
        doc=f"{doc}, mean over seeds, without momentum; errors are over seeds",
        drawn="line",
        dims=("batch_size", "rate_over_batch", axis),
        labels={
            "batch_size": tuple(f"B {size}" for size in sizes),
            "rate_over_batch": tuple(f"eta / B {scale:g}" for scale in scales),
            axis: tuple(places),
        },
    )


def _errors(values: Array) -> Array:
    """Return the standard error of each row over its runs, NaN of a single one."""
    runs = values.shape[1]
    return np.array([deviation(row) / math.sqrt(runs) if runs > 1 else math.nan for row in values])


# The barrier between two minima


def barrier(trained: Trained) -> Part:
    """Measure the way from the noisiest to the quietest setting's minimum, once: an exponent, and no escape time."""
    ordered = sorted(trained.plain, key=lambda one: (-one.scale, one.batch_size))
    title = "The barrier between two minima: not an escape time"
    if len(ordered) < 2:
        status = Record(analyzer=BARRIER, version="1", status=Status.SKIPPED, notes=("fewer than two settings",))
        return Part(record=status, title=title)
    ends = ordered[0], ordered[-1]
    runs = [trained.courses[setting][0].run for setting in ends]
    record = trained.lab.together(runs, (Escape(),)).results["escape"]
    rows = {"rise of the loss": "rise", "diffusion D": "diffusion", "exponent, rise / D": "exponent"}
    lines = [
        Line(cells=(name, *(figure(*pair) for pair in _with_errors(record.quantities[key]))))
        for name, key in rows.items()
        if key in record.quantities
    ]
    odds = record.quantities["log10_odds"]
    table = Table(
        columns=(
            Column(header="straight line, seed 0", numeric=False),
            *(Column(header=f"eta {one.rate:.3g}, B {one.batch_size}") for one in ends),
        ),
        lines=tuple(lines),
        caption=f"log10 of the odds of the first basin over the second: {number(float(odds.value), 3)}",
    )
    return Part(record=replace(record, analyzer=BARRIER), title=title, tables=(table,))


def _with_errors(quantity: Quantity) -> list[tuple[float, float]]:
    return list(zip(quantity.value.tolist(), combined(quantity).tolist(), strict=True))
