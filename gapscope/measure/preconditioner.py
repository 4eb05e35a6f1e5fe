"""Adam's preconditioner from a checkpoint's optimizer state: what its steps divide by.

One step is w <- w - eta m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + e), so P = (1 - b1^t) (sqrt(v_t / (1 - b2^t)) + e)
and the top eigenvalue of P^-1/2 H P^-1/2 decides over stability: m_t = b1 m + (1 - b1) g gives the limit
(2 + 2 b1) / ((1 - b1) eta) on a quadratic.  Source: Cohen et al. 2022 (arXiv 2207.14484); the bias corrections are
those of the step itself.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gapscope.errors import UsageError
from gapscope.measure.problem import Problem

# recorded optimizers that this is the preconditioner of: also `torch.optim.Adam`, `adamw_torch_fused`
KNOWN = re.compile(r"(.*\.)?(fused)?adamw?([_ ].*)?")


@dataclass(frozen=True)
class Preconditioner:
    """P (n,) and what the stability limit is made of."""

    diagonal: Tensor  # (n,)
    beta: float
    rate: float | None
    decay: Tensor  # (n,) weight decay that is part of the gradient, so of the Hessian; decoupled decay is not
    unsaid: bool = False  # whether the groups leave open if their weight decay is decoupled

    @property
    def limit(self) -> float | None:
        """Return (2 + 2 b1) / ((1 - b1) eta), or None without a recorded rate."""
        if self.rate is None or not self.rate > 0:
            return None
        return (2 + 2 * self.beta) / ((1 - self.beta) * self.rate)


def adam_preconditioner(problem: Problem, optimizer: Mapping[str, Any] | None, *, recorded: str = "") -> Preconditioner:
    """Return P in the order of theta; raises UsageError where the state holds none that fits the model.

    `recorded` is the optimizer's name where the checkpoint says it.  AdamW decouples its weight decay, which the groups
    of older versions of torch do not say.  Other optimizers keep second moments, too, and have other limits.
    """
    if optimizer is None:
        raise _refusal("the checkpoint holds no optimizer state")
    decoupled = "adamw" in recorded.lower()
    groups, states = optimizer.get("param_groups"), optimizer.get("state")
    if not isinstance(groups, list | tuple) or not isinstance(states, Mapping) or not groups:
        raise _refusal("its optimizer state has no `param_groups` and `state`")
    if not any(isinstance(state, Mapping) and "exp_avg_sq" in state for state in states.values()):
        raise _refusal("its optimizer state holds no `exp_avg_sq`: it is another optimizer's")
    if recorded and not KNOWN.fullmatch(recorded.lower()):
        raise _refusal(f"it was trained with {recorded}, whose steps are others")
    if any(isinstance(group, Mapping) and "momentum_decay" in group for group in groups):
        raise _refusal("its optimizer state is NAdam's, whose momentum has another limit")
    if not recorded and not all(isinstance(group, Mapping) and "amsgrad" in group for group in groups):
        raise _refusal("its parameter groups are not those of torch's Adam (record `optimizer` where they are Adam's)")
    every = list(problem.model.named_parameters())
    free = [(name, p) for name, p in every if p.requires_grad]
    entries = sum(len(group.get("params", ())) for group in groups)
    named = free if entries == len(free) else every  # a frozen layer may have been left out
    found: dict[str, Tensor] = {}
    decays: dict[str, Tensor] = {}
    betas: set[tuple[float, float | None]] = set()
    unsaid = False
    for name, shape, group, state in _matched(groups, states, [(name, p.shape) for name, p in named]):
        second, step = state.get("exp_avg_sq"), state.get("step")
        b1, b2, e = _settings(group)
        if not isinstance(second, Tensor) or second.shape != shape or not isinstance(step, int | float | Tensor):
            raise _refusal(f"`{name}` has no `exp_avg_sq` of shape {tuple(shape)} and `step`: another optimizer's")
        t = float(step)
        second = state.get("max_exp_avg_sq", second) if group.get("amsgrad") else second
        found[name] = (1 - b1**t) * ((second.double() / (1 - b2**t)).sqrt() + e)
        decay = group.get("weight_decay") or 0.0
        coupled = isinstance(decay, int | float) and not group.get("decoupled_weight_decay", decoupled)
        unsaid = unsaid or (decay != 0 and "decoupled_weight_decay" not in group)
        decays[name] = torch.full(shape, float(decay) if coupled else 0.0, dtype=torch.float64)
        rate = group.get("lr")
        betas.add((b1, float(rate) if isinstance(rate, int | float | Tensor) else None))
    missing = [name for name in problem.parameters.names if name not in found]
    if missing:
        raise _refusal(f"{len(missing)} parameters have no state (first: `{missing[0]}`)")
    diagonal = problem.parameters.flatten(found)
    if not bool(torch.isfinite(diagonal).all() and (diagonal > 0).all()):
        raise _refusal("its second moments are not finite and positive")
    beta = min(b for b, _ in betas)
    rates = {rate for _, rate in betas}
    rate = rates.pop() if len(rates) == 1 and len({b for b, _ in betas}) == 1 else None
    decay = problem.parameters.flatten(decays).to(problem.device, problem.dtype)
    return Preconditioner(diagonal.to(problem.device, problem.dtype), beta, rate, decay, unsaid)


def _settings(group: Mapping[str, Any]) -> tuple[float, float, float]:
    betas, e = group.get("betas"), group.get("eps")
    if (
        not isinstance(betas, list | tuple)
        or len(betas) != 2
        or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas)
        or not isinstance(e, int | float)
    ):
        raise _refusal("its parameter groups have no `betas` and `eps`")
    return float(betas[0]), float(betas[1]), float(e)


def _matched(
    groups: Any, states: Mapping[Any, Any], named: list[tuple[str, torch.Size]]
) -> Iterator[tuple[str, torch.Size, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield name, shape, group and state of every parameter that has a state.

    Groups number their parameters in their own order.  Names (`param_names`) settle it; else one group, or several
    whose shapes fit the model's order one after the other.
    """
    shapes = dict(named)
    entries = [(group, index) for group in groups for index in group.get("params", ())]
    names = [name for group in groups for name in group.get("param_names", ())]
    if len(names) != len(entries) or any(name not in shapes for name in names):
        names = [name for name, _ in named]
        if len(entries) != len(names):
            raise _refusal(f"it is about {len(entries)} parameters, the model has {len(names)}")
        if len(groups) > 1 and len(set(shapes.values())) < len(shapes):
            raise _refusal(
                "it has several groups without names, and the model several parameters of one shape: which state is "
                "whose cannot be told (torch keeps names where the groups are made from `named_parameters()`)"
            )
    for name, (group, index) in zip(names, entries, strict=True):
        state = states.get(index, {})
        if not isinstance(state, Mapping):
            raise _refusal(f"the state of `{name}` is no table")
        held = state.get("exp_avg_sq")
        if isinstance(held, Tensor) and held.shape != shapes[name]:
            raise _refusal(
                f"`{name}` is {tuple(shapes[name])} in the model and {tuple(held.shape)} in the optimizer's order"
            )
        if state:
            yield name, shapes[name], group, state


def _refusal(observed: str) -> UsageError:
    return UsageError(
        f"`--preconditioned` needs Adam's second moments, and {observed}. Expected the state_dict of torch's Adam or "
        "AdamW beside the weights. Save it with `save_checkpoint(..., optimizer=optimizer)`, or leave the option out."
    )
