"""Escape times of SGD: simulated on landscapes, beside the formula of Eyring and Kramers."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gapscope.report.contrasts import Contrasted, mean_over, slope_over
from gapscope.report.document import Column, Line, Table
from gapscope.report.figures import count, figure, number, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record
from gapscope.results import Array, Quantity, Status
from gapscope.training.recipe import counted
from gapscope.training.studies.dai_zhu.agreement import Made, agrees
from gapscope.training.studies.dai_zhu.wells import (
    BARRIER,
    LEFT,
    RIGHT,
    Landscape,
    Passages,
    Walk,
    arrivals,
    walks_of,
)
from gapscope.training.studies.lab import Lab

if TYPE_CHECKING:
    from gapscope.training.studies.dai_zhu import Plan

THEORY = "theory of escape"
SLOPE = "slope over that of the formula"
SMALL_NOISE = (
    "The formula is the limit of small noise: where barrier / D is 4 to 6 the exact times of a double well are 14 to 8 "
    "% longer, and steps that are not infinitely small change them by a few percent. ± is one standard error over "
    "passages; a walker cut off before it arrived counts by the iterations that it walked."
)


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way out of a minimum, walked at several batch sizes."""

    title: str
    landscape: Landscape
    start: float
    walks: Sequence[Walk]
    found: Sequence[Passages]

    @property
    def logs(self) -> Array:
        """Logarithm of the mean time eta k / (1 - m) by seed and walk (seeds, walks); NaN without an arrival."""
        times = np.array([walk.speed * found.mean for walk, found in zip(self.walks, self.found, strict=True)]).T
        return np.asarray(np.log(times, out=np.full(times.shape, math.nan), where=np.isfinite(times)))

    @property
    def exponents(self) -> list[float]:
        """Barrier / D of each walk."""
        return [BARRIER / walk.diffusion for walk in self.walks]

    @property
    def lines(self) -> list[Line]:
        """Its rows in the table: simulated beside the formula."""
        pairs = zip(self.walks, self.found, strict=True)
        return [Line(cells=(self.title,)), *(self._line(walk, found) for walk, found in pairs)]

    def _line(self, walk: Walk, found: Passages) -> Line:
        (mean, error), formula = found.pooled, walk.predicted(self.landscape, self.start)
        none = math.isnan(error)
        cells = (
            f"B {walk.batch_size}",
            number(formula.exponent, 3),
            f"> {count(round(mean))}" if none else figure(mean, error),
            number(formula.iterations),
            f"> {number(mean / formula.iterations, 3)}"
            if none
            else figure(mean / formula.iterations, error / formula.iterations),
        )
        return Line(cells=cells, level=1)


# Escape times


def escape(lab: Lab, plan: "Plan") -> Made:
    """Simulate the ways out of wells, and set their times beside the formula of Eyring and Kramers."""
    ways = _ways(lab, plan)
    record = Record(analyzer="dai-zhu-escape", version="1", status=Status.EXACT, quantities=_times_of(ways))
    tables = (_table(ways, plan), _slopes(ways, plan))
    return Part(record=record, title="Escape times", tables=tables, notes=(SMALL_NOISE,)), claims_of(ways)


def claims_of(ways: Sequence[Way]) -> tuple[Claim, ...]:
    """Judge the ways: two rates on the double well, any momenta there, and both ways through the valley."""
    plain, faster, *heavy, from_sharp, from_flat = ways
    return (
        all_of(
            "the logarithm of the escape time rises with B / eta as 2 barrier / s^2",
            [
                agrees("double well", _slope(plain, faster), source=THEORY, what=SLOPE),
                agrees("valley", _slope(from_sharp, from_flat), source=THEORY, what=SLOPE),
            ],
            source=THEORY,
        ),
        agrees(
            "at one eta / B, escape takes the same eta x iterations",
            _over(faster.logs - plain.logs),
            source=THEORY,
            what=f"rate {faster.walks[0].rate:g} over {plain.walks[0].rate:g}",
        ),
        *(_sped_up(plain, way) for way in heavy),
        judged(
            "the sharper of two minima of one depth is left sooner",
            _over(from_flat.logs - from_sharp.logs),
            "higher",
            source=THEORY,
            ratio=True,
            what=f"time out of the flat one over the sharp one (formula {number(_times(from_sharp, from_flat), 3)})",
        ),
        judged(
            "larger eta / B goes from the sharp to the flat minimum sooner",
            mean_over(np.exp(from_sharp.logs[:, -1] - from_sharp.logs[:, 0]), "ratio"),
            "higher",
            source="abstract",
            ratio=True,
            what="time at the smallest eta / B over that at the largest",
        ),
    )


def _ways(lab: Lab, plan: "Plan") -> list[Way]:
    well, valley = Landscape(), Landscape(across=(plan.sharp, plan.flat))
    rate, factor = plan.walk_rate, plan.walk_rate_factor
    slow = walks_of(plan, plan.walk_batch_sizes)
    asked = [
        (f"double well, eta {rate:g}", well, LEFT, slow),
        (f"double well, eta {factor * rate:g}", well, LEFT, [walk.scaled(factor) for walk in slow]),
        *(
            (f"double well, momentum {m:g}, eta {rate * (1 - m):.3g}", well, LEFT, [walk.heavy(m) for walk in slow])
            for m in plan.walk_momenta
        ),
        (f"valley, from its sharp minimum, eta {rate:g}", valley, LEFT, slow),
        (f"valley, from its flat minimum, eta {rate:g}", valley, RIGHT, slow),
    ]
    works = [
        _walk(plan, landscape, start, walk, position)
        for position, (_, landscape, start, walks) in enumerate(asked)
        for walk in walks
    ]
    pairs = zip(works, lab.compute(works, "simulate escapes"), strict=True)
    every = (Passages(arrivals=found, iterations=work.keywords["iterations"] * plan.walkers) for work, found in pairs)
    return [
        Way(title=title, landscape=landscape, start=start, walks=walks, found=[next(every) for _ in walks])
        for title, landscape, start, walks in asked
    ]


def _walk(plan: "Plan", landscape: Landscape, start: float, walk: Walk, way: int) -> functools.partial[Array]:
    """Walk about as long as one passage should take, or as long as there is time for."""
    return functools.partial(
        arrivals,
        landscape,
        walk,
        start,
        shape=(plan.seeds, plan.walkers),
        iterations=math.ceil(min(walk.predicted(landscape, start).iterations, plan.most_iterations)),
        seed=(way, walk.batch_size),
    )


def _slope(*ways: Way) -> Contrasted:
    """Return the slope of log time over barrier / D, on which the formula has 1, over all of these ways."""
    logs = np.concatenate([way.logs - way.logs.mean() for way in ways], axis=1)
    return slope_over([exponent for way in ways for exponent in way.exponents], logs)


def _over(logs: Array) -> Contrasted:
    """Return the ratio of times, given its logarithms (seeds, walks)."""
    return mean_over(np.exp(logs.mean(axis=1)), "ratio")


def _times(first: Way, last: Way) -> float:
    """Return the ratio of times by the formula, last over first."""
    times = [way.walks[0].predicted(way.landscape, way.start).time for way in (first, last)]
    return times[1] / times[0]


def _sped_up(plain: Way, heavy: Way) -> Claim:
    momentum = heavy.walks[0].momentum
    return agrees(
        f"momentum {momentum:g} escapes as SGD at the rate eta / (1 - m) does",
        _over(heavy.logs - plain.logs),
        source=THEORY,
        what=f"time with momentum {momentum:g} over that without",
    )


def _table(ways: Sequence[Way], plan: "Plan") -> Table:
    columns = [Column(header="", numeric=False)]
    columns += [Column(header=header) for header in ("barrier / D", "iterations", "formula", "ratio")]
    return Table(
        columns=tuple(columns),
        lines=tuple(line for way in ways for line in way.lines),
        caption=f"iterations from one minimum to the other; {plan.seeds} x {plan.walkers} walkers, s^2 = "
        f"{plan.noise_variance:g}, D = eta s^2 / (2 (1 - m) B)",
    )


def _slopes(ways: Sequence[Way], plan: "Plan") -> Table:
    unit = 2 * BARRIER / plan.noise_variance
    heads = ("slope of log time over (1 - m) B / eta", "simulated", "95 % interval", "formula")
    lines = []
    for way in ways:
        middle, (low, high) = _slope(way)
        estimate, interval = spread(unit * middle, (unit * low, unit * high))
        lines.append(Line(cells=(way.title, estimate, interval, f"{unit:g}")))
    return Table(
        columns=(Column(header=heads[0], numeric=False, wraps=True), *(Column(header=head) for head in heads[1:])),
        lines=tuple(lines),
        caption=f"interval over {counted(plan.seeds, 'seed')}; the formula's slope is 2 barrier / s^2",
    )


def _times_of(ways: Sequence[Way]) -> dict[str, Quantity]:
    """Return the times as curves over B / eta, and how they stand to the formula."""
    inverse = [f"{1 / (walk.speed / walk.batch_size):.4g}" for walk in ways[0].walks]
    labels = {"way": tuple(way.title for way in ways), "effective_batch_over_rate": tuple(inverse)}
    scale = [[walk.speed for walk in way.walks] for way in ways]
    formula = [[walk.predicted(way.landscape, way.start).iterations for walk in way.walks] for way in ways]
    pooled = np.array([[found.pooled for found in way.found] for way in ways])  # (ways, walks, 2)
    mean, error = pooled[..., 0], pooled[..., 1]
    common = {"dims": tuple(labels), "labels": labels, "drawn": "line"}
    return {
        "log10_time": Quantity(
            value=np.log10(mean * scale),
            numerical_error=error / mean / math.log(10),
            doc="log10 of the mean time eta k / (1 - m) from one minimum to the other, against (1 - m) B / eta; a "
            "straight line is Arrhenius' law; errors are over passages; a bound from below where nothing arrived",
            **common,  # type: ignore[arg-type]  # a dict of several types
        ),
        "over_formula": Quantity(
            value=mean / formula,
            numerical_error=error / formula,
            doc="simulated iterations over those of the formula of Eyring and Kramers, which is the limit of small "
            "noise: the further right, the nearer 1; errors are over passages",
            **common,  # type: ignore[arg-type]  # a dict of several types
        ),
    }
