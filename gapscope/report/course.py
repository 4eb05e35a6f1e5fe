"""One number along a training run: its values with their errors, and what can be said of its course.

Two values count as different where they are `APART` combined errors from each other; otherwise no rise or fall is told.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gapscope.report.figures import figure, number
from gapscope.results import Array

EDGE = "eigenvalues/stability"
HOVERS = 0.8  # values that stay above this share of the largest
LEAST = 3  # checkpoints that make a course
APART = 2
FINE = 1e-3  # an error below this share of a value does not show in its three digits


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number along the run, NaN where a checkpoint lacks it.

    `data` is one standard error over the data and `numerical` the error of the computation, NaN where unknown; `open`
    are the checkpoints whose solver did not finish, so that the value is a bound.
    """

    path: str
    title: str
    unit: str
    values: Array  # (points,)
    data: Array  # (points,)
    numerical: Array  # (points,)
    open: tuple[bool, ...]
    lower: tuple[bool, ...] = ()  # the values are bounds from below, but for rounding

    @property
    def errors(self) -> Array:
        """Both errors together, 0 where neither is known."""
        return np.asarray(np.hypot(np.nan_to_num(self.data), np.nan_to_num(self.numerical)))

    def shown(self, index: int) -> str:
        """Return one value with its error; a share of the limit keeps the digits that tell it from 1."""
        value, error = float(self.values[index]), float(self.errors[index])
        return _share(value) if self.path == EDGE and error < FINE * abs(value) else figure(value, error)

    def bounded(self, index: int) -> str:
        """Return one value with its error, marked where the solver did not finish."""
        return "≥ " * self.open[index] + self.shown(index)

    def apart(self, one: int, other: int) -> bool:
        """Say whether two values are further apart than their errors, as if these had nothing in common.

        One run's values come from the same data and share much of their errors, so this asks for more than it needs.
        """
        error = math.hypot(float(self.errors[one]), float(self.errors[other]))
        return abs(float(self.values[one] - self.values[other])) > APART * error

    @property
    def within(self) -> str:
        """Name the error inside which values may not be apart."""
        return "within its error over the data" if np.isfinite(self.data).any() else "within its error"

    @property
    def words(self) -> str:
        """Its title with its unit."""
        return f"{self.title} {self.unit}".strip()


def _share(value: float) -> str:
    """Return a share of the limit to three digits, or as many as tell it from 1."""
    return next((text for text in (number(value, digits) for digits in (3, 4, 5)) if text != "1"), number(value, 6))


# What its course says


def course(one: Measure, at: Callable[[int], str]) -> Iterator[str]:
    """Yield how a positive number went; `at` says where in the run a checkpoint is."""
    values = one.values
    if len(values) < LEAST or not np.isfinite(values).all() or values.max() <= 0:
        return
    first, last = one.shown(0), one.shown(-1)
    extremes = {"largest": int(values.argmax()), "smallest": int(values.argmin())}
    turns = {word: i for word, i in extremes.items() if one.apart(i, 0) and one.apart(i, -1)}
    high = values >= HOVERS * values.max()
    since = len(high) - int(np.argmin(high[::-1])) if not high.all() else 0
    if not turns and not one.apart(0, -1):
        yield f"It moves {one.within}, {_between(one)}."
    elif high.all():
        yield f"It stays {_between(one)} all along."
    elif len(values) - since >= LEAST:
        yield f"It begins at {first}, and from {at(since)} on it hovers {_between(one, since)}."
    elif not turns:
        yield f"It {'rises' if values[-1] > values[0] else 'falls'}, from {first} to {last}."
    else:
        order = sorted(turns, key=lambda word: turns[word])
        between = ", ".join(f"is {word} at {at(turns[word])} ({one.shown(turns[word])})" for word in order)
        yield f"It begins at {first}, {between}, and ends at {last}."


def _between(one: Measure, since: int = 0) -> str:
    values = one.values[since:]
    low, high = (one.shown(since + int(place)) for place in (values.argmin(), values.argmax()))
    return f"between {low} and {high}"


def ends(found: Mapping[str, Measure]) -> Iterator[str]:
    """Yield where the training loss and the loss gap began, and where they ended."""
    said = []
    for path, words in (("gap/train_loss", "The training loss"), ("gap/loss_gap", "the loss gap (test - training)")):
        loss = found.get(path)
        if loss is None or len(loss.values) < 2 or not np.isfinite(loss.values[[0, -1]]).all():
            continue
        first, last = loss.shown(0), loss.shown(-1)
        if loss.apart(0, -1):
            said.append(f"{words} goes from {first} to {last}")
        else:
            said.append(f"{words} ends {loss.within} of where it began ({first}, then {last})")
    if said:
        yield f"{'; '.join(said)}."
