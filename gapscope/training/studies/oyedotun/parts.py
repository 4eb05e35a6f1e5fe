"""What the study shows of near-ranks, and how it judges the claims: slopes per doubling of the batch size, by seed."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from gapscope.report.contrasts import Contrasted, deviation
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import NONE, figure, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record
from gapscope.results import Array, Quantity, Status
from gapscope.training.studies.numbers import averaged, mean_std
from gapscope.training.studies.oyedotun.ranks import Found, Measure
from gapscope.training.studies.oyedotun.slopes import (
    beyond_control,
    layer_slope,
    over,
    rank_correlation,
    slope,
    slopes,
    with_depth,
    with_width,
)

SHOWN = 6  # layers of one table
PAPER, CONTROL, ASKED = 'abstract: "near-rank loss"', "a control", "a question of this study"
SLOPE = "per doubling"
POINTS = "points per doubling"
HALF = "± half of the 95 % interval"
Number = Callable[[Found], Contrasted]
Named = Mapping[str, Found | None]  # by network; None of one without a seed that counts
Wanted = Literal["higher", "lower"]


# Claims


def claims(found: Sequence[Found], *, wide: str, narrow: str, missing: Sequence[str] = ()) -> tuple[Claim, ...]:
    """Judge the paper's claims over all networks, and beside them what a control says of its way to measure.

    Of the `missing` networks every seed is left out: what is said of them cannot be told.
    """
    if not found:
        return ()
    own, same = (one.name.rpartition(" ")[2] for one in (found[0].own[0], found[0].same[0]))
    named: Named = {**{one.name: one for one in found}, **dict.fromkeys(missing)}
    every = [
        _all(
            named,
            f"near-rank falls with the batch size, each run on its own batch, at {own}",
            PAPER,
            lambda f: slope(f, f.own[0]),
        ),
        _all(
            named,
            f"a network that is only shown more samples loses near-rank as well, at {own}",
            CONTROL,
            lambda f: slope(f, f.control[0]),
        ),
        _all(named, f"near-rank falls by more than in that control, at {own}", CONTROL, beyond_control),
        _all(
            named,
            f"near-rank falls with the batch size, all runs on the same samples, at {same}",
            PAPER,
            lambda f: slope(f, f.same[0]),
        ),
    ]
    every += _by_shape(named, wide, narrow, same)
    accurate = _all(
        named,
        f"test accuracy falls with near-rank on the same samples, at {same}",
        "abstract",
        lambda f: rank_correlation(f.same[0].mean, f.accuracy),
        wanted="higher",
        what="rank correlation over runs",
    )
    return (*every, accurate)


def _by_shape(named: Named, wide: str, narrow: str, cut: str) -> Iterator[Claim]:
    """Judge depth and width on two scales, for a layer with less near-rank has fewer points to lose."""
    for proportion, scale, what in (
        (False, "in points", POINTS),
        (True, "in proportion", "log2 of near-rank per doubling"),
    ):
        end = f"near-rank on the same samples {scale}, at {cut}"
        depth, width = (functools.partial(number, proportion=proportion) for number in (with_depth, with_width))
        if wide in named:
            text = f"deeper layers of {wide} lose more {end}"
            yield _asked(text, depth, [named[wide]], f"last less first layer, {what}")
        if wide in named and narrow in named:
            text = f"{wide} loses more {end}, than {narrow}"
            yield _asked(text, width, [named[narrow], named[wide]], f"{wide} less {narrow}, {what}")


def _asked(text: str, number: Callable[..., Contrasted], of: Sequence[Found | None], what: str) -> Claim:
    if None in of:
        return replace(_untold(text), source=ASKED, own=True)
    return replace(judged(text, number(*of), "lower", source=ASKED, ratio=False, what=what), own=True)


def _all(
    named: Named,
    text: str,
    source: str,
    number: Number,
    *,
    wanted: Wanted = "lower",
    what: str = POINTS,
) -> Claim:
    """Judge a claim that is to hold in every network."""
    each = [
        judged(name, number(one), wanted, source="", ratio=False, what=what) if one else _untold(name)
        for name, one in named.items()
    ]
    return replace(all_of(text, each, source=source), own=source == CONTROL)


def _untold(text: str) -> Claim:
    return Claim(text=text, source="", verdict="cannot tell", because="no seed is left")


# Parts


def parts(found: Sequence[Found]) -> tuple[Part, ...]:
    """Return every part; none where no run counts."""
    return (training(found), *map(layers, found), across(found)) if found else ()


def training(found: Sequence[Found]) -> Part:
    """Return how far every run came, and its test accuracy."""
    lines: list[Line] = []
    for one in found:
        epochs = np.array([[run.epochs for run in row] for row in one.trained.loss])
        late = np.array([[run.train_loss for run in row] for row in one.trained.epochs])
        lines.append(Line(cells=(f"{one.name}, {len(epochs)} seed{'s' * (len(epochs) > 1)}",)))
        lines += [
            Line(
                cells=(
                    str(size),
                    mean_std(epochs[:, i]),
                    mean_std(one.loss[:, i]),
                    mean_std(one.accuracy[:, i]),
                    mean_std(late[:, i]),
                ),
                level=1,
            )
            for i, size in enumerate(one.trained.network.sizes)
        ]
    headers = ("batch", "epochs", "training loss", "test accuracy %", "loss, equal epochs")
    table = Table(columns=_headed(headers), lines=tuple(lines), caption="mean ± standard deviation over seeds")
    notes = (
        "The rate is one for all batch sizes: a large batch takes fewer and surer steps to the same loss.",
        "That loss is equal from one side: a larger batch stops at the first look at or below the smallest batch's "
        "loss, and so lies below it by as much as the training losses above differ.",
    )
    return Part(
        record=_record("oyedotun-training", {"test_accuracy": _accuracies(found)}),
        title="Training",
        tables=(table,),
        notes=notes,
    )


def layers(found: Found) -> Part:
    """Return the near-rank of the hidden layers of one network against the batch size, both ways and in the control."""
    sizes = tuple(map(str, found.trained.network.sizes))
    judging = (found.own[0], found.control[0], found.same[0])
    lines: list[Line] = []
    for measure in judging:
        lines += [Line(cells=(measure.name,)), *_layer_lines(found, measure)]
    columns = _headed(("% of full rank", *sizes, SLOPE))
    others = (*found.own[1:], *found.same[1:], *found.at_epochs, *found.without_cut)
    beside = [_line(one.name, one.mean, slope(found, one)) for one in others]
    tables = (
        Table(columns=columns, lines=tuple(lines), caption=_caption(found)),
        Table(
            columns=_headed(("mean over layers", *sizes, SLOPE)),
            lines=tuple(beside),
            caption="other cuts and stops in % of full rank, and ranks without a cut",
        ),
    )
    left = len(found.layers) - len(_shown(found.layers))
    notes = (f"{left} of {len(found.layers)} hidden layers are in the report alone.",) * (left > 0)
    quantities = {
        "share_of_full_rank": _curves(found, judging),
        "means": _means(found, (*judging, *others)),
    }
    record = _record(f"oyedotun-{slug(found.name)}", quantities)
    return Part(record=record, title=f"Near-rank in {found.name}", tables=tables, notes=notes)


def across(found: Sequence[Found]) -> Part:
    """Return the slopes of all networks beside each other, and how near-rank and accuracy go together."""
    rates: dict[str, Number] = {
        "own": lambda f: slope(f, f.own[0]),
        "control": lambda f: slope(f, f.control[0]),
        "own less control": beyond_control,
        "same": lambda f: slope(f, f.same[0]),
        "same, equal epochs": lambda f: slope(f, f.at_epochs[1]),
    }
    further: dict[str, Number] = {
        "depth": with_depth,
        "accuracy": lambda f: over(slopes(f, f.accuracy)),
        "correlation, own": lambda f: rank_correlation(f.own[0].mean, f.accuracy),
        "correlation, same": lambda f: rank_correlation(f.same[0].mean, f.accuracy),
    }
    tables = (
        _beside(found, rates, f"near-rank, {POINTS} of the batch size {HALF}"),
        _beside(
            found,
            further,
            f"depth: slope of the last less the first layer (same); accuracy: slope of test accuracy; both {POINTS} "
            f"{HALF}; rank correlations of test accuracy with near-rank over runs, with their intervals",
        ),
    )
    numbers = rates | further
    value = [[[estimate, *interval] for estimate, interval in map(number, found)] for number in numbers.values()]
    quantity = Quantity(
        value=np.array(value),
        doc="slopes in points per doubling of the batch size, rank correlations, and their 95 % intervals over seeds",
        drawn="detail",
        dims=("number", "network", "end"),
        labels={
            "number": tuple(numbers),
            "network": tuple(one.name for one in found),
            "end": ("estimate", "low", "high"),
        },
    )
    notes = (
        "Own less control is what is left of the paper's measure when the number of columns is taken out.",
        "Batch sizes differ in accuracy and near-rank at once: a correlation over these runs is no cause.",
        "The paper leaves its cut open, so no figure of it stands beside these.",
    )
    return Part(
        record=_record("oyedotun-networks", {"numbers": quantity}), title="All networks", tables=tables, notes=notes
    )


def _beside(found: Sequence[Found], numbers: Mapping[str, Number], caption: str) -> Table:
    lines = (
        Line(
            cells=(
                one.name,
                *((_spread if "correlation" in name else _half)(number(one)) for name, number in numbers.items()),
            )
        )
        for one in found
    )
    return Table(columns=_headed(("", *numbers)), lines=tuple(lines), caption=caption)


# Lines and quantities


def _layer_lines(found: Found, measure: Measure) -> list[Line]:
    lines = [
        _line(found.layers[i], measure.layers[:, :, i], layer_slope(found, measure, i)) for i in _shown(found.layers)
    ]
    return [*lines, _line("mean of layers", measure.mean, slope(found, measure))]


def _line(name: str, values: Array, rate: Contrasted) -> Line:
    return Line(cells=(name, *(mean_std(values[:, i]) for i in range(values.shape[1])), _spread(rate)), level=1)


def _spread(contrast: Contrasted) -> str:
    """Return "-1.9 (-2.1 to -1.7)"."""
    estimate, interval = spread(*contrast)
    return estimate if interval == NONE else f"{estimate} ({interval})"


def _half(contrast: Contrasted) -> str:
    """Return "-1.9 ± 0.2", the half width of the interval."""
    estimate, (low, high) = contrast
    return figure(estimate, (high - low) / 2)


def _shown(names: Sequence[str]) -> list[int]:
    """Return which layers a table shows: all of a few, else some from the first to the last."""
    return sorted({round(i) for i in np.linspace(0, len(names) - 1, min(SHOWN, len(names)))})


def _headed(headers: Sequence[str]) -> tuple[Column, ...]:
    first, *others = headers
    return (Column(header=first, numeric=False, wraps=True), *(Column(header=header) for header in others))


def _caption(found: Found) -> str:
    return f"{averaged(len(found.trained.loss))}; per doubling of the batch size, with its 95 % interval"


def slug(name: str) -> str:
    """Return a name as part of another."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def _record(name: str, quantities: dict[str, Quantity]) -> Record:
    return Record(analyzer=name, version="1", status=Status.EXACT, quantities=quantities)


def _error(values: Array) -> Array:
    """Return the standard error over seeds, the first axis; NaN of a single one."""
    seeds, flat = len(values), values.reshape(len(values), -1)
    errors = [deviation(column) / math.sqrt(seeds) if seeds > 1 else math.nan for column in flat.T]
    return np.array(errors).reshape(values.shape[1:])


def _accuracies(found: Sequence[Found]) -> Quantity:
    return Quantity(
        value=np.stack([one.accuracy.mean(axis=0) for one in found]),
        sampling_error=np.stack([_error(one.accuracy) for one in found]),
        doc="test accuracy at equal training loss, mean over seeds; errors are over seeds",
        unit="%",
        drawn="line",
        dims=("network", "batch"),
        labels={
            "network": tuple(one.name for one in found),
            "batch": tuple(map(str, found[0].trained.network.sizes)),
        },
    )


def _curves(found: Found, measures: Sequence[Measure]) -> Quantity:
    values = np.stack([one.layers for one in measures], axis=1)  # (seeds, measures, sizes, layers)
    return Quantity(
        value=np.moveaxis(values.mean(axis=0), 2, 0),
        sampling_error=np.moveaxis(_error(values), 2, 0),
        doc="near-rank in percent of full rank, mean over seeds; errors are over seeds",
        unit="%",
        drawn="line",
        dims=("layer", "measured", "batch"),
        labels={
            "layer": found.layers,
            "measured": tuple(one.name for one in measures),
            "batch": tuple(map(str, found.trained.network.sizes)),
        },
    )


def _means(found: Found, measures: Sequence[Measure]) -> Quantity:
    return Quantity(
        value=np.stack([one.mean for one in measures]),
        doc="mean over the hidden layers of every run",
        drawn="detail",
        dims=("measure", "seed", "batch"),
        labels={
            "measure": tuple(one.name for one in measures),
            "seed": tuple(str(row[0].spec.recipe.seed) for row in found.trained.loss),
            "batch": tuple(map(str, found.trained.network.sizes)),
        },
    )
