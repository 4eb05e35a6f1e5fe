"""Which of two wells SGD ends in: simulated for several eta / B, beside the odds of the stationary density."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gapscope.report.contrasts import deviation, mean_over
from gapscope.report.document import Column, Line, Series, Table
from gapscope.report.figures import count, number, spread
from gapscope.report.outcome import Claim, Part, all_of, judged
from gapscope.report.records import Record
from gapscope.results import Array, Quantity, Status
from gapscope.training.studies.dai_zhu.agreement import Made, agrees
from gapscope.training.studies.dai_zhu.wells import BARRIER, Landscape, Walk, relaxation, shares, walks_of
from gapscope.training.studies.lab import Lab

if TYPE_CHECKING:
    from gapscope.training.studies.dai_zhu import Plan

SETTLED = 3.0  # relaxation times after which exp(-3) = 5 % of the start are left
PLACES = 40  # pieces of the time that shares are followed over


@dataclass(frozen=True, kw_only=True)
class Settling:
    """How the walkers of one eta / B spread from the sharp well: the share in the flat one by seed and time."""

    landscape: Landscape
    walk: Walk
    iterations: int
    share: Array  # (seeds, PLACES)

    @property
    def name(self) -> str:
        """Its eta / B."""
        return f"eta / B {self.walk.rate / self.walk.batch_size:.3g}"

    @property
    def settled(self) -> bool:
        """Whether the start is forgotten when the second half begins."""
        return self.iterations / 2 >= SETTLED * relaxation(self.landscape, self.walk)

    @property
    def odds(self) -> Array:
        """P(flat) / P(sharp) over the second half of the time (seeds,); NaN where the sharp well is empty."""
        late = self.share[:, PLACES // 2 :].mean(axis=1)
        return np.asarray(np.divide(late, 1 - late, out=np.full(late.shape, math.nan), where=late < 1))

    @property
    def line(self) -> Line:
        """Its row in the table."""
        walk, landscape = self.walk, self.landscape
        estimate, interval = spread(*mean_over(self.odds, "ratio"))
        cells = (
            f"{walk.rate / walk.batch_size:.3g}",
            number(BARRIER / walk.diffusion, 3),
            number(relaxation(landscape, walk)),
            estimate,
            interval,
            number(landscape.odds(walk.diffusion), 3),
            number(landscape.odds_of_formula(), 3),
        )
        return Line(cells=cells, tone="plain" if self.settled else "dim")


def odds(lab: Lab, plan: "Plan") -> Made:
    """Start everything in the sharp well and see where it is in the end, for several eta / B."""
    found = _settlings(lab, plan)
    quantities = {"flat_share": _share(found)}
    part = Part(
        record=Record(analyzer="dai-zhu-odds", version="1", status=Status.EXACT, quantities=quantities),
        title="Which well SGD ends in",
        tables=(_table(found),),
        drawn=(_drawn(found),),
        notes=_notes(found),
    )
    return part, (flatter(found),)


def _settlings(lab: Lab, plan: "Plan") -> list[Settling]:
    valley = Landscape(across=(plan.sharp, plan.flat))
    walks = walks_of(plan, plan.settled_batch_sizes)
    slowest = max(relaxation(valley, walk) for walk in walks)
    iterations = math.ceil(min(plan.relaxations * slowest, plan.most_iterations))
    asked = functools.partial(shares, valley, shape=(plan.seeds, plan.walkers), iterations=iterations, places=PLACES)
    works = [functools.partial(asked, walk, seed=walk.batch_size) for walk in walks]
    found = lab.compute(works, "simulate which well SGD ends in")
    return [
        Settling(landscape=valley, walk=walk, iterations=iterations, share=share)
        for walk, share in zip(walks, found, strict=True)
    ]


def flatter(found: Sequence[Settling]) -> Claim:
    """Judge whether the flat well is the likelier one, and as likely at every eta / B, of those that settled."""
    text, source = "SGD ends in the flatter of two equally deep minima whatever eta / B", "abstract"
    settled = [one for one in found if one.settled]
    flat = [
        judged(
            f"in the flat one at {one.name}",
            mean_over(one.odds, "ratio"),
            "higher",
            source=source,
            ratio=True,
            what="odds",
        )
        for one in settled
    ]
    return all_of(text, [*flat, _equal(settled, source)], source=source)


def _equal(settled: Sequence[Settling], source: str) -> Claim:
    if len(settled) < 2:
        nothing = (math.nan, (math.nan, math.nan))
        return agrees("equal odds", nothing, source=source, what="fewer than two eta / B settled:")
    first, last = settled[0], settled[-1]
    exact = first.landscape.odds(first.walk.diffusion) / last.landscape.odds(last.walk.diffusion)
    what = f"largest over smallest eta / B, exact {number(exact, 3)}:"
    return agrees("equal odds", mean_over(first.odds / last.odds, "ratio"), source=source, what=what)


def _table(found: Sequence[Settling]) -> Table:
    heads = ("eta / B", "barrier / D", "relaxes in", "odds", "95 % interval", "exact", "formula")
    return Table(
        columns=tuple(Column(header=head) for head in heads),
        lines=tuple(one.line for one in found),
        caption="odds P(flat) / P(sharp); relaxes in so many iterations by the formula",
    )


def _notes(found: Sequence[Settling]) -> tuple[str, ...]:
    notes = [
        f"All walkers start in the sharp well; of {count(found[0].iterations)} iterations the second half counts. The "
        "formula is the limit of small noise; the exact odds are those of the density exp(-L / D) at this noise, for "
        "steps that are infinitely small."
    ]
    if late := [one.name for one in found if not one.settled]:
        notes.append(f"Not settled, and so in no claim: {', '.join(late)}. More `relaxations` would tell.")
    return tuple(notes)


def _ends(found: Sequence[Settling]) -> tuple[str, ...]:
    """Return the middle of every piece of the time, in thousands of iterations."""
    return tuple(f"{(place + 0.5) * found[0].iterations / PLACES / 1000:.4g}" for place in range(PLACES))


def _share(found: Sequence[Settling]) -> Quantity:
    share = np.array([one.share for one in found])  # (eta / B, seeds, places)
    seeds = share.shape[1]
    errors = [[deviation(one) / math.sqrt(seeds) if seeds > 1 else math.nan for one in each.T] for each in share]
    return Quantity(
        value=share.mean(axis=1),
        numerical_error=np.array(errors),
        doc="share of walkers in the flat well, all of which start in the sharp one: one level for every eta / B, "
        "reached the sooner the larger eta / B is; errors are over seeds",
        drawn="line",
        dims=("rate_over_batch", "thousand_iterations"),
        labels={"rate_over_batch": tuple(one.name for one in found), "thousand_iterations": _ends(found)},
    )


def _drawn(found: Sequence[Settling]) -> Series:
    return Series(
        title="share of walkers in the flat well",
        style="strip",
        axis="thousand iterations",
        labels=_ends(found),
        curves=tuple(tuple(one.share.mean(axis=0).tolist()) for one in found),
        names=tuple(one.name for one in found),
    )
