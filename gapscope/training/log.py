"""What single steps did to each layer: gradient norm, step length, and the change of the loss that came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gapscope.measure.operators import inner, length
from gapscope.measure.parameters import Parameters
from gapscope.results import Array, Quantity, Result, Status
from gapscope.training.gradient import Batch, random_state, untouched

PER_STEP = ("rate", "batch_size", "batch_loss", "batch_loss_after")
PER_LAYER = ("gradient_norm", "step_length", "first_order_change")
ENDS = PER_LAYER[:2]  # shown at both ends of what was logged


@dataclass(frozen=True, kw_only=True)
class TrainingLog(Result):
    """The looks at the training loss, and what the logged steps did."""

    train_loss: Quantity
    loss_change: Quantity | None
    first_order_change: Quantity | None
    gradient_norm: Quantity | None
    step_length: Quantity | None
    gradient_norm_at: Quantity | None
    step_length_at: Quantity | None
    batch_loss: Quantity | None
    rate: Quantity | None
    batch_size: Quantity | None


@dataclass(frozen=True, eq=False)
class Before:
    """What is remembered while a logged step is taken."""

    theta: Tensor  # (n,)
    random: Mapping[str, Tensor]


@dataclass(eq=False)
class Log:
    """Collects the looks, and every `every`-th step from the first on (0: none).

    Cost of a logged step: one forward pass on its batch, three vectors of length n, and one transfer to the host of
    three numbers for each layer.  It changes no bit of the training: random numbers and buffers are put back.
    """

    model: nn.Module
    device: torch.device
    every: int = 0
    looks: list[tuple[int, float]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)  # each (4 + 3 layers,): PER_STEP, then PER_LAYER by layer

    def __post_init__(self) -> None:
        self._parameters = Parameters.of(self.model)
        self._blocks = self._parameters.blocks()

    def before(self, step: int) -> Before | None:
        """Return what a logged step needs, None for one that is not logged; steps are counted from 1."""
        if not self.every or (step - 1) % self.every:
            return None
        return Before(self._flat(dict(self.model.named_parameters())), random_state(self.device))

    def gradient(self) -> Tensor:
        """Return the gradient as it is now, (n,); zeros where a parameter has none."""
        named = dict(self.model.named_parameters())
        return self._flat({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()})

    def after(self, before: Before, gradient: Tensor, batch: Batch, loss: Tensor, *, step: int, rate: float) -> None:
        """Add a step that was taken from `before` along `gradient`."""
        moved = self._flat(dict(self.model.named_parameters())) - before.theta
        sizes = [block.stop - block.start for block in self._blocks.values()]
        pieces = list(zip(torch.split(gradient, sizes), torch.split(moved, sizes), strict=True))
        norms = [torch.stack([length(one) for one in column]) for column in zip(*pieces, strict=True)]
        products = torch.stack([inner(g, d) for g, d in pieces])
        with untouched(batch, before.random):
            after = batch.value()
        found = torch.cat([torch.stack([loss, after]).to(products.dtype), *norms, products]).cpu().double().numpy()
        self.steps.append(step)
        self.rows.append(np.concatenate([[rate, len(batch.targets)], found]))

    def state(self) -> dict[str, Any]:
        """Return what was collected, as plain values and a tensor."""
        return {"looks": self.looks, "steps": self.steps, "rows": torch.from_numpy(np.array(self.rows))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what was collected before."""
        self.looks, self.steps = [tuple(look) for look in state["looks"]], list(state["steps"])
        self.rows = list(state["rows"].numpy())

    def result(self, seconds: float, notes: tuple[str, ...] = ()) -> TrainingLog:
        """Return the log as a result."""
        logged = self._logged() if self.rows else dict.fromkeys([*_DOCS, *(f"{name}_at" for name in ENDS)])
        losses = np.array([loss for _, loss in self.looks])
        labels = {"steps": _texts(step for step, _ in self.looks)}
        doc = "mean loss over all training data in eval mode, after so many steps"
        train_loss = Quantity(value=losses, doc=doc, better="lower", drawn="line", dims=("steps",), labels=labels)
        return TrainingLog(status=Status.EXACT, seconds=seconds, notes=notes, train_loss=train_loss, **logged)

    def _logged(self) -> dict[str, Quantity | None]:
        table = np.array(self.rows)
        per_step = dict(zip(PER_STEP, table[:, : len(PER_STEP)].T, strict=True))
        per_layer = table[:, len(PER_STEP) :].reshape(len(table), len(PER_LAYER), -1)
        values: dict[str, Array] = {
            "loss_change": per_step["batch_loss_after"] - per_step["batch_loss"],
            **{name: per_layer[:, place] for place, name in enumerate(PER_LAYER)},
            **{name: per_step[name] for name in ("batch_loss", "rate", "batch_size")},
        }
        steps, layers = _texts(self.steps), tuple(self._blocks)
        # the losses of one batch before and after are rounded apart
        rounded = np.finfo(np.float32).eps * (np.abs(per_step["batch_loss"]) + np.abs(per_step["batch_loss_after"]))
        found: dict[str, Quantity | None] = {
            name: Quantity(
                value=value,
                doc=_DOCS[name],
                numerical_error=rounded if name == "loss_change" else None,
                contrast="difference" if "change" in name else "ratio",
                drawn="line" if value.ndim == 1 and np.ptp(value) > 0 else "detail",  # a constant is no curve
                dims=("step", "layer")[: value.ndim],
                labels={"step": steps, "layer": layers} if value.ndim == 2 else {"step": steps},
            )
            for name, value in values.items()
        }
        ends = sorted({0, len(table) - 1})
        return found | {
            f"{name}_at": Quantity(
                value=values[name][ends].T,
                doc=f"{_DOCS[name]}, of the first and the last logged step",
                dims=("layer", "at"),
                labels={"layer": layers, "at": tuple(f"step {steps[end]}" for end in ends)},
            )
            for name in ENDS
        }

    def _flat(self, named: Mapping[str, Tensor]) -> Tensor:
        return self._parameters.flatten(named)


_DOCS = {
    "loss_change": "change of the batch's own loss by the step, with the same dropout before and after",
    "first_order_change": "g'd: what the gradient g promises of the step d for the batch's loss, by layer",
    "gradient_norm": "norm of the batch's gradient, by layer",
    "step_length": "length of the step, by layer",
    "batch_loss": "mean loss of the batch before the step, as in training",
    "rate": "learning rate",
    "batch_size": "samples of the batch",
}


def _texts(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(str(number) for number in numbers)
