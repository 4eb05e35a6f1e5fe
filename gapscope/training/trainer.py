"""The smallest trainer that makes honest checkpoints: it says why it stopped and at which training loss.

The training loss is always that of the whole training data in eval mode, never an average over passing batches.
Bitwise repeatable on one CPU thread by `seed`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gapscope.errors import UsageError
from gapscope.measure.batches import called, pieces, scores, taken
from gapscope.measure.loading.checkpoints.checkpoint import save_checkpoint
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss

STALL = 1e-3  # an epoch that lowers the best loss by less than this share is no progress


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; `epochs`, `steps`, `until_loss` and `patience` all stop it, whichever comes first."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int | None = None
    steps: int | None = None
    until_loss: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = [
            f"{name} {value}"
            for name, value in (("epochs", self.epochs), ("steps", self.steps), ("patience", self.patience))
            if value is not None and value < 1
        ]
        if (
            self.batch_size < 1
            or not 0 < self.lr < math.inf
            or not 0 <= self.momentum < 1
            or self.weight_decay < 0
            or wrong
        ):
            raise UsageError(
                f"The recipe has batch size {self.batch_size}, rate {self.lr}, momentum {self.momentum}, weight decay "
                f"{self.weight_decay}{', ' * bool(wrong)}{', '.join(wrong)}. "
                "Expected batch size and counts >= 1, rate > 0, 0 <= momentum < 1, weight decay >= 0."
            )
        if all(stop is None for stop in (self.epochs, self.steps, self.until_loss, self.patience)):
            raise UsageError(
                "Nothing stops this training. Expected `--epochs`, `--steps`, `--until-loss` or `--patience`."
            )


@dataclass(frozen=True)
class Trained:
    """What training made; `stopped` says why it ended."""

    model: nn.Module
    initial: Mapping[str, Tensor]
    recipe: Recipe
    epochs: int
    steps: int
    train_loss: float
    stopped: str

    def record(self) -> dict[str, Any]:
        """Return what goes into the checkpoint's training record."""
        recipe = {k: v for k, v in vars(self.recipe).items() if v is not None and k not in ("epochs", "steps")}
        return recipe | {
            "epochs": self.epochs,
            "steps": self.steps,
            "train_loss": self.train_loss,
            "stopped": self.stopped,
        }


def mean_loss(model: nn.Module, data: Data, loss: Loss, *, size: int = 2048) -> float:
    """Return the mean loss over all data, in eval mode."""
    was, bound = model.training, loss.bound(data.targets)
    model.eval()
    total = 0.0
    with torch.no_grad():
        for x, y in pieces(data.inputs, data.targets, size):
            total += float(bound.per_sample(scores(called(model, x)), y).sum(dtype=torch.float64))
    model.train(was)
    return total / len(data)


def train(
    build: Callable[[], nn.Module],
    data: Data,
    loss: Loss,
    recipe: Recipe,
    *,
    check_every: int | None = None,
    watch: Callable[[int, float], None] = lambda *_: None,
) -> Trained:
    """Train a new network; the loss is looked at every `check_every` steps (default: once an epoch).

    Raises UsageError where the loss becomes NaN or infinite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = build().train()
        initial = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        shuffle = torch.Generator().manual_seed(recipe.seed)
        optimizer = _optimizer(model, recipe)
        state = _State(per_epoch=math.ceil(len(data) / recipe.batch_size), best=math.inf, fruitless=0)
        steps, stopped, current = 0, "", math.nan
        while not stopped:
            order = torch.randperm(len(data), generator=shuffle)
            for picked in torch.split(order, recipe.batch_size):
                optimizer.zero_grad()
                outputs, targets = scores(called(model, taken(data.inputs, picked))), data.targets[picked]
                mean = loss.bound(targets).per_sample(outputs, targets).mean()
                torch.autograd.backward(mean)
                optimizer.step()
                steps += 1
                ended = steps % state.per_epoch == 0
                if steps % (check_every or state.per_epoch) == 0 or ended or steps == recipe.steps:
                    current = mean_loss(model, data, loss)
                    watch(steps, current)
                    stopped = _why_stop(recipe, state, steps, current, ended)
                    if stopped:
                        break
    return Trained(model.eval(), initial, recipe, steps // state.per_epoch, steps, current, stopped)


@dataclass
class _State:
    per_epoch: int
    best: float
    fruitless: int


def _why_stop(recipe: Recipe, state: _State, steps: int, current: float, ended: bool) -> str:
    """Return why training stops here, or an empty string; counts fruitless epochs."""
    if not math.isfinite(current):
        raise UsageError(f"The training loss became {current} after {steps} steps. Expected it to fall. Lower `--lr`.")
    if ended:
        state.fruitless = 0 if current < (1 - STALL) * state.best else state.fruitless + 1
        state.best = min(state.best, current)
    if recipe.until_loss is not None and current <= recipe.until_loss:
        return f"training loss reached {recipe.until_loss:g}"
    if recipe.steps is not None and steps >= recipe.steps:
        return f"{recipe.steps} steps done"
    if ended and recipe.epochs is not None and steps >= recipe.epochs * state.per_epoch:
        return f"{recipe.epochs} epochs done"
    if ended and recipe.patience is not None and state.fruitless >= recipe.patience:
        return f"training loss stalled for {recipe.patience} epochs"
    return ""


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def save(trained: Trained, path: Path, *, factory: str, model_args: Mapping[str, Any], data: str, loss: str) -> None:
    """Write a checkpoint that needs no flag later: model, data, loss, recipe and initial weights are recorded."""
    save_checkpoint(
        path,
        trained.model,
        factory=factory,
        model_args=model_args,
        data=data,
        loss=loss,
        training=trained.record(),
        initial=trained.initial,
    )
