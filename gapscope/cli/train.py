"""`gapscope train`: the smallest trainer that makes honest checkpoints, one or those of several regimes."""

import contextlib
import hashlib
import inspect
import math
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gapscope.cli import fields
from gapscope.cli.measuring import refuse_unwritable, say
from gapscope.cli.regime_sizes import refuse_idle, refuse_large, regime_sizes
from gapscope.cli.settings import Configuration, parse_seconds
from gapscope.cli.stderr import tell
from gapscope.errors import LoadError, ReportError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gapscope.measure.distributed import Ranks
    from gapscope.report.file import Report
    from gapscope.training.recipe import Recipe
    from gapscope.training.regimes import Run, Task
    from gapscope.training.trainer import Running, Trained


@dataclass(frozen=True)
class TrainOptions:
    """What `train` takes."""

    model: Annotated[str, "built-in name, pkg.mod:attr or file.py:attr", "-m"] = "mlp"
    model_arg: Annotated[tuple[str, ...], "KEY=VALUE for the model, repeatable; values are TOML", "-a"] = ()
    data: Annotated[str, "digits, teacher:samples=1000, a data file or pkg.mod:factory", "-d"] = "digits"
    loss: Annotated[str | None, "cross-entropy, mse or pkg.mod:attr (default: from the targets)"] = None
    optimizer: Annotated[str, "sgd, adam, sngm, lars, mclr, cblr, lamb or sam"] = "sgd"
    optimizer_option: Annotated[tuple[str, ...], "KEY=NUMBER of the optimizer, repeatable, like rho=0.05"] = ()
    curvature_every: Annotated[int, "steps between two measurements of the curvature (mclr, cblr)"] = 100
    curvature_probes: Annotated[int, "Hessian-vector products of each"] = 8
    batch_size: Annotated[int, "samples per step"] = 32
    batch_schedule: Annotated[str, "times that size from an epoch on, like 2@10,4@20"] = "constant"
    grad_accumulate: Annotated[int, "take each batch in this many parts: less memory, the same gradient"] = 1
    lr: Annotated[float, "learning rate"] = 0.1
    scale_rate: Annotated[Literal["none", "linear", "sqrt"], "the rate is that of --reference-batch; scale it"] = "none"
    reference_batch: Annotated[int, "batch size that the rate was chosen for"] = 32
    schedule: Annotated[str, "rate over the training: cosine, polynomial, step:at=[0.5], warmup:steps=100+cosine"] = (
        "constant"
    )
    momentum: Annotated[float, "heavy-ball momentum"] = 0.0
    weight_decay: Annotated[float, "L2 penalty inside the gradient"] = 0.0
    discard_small_losses: Annotated[float, "share of every batch, of the smallest losses, that is left out"] = 0.0
    augment: Annotated[bool, "shift images at random"] = False
    conservative: Annotated[float, "weight of the proximal term: 3 steps on each batch, near where they began"] = 0.0
    adversarial: Annotated[float, "move the inputs this far against the model, before each step"] = 0.0
    epochs: Annotated[int | None, "stop after this many passes over the data"] = None
    steps: Annotated[int | None, "stop after this many updates"] = None
    until_loss: Annotated[float | None, "stop when the loss over all training data is this low"] = None
    patience: Annotated[int | None, "stop when the loss has stalled for this many epochs"] = None
    check_every: Annotated[int | None, "steps between looks at that loss (default: an epoch)"] = None
    seed: Annotated[int, "seed of the initial weights and of the batches"] = 0
    regimes: Annotated[str | None, "train several batch sizes: small,large or 16,64,256; the first by its stops"] = None
    small_batch: Annotated[int | None, "batch size of the regime `small` (default: 32)"] = None
    large_batch: Annotated[int | None, "batch size of the regime `large` (default: a tenth of the data)"] = None
    seeds: Annotated[int, "train this many runs of each, from --seed on"] = 1
    equal: Annotated[Literal["loss", "samples", "steps"], "how far the other regimes go: as far as the first"] = "loss"
    max_epochs: Annotated[int | None, "give up on the first one's loss after so many (default: 100 times its)"] = None
    save_every: Annotated[int | None, "epochs between checkpoints NAME-epochN.pt on the way"] = None
    save_state: Annotated[str, "time between saved states, from which the same command goes on"] = "60s"
    log: Annotated[bool, "write NAME.training.h5: looks and steps, layer by layer"] = True
    log_every: Annotated[int, "steps between logged ones; each costs a forward pass more"] = 50
    device: Annotated[str, "auto, cpu, cuda, cuda:1 or mps"] = "auto"
    threads: Annotated[int | None, "CPU threads"] = None
    output: Annotated[
        Path | None, "checkpoint to write (default: checkpoint.pt; several, also a folder: runs/MODEL-bB-sS.pt)", "-o"
    ] = None
    quiet: Annotated[bool, "no progress", "-q"] = False
    debug: Annotated[bool, "show the traceback of an error"] = False


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""
    parameters: list[inspect.Parameter] = fields.options(TrainOptions, prefix="GAPSCOPE_TRAIN")

    def train(**values: Any) -> int:
        options: TrainOptions = fields.build(TrainOptions, values)
        configuration.tell_trust("train", quiet=options.quiet)
        return train_and_save(options)

    summary = """Train a network and save it, with all that measuring it later needs.

    --epochs, --steps, --until-loss and --patience all stop it, whichever comes first, and it says which one did.
    The training loss is that of all training data in eval mode. The initial weights are saved too. The same command
    goes on where an interrupted one was, also to a later end. With --regimes or --seeds a finished run is not trained
    again; exit code 2 where one diverged or did not come to the loss. `torchrun --nproc-per-node 2 -m gapscope train
    ...` shares each batch.
    """
    return fields.command("train", summary, parameters, train)


def train_and_save(options: TrainOptions) -> int:
    """Train, save, and say why training stopped; exit code 2 where a regime diverged or did not come to the loss."""
    import torch

    from gapscope.measure.distributed import local_device, ranks
    from gapscope.measure.session import device_named

    recipe = _recipe(options)
    _refuse_nonsense(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = device_named(local_device(options.device))
    job = _Job(options, _task(options), device, ranks())
    if options.regimes is None and options.seeds == 1:
        job.alone(recipe, options.output or Path("checkpoint.pt"))
        return 0
    return job.several(recipe)


def _recipe(options: TrainOptions) -> "Recipe":
    from gapscope.training.recipe import Recipe

    same = (
        *("optimizer", "batch_size", "batch_schedule", "schedule", "momentum", "weight_decay", "augment", "seed"),
        *("conservative", "adversarial", "epochs", "steps", "until_loss", "patience"),
        *("curvature_every", "curvature_probes"),
    )
    return Recipe(
        **{name: getattr(options, name) for name in same},
        options=dict(_number(text) for text in options.optimizer_option),
        lr=_rate(options, options.batch_size),
        discard=options.discard_small_losses,
        accumulate=options.grad_accumulate,
    )


def _rate(options: TrainOptions, batch_size: int) -> float:
    """Return the rate of a batch size; a size that makes no sense is the recipe's to refuse."""
    from gapscope.training.schedules import scaled_rate

    if options.scale_rate == "none" or batch_size < 1:
        return options.lr
    return scaled_rate(options.lr, batch_size, options.reference_batch, options.scale_rate)


def _number(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(
            f"The optimizer's option is `{text}`. Expected a name and a number, like `rho=0.05`. Mend "
            "`--optimizer-option`."
        ) from None


def _refuse_nonsense(options: TrainOptions) -> None:
    for name in ("threads", "seeds", "max_epochs", "save_every", "log_every", "check_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"`--{name.replace('_', '-')} {value}` was given. Expected 1 or more. Mend it.")
    parse_seconds(options.save_state, "save state")
    refuse_idle(options.regimes, options.small_batch, options.large_batch)


def _task(options: TrainOptions) -> "Task":
    """Load the data, and see that model, data and loss fit each other."""
    from gapscope.measure.loading import (
        Trust,
        as_classes,
        build_loss,
        build_model,
        check_fit,
        infer_loss,
        load_data,
        parse_args,
    )
    from gapscope.measure.loading.networks import NETWORKS, sizes_for
    from gapscope.training.regimes import Task

    trust, arguments = Trust(), parse_args(list(options.model_arg))
    data = load_data(options.data, "train", recorded=False, trust=trust)
    if data is None:
        raise LoadError(f"`{options.data}` has no training split. Expected some data to train on. Mend `--data`.")
    if options.model in NETWORKS:
        arguments = {**sizes_for(NETWORKS[options.model], data.inputs, data.targets), **arguments}

    def build() -> "nn.Module":
        return build_model(options.model, arguments, recorded=False, trust=trust)[0]

    model = build()
    if options.loss:
        loss = build_loss(options.loss, recorded=False, trust=trust)
    else:
        loss = infer_loss(data.targets, model, data.inputs)
    data = as_classes(data, model) if loss.ignored is not None else data
    check_fit(model, options.model, data, loss)
    return Task(build, data, loss, options.model, arguments)


@dataclass(frozen=True)
class _Job:
    """What is trained, and where."""

    options: TrainOptions
    task: "Task"
    device: "torch.device"
    group: "Ranks"

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.group.rank == 0

    def tell(self, *lines: str) -> None:
        """Print sentences, in the process that speaks."""
        if self.first:
            say(*lines)

    def alone(self, recipe: "Recipe", path: Path) -> None:
        """Train one run."""
        from gapscope.training.regimes import state_path
        from gapscope.training.state import forget
        from gapscope.training.trainer import train

        refuse_unwritable(path)
        refuse_large(recipe.batch_size, len(self.task.data), "--batch-size")
        state = state_path(path)
        running = replace(self._running(path), state=state)
        task, every = self.task, self.options.check_every
        with _going_on(state):
            trained = train(
                task.build, task.data, task.loss, recipe, check_every=every, code=task.code, running=running
            )
        if self.first:
            task.save(trained, path)
            forget(state)
        self._tell_of(trained, path)
        if trained.interrupted:
            raise KeyboardInterrupt

    def several(self, recipe: "Recipe") -> int:
        """Train the runs of several batch sizes and seeds, and say what to compare."""
        from gapscope.measure.loading.checkpoints.inspection import named
        from gapscope.training.regimes import make_regimes

        options = self.options
        samples = len(self.task.data)
        if options.regimes is None:
            refuse_large(options.batch_size, samples, "--batch-size")
            sizes = [options.batch_size]
        else:
            sizes = regime_sizes(options.regimes, samples, options.small_batch, options.large_batch)
        recipes = [replace(recipe, batch_size=size, lr=_rate(options, size)) for size in sizes]
        seeds = range(recipe.seed, recipe.seed + options.seeds)
        found = make_regimes(recipes, self._make, seeds=seeds, equal=options.equal, max_epochs=options.max_epochs)
        runs = list(found)
        lost = sorted(set(seeds) - {run.trained.recipe.seed for run in runs})
        if lost and len(recipes) > 1:
            said = ", ".join(map(str, lost))
            self.tell(f"Without the first regime of seed {said} there is nothing that the others could go as far as.")
        late = [run for run in runs if not run.reached]
        for run in late:
            self.tell(
                f"{run.path} has a training loss of {run.trained.train_loss:.4g} ({run.trained.stopped}). Expected at "
                f"most {run.trained.recipe.until_loss:.4g}, that of the first regime. Raise `--max-epochs`, or its "
                "rate, and train again."
            )
        ready = [run for run in runs if run.reached]
        if self.first and len({run.trained.recipe.batch_size for run in ready}) > 1:
            paths = shlex.join(str(run.path) for run in ready)
            known = " ".join(["", *named(options.model, options.data, options.loss)])
            print(f"\nnext: gapscope compare {paths}{known}")  # in one line, to be pasted
        return 2 if late or len(runs) < len(recipes) * len(seeds) else 0

    def _make(self, recipe: "Recipe") -> "Run | None":
        """Return a run, None where it diverged: the others are worth their work."""
        from gapscope.training.regimes import Run, make_run, state_path
        from gapscope.training.trainer import DivergedError

        options = self.options
        prefix = options.output or Path("runs")
        if not prefix.suffix or prefix.is_dir():
            _make_folder(prefix)
            prefix /= re.sub(r"\W+", "-", options.model.rpartition(":")[2]).strip("-") + ".pt"
        path = prefix.with_name(f"{prefix.stem}-b{recipe.batch_size}-s{recipe.seed}.pt")
        refuse_unwritable(path)
        was = path.is_file()
        running = self._running(path)
        try:
            with _going_on(state_path(path)):
                trained = make_run(recipe, self.task, path, check_every=options.check_every, running=running)
        except DivergedError as error:
            self.tell(f"{path} is left out. {error}")
            return None
        if was and trained.log:
            self.tell(f"{path} was there: trained anew, for its settings changed")
        self._tell_of(trained, path)
        if trained.interrupted:
            raise KeyboardInterrupt
        return Run(path, trained)

    def _running(self, path: Path) -> "Running":
        from gapscope.cli.progress import monitor
        from gapscope.training.trainer import Running

        options = self.options

        def kept(trained: "Trained") -> None:
            diverged = not math.isfinite(trained.train_loss)
            name = f"{path.name}.diverged" if diverged else f"{path.stem}-epoch{trained.epochs}{path.suffix}"
            if self.first:
                self.task.save(trained, path.with_name(name))
                if diverged:
                    tell(f"the weights as they are then: {path.with_name(name)}")

        return Running(
            device=self.device,
            ranks=self.group,
            log_every=options.log_every if options.log else 0,
            save_every=options.save_every,
            kept=kept,
            state_seconds=parse_seconds(options.save_state, "save state"),
            monitor=monitor(quiet=options.quiet or not self.first),
        )

    def _tell_of(self, trained: "Trained", path: Path) -> None:
        written = self._write_log(trained, path)
        before = "" if trained.log else " (trained already)"
        self.tell(
            f"{path}: {trained.stopped}, after {trained.steps:,} step{'s' * (trained.steps != 1)}; training "
            f"loss {trained.train_loss:.4g} over {len(self.task.data):,} samples{before}",
            *(trained.log.notes if trained.log else ()),
            *([f"log: {written}"] if written else []),
        )

    def _write_log(self, trained: "Trained", path: Path) -> Path | None:
        """Write what was logged as a report, where that was asked for and something was trained."""
        from gapscope.report.file import write

        if not self.options.log or trained.log is None or not self.first:
            return None
        written = path.with_name(f"{path.stem}.training.h5")
        write(self._report(trained, path), written)
        return written

    def _report(self, trained: "Trained", path: Path) -> "Report":
        """Return the log as the report of the checkpoint at `path`, under the names that measuring gives it."""
        from gapscope.measure.problem import Origin, Problem
        from gapscope.measure.session import Session, arguments_text
        from gapscope.report.file import Record

        assert trained.log is not None
        identity = {
            "checkpoint": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "model": self.options.model,
            "model_args": arguments_text(self.task.arguments),
        }
        origin = Origin(split="train", identity=identity, training=trained.record())
        problem = Problem(model=trained.model, data=self.task.data, loss_function=self.task.loss, origin=origin)
        log = trained.log
        record = Record(
            analyzer="training",
            version="1",
            status=log.status,
            seconds=log.seconds,
            notes=log.notes,
            settings={"log_every": self.options.log_every, "check_every": self.options.check_every},
            quantities=log.quantities(),
        )
        report = Session(problem).report({"training": record})
        environment = dict(report.environment) | {"device": str(self.device), "world_size": self.group.count}
        return replace(report, environment=environment)


@contextlib.contextmanager
def _going_on(state: Path) -> Iterator[None]:
    """Say, when interrupted, how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if state.is_file():
            tell(f"the same command goes on from {state}", start="\n", end="")
        raise


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"The folder {folder} cannot be made: {error.strerror}. Expected a place for the runs. Name one with "
            "`--output`."
        ) from error
