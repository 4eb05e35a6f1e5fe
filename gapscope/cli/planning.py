"""What measuring will take: said before it, all that `--dry-run` prints, and kept to under `--time-budget`."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapscope.cli.settings import Common, parse_seconds
from gapscope.cli.stderr import tell
from gapscope.errors import UsageError

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.pace import Pace
    from gapscope.measure.plan import Fit
    from gapscope.results import Result

AROUND = 1.0  # seconds of a budget for Python's start before the command, and for the report after it
SAID_BYTES = 1_000_000_000  # a larger peak is announced


class Clock:
    """When the command of this process began, before torch was imported: a time budget counts from here."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self.began = time.monotonic()


COMMAND = Clock()


@dataclass(frozen=True)
class Planned:
    """Analyzers, what they are expected to take, and when they have to end."""

    context: "Context"
    fits: "tuple[Fit, ...]"
    speed: "Pace"
    budget: float  # seconds
    end: float  # of measuring

    @property
    def seconds(self) -> float:
        """Return what is expected of those that are not skipped."""
        return sum(fit.cost.known_seconds for fit in self.fits if not fit.why)

    def run(self) -> "Iterator[tuple[Any, Callable[[], Result], str]]":
        """Yield analyzers as the time then left allows them, how each is run, and why it is skipped, if it is."""
        from gapscope.measure.distributed import ranks
        from gapscope.measure.plan import fit

        for each in self.fits:
            name = each.analyzer.name
            found = each
            if self.budget < math.inf:
                left = ranks().from_first(self.end - time.monotonic())
                found = fit(self.context.problem(), self.context.analyzers[name], self.speed, left)
            yield found.analyzer, partial(self._result, found.analyzer), found.why

    def _result(self, analyzer: Any) -> "Result":
        """Run an analyzer as the time allows it, and say so in its result."""
        asked: Any = self.context.analyzers[analyzer.name]
        context = replace(self.context, analyzers={**self.context.analyzers, analyzer.name: analyzer})
        result = context.run(analyzer.name)
        if analyzer == asked:
            return result
        most = analyzer.max_matvecs
        note = f"the time budget allowed {most} of {asked.max_matvecs} products; `--max-matvecs {most}` repeats this"
        return replace(result, notes=(*result.notes, note))


def planned(context: "Context", analyzers: Sequence[Any], common: Common) -> Planned:
    """Time passes of every kind, and return the plan; the time since the start of the command is of the budget.

    Nothing is timed where nobody would see it or be bound by it.
    """
    from gapscope.measure.distributed import ranks
    from gapscope.measure.pace import Pace, pace
    from gapscope.measure.plan import PLANNING, kinds, plan

    budget = math.inf if common.time_budget is None else parse_seconds(common.time_budget)
    end = COMMAND.began + budget - AROUND
    problem = context.problem()
    speed = Pace(math.nan)
    if not common.quiet or common.dry_run or budget < math.inf:
        # by one clock: ranks that disagree about what fits would wait for each other
        within = ranks().from_first(PLANNING * (end - time.monotonic()))
        speed = ranks().from_first(pace(problem, kinds(problem, analyzers), within=within))
    fits = plan(problem, analyzers, speed, budget=ranks().from_first(end - time.monotonic()))
    return Planned(context, fits, speed, budget, end)


def refuse_unfit(found: Planned) -> None:
    """Raise UsageError where an analyzer that stands for the whole command does not fit into the time."""
    for one in found.fits:
        if one.why:
            raise UsageError(
                f"{one.analyzer.name} {one.why.partition(':')[0]}. Expected work that ends within it. Raise "
                "`--time-budget`, or ask for less, such as fewer `--points`."
            )


def announce(context: "Context", analyzers: Sequence[Any]) -> None:
    """Say how much memory the work will take, where that is much."""
    from gapscope.measure.plan import peak_bytes

    largest = max((peak_bytes(context.problem(), analyzer) for analyzer in analyzers), default=0)
    if largest > SAID_BYTES:
        tell(f"memory: about {_size(largest)} above the loaded model and data, at most")


def line(found: Planned) -> str:
    """Return the plan in a line."""
    from gapscope.measure.plan import clock

    each = [f"{f.analyzer.name} {_said(f)}" for f in found.fits]
    limit = f", of which {clock(found.budget)} may be spent" if found.budget < math.inf else ""
    return f"plan: about {clock(found.seconds)}{limit}: {', '.join(each)}"


def show_plan(found: Planned, path: Path, common: Common) -> None:
    """Print the plan alone: what `--dry-run` is for."""
    if common.json:
        from gapscope.report.export import dumps

        print(dumps(_plain(found, path)))
        return
    from gapscope.cli.measuring import say

    _table(found)
    say("", _total(found), f"would write {path}; nothing was measured", *_skipped(found))


def show_plans(
    plans: "Mapping[str, tuple[Planned, Path | None]]", common: Common, *, times: int = 1, loading: float = 0.0
) -> None:
    """Print the plans of several pieces of work by name, and what they take in all, so many times with the loading."""
    from gapscope.cli.measuring import say
    from gapscope.measure.plan import clock

    seconds = times * (loading + sum(found.seconds for found, _ in plans.values()))
    if common.json:
        from gapscope.report.export import dumps

        each = {name: _plain(found, path) for name, (found, path) in plans.items()}
        print(dumps({"plans": each, "times": times, "seconds_of_loading": loading, "seconds": seconds}))
        return
    for name, (found, path) in plans.items():
        say(name)
        _table(found)
        say("", _total(found), *([f"would write {path}"] if path else []), *_skipped(found), "")
    many = f"{times:,} such, and {clock(loading)} to load each: about " if loading else "about "
    say(f"{many}{clock(seconds)} in all; nothing was measured" if plans else "nothing is left to measure")


def _table(found: Planned) -> None:
    rows = [("", "gradients", "products", "time", "memory")]
    rows += [
        (
            f.analyzer.name,
            "?" if math.isnan(f.cost.gradients) else f"{f.cost.gradients:.0f}",
            f"{f.cost.products:.0f}" if f.cost.products else "",
            _said(f),
            _size(f.cost.bytes),
        )
        for f in found.fits
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        shown = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *shown]).rstrip())


def _total(found: Planned) -> str:
    from gapscope.measure.plan import clock

    largest = max((f.cost.bytes for f in found.fits if not f.why), default=0)
    speed = f"a gradient takes {clock(found.speed.gradient)}"
    speed += f", a product {clock(found.speed.product)}" if found.speed.product > 0 else ""
    return f"about {clock(found.seconds)} and {_size(largest)} above the loaded model and data; {speed}"


def _skipped(found: Planned) -> list[str]:
    return [f"{one.analyzer.name} {one.why}" for one in found.fits if one.why]


def _plain(found: Planned, path: Path | None) -> dict[str, Any]:
    """Return the plan as JSON holds it; null where an analyzer does not say."""
    problem = found.context.problem()
    each = {
        f.analyzer.name: {
            "gradients": None if math.isnan(f.cost.gradients) else f.cost.gradients,
            "products": f.cost.products,
            "seconds": None if math.isnan(f.cost.seconds) else f.cost.seconds,
            "bytes": f.cost.bytes,
            "max_matvecs": getattr(f.analyzer, "max_matvecs", None),
            "skipped": f.why or None,
        }
        for f in found.fits
    }
    return {
        "plan": each,
        "seconds": found.seconds,
        "bytes": max((f.cost.bytes for f in found.fits if not f.why), default=0),
        "seconds_per_gradient": found.speed.gradient,
        "seconds_per_product": None if math.isnan(found.speed.product) else found.speed.product,
        "parameters": problem.size,
        "samples": problem.samples,
        "micro_batch": problem.micro_batch,
        "report": None if path is None else str(path),
    }


def _said(fit: "Fit") -> str:
    from gapscope.measure.plan import clock

    if fit.why:
        return "skipped"
    return "?" if math.isnan(fit.cost.seconds) else clock(fit.cost.seconds)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"
