"""The gradient of one batch's mean loss: in parts where memory asks for it, over processes where there are several."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.errors import UsageError
from gapscope.measure.batches import Inputs, called, mapped, placed, scores, taken
from gapscope.measure.distributed import ALONE, Ranks
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss, PerSample
from gapscope.training.recipe import Recipe
from gapscope.training.remedies import adversarial, augmented, discarded_mean


@dataclass(frozen=True, eq=False)
class Objective:
    """f_B(w) = 1/B sum of the losses of a batch's samples, as the recipe takes it."""

    model: nn.Module
    loss: Loss
    recipe: Recipe
    device: torch.device
    ranks: Ranks = ALONE
    augmenting: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.ranks.count == 1:
            return
        if self.mixing:
            raise UsageError(
                f"`{self.mixing}` takes statistics over a batch, of which each of {self.ranks.count} processes sees a "
                "part. Expected a model whose samples do not mix. Train it in one process, or in parts: "
                "`--grad-accumulate`."
            )
        if self.recipe.discard:
            raise UsageError(
                f"`--discard-small-losses` stands in {self.ranks.count} processes, of which each sees a part of the "
                "losses. Expected one process for it. Leave out one of both."
            )

    def batch(self, data: Data, picked: Tensor) -> "Batch":
        """Return samples on the device, augmented where the recipe says so.

        All processes augment the whole batch: the same random numbers whatever their count.
        """
        inputs = taken(data.inputs, picked)
        if self.recipe.augment:
            inputs = mapped(inputs, lambda tensor: augmented(tensor, self.augmenting))
        targets = data.targets[picked]
        # on the host: on a device it would wait at every step
        per_sample = self.loss.bound(targets, whole=False).per_sample
        batch = Batch(self, per_sample, placed(inputs, self.device, self.dtype), targets.to(self.device))
        return batch.attacked(self.recipe.adversarial) if self.recipe.adversarial else batch

    @functools.cached_property
    def mixing(self) -> str:
        """The first layer that mixes the samples of a batch, or an empty string."""
        return next((name for name, one in self.model.named_modules() if isinstance(one, _BatchNorm)), "")

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The type of the model's real numbers, in which it takes its inputs."""
        return next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)


@dataclass(frozen=True, eq=False)
class Batch:
    """The samples of one step."""

    objective: Objective
    per_sample: PerSample  # whose mean over the batch is that over all its entries
    inputs: Inputs
    targets: Tensor

    def attacked(self, radius: float) -> "Batch":
        """Return the batch with its inputs moved against the model, as adversarial training has it.

        Cost: a gradient of the whole batch at once, in every process.
        """
        if not isinstance(self.inputs, Tensor):
            raise UsageError(
                "`--adversarial` moves one tensor of inputs, and this model takes several. Expected one tensor. Leave "
                "it out."
            )

        def loss(inputs: Tensor) -> Tensor:
            return self.per_sample(_outputs(self.objective.model, inputs), self.targets).mean()

        return replace(self, inputs=adversarial(loss, self.inputs, radius))

    def parts(self) -> Iterator[Tensor]:
        """Yield the sum of the losses of this process's samples over B, a part of them at a time.

        B, and what the loss takes from all targets, is the whole batch's: the parts add up to its mean exactly.
        """
        discard = self.objective.recipe.discard
        for inputs, targets in self._pieces():
            losses = self.per_sample(_outputs(self.objective.model, inputs), targets)
            yield discarded_mean(losses, discard) if discard else losses.sum() / len(self.targets)

    def _pieces(self) -> Iterator[tuple[Inputs, Tensor]]:
        ranks, parts = self.objective.ranks, self.objective.recipe.accumulate
        if ranks.count == parts == 1:
            yield self.inputs, self.targets
            return
        own = torch.arange(len(self.targets), device=self.targets.device)[ranks.share()]
        for picked in own.tensor_split(parts):
            if len(picked):
                yield taken(self.inputs, picked), self.targets[picked]

    def backward(self) -> Tensor:
        """Add the gradient to the parameters' `.grad`, and return the loss; one reduction over the processes.

        Memory: that of the largest part.
        """
        value = torch.zeros((), device=self.targets.device)
        for part in self.parts():
            torch.autograd.backward(part)
            value = value + part.detach()
        return value if self.objective.ranks.count == 1 else self._reduced(value)

    def value(self) -> Tensor:
        """Return the loss alone, as it is seen in training."""
        with torch.no_grad():
            # a process without a sample adds a zero, and all must add numbers of one type
            wide = torch.promote_types(self.objective.dtype, torch.float32)
            return self.objective.ranks.total(sum(self.parts(), torch.zeros((), device=self.targets.device)).to(wide))

    def _reduced(self, value: Tensor) -> Tensor:
        """Sum loss and gradients over the processes; a parameter that none of them used keeps no gradient."""
        wanted = [p for p in self.objective.model.parameters() if p.requires_grad]
        used = value.new_tensor([p.grad is not None for p in wanted])
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in wanted]
        flat = torch.cat([value.reshape(1), used, *(part.reshape(-1) for part in parts)])
        flat = self.objective.ranks.total(flat)
        head, rest = flat[: 1 + len(wanted)], flat[1 + len(wanted) :]
        pieces = torch.split(rest, [p.numel() for p in wanted])
        for parameter, is_used, piece in zip(wanted, head[1:].tolist(), pieces, strict=True):
            # the loss in front of them has widened gradients of half precision
            parameter.grad = piece.view_as(parameter).to(parameter.dtype) if is_used else None
        return head[0]


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    try:
        return scores(called(model, inputs))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            "A batch, or a part of one, is a single sample, of which BatchNorm takes no statistics. Expected two or "
            "more. Choose a `--batch-size` that leaves no rest of one, and fewer parts by `--grad-accumulate`."
        ) from error


@contextlib.contextmanager
def untouched(batch: Batch, random: Mapping[str, Tensor]) -> Iterator[None]:
    """Call the model with the random numbers of an earlier state, and leave these and its buffers as they were."""
    model, device = batch.objective.model, batch.objective.device
    now, buffers = random_state(device), [buffer.clone() for buffer in model.buffers()]
    set_random_state(random, device)
    try:
        yield
    finally:
        set_random_state(now, device)
        for buffer, old in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(old)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators that dropout draws from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring the generators to a state that was taken before."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
