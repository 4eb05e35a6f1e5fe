"""What the recorded rate and batch size make of gradient noise: its diffusion, and the limits of SGD's stability."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gapscope.measure.context import Context
from gapscope.measure.edge import formula, sgd_edge
from gapscope.measure.problem import Problem
from gapscope.results import Array, Quantity, scalar

_OPTIONAL = ("momentum", "weight_decay", "dampening")  # 0 where nothing is recorded
QUANTITIES = ("rate_over_batch", "diffusion", "sharpness", "sharpness_limit", "nonuniformity_limit")


@dataclass(frozen=True)
class Recorded:
    """What the checkpoint recorded of SGD, plain, heavy-ball or Nesterov's."""

    rate: float
    batch: float
    momentum: float
    decay: float
    kept: float  # of a gradient in the momentum's buffer: 1 - dampening
    edge: float  # rate times curvature, where it becomes unstable
    formula: str


def sgd_recipe(training: Mapping[str, Any]) -> tuple[Recorded | None, str]:
    """Return rate, batch size, momentum and weight decay of SGD, or None and why not; a record may be anything."""
    trained = training.get("optimizer")
    if isinstance(trained, str) and trained.lower() not in ("", "sgd"):
        return None, f"that is for SGD, and this was trained by {trained}"
    rate, batch = _number(training.get("lr")), _number(training.get("batch_size"))
    momentum, decay, dampening = (_number(training[key]) if training.get(key) is not None else 0.0 for key in _OPTIONAL)
    known = {
        "`optimizer` sgd": isinstance(trained, str) and trained.lower() == "sgd",
        "a positive `lr`": rate is not None and rate > 0,
        "a `batch_size`": batch is not None and batch >= 1,
        "a `momentum` below 1": momentum is not None and 0 <= momentum < 1,
        "a `weight_decay`": decay is not None and decay >= 0,
        "a `dampening` below 1": dampening is not None and 0 <= dampening < 1,
    }
    most = sgd_edge(training)
    if rate is None or batch is None or momentum is None or decay is None or most is None or not all(known.values()):
        return None, f"the checkpoint does not record {', '.join(name for name, there in known.items() if not there)}"
    kept = 1 - (dampening or 0.0) if momentum else 1.0
    return Recorded(rate, batch, momentum, decay, kept, most, formula(training)), ""


def recorded_sgd(context: Context, total: int) -> tuple[Recorded | None, list[str]]:
    """Return what was recorded of SGD, or None, and what to say of its limits."""
    found, why = sgd_recipe(context.training())
    if found is None:
        return None, [f"no diffusion and no limits of stability: {why}"]
    notes = []
    if _sharpness(context, 0.0) is None:
        notes.append("no sharpness beside its limit: `eigenvalues` did not run before, in the same run, on the Hessian")
    if found.momentum:
        notes.append("no limit of the non-uniformity: the one known is for SGD without momentum")
    elif found.batch >= total:
        notes.append("no limit of the non-uniformity: the recorded batch holds all samples")
    return found, notes


def limits(context: Context, problem: Problem, recorded: Recorded | None, apart: Array) -> dict[str, Any]:
    """Return the quantities that need a recipe, None without one; `apart` (N,) is |g_i - G|^2 of every sample."""
    if recorded is None:
        return dict.fromkeys(QUANTITIES)
    rate, batch, momentum, total = recorded.rate, recorded.batch, recorded.momentum, problem.data.total
    scale = rate * recorded.kept / ((1 - momentum) * batch)
    shares = scale * apart / (2 * problem.size)
    return {
        "rate_over_batch": Quantity(
            value=scalar(scale),
            higher_is="noisier",
            drawn="detail",
            doc="recorded rate / ((1 - momentum) batch size): the noise of the path of SGD is this times Sigma",
        ),
        "diffusion": Quantity(
            value=scalar(float(shares.mean())),
            sampling_error=shares.std(ddof=1) / np.sqrt(len(shares)) if len(shares) > 1 else None,
            chunks=problem.chunk_means(shares),
            higher_is="noisier",
            drawn="detail",
            doc="D = eta tr(Sigma) / (2 (1 - m) B n): diffusion per parameter if the noise were isotropic, which it is "
            "not: no escape time follows from it; recorded eta, m, B; Sigma of this point",
        ),
        "sharpness": _sharpness(context, recorded.decay),
        "sharpness_limit": Quantity(
            value=scalar(recorded.edge / rate),
            doc=f"{recorded.formula} / recorded rate: above it, gradient descent is linearly unstable; necessary for "
            "the stability of SGD, not sufficient",
        ),
        "nonuniformity_limit": None
        if momentum or batch >= total
        else Quantity(
            value=scalar(math.sqrt(batch * (total - 1) / (total - batch)) / rate),
            doc="sqrt(B (N - 1) / (N - B)) / eta for recorded rate and batch size, N all samples (Wu, Ma, E 2018): "
            "above it, SGD without momentum is linearly unstable; necessary for stability, not sufficient",
        ),
    }


def _sharpness(context: Context, decay: float) -> Quantity | None:
    """Return the top eigenvalue that `eigenvalues` found in this run, with the recorded weight decay."""
    top, settings = getattr(context.finished("eigenvalues"), "top", None), context.analyzers.get("eigenvalues")
    if top is None or getattr(settings, "gauss_newton", False) or getattr(settings, "preconditioned", False):
        return None
    return Quantity(
        value=top.value + decay,
        numerical_error=top.numerical_error,
        sampling_error=top.sampling_error,
        bound=top.bound,
        higher_is="sharper",
        doc="top eigenvalue of the Hessian, as `eigenvalues` found it, plus the recorded weight decay",
    )


def _number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of 400 digits
        return None
    return number if math.isfinite(number) else None
