"""How to train: plain values, recorded with the weights, and the rule that says when to stop."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from gapscope.errors import UsageError
from gapscope.training.schedules import parse_batch_schedule, parse_schedule

STALL = 1e-3  # an epoch that lowers the best loss by less than this share is no progress
COUNTS = ("batch_size", "epochs", "steps", "patience", "accumulate", "curvature_every", "curvature_probes")
ALWAYS = ("optimizer", "batch_size", "lr", "momentum", "weight_decay", "seed")  # recorded even at their defaults


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; `epochs`, `steps`, `until_loss` and `patience` all stop it, whichever comes first.

    `lr` is the rate before `schedule` multiplies it, `batch_size` that before `batch_schedule` does.  `conservative` is
    the weight of the proximal term, and `discard` the share of each batch's samples, those of the smallest losses, that
    is left out of its gradient.  `adversarial` is how far inputs are moved against the model before each step.
    """

    optimizer: str = "sgd"
    options: Mapping[str, float] = field(default_factory=dict)  # of the optimizer, by its own names
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_schedule: str = "constant"
    discard: float = 0.0
    augment: bool = False
    conservative: float = 0.0
    adversarial: float = 0.0
    accumulate: int = 1
    curvature_every: int = 100  # of mclr and cblr: steps between its measurements
    curvature_probes: int = 8
    epochs: int | None = None
    steps: int | None = None
    until_loss: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in COUNTS}
        wrong = [
            f"{name} {value} (expected 1 or more)" for name, value in counts.items() if value is not None and value < 1
        ]
        wrong += [
            f"{name} {value:g} (expected 0 or more)"
            for name in ("weight_decay", "conservative", "adversarial")
            if not 0 <= (value := getattr(self, name)) < math.inf
        ]
        wrong += ["until_loss nan (expected a number)"] * (self.until_loss is not None and math.isnan(self.until_loss))
        if not 0 < self.lr < math.inf:
            wrong.append(f"rate {self.lr:g} (expected more than 0)")
        if not 0 <= self.momentum < 1:
            wrong.append(f"momentum {self.momentum:g} (expected 0 or more, less than 1)")
        if wrong:
            raise UsageError(
                f"The recipe has {', '.join(wrong).replace('_', ' ')}. Expected numbers that a training can have. Mend "
                f"{'it' if len(wrong) == 1 else 'them'}."
            )
        if not 0 <= self.discard < 1:
            raise UsageError(
                f"The share {self.discard:g} of small losses is discarded. Expected 0 or more, and less than 1. Mend "
                "`--discard-small-losses`."
            )
        if self.discard and self.accumulate > 1:
            raise UsageError(
                "`--discard-small-losses` stands beside `--grad-accumulate`. Expected one of them: which losses of a "
                "batch are small is known only when the whole batch was seen. Leave one out."
            )
        if all(stop is None for stop in (self.epochs, self.steps, self.until_loss, self.patience)):
            raise UsageError(
                "Nothing stops this training. Expected `--epochs`, `--steps`, `--until-loss` or `--patience`."
            )
        parse_batch_schedule(self.batch_schedule)
        parse_schedule(self.schedule)
        if self.schedule != "constant" and self.epochs is None and self.steps is None:
            raise UsageError(
                f"The schedule `{self.schedule}` has no end to run to. Expected a bound on the training's length. Give "
                "`--epochs` or `--steps`."
            )

    def batch_sizes(self, epoch: int) -> int:
        """Return the batch size of an epoch, counted from 0."""
        return self.batch_size * parse_batch_schedule(self.batch_schedule)(epoch)

    def bound(self, samples: int) -> int | None:
        """Return the most steps there can be, None where only the loss stops the training."""
        whole = None
        if self.epochs is not None:
            whole = sum(math.ceil(samples / self.batch_sizes(epoch)) for epoch in range(self.epochs))
        return min((most for most in (whole, self.steps) if most is not None), default=None)

    def passes(self, samples: int) -> int:
        """Return about the most passes over the data that there can be, 0 where only the loss stops the training."""
        found = self.epochs
        if self.steps is not None:
            factor, left, epoch = parse_batch_schedule(self.batch_schedule), self.steps, 0
            while left > 0 and epoch != found:
                left -= math.ceil(samples / (self.batch_size * factor(epoch)))
                epoch += 1
            found = epoch
        return found or 0

    def moving(self) -> "Recipe":
        """Return a recipe of the same steps whose stops are the same for all such: the length counts for a schedule."""
        length: dict[str, Any] = {"epochs": 1, "steps": None} if self.schedule == "constant" else {}
        return replace(self, until_loss=None, patience=None, **length)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint records: what always counts, and what is not as by default."""
        # of epochs and steps those are recorded that were done
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("epochs", "steps")}
        found["options"] = " ".join(f"{name}={value:g}" for name, value in sorted(self.options.items()))
        unset = {one.name: one.default for one in fields(self)} | {"options": ""}
        return {name: value for name, value in found.items() if name in ALWAYS or value != unset[name]}


@dataclass
class Progress:
    """Where a training is."""

    epochs: int = 0  # whole ones
    place: int = 0  # samples seen of the one after those
    steps: int = 0
    loss: float = math.nan  # of all training data, at the last look
    best: float = math.inf
    fruitless: int = 0  # epochs without progress, one after the other
    stalled: int = 0  # the most of those that there were

    def advance(self, seen: int, samples: int) -> None:
        """Note a step on so many samples."""
        self.steps += 1
        self.place = (self.place + seen) % samples
        self.epochs += self.place == 0

    def why_stop(self, recipe: Recipe) -> str:
        """Return why training stops at this look, or an empty string; counts fruitless epochs."""
        ended = self.place == 0
        if ended:
            fell = self.loss < self.best - (STALL * abs(self.best) if math.isfinite(self.best) else 0)
            self.fruitless = 0 if fell else self.fruitless + 1
            self.stalled = max(self.stalled, self.fruitless)
            self.best = min(self.best, self.loss)
        if recipe.until_loss is not None and self.loss <= recipe.until_loss:
            return f"training loss reached: {self.loss:.4g} is at or below the {recipe.until_loss:.4g} asked for"
        if recipe.steps is not None and self.steps >= recipe.steps:
            return f"{counted(recipe.steps, 'step')} done"
        if ended and recipe.epochs is not None and self.epochs >= recipe.epochs:
            return f"{counted(recipe.epochs, 'epoch')} done"
        if ended and recipe.patience is not None and self.fruitless >= recipe.patience:
            return f"training loss stalled for {counted(recipe.patience, 'epoch')}"
        return ""

    def beyond(self, recipe: Recipe, lowest: float) -> str:
        """Return what shows that a training by `recipe` stopped before here, or an empty string.

        `lowest`: the lowest training loss at a look so far.
        """
        if recipe.until_loss is not None and lowest <= recipe.until_loss:
            return f"a training loss of {lowest:.4g}"
        if recipe.steps is not None and self.steps >= recipe.steps:
            return counted(self.steps, "step")
        if recipe.epochs is not None and self.epochs >= recipe.epochs:
            return counted(self.epochs, "epoch")
        if recipe.patience is not None and self.stalled >= recipe.patience:
            return f"a stall of {counted(self.stalled, 'epoch')}"
        return ""


def counted(number: int, word: str) -> str:
    """Return a number of things: `1 step`, `2 steps`."""
    return f"{number} {word}{'s' * (number != 1)}"
