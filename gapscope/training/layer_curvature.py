"""The curvature that rates are fitted to, taken every few steps while a model is trained, with its cost."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gapscope.errors import UsageError
from gapscope.measure.batches import Inputs
from gapscope.measure.derivatives import Derivatives
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss, build_loss, infer_loss
from gapscope.measure.loading.trust import Trust
from gapscope.measure.problem import Problem
from gapscope.measure.solvers.diagonal import estimate_diagonal
from gapscope.measure.surroundings import apart, interrupts_wait
from gapscope.training.optimizers.layerwise import LayerwiseSGD

GRAPH, PRODUCT = 1, 3  # gradients that a kept graph and a Hessian-vector product cost, as the analyzers count them


class LayerCurvature:
    """Give `mclr` and `cblr` the diagonal of the Hessian anew, every `every` steps.

    The diagonal comes from the probes of the `curvature` analyzer, h = mean of z * Hz over random signs z, on the
    step's batch, in the model's mode (BatchNorm by the batch while it trains; dropout off).  Few probes are noisy, and
    noise lifts the medians: `noise_share` says how much of them it is, layer by layer, from 8 probes on.  With 8 it was
    1.5 to 2 on a digits network: more noise than curvature, which trained well all the same.

        curvature = LayerCurvature(model, "cross-entropy", every=100)
        for x, y in batches:
            curvature.refresh(optimizer, x, y)
            ...                                   # zero_grad, loss, backward, optimizer.step()
        print(f"curvature took {curvature.share:.0%} of the gradients")

    Cost: 3 gradients of the batch for every probe and 1 for all, which `share` sets against one for every step: 25 for
    8 probes, and 27 by the clock on ResNet-20.  Not counted: once, before the first, the second derivatives are tried
    (some 30 gradients of 64 samples); from 8 probes on, what noise does to the medians is worked out, which on a
    multilayer perceptron of 670,000 weights took as long again as the probes.
    Raises UsageError; ProblemError where the model has no second derivatives.
    """

    def __init__(
        self, model: nn.Module, loss: str | Loss | None = None, *, every: int = 100, probes: int = 8, seed: int = 0
    ) -> None:
        if every < 1 or probes < 1:
            raise UsageError(
                f"LayerCurvature got every={every}, probes={probes}. Expected 1 or more. Mend the first that is not."
            )
        self.loss = build_loss(loss, recorded=False, trust=Trust()) if isinstance(loss, str) else loss
        self.model, self.every, self.probes = model, every, probes
        self.steps, self.noise_share = 0, dict[str, float]()
        self._trained = self._spent = 0  # gradients of single samples
        self._rng = torch.Generator().manual_seed(seed)
        self._derivatives: Derivatives | None = None

    @property
    def share(self) -> float:
        """Return the share of curvature in all gradients, counted, not timed."""
        return self._spent / max(1, self._spent + self._trained)

    def refresh(self, optimizer: LayerwiseSGD, inputs: Inputs, targets: Tensor) -> bool:
        """Count a step on this batch, and measure on it if curvature is due; return whether it was.

        A batch in which no target counts (labels of -100) has no curvature: then it is due on the next.
        """
        due = self.steps % self.every == 0
        if due:
            with interrupts_wait(), apart():
                curvature = self._measured(inputs, targets)
            if curvature is None and self.steps == 0:  # without any the optimizer would refuse the step
                parameters = [p for group in optimizer.param_groups for p in group["params"]]
                optimizer.set_curvature({p: torch.zeros_like(p) for p in parameters})
            if curvature is None:
                return False
            optimizer.set_curvature(curvature)
        self.steps += 1
        self._trained += len(targets)
        return due

    def _measured(self, inputs: Inputs, targets: Tensor) -> Mapping[Tensor, Tensor] | None:
        """Return the diagonal of the Hessian, None where no target counts."""
        data = Data(inputs=inputs, targets=targets, name="batch", fingerprint="", total=len(targets))
        by_batch = self.model.training and any(isinstance(m, _BatchNorm) for m in self.model.modules())
        if self.loss is None:
            self.loss = infer_loss(targets, self.model, inputs)
        if self.loss.weights is not None and not bool(self.loss.weights(targets).any()):
            return None
        problem = Problem(
            model=self.model,
            data=data,
            loss_function=self.loss,
            batchnorm="batch" if by_batch else "eval",
            batch_size=len(targets) if by_batch else None,
            examined=self._derivatives,  # the probe costs more than eight products, and the model is the same
        )
        self._derivatives = problem.derivatives
        blocks = problem.parameters.blocks()
        found = estimate_diagonal(
            problem.hessian(), self._rng, blocks=blocks, max_matvecs=self.probes, directions=0, tolerance=0
        )
        self.noise_share = dict(zip(blocks, found.noise_share.tolist(), strict=True))
        self._spent += (GRAPH + PRODUCT * found.matvecs) * len(targets)
        entries = problem.parameters.unflatten(found.entries)
        named = dict(problem.model.named_parameters())
        return {named[name]: part for name, part in entries.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the optimizer's own state, which holds the curvature."""
        return {"steps": self.steps, "trained": self._trained, "spent": self._spent, "rng": self._rng.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.steps, self._trained, self._spent = state["steps"], state["trained"], state["spent"]
        self._rng.set_state(state["rng"])
