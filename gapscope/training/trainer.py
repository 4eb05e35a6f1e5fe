"""The smallest trainer that makes honest checkpoints: it says why it stopped and at which training loss.

The training loss is always that of the whole training data in eval mode, never an average over passing batches.
Bitwise repeatable on one CPU thread by `seed`, also where it was killed and went on.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gapscope.errors import UsageError
from gapscope.measure.distributed import ALONE, Ranks
from gapscope.measure.loading.checkpoints.checkpoint import save_checkpoint
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss
from gapscope.measure.monitor import Monitor
from gapscope.training.gradient import Objective, random_state, set_random_state
from gapscope.training.layer_curvature import LayerCurvature
from gapscope.training.log import Log, TrainingLog
from gapscope.training.looking import at_once, mean_loss
from gapscope.training.optimizers import make_optimizer
from gapscope.training.optimizers.layerwise import CURVED, LayerwiseSGD, NotFiniteError
from gapscope.training.recipe import Progress, counted
from gapscope.training.recipe import Recipe as Recipe
from gapscope.training.remedies import Proximal
from gapscope.training.schedules import parse_schedule
from gapscope.training.state import ELSEWHERE, Kept, held_interrupt, on_cpu, plain_settings, settings_digest

CPU = torch.device("cpu")
STATE_SECONDS = 60.0
AUGMENTING = 1  # added to the seed: augmentation must not draw the numbers that shuffle


class DivergedError(UsageError):
    """The training loss, or the curvature that rates are fitted to, is NaN or infinite."""


@dataclass(frozen=True)
class Trained:
    """What training made; `stopped` says why it ended.

    Where it is handed to `Running.kept`, training goes on in `model`.  `interrupted`: Ctrl-C came with the last step
    or the look after it; whoever saves this raises KeyboardInterrupt afterwards.
    """

    model: nn.Module
    initial: Mapping[str, Tensor]
    recipe: Recipe
    epochs: int
    steps: int
    train_loss: float
    stopped: str
    last_lr: float = math.nan
    digest: str = ""  # of everything that it depends on
    log: TrainingLog | None = None
    interrupted: bool = False

    def record(self) -> dict[str, Any]:
        """Return what goes into the checkpoint's training record."""
        last = {} if self.recipe.schedule == "constant" else {"last_lr": self.last_lr}
        return self.recipe.record() | {
            "epochs": self.epochs,
            "steps": self.steps,
            "train_loss": self.train_loss,
            "stopped": self.stopped,
            **last,
        }


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a training is carried out and watched; none of it changes the weights by more than rounding.

    `kept` is called with the weights every `save_every` epochs, and with those of a training that diverged, whose loss
    is not finite, or NaN for a curvature that is not.  The state that an interrupted training goes on from is in the
    file `state`, written every `state_seconds` and at Ctrl-C.
    """

    device: torch.device = CPU
    ranks: Ranks = ALONE
    log_every: int = 0
    save_every: int | None = None
    kept: Callable[[Trained], None] = lambda _: None
    state: Path | None = None
    state_seconds: float = STATE_SECONDS
    monitor: Monitor = field(default_factory=Monitor)
    watch: Callable[[int, float], None] = lambda *_: None


QUIETLY = Running()


def train(
    build: Callable[[], nn.Module],
    data: Data,
    loss: Loss,
    recipe: Recipe,
    *,
    check_every: int | None = None,
    code: str = "",
    running: Running = QUIETLY,
) -> Trained:
    """Train a new network; the loss is looked at every `check_every` steps (default: once an epoch).

    `build` is called under the recipe's seed.  On a GPU the weights start from the same numbers.  `code`: the digest of
    the files that model and loss come from; a state of others is none of this training.

    Raises UsageError where the loss becomes NaN or infinite, and where the state is of another training.
    """
    devices = [running.device] if running.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(recipe.seed)
        model = build().train()
        others = {"check_every": check_every, "code": code}
        digest = settings_digest(recipe, model, data, loss, **others)
        initial = on_cpu(model.state_dict())
        loop = _Loop(model.to(running.device), data, loss, recipe, others, running, initial, digest)
        try:
            return loop.run()
        finally:
            running.monitor.end()


@dataclass(eq=False)
class _Loop:
    """One training: what it is of, its parts, and where it is."""

    model: nn.Module
    data: Data
    loss: Loss
    recipe: Recipe
    others: Mapping[str, Any]  # settings beside the recipe: check_every and code
    running: Running
    initial: Mapping[str, Tensor]
    digest: str

    def __post_init__(self) -> None:
        recipe, running = self.recipe, self.running
        self.progress, self.log = Progress(), Log(self.model, running.device, running.log_every)
        self.shuffle = torch.Generator().manual_seed(recipe.seed)
        self.order = self.shuffle.get_state()  # what the order of the current epoch is drawn from
        augmenting = torch.Generator().manual_seed(recipe.seed + AUGMENTING)
        self.objective = Objective(self.model, self.loss, recipe, running.device, running.ranks, augmenting)
        self.optimizer = make_optimizer(
            recipe.optimizer,
            self.model,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            options=recipe.options,
        )
        strength = recipe.conservative
        self.stepper = Proximal(self.optimizer, strength=strength) if strength else self.optimizer
        self.curvature: LayerCurvature | None = None
        if recipe.optimizer in CURVED:
            every, probes = recipe.curvature_every, recipe.curvature_probes
            self.curvature = LayerCurvature(self.model, self.loss, every=every, probes=probes, seed=recipe.seed)
        step = math.ceil(recipe.batch_size / (recipe.accumulate * running.ranks.count))  # samples of a forward pass
        self.look_size = at_once(self.model, self.data, self.loss, step)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule, self.bound = parse_schedule(recipe.schedule), recipe.bound(len(self.data))
        others = {**self.others, "log_every": running.log_every}
        about = (recipe.moving(), self.model, self.data, self.loss)
        digest = settings_digest(*about, **others)
        self.kept = Kept(running.state, digest, running.state_seconds, plain_settings(*about, **others))
        self.started, self.interrupted = time.monotonic(), threading.Event()

    def run(self) -> Trained:
        """Train until something stops it."""
        self._resume()
        # what a resumed training has behind it took no time here: counted, it would shorten the time left
        done = self.progress.epochs + self.progress.place / len(self.data)
        self.running.monitor.begin("training", max(0, math.ceil(self.recipe.passes(len(self.data)) - done)))
        stopped = self._train()
        self.model.cpu().eval()
        return self._made(stopped)

    def _train(self) -> str:
        """Step until something stops it, and return what did; at Ctrl-C the state is written first."""
        alone = self.kept.path is not None and self.running.ranks.count == 1  # several would stop at several steps
        with held_interrupt() if alone else contextlib.nullcontext(self.interrupted) as self.interrupted:
            for picked in self._picks():
                self._step(picked)
                if stopped := self._look():
                    return stopped
                asked = self.interrupted.is_set()
                self._keep(now=asked)
                if asked:
                    raise KeyboardInterrupt
        raise AssertionError("the samples have no end")

    def _picks(self) -> Iterator[Tensor]:
        """Yield the samples of one step after the other, from where the training is, without end."""
        while True:
            self.order = self.shuffle.get_state()
            order = torch.randperm(len(self.data), generator=self.shuffle)
            yield from torch.split(order[self.progress.place :], self.recipe.batch_sizes(self.progress.epochs))

    def _step(self, picked: Tensor) -> None:
        progress, running = self.progress, self.running
        step = progress.steps + 1
        if running.ranks.rank:
            torch.manual_seed(hash((self.recipe.seed, running.ranks.rank, step)))  # dropout of its own
        if self.bound is not None and self.recipe.schedule != "constant":
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * self.schedule(progress.steps, self.bound)
        batch = self.objective.batch(self.data, picked)
        if self.curvature and isinstance(self.optimizer, LayerwiseSGD):
            try:
                self.curvature.refresh(self.optimizer, batch.inputs, batch.targets)
            except NotFiniteError:  # before the loss of this step is known
                self._refuse_infinite(math.nan, "curvature", "numbers")
        before = self.log.before(step)
        losses: list[Tensor] = []
        gradients: list[Tensor] = []

        def closure() -> Any:
            self.optimizer.zero_grad()
            losses.append(batch.backward())
            if before and not gradients:
                gradients.append(self.log.gradient())
            return losses[-1]

        self.stepper.step(closure)
        progress.advance(len(picked), len(self.data))
        if before:
            self.log.after(before, gradients[0], batch, losses[0], step=step, rate=self._rate())
        running.monitor.tick(len(picked) / len(self.data))
        if running.device.type == "cpu":  # elsewhere looking would wait for the device at every step
            self._refuse_infinite(float(losses[0]))

    def _look(self) -> str:
        """Look at the training loss where that is due; return why training stops, or an empty string."""
        progress = self.progress
        every = self.others["check_every"]
        due = every is not None and progress.steps % every == 0
        if not due and progress.place != 0 and progress.steps != self.recipe.steps:
            return ""
        ranks = self.running.ranks
        progress.loss = mean_loss(self.model, self.data, self.loss, size=self.look_size, ranks=ranks)
        self.log.looks.append((progress.steps, progress.loss))
        self.running.monitor.say(f"step {progress.steps:,}  training loss {progress.loss:.4g}")
        self.running.watch(progress.steps, progress.loss)
        self._refuse_infinite(progress.loss)
        return progress.why_stop(self.recipe)

    def _refuse_infinite(self, number: float, what: str = "training loss", expected: str = "it to fall") -> None:
        if math.isfinite(number):
            return
        self.progress.loss = number
        self.running.kept(self._made(f"{what} became {number}"))
        self.kept.forget()
        if self.interrupted.is_set():
            raise KeyboardInterrupt
        raise DivergedError(
            f"The {what} became {number} after {counted(self.progress.steps, 'step')}. Expected {expected}. "
            "Lower `--lr`."
        )

    def _keep(self, *, now: bool) -> None:
        """Save the weights of this epoch, and the state, where they are due; the state `now` in any case."""
        progress, every = self.progress, self.running.save_every
        if every and progress.place == 0 and progress.epochs % every == 0:
            self.running.kept(self._made(f"saved after {counted(progress.epochs, 'epoch')}"))
        if (now or self.kept.due) and self.running.ranks.rank == 0:
            order = self.order if progress.place else self.shuffle.get_state()
            self.kept.write(
                lambda: {
                    "progress": asdict(progress),
                    "model": on_cpu(self.model.state_dict()),
                    "optimizer": self.optimizer.state_dict(),
                    "curvature": self.curvature and self.curvature.state_dict(),
                    "order": order,
                    "augmenting": self.objective.augmenting.get_state(),
                    "random": random_state(self.running.device),
                    "log": self.log.state(),
                    "seconds": time.monotonic() - self.started,
                }
            )

    def _resume(self) -> None:
        """Go on from the state of these settings, if there is one."""
        found = self.running.ranks.from_first(self.kept.read() if self.running.ranks.rank == 0 else None)
        if found is None:
            if self.kept.path is not None and self.kept.path.is_file():
                self.running.monitor.plan(f"{self.kept.path} is damaged: training starts anew")
            return
        self.progress = Progress(**found["progress"])
        self.log.restore(found["log"])
        self._refuse_beyond()
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        if self.curvature:
            self.curvature.load_state_dict(found["curvature"])
        self.shuffle.set_state(found["order"])
        self.objective.augmenting.set_state(found["augmenting"])
        self.started -= found["seconds"]
        set_random_state(found["random"], self.running.device)
        self.running.monitor.plan(f"going on from step {self.progress.steps:,} of {self.kept.path}")

    def _refuse_beyond(self) -> None:
        """Refuse a state that lies behind where this recipe stops: an undisturbed training would not come there."""
        lowest = min((loss for _, loss in self.log.looks), default=math.inf)
        if done := self.progress.beyond(self.recipe, lowest):
            raise UsageError(
                f"{self.kept.path} is the state of a training that has {done} behind it, where this one would have "
                f"stopped. Expected an earlier one. Let it train on, {ELSEWHERE}"
            )

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _made(self, stopped: str) -> Trained:
        """Return the training as it stands."""
        progress = self.progress
        return Trained(
            model=self.model,
            initial=self.initial,
            recipe=self.recipe,
            epochs=progress.epochs,
            steps=progress.steps,
            train_loss=progress.loss,
            stopped=stopped,
            last_lr=self._rate(),
            digest=self.digest,
            log=self.log.result(time.monotonic() - self.started, tuple(self._notes())),
            interrupted=self.interrupted.is_set(),
        )

    def _notes(self) -> Iterator[str]:
        if self.curvature:
            yield f"curvature took {self.curvature.share:.0%} of the gradients"
        if self.recipe.accumulate > 1 and self.objective.mixing:
            parts = self.recipe.accumulate
            yield f"BatchNorm took its statistics from each of {parts} parts of a batch: not the gradient of the whole"


def save(
    trained: Trained,
    path: Path,
    *,
    factory: str | None,
    model_args: Mapping[str, Any],
    data: str,
    loss: str,
    made: Mapping[str, Any] = {},
) -> None:
    """Write a checkpoint that needs no flag later: model, data, loss, recipe and initial weights are recorded.

    `made`: how the file came about, which no comparison looks at.
    """
    save_checkpoint(
        path,
        trained.model,
        factory=factory,
        model_args=model_args,
        data=data,
        loss=loss,
        training=trained.record() | ({"made": made} if made else {}),
        initial=trained.initial,
    )
