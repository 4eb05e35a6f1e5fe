"""Rates fitted to the curvature, of every weight (CBLR) or by layer (MCLR), against LARS and plain SGD."""

import math
from collections.abc import Mapping, Sequence

from gapscope.report.document import Line, Table
from gapscope.report.figures import NONE, number
from gapscope.report.outcome import Claim, Part, alike
from gapscope.report.records import Record
from gapscope.results import Status
from gapscope.training.layer_curvature import GRAPH, PRODUCT
from gapscope.training.optimizers.layerwise import CURVED
from gapscope.training.recipe import Recipe, counted
from gapscope.training.studies.gao_zhong.runs import Bench, Made, headed, told
from gapscope.training.studies.gao_zhong.training import (
    LARGE,
    SMALL,
    Groups,
    Setting,
    at_best,
    gained,
    kept,
    lowered,
    measured,
    tune,
)
from gapscope.training.studies.lab import Run
from gapscope.training.studies.numbers import averaged, mean_std

NAME = "gao-zhong-rates"
ALIKE = 1.0  # gapscope's own: points of test accuracy within which two optimizers are comparable
PAIRS = (("mclr", "cblr"), ("mclr", "lars"), ("cblr", "lars"), ("mclr", "sgd"), ("cblr", "sgd"), ("lars", "sgd"))
CLAIMS = {
    ("mclr", "cblr"): f"MCLR approximates CBLR (test accuracies within {ALIKE:g} point)",
    ("mclr", "lars"): f"MCLR is comparable to LARS (test accuracies within {ALIKE:g} point)",
}


def rates(bench: Bench) -> Made:
    """Train every optimizer at its tuned rate, with the small and the large batch, for as many epochs."""
    plan = bench.plan
    sides = {SMALL: bench.small, LARGE: bench.large}
    change = {"schedule": plan.schedule}
    tuned = tune(
        bench,
        [
            Setting(name=_named(side, name), optimizer=name, size=size, change=change)
            for side, size in sides.items()
            for name in plan.grid
        ],
    )
    runs, left = bench.train(at_best(bench, tuned), "optimizers")
    groups = measured(bench, runs, "optimizers")
    part = Part(
        record=Record(analyzer=NAME, version="1", status=Status.EXACT, quantities=kept(groups)),
        title="Rates fitted to the curvature",
        tables=_tables(bench, sides, runs, groups),
        notes=(
            *tuned.notes,
            *left,
            f"Rates are those of the lowest training loss after {plan.epochs} epochs, of {len(plan.grid['sgd'])} for "
            f"each optimizer and batch size, on {counted(plan.tuning_seeds, 'seed')} that no other "
            f"run has; test data had no part in it. All have the schedule {plan.schedule}. CBLR and MCLR are "
            "gapscope's definitions. Equal epochs are not equal work: curvature, measured about "
            f"{plan.curvature_times} times in a run, comes on top.",
        ),
    )
    return part, claims(groups)


def _named(side: str, optimizer: str) -> str:
    return f"{side}, {optimizer}"


def claims(groups: Groups) -> tuple[Claim, ...]:
    """Judge by test accuracy at equal epochs that MCLR is like CBLR and LARS, with both batch sizes."""
    return tuple(
        alike(
            f"{text}, {side}",
            gained(groups, _named(side, first), _named(side, other)),
            within=(-ALIKE, ALIKE),
            source="abstract",
            what="points of test accuracy",
        )
        for (first, other), text in CLAIMS.items()
        for side in (SMALL, LARGE)
    )


def share(recipe: Recipe, samples: int, steps: int) -> float:
    """Return the share of curvature in all gradients of a run, counted in samples: probes on every so-manieth batch."""
    if recipe.optimizer not in CURVED:
        return 0.0
    size = recipe.batch_size
    epoch = [size] * (samples // size) + [samples % size] * bool(samples % size)
    seen = [epoch[step % len(epoch)] for step in range(steps)]
    spent = (GRAPH + PRODUCT * recipe.curvature_probes) * sum(seen[:: recipe.curvature_every])
    return spent / (spent + sum(seen))


def _tables(
    bench: Bench, sides: Mapping[str, int], runs: Mapping[str, Sequence[Run]], groups: Groups
) -> tuple[Table, ...]:
    plan, lines = bench.plan, []
    for side, size in sides.items():
        lines.append(Line(cells=(f"{side} {size}",)))
        for name in plan.grid:
            if (one := groups.get(_named(side, name))) is not None:
                first = runs[_named(side, name)][0]
                part = share(first.spec.recipe, bench.samples, first.steps)
                cells = (name, number(first.spec.recipe.lr), *map(mean_std, (one.train_loss, one.test_accuracy)))
                lines.append(Line(cells=(*cells, f"{100 * part:.0f}" if part else NONE), level=1))
    first_table = Table(
        columns=headed("optimizer", "rate", "training loss", "test acc. %", "curvature %"),
        lines=tuple(lines),
        caption=f"after {plan.epochs} epochs, momentum {number(plan.momentum)}; {averaged(plan.seeds)}; "
        "curvature: its share of all gradients",
    )
    return first_table, _against(sides, groups)


def _against(sides: Mapping[str, int], groups: Groups) -> Table:
    lines = []
    for side, size in sides.items():
        lines.append(Line(cells=(f"{side} {size}",)))
        for one, other in PAIRS:
            pair = _named(side, one), _named(side, other)
            cells = (f"{one} over {other}", told(gained(groups, *pair)), told(lowered(groups, *pair)))
            if not math.isnan(gained(groups, *pair)[0]):
                lines.append(Line(cells=cells, level=1))
    return Table(
        columns=headed("", "test accuracy, points", "training loss, times"),
        lines=tuple(lines),
        caption="by seed, with 95 % intervals; nothing is corrected for their number",
    )
