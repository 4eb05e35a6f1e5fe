"""The minima of both regimes in Keskar's tables and figures: sharpness, accuracy, paths, batch sizes and remedies."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gapscope.measure.analyzers.adaptive_sharpness import AdaptiveSharpness
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.epsilon_sharpness import EpsilonSharpness
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.analyzers.path import Path
from gapscope.report.contrasts import Contrasted, mean_over
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import number, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record, Report
from gapscope.results import Contrast, Quantity, Status
from gapscope.training.studies.lab import Run
from gapscope.training.studies.numbers import averaged, contrast, mean_std, minding_loss, numbers

if TYPE_CHECKING:
    from gapscope.training.studies.keskar import Bench

Made = tuple[Part, tuple[Claim, ...]]
SHARPNESS = "epsilon-sharpness"
ACCURACY = "gap/test_accuracy"
ADAPTIVE = AdaptiveSharpness(rhos_l2=(0.5,), rhos_linf=(), rhos_average=(), rhos_sam=(), probes=0)
Pair = tuple[float, float]
# Tables 2 to 4: test accuracy, and sharpness in the full space and on manifolds at 1e-3 and 5e-4; small, large batch
PAPER: dict[str, tuple[Pair, tuple[Pair, Pair], tuple[Pair, Pair]]] = {
    "F1": ((98.03, 97.81), ((1.23, 205.14), (0.61, 42.90)), ((0.11, 9.22), (0.05, 9.17))),
    "F2": ((64.02, 59.45), ((1.39, 310.64), (0.90, 93.15)), ((0.29, 23.63), (0.05, 6.28))),
    "C1": ((80.04, 77.26), ((28.58, 707.23), (7.08, 227.31)), ((2.18, 137.25), (0.71, 29.50))),
    "C2": ((89.24, 87.26), ((8.68, 925.32), (2.07, 175.31)), ((0.95, 25.09), (0.31, 5.82))),
    "C3": ((49.58, 46.45), ((29.85, 258.75), (8.56, 105.11)), ((17.02, 236.03), (4.03, 86.96))),
    "C4": ((63.08, 57.81), ((12.83, 421.84), (4.07, 109.35)), ((6.05, 72.99), (1.89, 19.85))),
}
SPACES, EPSILONS = ("full", "manifold"), ("1e-3", "5e-4")  # of those columns


@dataclass(frozen=True)
class Minima:
    """The runs of the main tables, one per seed in each: small batch, large to the same loss, large for as long."""

    small: Sequence[Run]
    loss: Sequence[Run]
    epochs: Sequence[Run]


@dataclass(frozen=True)
class Measure:
    """A number of the tables: its place in a report, and what the paper has there."""

    title: str
    path: str
    labels: Mapping[str, str]
    kind: Contrast = "ratio"
    paper: Pair | None = None
    group: str = ""  # the heading above it and its like


def sharpness(bench: "Bench", *, manifold: bool = False) -> EpsilonSharpness:
    """Return the paper's measure: L-BFGS-B for 10 iterations, in the full space and on manifolds."""
    return EpsilonSharpness(epsilons=bench.plan.epsilons, solvers=("keskar",), manifold=100 * manifold)


def phi(bench: "Bench") -> dict[str, str]:
    """Return the labels of the first epsilon."""
    return {"solver": "keskar", "epsilon": _label(bench.plan.epsilons[0])}


def _label(epsilon: float) -> str:
    mantissa, power = f"{epsilon:e}".split("e")
    return f"{float(mantissa):g}e{int(power)}"


# Tables 2 to 4


def minima(bench: "Bench", found: Minima) -> Made:
    """Return the paper's main tables: accuracy and sharpness of both regimes, at equal loss and at equal epochs."""
    analyzers = (Gap(), sharpness(bench, manifold=True), Eigenvalues(), ADAPTIVE)
    runs = (*found.small, *found.loss, *found.epochs)
    reports = bench.lab.measure(runs, analyzers, "minima")
    seeds = len(found.small)
    small, equal, long = reports[:seeds], reports[seeds : 2 * seeds], reports[2 * seeds :]
    rows = _measures(bench)
    tables = tuple(
        _table(bench, rows, small, large, f"{words}; {averaged(seeds)}")
        for words, large in (("at equal training loss", equal), ("after as many epochs as the small batch", long))
    )
    tables = (*tables, _paper(bench, rows))
    claims = [
        *unless_late(_main(rows, small, equal, "at equal loss"), found.small, found.loss),
        *_main(rows, small, long, "after as many epochs as the small batch"),
    ]
    record = Record(
        analyzer="keskar-minima",
        version="1",
        status=Status.EXACT,
        quantities={"numbers": kept(rows, {"small": small, "large, equal loss": equal, "large, equal epochs": long})},
    )
    note = (
        "Ratios are large / small, with a sign large - small. The large batch stops at the first epoch at or below the "
        "small one's loss, so its loss is a little lower. At equal epochs it has taken fewer steps and is at another "
        "loss: sharpness differs by training progress alone."
    )
    return Part(record=record, title="Minima", tables=tables, notes=(note,)), tuple(claims)


def _measures(bench: "Bench") -> list[Measure]:
    accuracy, *spaces = PAPER[bench.plan.paper]
    rows = [
        Measure("training loss", "gap/train_loss", {}),
        Measure("test accuracy %", ACCURACY, {}, "difference", accuracy),
    ]
    for space, published in zip(SPACES, spaces, strict=True):
        for epsilon in map(_label, bench.plan.epsilons):
            known = dict(zip(EPSILONS, published, strict=True))
            where = {"solver": "keskar", "epsilon": epsilon}
            title = f"{space}, {epsilon}"
            path = f"{SHARPNESS}/{space}"
            rows.append(Measure(title, path, where, paper=known.get(epsilon), group="epsilon-sharpness %"))
    return [
        *rows,
        Measure("top eigenvalue", "eigenvalues/top", {}),
        Measure("adaptive sharpness", "adaptive-sharpness/worst_l2", {"rho_l2": "0.5"}),
    ]


def _table(
    bench: "Bench", rows: Sequence[Measure], small: Sequence[Report], large: Sequence[Report], caption: str
) -> Table:
    heads = (f"small {bench.small}", f"large {bench.large}", "ratio", "95 % interval", f"in {bench.plan.paper}")
    columns = (Column(header="", numeric=False, wraps=True), *(Column(header=head) for head in heads))
    return Table(columns=columns, lines=tuple(_lines(rows, small, large)), caption=caption)


def _lines(rows: Sequence[Measure], small: Sequence[Report], large: Sequence[Report]) -> Iterator[Line]:
    """Yield a line for each number, those of one group below its heading."""
    above = ""
    for row in rows:
        if row.group and row.group != above:
            yield Line(cells=(row.group,))
        above = row.group
        estimate, interval = spread(*_contrast(row, small, large))
        sides = (mean_std(numbers(side, row.path, **row.labels)) for side in (small, large))
        yield Line(
            cells=(row.title, *sides, _signed(row, estimate), interval, _published(row)), level=int(bool(row.group))
        )


def _signed(row: Measure, text: str) -> str:
    return f"+{text}" if row.kind == "difference" and text[:1].isdigit() else text


def _published(row: Measure) -> str:
    """Return what the paper's numbers give in the column of ratios and differences."""
    if row.paper is None:
        return ""
    small, large = row.paper
    return _signed(row, number(large / small if row.kind == "ratio" else large - small, 3))


def _paper(bench: "Bench", rows: Sequence[Measure]) -> Table:
    """Return the paper's own numbers."""
    heads = ("small", "large")
    known = [(row, row.paper) for row in rows if row.paper is not None]
    return Table(
        columns=(Column(header="", numeric=False), *(Column(header=head) for head in heads)),
        lines=tuple(
            Line(cells=(f"{row.group} {row.title}".strip(), *(number(side) for side in pair))) for row, pair in known
        ),
        caption=f"the paper's {bench.plan.paper} (Tables 2 to 4): another network on other data",
    )


def _contrast(row: Measure, small: Sequence[Report], large: Sequence[Report]) -> Contrasted:
    return contrast(small, large, row.path, row.kind, **row.labels)


def _main(rows: Sequence[Measure], small: Sequence[Report], large: Sequence[Report], when: str) -> list[Claim]:
    """Judge the paper's two main claims: sharper in both spaces at both epsilons, and less accurate."""
    sharp = [row for row in rows if row.path.startswith(SHARPNESS)]
    each = [
        judged(row.title, _contrast(row, small, large), "higher", source="", ratio=True, what="ratio") for row in sharp
    ]
    accurate = contrast(small, large, ACCURACY, "difference")
    sharper = all_of(f"large batches end in sharper minima, {when}", each, source="Tables 3 and 4")
    return [
        minding_loss(sharper, small, large),
        judged(
            f"large batches generalize worse, {when}",
            accurate,
            "lower",
            source="Table 2",
            ratio=False,
            what="difference of test accuracies in points",
        ),
    ]


def unless_late(claims: Sequence[Claim], reference: Sequence[Run], runs: Sequence[Run]) -> tuple[Claim, ...]:
    """Return claims at equal loss: none can be told where a run did not come to the loss of its seed's reference."""
    pairs = zip(itertools.cycle(reference), runs, strict=False)
    late = sum(run.train_loss > first.train_loss for first, run in pairs)
    if not late:
        return tuple(claims)
    said = f"{late} of {len(runs)} runs did not come to the loss"
    return tuple(replace(claim, verdict="cannot tell", because=f"{said}; {claim.because}") for claim in claims)


def kept(rows: Sequence[Measure], groups: Mapping[str, Sequence[Report]]) -> Quantity:
    """Return every number of every seed."""
    value = [[numbers(group, row.path, **row.labels) for group in groups.values()] for row in rows]
    seeds = tuple(str(report.training["seed"]) for report in next(iter(groups.values())))
    return Quantity(
        value=np.array(value),
        doc="each number of each run",
        drawn="detail",
        dims=("measure", "regime", "seed"),
        labels={
            "measure": tuple(f"{row.group} {row.title}".strip() for row in rows),
            "regime": tuple(groups),
            "seed": seeds,
        },
    )


# Figures 3 and 7, and the distance from the start


def paths(bench: "Bench", found: Minima) -> Made:
    """Return the paths between the minima of the first seed, and how far each regime went from its initial weights."""
    pairs = list(zip(found.small, found.loss, strict=True))
    whole = bench.lab.together(pairs[0], [Path()])
    ends = Path(points=5, start=0.0, stop=1.0, curved=False)
    ratios = [
        float(one.results["path"].quantities["distance_ratio"].value)
        for one in [whole, *(bench.lab.together(pair, [ends]) for pair in pairs[1:])]
    ]
    claim = judged(
        "the small batch goes farther from its initial weights",
        mean_over(np.array(ratios), "ratio"),
        "higher",
        source="section 3",
        ratio=True,
        what="distance small / large",
    )
    record = whole.results["path"]
    barrier = record.quantities["barrier"]
    note = (
        "Paths from the small-batch minimum (a = 0) to the large-batch one (1) of the first seed, at equal training "
        f"loss; barrier on the straight line {number(float(barrier.value))}. Distance ratios over seeds: "
        f"{', '.join(number(ratio, 3) for ratio in ratios)} (paper: 3 to 10)."
    )
    part = Part(record=record, title="Paths between the minima (figures 3 and 7 of the paper)", notes=(note,))
    return part, unless_late((claim,), found.small, found.loss)
