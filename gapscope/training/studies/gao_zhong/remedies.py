"""Remedies for the large batch: samples of small losses discarded, and batches that grow."""

import math
from collections.abc import Sequence
from dataclasses import replace

from gapscope.report.document import Line, Table
from gapscope.report.figures import NONE, number
from gapscope.report.outcome import Claim, Part, judged
from gapscope.report.records import Record
from gapscope.results import Status
from gapscope.training.studies.gao_zhong.runs import Bench, Made, headed, told
from gapscope.training.studies.gao_zhong.training import (
    LARGE,
    SMALL,
    Groups,
    Setting,
    at_best,
    gained,
    kept,
    measured,
    tune,
)
from gapscope.training.studies.numbers import averaged, mean_std

NAME = "gao-zhong-remedies"
POINTS = "points of test accuracy"


def settings(bench: Bench) -> list[Setting]:
    """Return the small and the large batch, and the large one with each remedy.

    A batch that doubles k times does so at equal distances, from B / 2^k to B.
    """
    plan, large = bench.plan, bench.large
    discards = [
        Setting(name=f"discarding {100 * q:g} %", optimizer="sgd", size=large, change={"discard": q})
        for q in plan.discards
    ]
    return [
        Setting(name=SMALL, optimizer="sgd", size=bench.small),
        Setting(name=LARGE, optimizer="sgd", size=large),
        *discards,
        *(_growing(bench, times) for times in plan.doublings),
    ]


def _growing(bench: Bench, times: int) -> Setting:
    epochs = [round(bench.plan.epochs * i / (times + 1)) for i in range(1, times + 1)]
    schedule = ",".join(f"{2**i}@{epoch}" for i, epoch in enumerate(epochs, start=1))
    first = math.ceil(bench.large / 2**times)  # rounded down, an epoch of 1,300 would end in a batch of 4
    return Setting(name=f"batch x{2**times}", optimizer="sgd", size=first, change={"batch_schedule": schedule})


def remedies(bench: Bench) -> Made:
    """Train the large batch with each remedy, for as many epochs and to one loss, each at its own tuned rate of SGD."""
    plan, tuned = bench.plan, tune(bench, settings(bench))
    every = at_best(bench, tuned)
    runs, left = bench.train(every, "remedies")
    further = {
        name: [
            replace(spec, recipe=replace(spec.recipe, epochs=plan.max_epochs, until_loss=plan.until_loss))
            for spec in specs
        ]
        for name, specs in every.items()
    }
    far, short = bench.train(further, "remedies, to the loss", plan.until_loss)
    equal, reached = measured(bench, runs, "remedies"), measured(bench, far, "remedies, at the loss")
    rates = [f"{name} {number(specs[0].recipe.lr)}" for name, specs in every.items()]
    part = Part(
        record=Record(analyzer=NAME, version="1", status=Status.EXACT, quantities=kept(equal)),
        title="Remedies for the large batch",
        tables=_tables(bench, equal, reached),
        notes=(
            *tuned.notes,
            *left,
            *(note.replace("Left out", "At the loss, left out") for note in short),
            f"SGD, momentum {number(plan.momentum)}, constant rates with the lowest training loss after {plan.epochs} "
            f"epochs, on seeds of their own: {', '.join(rates)}.",
            "A batch that grows to the large one takes more steps in as many epochs, and a remedy may win by having "
            "trained further: the second table holds the loss.",
        ),
    )
    names = tuple(setting.name for setting in tuned.losses if setting.name not in (SMALL, LARGE))
    return part, claims(equal, names)


def claims(groups: Groups, names: Sequence[str]) -> tuple[Claim, ...]:
    """Judge at equal epochs that large batches generalize worse, and that each remedy helps them."""
    premise = judged(
        "large batches generalize worse, after as many epochs",
        gained(groups, LARGE, SMALL),
        "lower",
        source="abstract, its premise",
        ratio=False,
        what=POINTS,
    )
    if LARGE in groups and SMALL in groups:
        losses = (mean_std(groups[name].train_loss) for name in (LARGE, SMALL))
        premise = replace(premise, because=f"{premise.because}; training losses {' against '.join(losses)}")
    helps = (
        judged(
            f"{name} helps the large batch",
            gained(groups, name, LARGE),
            "higher",
            source="abstract",
            ratio=False,
            what=POINTS,
        )
        for name in names
    )
    return (premise, *helps)


def _tables(bench: Bench, equal: Groups, reached: Groups) -> tuple[Table, ...]:
    plan = bench.plan
    sizes = {SMALL: f"{SMALL} {bench.small}", LARGE: f"{LARGE} {bench.large}"}
    caption = f"{averaged(plan.seeds)}; test accuracy, and its gain over the large batch by seed, 95 % interval"

    def gain(groups: Groups, name: str) -> str:
        return NONE if name == LARGE else told(gained(groups, name, LARGE))

    first = Table(
        columns=headed(f"after {plan.epochs} epochs", "training loss", "test loss", "accuracy %", "gain, points"),
        lines=tuple(
            Line(
                cells=(
                    sizes.get(name, name),
                    *map(mean_std, (one.train_loss, one.test_loss, one.test_accuracy)),
                    gain(equal, name),
                )
            )
            for name, one in equal.items()
        ),
        caption=caption,
    )
    second = Table(
        columns=headed(f"at a loss of {number(plan.until_loss)}", "epochs", "test loss", "accuracy %", "gain, points"),
        lines=tuple(
            Line(
                cells=(
                    sizes.get(name, name),
                    *map(mean_std, (one.epochs, one.test_loss, one.test_accuracy)),
                    gain(reached, name),
                )
            )
            for name, one in reached.items()
        ),
        caption=caption,
    )
    return tuple(table for table in (first, second) if table.lines)
