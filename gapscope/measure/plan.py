"""What measuring will take, before it starts: gradients, seconds and bytes of every analyzer, from one timed product.

What the clock says (`pace`) turns a time budget into numbers of products, which are settings, so that the run can be
repeated exactly without it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from gapscope.errors import GapscopeError
from gapscope.measure.allocation import idle_beside
from gapscope.measure.context import second_order
from gapscope.measure.pace import Pace
from gapscope.measure.probe import bytes_of, samples_of
from gapscope.measure.problem import Problem
from gapscope.measure.sharded import Sharded

WORKING = 6  # vectors (n,), half of them in float64, that any solver and the loop over data hold
# how often the graph of a micro-batch is held while one is worked on: for a gradient, and for the second derivative of
# every sample, which verifies an eigenpair; counted: 2.6 on ResNet-20, 3.3 on an MLP, 4.2 on a transformer
FIRST, SECOND = 1.25, 3.5
HELD = 1.02  # of a kept graph: what it takes over the tensors that it saves
# vectors of float32 that sharded parameters take beside WORKING and the Krylov basis, or in the probe: measured
SHARDED, SHARDED_PROBE = 10, 20
KRYLOV = 30  # vectors: few runs need more
FEWEST = 12  # products under which none is started: the estimators' own least, and Lanczos would show nothing
MANY, BESIDE = 10, 0.15  # passes from which on an analyzer takes dense work and errors beside them, and its seconds
PLANNING = 0.2  # of the time left after loading that timing may take
SHARE = 0.9  # of the time left that products may take: the rest checks and writes


@dataclass(frozen=True)
class Cost:
    """What one analyzer is expected to take; NaN where it does not say."""

    name: str
    gradients: float  # that all takes beside the products
    products: float
    seconds: float
    bytes: int

    @property
    def known_seconds(self) -> float:
        """Return the seconds, 0 where it does not say."""
        return 0.0 if math.isnan(self.seconds) else self.seconds


@dataclass(frozen=True)
class Fit:
    """An analyzer as the time left allows it, what it is expected to take, and why it is skipped, if it is."""

    analyzer: Any
    cost: Cost
    why: str = ""


def peak_bytes(problem: Problem, analyzer: Any) -> int:
    """Return what an analyzer holds at once above the loaded model and data, as it says or as most do.

    Peak resident set in GB, stated and measured: eigenvalues of ResNet-20 on 192 images 1.16 and 1.05, of an MLP on
    50,000 samples .62 and .67; the trace of that on 120,000 .98 and 1.14.
    """
    if hasattr(analyzer, "memory"):
        return int(analyzer.memory(problem))
    if not second_order(analyzer):
        return working_bytes(problem, FIRST)
    vector = problem.theta.nbytes
    basis = min(problem.memory_budget // 2, min(getattr(analyzer, "max_matvecs", 0), KRYLOV) * vector)
    if isinstance(problem, Sharded):  # no graph is kept
        single = vector * 4 // problem.theta.element_size()
        held = max(SHARDED_PROBE * single, basis + SHARDED * single)
        return held + working_bytes(problem, FIRST) + problem.gathered_bytes
    probe = bytes_of(problem, samples_of(problem))
    graphs = graph_bytes(problem)
    idle = idle_beside(graphs) if problem.device.type == "cpu" else 0
    return max(probe, working_bytes(problem, SECOND) + int(HELD * graphs) + basis + idle)


def working_bytes(problem: Problem, graphs: float) -> int:
    """Return what the loop over data holds: so many times the graph of one micro-batch, and a few vectors (n,)."""
    vector = problem.theta.nbytes
    return int(graphs * problem.micro_batch * problem.graph_bytes_per_sample) + WORKING * vector


def graph_bytes(problem: Problem) -> int:
    """Return what the graphs take that are kept between products: all, or as many as half the budget holds."""
    each = problem.micro_batch * problem.graph_bytes_per_sample
    return min(problem.memory_budget // 2 // each * each, problem.samples * problem.graph_bytes_per_sample)


def plan(problem: Problem, analyzers: Sequence[Any], speed: Pace, *, budget: float = math.inf) -> tuple[Fit, ...]:
    """Return what analyzers are expected to take one after the other, within a budget of seconds."""
    fits = []
    for analyzer in analyzers:
        fits.append(fit(problem, analyzer, speed, budget))
        budget -= 0.0 if fits[-1].why else fits[-1].cost.known_seconds
    return tuple(fits)


def fit(problem: Problem, analyzer: Any, speed: Pace, left: float) -> Fit:
    """Return an analyzer as the seconds left allow it.

    Where the most products that it allows itself (`max_matvecs`) would not fit, it is allowed fewer, a setting of its
    result; it is skipped where what it is expected to take would not fit either, or was not timed.
    """
    instead = f"raise `--time-budget`, or run `gapscope {analyzer.name}` alone"
    cost = expected(problem, analyzer, speed)
    if math.isnan(cost.seconds) and left < math.inf and passes_of(problem, analyzer) is not None:
        return Fit(analyzer, cost, f"was not timed: planning may take {PLANNING:.0%} of the time; {instead}")
    most = getattr(analyzer, "max_matvecs", 0)
    fitting = most
    if most and left < math.inf and cost.products and speed.product:
        fitting = int((SHARE * left - cost.gradients * speed.gradient) / speed.product)
    bounded = dataclasses.replace(analyzer, max_matvecs=fitting) if FEWEST <= fitting < most else analyzer
    within = expected(problem, bounded, speed)
    if not within.known_seconds > left:
        return Fit(bounded, within)
    why = f"would take about {clock(cost.seconds)}, and {clock(max(left, 0.0))} were left: {instead}"
    return Fit(analyzer, cost, why)


def expected(problem: Problem, analyzer: Any, speed: Pace) -> Cost:
    """Return what one analyzer is expected to take: its passes, every kind at its own pace."""
    passes = passes_of(problem, analyzer)
    if passes is None:
        return Cost(analyzer.name, math.nan, 0.0, math.nan, peak_bytes(problem, analyzer))
    products = passes.get("product", 0.0)
    rest = speed.of({kind: count for kind, count in passes.items() if kind != "product"})
    rest += speed.first if products else 0.0
    rest += BESIDE if sum(passes.get(kind, 0.0) for kind in ("outcomes", "gradient", "product")) >= MANY else 0.0
    seconds = rest + (products * speed.product if products else 0.0)
    return Cost(analyzer.name, rest / speed.gradient, products, seconds, peak_bytes(problem, analyzer))


def passes_of(problem: Problem, analyzer: Any) -> Mapping[str, float] | None:
    """Return how many passes an analyzer makes by kind (see `pace`), as it says, or None where it does not."""
    try:
        return cast("Mapping[str, float]", analyzer.passes(problem)) if hasattr(analyzer, "passes") else None
    except GapscopeError:  # it will say so itself
        return None


def kinds(problem: Problem, analyzers: Sequence[Any]) -> tuple[str, ...]:
    """Return the kinds of passes that analyzers make, in the order of need: what is to be timed."""
    each = ((passes_of(problem, analyzer) or {}).items() for analyzer in analyzers)
    return tuple(dict.fromkeys(kind for passes in each for kind, count in passes if count))


def clock(seconds: float) -> str:
    """Return seconds for people."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
