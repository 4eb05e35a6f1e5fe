"""Loss and accuracy away from the checkpoint: a copy of the model that is moved from point to point.

Buffers: between two checkpoints the running statistics of BatchNorm fit neither, and stale ones alone can put a barrier
where there is none.  `re-estimated` averages them anew over the training data at every point; `interpolated` mixes
those of the checkpoints as the weights are mixed; `frozen` keeps the first one's.  Whole numbers are never mixed.
"""

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.batches import in_dtype
from gapscope.measure.context import Context
from gapscope.measure.problem import BatchNorm, Problem
from gapscope.results import Array

Statistics = Literal["re-estimated", "interpolated", "frozen"]


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss over theta in the model of the first subject, on every split that there is.

    Raises: UsageError where the subjects are no checkpoints of one model, ProblemError where it cannot be copied.
    """

    problems: Mapping[str, Problem]
    ends: tuple[Tensor, ...]  # theta (n,) of every subject
    buffers: tuple[Mapping[str, Tensor], ...]
    statistics: Statistics

    @classmethod
    def of(cls, context: Context, statistics: Statistics) -> "Landscape":
        """Return the landscape of all subjects of a context."""
        each = [context.problem(which=which) for which in range(len(context.subjects))]
        first = each[0]
        for other in each[1:]:
            if other.parameters != first.parameters:
                raise UsageError(
                    f"The checkpoints have {first.size:,} and {other.size:,} parameters under other names or shapes. "
                    "Expected checkpoints of one model: there is no path between others."
                )
            fixed = [name for name, _ in first.model.named_parameters() if name in first.constants]
            apart = [n for n in fixed if not torch.equal(first.constants[n], other.constants[n].to(first.device))]
            if apart and statistics != "interpolated":
                raise UsageError(
                    f"The checkpoints differ in `{apart[0]}`, which is not among the parameters measured. Expected the "
                    "same: a path moves only those, and would not end in the second checkpoint. Choose it, too "
                    "(`--parameters`)."
                )
        ends = tuple(problem.theta.to(first.device, first.dtype) for problem in each)
        buffers = tuple(dict(problem.constants) for problem in each)
        return cls(context.subjects[0].problems, ends, buffers, statistics)

    @property
    def first(self) -> Problem:
        """Return the problem that is measured, of the first subject."""
        return next(iter(self.problems.values()))

    @cached_property
    def normalized(self) -> bool:
        """Return whether there is any BatchNorm with running statistics."""
        layers = (module for module in self.first.model.modules() if isinstance(module, _BatchNorm))
        return any(layer.running_mean is not None for layer in layers)

    @cached_property
    def _model(self) -> nn.Module:
        model = copied(self.first.model)
        # points between are in the problem's dtype, and weights in bfloat16 would round them to others
        model._apply(lambda tensor: in_dtype(tensor, self.first.dtype))  # type: ignore[no-untyped-call]  # of torch
        return model

    def at(self, theta: Tensor, weights: Sequence[float]) -> dict[str, Problem]:
        """Return the problems by split at theta (n,); `weights` mix the subjects' buffers.

        The model is one and the same copy: what an earlier call returned has then moved, too.
        """
        fill(self._model, {**self.first.parameters.unflatten(theta), **self._mixed(weights)})
        moved = {split: self._moved(problem, "eval") for split, problem in self.problems.items()}
        if self.statistics == "re-estimated" and self.normalized and self.first.batchnorm != "batch":
            fill(self._model, self._moved(self.problems.get("train", self.first), "re-estimated").constants)
        return moved

    def _moved(self, problem: Problem, batchnorm: BatchNorm) -> Problem:
        mode: BatchNorm = "batch" if problem.batchnorm == "batch" else batchnorm
        return dataclasses.replace(problem, model=self._model, batch_size=problem.micro_batch, batchnorm=mode)

    def _mixed(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Return the buffers and frozen parameters of a point."""
        first = self.buffers[0]
        if self.statistics != "interpolated":
            return dict(first)
        mixed = {}
        for name, tensor in first.items():
            mixed[name] = tensor
            if tensor.is_floating_point():
                parts = [weight * each[name].to(tensor) for weight, each in zip(weights, self.buffers, strict=False)]
                mixed[name] = torch.stack(parts).sum(0)
                if name.endswith("running_var"):  # beyond the ends a mixture may leave the range of a variance
                    mixed[name] = mixed[name].clamp_min(0.0)
        return mixed

    def evaluate(self, theta: Tensor, weights: Sequence[float]) -> Array:
        """Return loss and accuracy in percent for every split, (2 splits,): NaN where a loss has no accuracy."""
        row = []
        for problem in self.at(theta, weights).values():
            losses, right = problem.outcomes()
            row += [float(losses.mean()), float("nan") if right is None else 100 * float(right.mean())]
        return np.asarray(row)

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits, in the order of `evaluate`."""
        return tuple(self.problems)

    def digest(self, **settings: Any) -> str:
        """Return a digest of everything that the numbers depend on."""
        first = self.first
        facts = [settings, self.statistics, first.batchnorm, first.depends_on_batches and first.micro_batch]
        found = hashlib.sha256(json.dumps([*facts, dict(first.origin.identity), repr(first.model)]).encode())
        for theta, buffers in zip(self.ends, self.buffers, strict=True):
            for tensor in (theta, *(buffers[name] for name in sorted(buffers))):
                found.update(tensor.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        for split, problem in self.problems.items():
            found.update(f"{split} {problem.data.fingerprint} {problem.loss_function.name}".encode())
        return found.hexdigest()

    def note(self) -> str:
        """Return what was done with BatchNorm, or an empty string where there is none."""
        if not self.normalized:
            return ""
        if self.first.batchnorm == "batch":
            return "BatchNorm: the statistics of every micro-batch, as asked for"
        return {
            "re-estimated": "BatchNorm: statistics re-estimated on the training data at every point, ends included",
            "interpolated": "BatchNorm: statistics mixed like the weights; they fit no point but the ends",
            "frozen": "BatchNorm: statistics of the first checkpoint everywhere, so they fit no other point",
        }[self.statistics]


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model; raises ProblemError where it holds what cannot be copied."""
    # what hooks of the old weight_norm left behind has a graph, is not copied by torch, and computed anew on calls
    left = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    try:
        return copy.deepcopy(model, {id(value): value.detach() for value in left if not value.is_leaf})
    except Exception as error:  # a module may copy itself, and raise anything
        raise ProblemError(
            f"The model cannot be copied: {type(error).__name__}: {error}. Expected what `copy.deepcopy` copies: "
            "losses elsewhere are those of a copy whose weights move, and PyHessian gets one. Keep what is no part of "
            "the function (a lock, a file, a generator) out of its modules, or leave out `path`, `plane`, `escape` and "
            "`--referee pyhessian`."
        ) from error


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write tensors into the parameters and buffers of their names."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in state:
                tensor.copy_(state[name])


def passes(problem: Problem, points: int, statistics: Statistics) -> dict[str, float]:
    """Return how many passes over the data so many points take, those over the other split as parts of one."""
    other = problem.origin.other
    each = 1 + (other.samples / problem.samples if other is not None else 0)
    normalized = any(isinstance(module, _BatchNorm) for module in problem.model.modules())
    # on ResNet-20 a pass that re-estimates takes 1.3 of those that follow
    return {"outcomes": points * (each + 1.3 * (normalized and statistics == "re-estimated"))}
