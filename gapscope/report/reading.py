"""What a careful colleague would say about a comparison, in three to six sentences.

The one place of the reporting half that knows analyzers by name.  Reasons: raw sharpness follows the loss level (an
under-trained network looks sharper) and the scale of the layers, so a contrast counts only at equal training loss and
beside a scale-aware measure; and one run per recipe has a spread of 5 to 34 % over training seeds that no error bar
of a single run contains.  A side is one report or the runs of one regime.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gapscope.report.contrasts import MOST_SPLITS, smallest_p
from gapscope.report.figures import contrast_unit, figure, number, spread
from gapscope.report.groups import LOSS, recipe, stems
from gapscope.report.records import Comparison, Record, Report, Row, Subject
from gapscope.results import Status

TOP = "eigenvalues/top"
SAME_LOSS = 2.0  # beyond this ratio of training losses a sharpness contrast cannot tell
SLOPE = 0.01  # at a minimum no gradient step may promise more than this share of the loss ...
SADDLE = 0.05  # ... and the smallest eigenvalue may not reach below this share of the largest
SCALE_AWARE = tuple(f"adaptive-sharpness/{name}" for name in ("worst_l2", "worst_linf", "average"))
BARRIER = "barrier"
FINISHED = (Status.EXACT, Status.CONVERGED)

Side = Sequence[Report]


def losses_differ(first: Side, last: Side) -> str:
    """Return why the (mean) training losses forbid a sharpness contrast, or an empty string."""
    a, b = _mean(first, LOSS), _mean(last, LOSS)
    if a is None or b is None:
        return ""
    if a == b == 0:
        return ""
    comparable = 0 < a < math.inf and 0 < b < math.inf
    fold = max(a, b) / min(a, b) if comparable else math.nan
    if fold <= SAME_LOSS:
        return ""
    said = f"differ {number(fold, 2)}-fold" if comparable else "have no ratio"
    mean = "mean " if len(first) > 1 or len(last) > 1 else ""
    return f"The {mean}training losses {said} ({number(a, 3)} and {number(b, 3)})"


def reading(
    sides: Sequence[Side],
    subjects: Sequence[Subject],
    rows: Sequence[Row],
    *,
    blocked: str,
    forced: Sequence[str],
) -> tuple[str, ...]:
    """Return the sentences; `blocked` is the reason of `losses_differ`, `forced` the keys that do not agree."""
    table = {row.path: row for row in rows}
    first, last = subjects[0], subjects[-1]
    judged = any(row.higher_is == "sharper" for row in rows)
    sentences = [
        _same(subjects),
        f"Forced: {', '.join(forced)} should agree and do not, so the contrasts may measure that." if forced else "",
        _sharpness(sides, (first, last), table, blocked) if judged else "",
        _chance(rows, (first, last)) if judged and not blocked else "",
        _scale(table, (first, last)) if judged and not blocked else "",
        _apart(sides) if judged and not blocked else "",
        _slopes(sides, subjects),
        _accuracy(sides, (first, last), table),
        _limits(sides, subjects),
        recipe(subjects),
        " ".join(part for part in (_companion(table) if judged else "", _seeds(subjects)) if part),
    ]
    return tuple(sentence for sentence in sentences if sentence)


def _same(subjects: Sequence[Subject]) -> str:
    first, last = subjects[0], subjects[-1]
    if not first.identity.get("sha256") or first.identity["sha256"] != last.identity.get("sha256"):
        return ""
    both = "Both" if len(subjects) == 2 else f"{first.label} and {last.label}"
    return f"{both} are the same checkpoint: the contrasts measure nothing."


def _apart(sides: Sequence[Side]) -> str:
    """Say that subjects between the first and the last are at another loss: their sharpness is shown all the same."""
    losses = [loss for side in sides[1:-1] if (loss := _mean(side, LOSS)) is not None]
    ends = [loss for side in (sides[0], sides[-1]) if (loss := _mean(side, LOSS)) is not None]
    if not losses or not ends or (max(losses) <= SAME_LOSS * min(ends) and max(ends) <= SAME_LOSS * min(losses)):
        return ""
    return (
        f"In between, training losses go from {number(min(losses), 3)} to {number(max(losses), 3)}: not at equal loss."
    )


def _mean(side: Side, path: str) -> float | None:
    values = [value for report in side if (value := report.number(path)) is not None]
    return math.fsum(values) / len(values) if len(values) == len(side) else None


def _over(ends: tuple[Subject, Subject]) -> str:
    """Say what an interval is over, where it is not over the data."""
    sizes = ends[0].size, ends[1].size
    return "" if sizes == (1, 1) else f" over seeds, {sizes[0]} and {sizes[1]} runs"


def _sharpness(sides: Sequence[Side], ends: tuple[Subject, Subject], rows: Mapping[str, Row], blocked: str) -> str:
    if blocked:
        return (
            f"{blocked}: the runs are not at the same loss, so the sharpness contrast cannot tell. Train to equal loss."
        )
    losses = [_mean(side, LOSS) for side in (sides[0], sides[-1])]
    mean = "mean " if _over(ends) else ""
    at = "The training losses were not measured, so equal loss is not established: "
    if losses[0] == losses[1] == 0:
        at = f"At {mean}training losses of 0, "
    elif losses[0] and losses[1]:
        percent = max(1, math.ceil(100 * (max(losses[0], losses[1]) / min(losses[0], losses[1]) - 1)))
        at = f"At {mean}training losses within {percent} % of each other, "
    top = rows.get(TOP)
    if top is None:
        judged = [row for row in rows.values() if row.higher_is == "sharper"]
        whole = next((row for row in judged if "layer" not in row.dims), None)
        if whole is None:
            return f"{at}{_layers(judged, ends)}."
        return f"{at}{_compared(whole, ends, whole.title)}."
    flat = all(_stationary(report) for report in (*sides[0], *sides[-1]))
    by = f"the top eigenvalue{_other_operator(sides[0][0])}"
    return f"{at}{_compared(top, ends, by, flat=flat)}{_agreement(top, rows)}."


def _other_operator(report: Report) -> str:
    """Return of what the eigenvalues are, where that is not the Hessian itself."""
    settings = report.results["eigenvalues"].settings
    words = {"gauss_newton": " of the Gauss-Newton matrix", "preconditioned": " in Adam's metric"}
    return "".join(said for key, said in words.items() if settings.get(key))


def _compared(row: Row, ends: tuple[Subject, Subject], by: str, *, flat: bool = False) -> str:
    estimate, interval = row.estimate, row.interval
    if math.isnan(interval[0]):
        without = "without an interval" + " over seeds" * bool(_over(ends))
        return f"the ratio of {ends[1].label} to {ends[0].label} is {number(estimate, 3)} by {by}, {without}"
    if row.verdict not in ("higher", "lower"):
        shown, between = spread(estimate, interval)
        return (
            f"{ends[0].label} and {ends[1].label} cannot be told apart by {by} (ratio {shown}, 95 % interval {between}"
            f"{_over(ends)})"
        )
    flatter, sharper = ends
    if row.verdict == "lower":
        flatter, sharper = sharper, flatter
        estimate, low, high = (1 / one if one else math.inf for one in (estimate, *interval))
        interval = high, low
    shown, between = spread(estimate, interval)
    verb, owner = ("sits in a minimum", "'s") if flat else ("is", "")
    said = f"{sharper.label} {verb} {shown} times sharper than {flatter.label}{owner} by {by}"
    return f"{said} (95 % interval {between}{_over(ends)})"


def _chance(rows: Sequence[Row], ends: tuple[Subject, Subject]) -> str:
    """Return what the exact permutation test says of the leading row, and what it could say at most."""
    row = next((row for row in rows if row.path == TOP), None)
    row = row or next((row for row in rows if row.higher_is == "sharper" and "layer" not in row.dims), None)
    sizes = ends[0].size, ends[1].size
    if row is None or not _over(ends) or math.isnan(row.estimate):
        return ""
    runs = f"{sizes[0]} against {sizes[1]} runs"
    if math.isnan(row.p):
        return f"No exact permutation test: {runs} can be dealt in more than {MOST_SPLITS:,} ways."
    least = smallest_p(*sizes)
    small = f"{runs} reach no smaller one than {number(least, 2)}"
    return f"An exact permutation test of the {row.title} gives p = {number(row.p, 2)}; {small}."


def _layers(judged: Sequence[Row], ends: tuple[Subject, Subject]) -> str:
    """Count the verdicts of the first quantity that has one per layer: no layer speaks for the others."""
    name = judged[0].path.partition("[")[0]
    verdicts = [row.verdict for row in judged if row.path.partition("[")[0] == name]
    counts = [verdicts.count("lower"), verdicts.count("higher")]
    said = [f"{end.label} is sharper in {times}" for end, times in zip(ends, counts, strict=True) if times]
    title, left = judged[0].title.partition(",")[0], len(verdicts) - sum(counts)
    said += [f"{left} cannot be told apart"] if left else []
    return f"of {len(verdicts)} values of {title} by layer, {', '.join(said)}"


def _agreement(top: Row, rows: Mapping[str, Row]) -> str:
    said = []
    for paths, name in (
        (SCALE_AWARE, "adaptive sharpness, the scale-aware companion,"),
        (("epsilon-sharpness/",), "epsilon-sharpness"),
    ):
        verdicts = {row.verdict for path, row in rows.items() if path.startswith(paths) and row.verdict}
        decided = verdicts - {"cannot tell"}
        where = " where it can tell" if decided != verdicts else ""
        if not verdicts:
            continue
        if not decided:
            said.append(f"{name} cannot tell")
        elif len(decided) > 1:
            said.append(f"{name} is divided")
        elif top.verdict in ("", "cannot tell"):
            said.append(f"{name} can{' in part' if where else ''}")
        else:
            said.append(f"{name} {'agrees' if decided == {top.verdict} else 'says the opposite'}{where}")
    return "; " + ", ".join(said) if said else ""


def _scale(rows: Mapping[str, Row], ends: tuple[Subject, Subject]) -> str:
    """Say what it means that the top eigenvalue, which feels the scale of the weights, and the adaptive one differ."""
    top = rows.get(TOP)
    verdicts = {row.verdict for path, row in rows.items() if path.startswith(SCALE_AWARE) and row.verdict}
    decided = verdicts - {"cannot tell"}
    if top is None or not verdicts or decided == {top.verdict}:
        return ""
    if top.verdict in ("higher", "lower"):
        # definitions: the same function with rescaled layers had a top eigenvalue of 0.095 and of 294
        trust = "; on that question believe the adaptive one" if len(decided) == 1 else ""
        return (
            "Rescaling layers can move the top eigenvalue a thousandfold without changing the function, and leaves "
            f"adaptive sharpness as it is: the raw contrast may be a matter of the scale of the weights{trust}."
        )
    if len(decided) == 1:
        sharper = ends[1] if decided == {"higher"} else ends[0]
        return f"Apart from the scale of the weights, {sharper.label} is the sharper one: adaptive sharpness can tell."
    return ""


def whole_reading(comparison: Comparison) -> tuple[str, ...]:
    """Return the sentences of a comparison and those on what was measured on its subjects together."""
    return (*comparison.reading, *_together(comparison))


def _together(comparison: Comparison) -> Iterator[str]:
    record = comparison.results.get("path")
    quantity = record.quantities.get(BARRIER) if record else None
    if quantity is None or quantity.dims or not math.isfinite(quantity.value):
        return
    splits = {str(subject.conditions.get("split", "train")) for subject in comparison.subjects}
    loss = "training loss" if splits == {"train"} else "loss"
    errors = [float(e) for e in (quantity.sampling_error, quantity.numerical_error) if e is not None]
    error = math.hypot(*(e for e in errors if math.isfinite(e)))
    rise = float(quantity.value)
    if rise > 2 * error:
        losses = next((row.values for row in comparison.rows if row.path == LOSS), (math.nan,))
        beside = " and ".join(number(value, 3, keep=True) for value in losses)
        small = f", little beside their losses of {beside}" if rise < max(losses) / 2 else ""
        climbed = record is not None and _climbed(record)
        what = "a barrier on this line; another path may have none" if climbed else "a bulge, not a barrier to climb"
        yield (
            f"On the straight line between them the {loss} exceeds the line between their losses by "
            f"{figure(rise, error)}{small}: {what}."
        )
    elif rise > 0:
        yield (
            f"On the straight line between them the {loss} exceeds the line between their losses by "
            f"{figure(rise, error)}: no barrier can be told from none."
        )
    else:
        yield f"On the straight line between them no barrier was seen, at the points looked at: no rise of the {loss}."


def _climbed(record: Record) -> bool:
    """Say whether the loss rises above both ends by more than twice its error."""
    rise = record.quantities.get("rise")
    if rise is None:
        return True
    error = np.zeros(rise.value.shape)
    for one in (rise.numerical_error, rise.sampling_error):
        error = error if one is None else np.hypot(error, one)
    return bool((rise.value > 2 * error).all())


def _stationary(report: Report) -> bool | None:
    """Say whether gradient and bottom eigenvalue allow to speak of a minimum; None if they cannot tell.

    The smallest eigenvalue lies between the bottom Ritz value less its error and that value: both ends must agree.
    """
    moving = _moving(report)
    if moving is None or moving:
        return None if moving is None else False
    bottom = report.results["eigenvalues"].quantities["bottom"]
    lowest = float(bottom.value) - (float(bottom.numerical_error) if bottom.numerical_error is not None else 0.0)
    return True if -lowest <= SADDLE * float(report.results["eigenvalues"].quantities["top"].value) else None


def _moving(report: Report) -> str | None:
    """Return why this is no minimum, an empty string if nothing says so, None if it was not measured.

    A gradient step of length 1/lambda lowers a quadratic by |g|^2 / (2 lambda).
    """
    paths = (TOP, "eigenvalues/bottom", "eigenvalues/gradient_norm", LOSS)
    top, bottom, slope, loss = map(report.number, paths)
    if top is None or bottom is None or slope is None or loss is None or _other_operator(report):
        return None
    if not all(map(math.isfinite, (top, bottom, slope, loss))):
        return None
    if top <= 0:
        return f"is not in a minimum: its largest eigenvalue is {number(top, 2)}"
    said, step = [], slope * slope / (2 * top)
    if step > SLOPE * loss:
        promised = f"{number(100 * step / loss, 2)} % of its loss" if loss > 0 else number(step, 2)
        said.append(f"is still on a slope: a gradient step promises {promised}")
    if -bottom > SADDLE * top:
        share = number(-100 * bottom / top, 2)
        said.append(
            f"is near a saddle: its smallest eigenvalue is at most {number(bottom, 2)}, {share} % of the largest"
        )
    return ", and ".join(said)


def _slopes(sides: Sequence[Side], subjects: Sequence[Subject]) -> str:
    """Name every single run that is at no minimum; of regimes count them and quote the first."""
    said, counts, example = [], [], ""
    for side, subject in zip(sides, subjects, strict=True):
        moving = [(name, why) for name, report in zip(stems(side), side, strict=True) if (why := _moving(report))]
        if moving and subject.size == 1:
            said.append(f"{subject.label} {moving[0][1]}")
        elif moving:
            counts.append(f"{len(moving)} of {len(side)} runs of {subject.label}")
            example = example or " ".join(moving[0])
    if counts:
        said.append(f"{' and '.join(counts)} are at no minimum ({example})")
    return f"{'; '.join(said)}." if said else ""


def _accuracy(sides: Sequence[Side], ends: tuple[Subject, Subject], rows: Mapping[str, Row]) -> str:
    row = rows.get("gap/test_accuracy")
    if row is None or math.isnan(row.estimate):
        loss = rows.get("gap/test_loss")  # numbers to predict have no accuracy
        tested = loss is not None and not math.isnan(loss.estimate)
        if tested or "gap/train_loss" not in rows:
            return ""
        return "No test data were measured: nothing here is about generalization."
    samples = sides[0][0].results["gap"].quantities["test_accuracy"].samples
    on = "" if samples is None else f" on {samples.size:,} test samples"
    shown, between = spread(row.estimate, row.interval)
    unit, over = contrast_unit(row.contrast, row.unit), _over(ends)
    if over and math.isnan(row.interval[0]):
        return ""
    if row.verdict not in ("higher", "lower"):
        return f"The test accuracies cannot be told apart{on} ({shown} {unit}, 95 % interval {between}{over})."
    shown, between = spread(abs(row.estimate), tuple(sorted(map(abs, row.interval))))  # type: ignore[arg-type]
    better = ends[1] if row.verdict == "higher" else ends[0]
    return f"{better.label} has the higher test accuracy{on}, by {shown} {unit} (95 % interval {between}{over})."


def _limits(sides: Sequence[Side], subjects: Sequence[Subject]) -> str:
    """Say what did not converge and whether a subset was measured."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for side, subject in zip(sides, subjects, strict=True):
        for name, record in ((name, record) for report in side for name, record in report.results.items()):
            if record.status not in (*FINISHED, Status.NO_TEST_DATA):  # `_accuracy` speaks of those
                found.setdefault((name, record.message), {})[subject.label] = None
    said = [f"{name} of {' and '.join(labels)} ({message})" for (name, message), labels in found.items()]
    if any(report.conditions.get("limit") for side in sides for report in side):
        said.append("that this is a subset of the data, and subsets overstate lambda_max")
    return f"Mind {'; '.join(said)}." if said else ""


def _companion(rows: Mapping[str, Row]) -> str:
    if any(path.startswith(SCALE_AWARE) for path in rows):
        return ""
    return "Raw sharpness changes under rescaling of layers; no scale-aware measure is in these reports."


def _seeds(subjects: Sequence[Subject]) -> str:
    ends = subjects[0], subjects[-1]
    if _over(ends):
        alone = [end.label for end in ends if end.size == 1]
        if alone:
            return f"One run of {alone[0]} shows no spread over seeds, so no interval can be had: train a second one."
        runs = f"{ends[0].size} and {ends[1].size} runs"
        return f"The intervals are over seeds ({runs}) on these data: right for new seeds, silent on new data."
    sizes = [subject.training.get("batch_size") for subject in subjects]
    if None in sizes or len(set(sizes)) == 1:
        return "One checkpoint of each kind proves nothing about how they were made: compare several."
    if len(set(sizes)) < len(sizes):
        return ""
    return "One seed per batch size proves nothing about the recipe: compare several of each."
