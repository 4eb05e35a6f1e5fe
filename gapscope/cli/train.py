"""`gapscope train`: the smallest trainer that makes honest checkpoints."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gapscope.cli import fields
from gapscope.cli.measuring import refuse_unwritable, say
from gapscope.errors import LoadError, UsageError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class TrainOptions:
    """What `train` takes."""

    model: Annotated[str, "built-in name, pkg.mod:attr or file.py:attr", "-m"] = "mlp"
    model_arg: Annotated[tuple[str, ...], "KEY=VALUE for the model, repeatable; values are TOML", "-a"] = ()
    data: Annotated[str, "digits, digits:size=32, a .npz/.pt/.safetensors file, or pkg.mod:factory", "-d"] = "digits"
    loss: Annotated[str | None, "cross-entropy, mse or pkg.mod:attr (default: from the targets)"] = None
    optimizer: Annotated[Literal["sgd", "adam"], "update rule"] = "sgd"
    batch_size: Annotated[int, "samples per step"] = 32
    lr: Annotated[float, "learning rate"] = 0.1
    momentum: Annotated[float, "heavy-ball momentum (sgd)"] = 0.0
    weight_decay: Annotated[float, "L2 penalty inside the gradient"] = 0.0
    epochs: Annotated[int | None, "stop after this many passes over the data"] = None
    steps: Annotated[int | None, "stop after this many updates"] = None
    until_loss: Annotated[float | None, "stop when the loss over all training data is this low"] = None
    patience: Annotated[int | None, "stop when the loss has stalled for this many epochs"] = None
    check_every: Annotated[int | None, "steps between looks at that loss (default: an epoch)"] = None
    seed: Annotated[int, "seed of the initial weights and of the batches"] = 0
    threads: Annotated[int | None, "CPU threads"] = None
    output: Annotated[Path, "checkpoint to write", "-o"] = Path("checkpoint.pt")
    quiet: Annotated[bool, "no progress", "-q"] = False
    debug: Annotated[bool, "show the traceback of an error"] = False


def command() -> Callable[..., int | None]:
    """Return the command."""
    parameters: list[inspect.Parameter] = fields.options(TrainOptions, prefix="GAPSCOPE_TRAIN")

    def train(**values: Any) -> None:
        train_and_save(fields.build(TrainOptions, values))

    summary = """Train a network and save it, with all that measuring it later needs.

    --epochs, --steps, --until-loss and --patience all stop it, whichever comes first, and it says which one did.
    The training loss is that of all training data in eval mode. The initial weights are saved too.
    """
    return fields.command("train", summary, parameters, train)


def train_and_save(options: TrainOptions) -> None:
    """Train, save, and say why training stopped."""
    import torch

    from gapscope.measure.loading import check_fit
    from gapscope.measure.loading.datasets.data import load_data
    from gapscope.measure.loading.losses import build_loss, infer_loss
    from gapscope.measure.loading.models import build_model, parse_args
    from gapscope.measure.loading.trust import Trust
    from gapscope.training.trainer import Recipe, save, train

    recipe = Recipe(
        optimizer=options.optimizer,
        batch_size=options.batch_size,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        epochs=options.epochs,
        steps=options.steps,
        until_loss=options.until_loss,
        patience=options.patience,
        seed=options.seed,
    )
    refuse_unwritable(options.output)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"There are {options.threads} threads. Expected 1 or more. Mend `--threads`.")
    if options.check_every is not None and options.check_every < 1:
        raise UsageError(
            f"The loss is looked at every {options.check_every} steps. Expected 1 or more. Mend `--check-every`."
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    trust, arguments = Trust(), parse_args(list(options.model_arg))
    data = load_data(options.data, "train", recorded=False, trust=trust)
    if data is None:
        raise LoadError(f"`{options.data}` has no training split. Expected some data to train on. Mend `--data`.")
    loss = build_loss(options.loss, recorded=False, trust=trust) if options.loss else infer_loss(data.targets)

    def watch(step: int, current: float) -> None:
        if sys.stderr.isatty() and not options.quiet:
            print(f"\rstep {step:,}  training loss {current:.4g}   ", end="", file=sys.stderr, flush=True)

    def build() -> "nn.Module":
        return build_model(options.model, arguments, recorded=False, trust=trust)[0]

    check_fit(build(), options.model, data, loss)

    trained = train(build, data, loss, recipe, check_every=options.check_every, watch=watch)
    save(trained, options.output, factory=options.model, model_args=arguments, data=options.data, loss=loss.name)
    if sys.stderr.isatty() and not options.quiet:
        print(file=sys.stderr)
    say(
        f"{options.output}: {trained.stopped}, after {trained.steps:,} steps; "
        f"training loss {trained.train_loss:.4g} over {len(data):,} samples"
    )
