"""Regimes and runs: which reports stand on one side of a comparison, and which saved epoch of a run stands for it.

A regime is what shares a recorded key of the training (`batch_size` by default) or a name that the caller gave.  Its
runs are independent trainings.  Reports whose recorded training is the same but for `PROGRESS` are saved epochs of
one run: no second draw of the seed, so of each run one may count.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from gapscope.errors import ComparisonError, UsageError, did_you_mean
from gapscope.report.figures import number
from gapscope.report.records import Facts, Report, Subject, differing

LOSS = "gap/train_loss"
BATCH = "batch_size"
# how far a run had come, as different tools call it, and what would have stopped it
KEYS = {
    "steps": ("steps", "step", "global_step", "iteration", "iterations", "iter_num"),
    "epochs": ("epochs", "epoch"),
}
PLACES = tuple(itertools.chain(*KEYS.values()))
PROGRESS = (*PLACES, "last_lr", "train_loss", "stopped", "until_loss", "patience")
MODEL = ("model", "model_args", "parameters")
NEAR = 1.05  # runs whose losses lie within this ratio are at one loss: of such choices the lowest says most


@dataclass(frozen=True, kw_only=True)
class Side:
    """One regime: its label, the short one inside a sentence, and the reports of its runs."""

    label: str
    short: str
    reports: tuple[Report, ...]

    def subject(self) -> Subject:
        """Return the side as a comparison keeps it."""
        runs = tuple(
            Subject(label=label, short=label, identity=one.identity, training=one.training, conditions=one.conditions)
            for label, one in zip(stems(self.reports), self.reports, strict=True)
        )
        if len(runs) == 1:
            return replace(runs[0], label=self.label, short=self.short)
        parts = {part: shared([getattr(run, part) for run in runs]) for part in ("identity", "training", "conditions")}
        return Subject(label=self.label, short=self.short, runs=runs, **parts)


def stems(reports: Sequence[Report]) -> list[str]:
    """Return the names of the files, numbered where they are the same."""
    found = [PurePath(str(report.identity.get("checkpoint", "report"))).stem for report in reports]
    return [f"{stem} ({found[:i].count(stem) + 1})" if found.count(stem) > 1 else stem for i, stem in enumerate(found)]


def shared(sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts in which all sides agree."""
    unlike = {key for side in sides[1:] for key in differing(sides[0], side)}
    return {key: value for key, value in sides[0].items() if key not in unlike}


def sides_of(
    reports: Sequence[Report],
    *,
    labels: Sequence[str] | None = None,
    by: str = "",
    names: Sequence[str] | None = None,
    matching: bool = False,
) -> tuple[Side, ...]:
    """Return the sides in the order in which they are compared: regimes where asked for or recorded, or reports.

    Raises: UsageError for unfit labels, names or keys, and for `matching` without regimes; ComparisonError where a
    regime mixes models, or where one run stands twice in it, unless `matching` will choose.
    """
    each = labels is not None and len(labels) == len(reports)
    if by or names is not None or (_repeated(reports) and not each):
        sides = regimes(reports, by=by or BATCH, names=names, labels=labels)
        _refuse_mixed(sides)
        if not matching:
            _refuse_repeats(sides)
        return sides
    if matching:
        raise UsageError(
            f"The {len(reports)} subjects are no saved epochs of two regimes. Expected several with one recorded batch "
            "size. Group them with `--by`, or with `--small` and `--large`."
        )
    return singles(reports, labels)


def _repeated(reports: Sequence[Report]) -> bool:
    """Say whether recorded batch sizes make groups: at least two sizes, and several reports of one."""
    sizes = [report.training.get(BATCH) for report in reports]
    return all(isinstance(size, int) for size in sizes) and 1 < len(set(sizes)) < len(sizes)


def singles(reports: Sequence[Report], labels: Sequence[str] | None) -> tuple[Side, ...]:
    """Return a side for each report: under its label, by batch size if these all differ, or by the name of its file.

    Raises: UsageError for unfit labels.
    """
    sizes = [report.training.get(BATCH) for report in reports]
    if labels is not None:
        if len(labels) != len(reports) or len(set(labels)) != len(labels):
            raise UsageError(
                f"{len(labels)} labels ({', '.join(labels)}) for {len(reports)} reports; "
                "expected one for each, all different: `--labels small,large`."
            )
        called = [(label, label) for label in labels]
    elif all(isinstance(size, int) for size in sizes) and len(set(sizes)) == len(sizes):
        reports = sorted(reports, key=lambda report: int(report.training[BATCH]))
        called = _names([report.training[BATCH] for report in reports], BATCH)
    else:
        called = [(name, name) for name in stems(reports)]
    return tuple(Side(label=a, short=b, reports=(one,)) for (a, b), one in zip(called, reports, strict=True))


def regimes(
    reports: Sequence[Report], *, by: str, names: Sequence[str] | None, labels: Sequence[str] | None
) -> tuple[Side, ...]:
    """Return the sides: by the names given, one per report, or by a recorded key; numbers in rising order.

    Raises: UsageError where a report lacks the key, all have one value, or names or labels do not fit.
    """
    if names is None:
        values: Sequence[Any] = [_recorded(report, by) for report in reports]
    elif len(names) != len(reports):
        raise UsageError(
            f"There are {len(names)} regimes for {len(reports)} reports. Expected one name per report. Mend `regimes`."
        )
    else:
        values = names
    keys = list(dict.fromkeys(values))
    if len(keys) < 2:
        one = f"a {by} of {keys[0]}" if names is None else f"the regime {keys[0]}"
        raise UsageError(
            f"All {len(reports)} reports have {one}. Expected two regimes or more. Add some, or group with `--by`."
        )
    if not any(isinstance(key, str) for key in keys):
        keys.sort()
    members = [tuple(r for r, value in zip(reports, values, strict=True) if value == key) for key in keys]
    if labels is None:
        called = _names(keys, by) if names is None else [_named(k, m) for k, m in zip(keys, members, strict=True)]
    elif len(labels) == len(set(labels)) == len(keys):
        called = [(label, label) for label in labels]
    else:
        raise UsageError(
            f"There are {len(labels)} labels ({', '.join(labels)}) for {len(keys)} regimes. "
            "Expected one for each, all different: `--labels small,large`."
        )
    return tuple(Side(label=a, short=b, reports=m) for (a, b), m in zip(called, members, strict=True))


def _recorded(report: Report, by: str) -> Any:
    if by not in report.training:
        who, known = report.identity.get("checkpoint", "A report"), ", ".join(report.training) or "nothing"
        raise UsageError(
            f"{who} records no `{by}` of its training, only: {known}.{did_you_mean(by, report.training)} Expected the "
            "key in every report. Name another with `--by`, or the files of each regime with `--small` and `--large`."
        )
    return report.training[by]


def _names(keys: Sequence[Any], by: str) -> list[tuple[str, str]]:
    if by == BATCH and len(keys) == 2:
        return [(f"small batch {keys[0]}", "small"), (f"large batch {keys[1]}", "large")]
    word = "batch" if by == BATCH else by.replace("_", " ")
    shown = [key if isinstance(key, str) else f"{word} {key}" for key in keys]
    return [(name, name) for name in shown]


def _named(name: str, members: Sequence[Report]) -> tuple[str, str]:
    size = shared([report.training for report in members]).get(BATCH)
    return (name if size is None else f"{name} batch {size}"), name


# Runs


def _refuse_mixed(sides: Sequence[Side]) -> None:
    for side in sides:
        found = {key: dict.fromkeys(str(one.identity.get(key, "none")) for one in side.reports) for key in MODEL}
        unlike = "; ".join(f"{key}: {' / '.join(values)}" for key, values in found.items() if len(values) > 1)
        if unlike:
            raise ComparisonError(
                f"The runs of {side.label} are of different models ({unlike}). Expected runs of one model: a mean over "
                "several says nothing. Leave the others out."
            )


def _refuse_repeats(sides: Sequence[Side]) -> None:
    """Raise ComparisonError where one run counts twice: its values would pass for a spread over seeds."""
    for side in sides:
        named = zip(stems(side.reports), side.reports, strict=True)
        for (first, one), (second, other) in itertools.combinations(named, 2):
            same_file = one.identity.get("sha256") == other.identity.get("sha256") is not None
            if not same_file and not ("seed" in one.training and _run_key(one) == _run_key(other)):
                continue
            what = "are one checkpoint" if same_file else "record the same recipe and seed: saved epochs of one run"
            raise ComparisonError(
                f"{first} and {second} {what}. Expected one checkpoint of each run: more would pass for a spread over "
                "seeds. Leave one out, or let `--match-loss` choose."
            )


def _run_key(report: Report) -> Facts:
    return _key_of(report.training)


def _key_of(training: Facts) -> Facts:
    return {key: value for key, value in training.items() if key not in PROGRESS}


def runs_of(side: Side) -> list[list[Report]]:
    """Return the saved epochs of each run of a side."""
    found: list[list[Report]] = []
    for report in side.reports:
        same = next((run for run in found if _run_key(run[0]) == _run_key(report)), None)
        if same is None:
            found.append([report])
        else:
            same.append(report)
    return found


def matched(sides: Sequence[Side]) -> tuple[tuple[Side, ...], str]:
    """Return the sides with the one saved epoch of each run that is nearest to a common training loss, and a sentence.

    Every measured loss is tried as the common one, with the nearest epoch of every run.  Of the choices whose losses
    lie within `NEAR` that of the lowest loss is taken, or else that whose losses are nearest to each other.

    Raises: ComparisonError where a training loss was not measured or is not positive, or where two runs cannot be told
    apart by what they record.
    """
    for report in (report for side in sides for report in side.reports):
        loss = report.number(LOSS)
        if loss is None or not 0 < loss < math.inf:
            who = report.identity.get("checkpoint", "A report")
            raise ComparisonError(
                f"{who} has {'no training loss' if loss is None else f'a training loss of {loss:g}'}. Expected a "
                "positive one to match by. Measure it with `gapscope gap`, or leave that checkpoint out."
            )
    for run in (run for side in sides for run in runs_of(side)):
        _refuse_two_runs(run)
    runs = [[_by_loss(run) for run in runs_of(side)] for side in sides]
    targets = sorted({loss for side in runs for run in side for loss in run})
    choices = [[[_nearest(run, target) for run in side] for side in runs] for target in targets]
    spreads = [_fold(choice) for choice in choices]
    alike = next((i for i, spread in enumerate(spreads) if spread <= NEAR), spreads.index(min(spreads)))
    chosen = [[run[loss] for run, loss in zip(*pair, strict=True)] for pair in zip(runs, choices[alike], strict=True)]
    found = tuple(replace(side, reports=tuple(reports)) for side, reports in zip(sides, chosen, strict=True))
    return found, _matching(found, spreads[alike])


def _refuse_two_runs(run: Sequence[Report]) -> None:
    """Raise ComparisonError where two saved epochs of one run had come equally far: they are two runs."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, report in zip(stems(run), run, strict=True):
        steps = tuple(report.training.get(key) for key in PLACES)
        if any(step is not None for step in steps) and (other := seen.setdefault(steps, name)) != name:
            raise ComparisonError(
                f"{other} and {name} record the same recipe and the same steps. Expected saved epochs of one run to "
                "differ in steps, and runs in their seed. Record the `seed`, or leave one out."
            )


def _by_loss(run: Sequence[Report]) -> dict[float, Report]:
    return {loss: report for report in run if (loss := report.number(LOSS)) is not None}


def _nearest(losses: Mapping[float, Report], target: float) -> float:
    return min(losses, key=lambda loss: abs(math.log(loss / target)))


def _fold(choice: Sequence[Sequence[float]]) -> float:
    losses = [loss for side in choice for loss in side]
    return max(losses) / min(losses)


def _matching(sides: Sequence[Side], spread: float) -> str:
    said = []
    for side in sides:
        pairs = zip(stems(side.reports), side.reports, strict=True)
        each = [f"{stem} at {number(report.number(LOSS) or math.nan, 3)}" for stem, report in pairs]
        said.append(f"{side.label}: {', '.join(each)}")
    return (
        "Of the saved epochs of each run those nearest in training loss are compared, within "
        f"{math.ceil(100 * (spread - 1))} % of each other ({'; '.join(said)})."
    )


def recipe(subjects: Sequence[Subject]) -> str:
    """Return what else than one key sets the regimes apart, and what varies within one besides the seed."""
    if all(subject.size == 1 for subject in subjects):
        return ""
    free = ("seed", *PROGRESS)
    sides = [{k: v for k, v in subject.training.items() if k not in free} for subject in subjects]
    within = [_varied(subject, free) for subject in subjects]
    apart = [key for key in differing(sides[0], sides[-1]) if not any(key in keys for keys in within)]
    said = [
        f"the runs of {subject.label} differ in {' and '.join(keys)}: their spread is not one over seeds alone"
        for subject, keys in zip(subjects, within, strict=True)
        if keys
    ]
    said += [
        f"the runs of {subject.label} record no seed and differ in {' and '.join(keys)} alone: saved epochs of one run "
        "would, whose spread is none over seeds (record the seed, or let `--match-loss` choose)"
        for subject in subjects
        if (keys := _saved_apart(subject))
    ]
    if len(apart) > 1:
        values = " and ".join(f"{key} ({sides[0].get(key, 'none')} / {sides[-1].get(key, 'none')})" for key in apart)
        said.insert(0, f"the regimes differ in {values}: no contrast is one of either alone")
    text = "; ".join(said)
    return f"Mind that {text}." if text else ""


def _saved_apart(subject: Subject) -> list[str]:
    """Return the places in which runs differ that are the same otherwise and record no seed."""
    seedless = [run.training for run in subject.runs if "seed" not in run.training]
    alike = [
        (one, other)
        for one, other in itertools.combinations(seedless, 2)
        if _key_of(one) == _key_of(other) and any(key in one and key in other for key in PLACES)
    ]
    return sorted({key for one, other in alike for key in differing(one, other) if key in PLACES})


def _varied(subject: Subject, free: Sequence[str]) -> list[str]:
    runs = [run.training for run in subject.runs]
    return sorted({key for run in runs[1:] for key in differing(runs[0], run)} - set(free))
