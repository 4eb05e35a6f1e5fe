"""The curvature of every single parameter, and what its magnitudes say layer by layer.

Ways to the diagonal of the Hessian.  `exact`: that of the Gauss-Newton matrix, where no output bends along a parameter.
`corrected`, where some do: the same, and probes of H less Gauss-Newton along those that bend (figures in
solvers/diagonal).  `hutchinson`: probes of H itself, the first directions deflated.  Two stand-ins for it are `secant`
and `ratio`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gapscope.errors import ProblemError
from gapscope.measure import gauss_newton
from gapscope.measure.operators import Operator, length, scaled
from gapscope.measure.shares import relative_weights
from gapscope.measure.solvers.diagonal import (
    DiagonalEstimate,
    estimate_diagonal,
    halved,
    quartiles_of,
    ratio_quartiles,
)
from gapscope.results import CHUNKS, Array, Status

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem

# epsilons: medians in float32 and in float64 agreed to 4 on a trained ResNet-20
ROUNDING = 100
NAMED = 6


@dataclass(frozen=True)
class Entries:
    """Quartiles of |h_i| by layer (layers, 3), and what else an estimator knows."""

    quartiles: Array
    zeros: Array
    doc: str
    errors: Array | None = None
    sampling: Array | None = None
    noise_share: Array | None = None
    traces: Array | None = None
    trace_errors: Array | None = None
    trace_sampling: Array | None = None
    trace_doc: str = ""
    matvecs: int = 0
    status: Status = Status.EXACT
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not np.isfinite(self.quartiles[self.zeros < 1]).all():
            object.__setattr__(self, "status", Status.NONFINITE)


@dataclass(frozen=True)
class Way:
    """How the diagonal is found, along which parameters the outputs bend, and why it is no better way."""

    name: str
    bent: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Probing:
    """What probes may cost."""

    tolerance: float
    max_matvecs: int
    directions: int


def way_for(problem: "Problem", estimator: str) -> Way:
    """Return the way an estimator takes: `auto` is decided here, `exact` is refused where it is not."""
    if estimator not in ("auto", "exact"):
        return Way(estimator)
    try:
        gauss_newton.require_outputs(problem)
    except ProblemError as error:
        if estimator == "exact":
            raise
        return Way("hutchinson", why=f"; nothing is known exactly: {error}")
    bent = gauss_newton.bent(problem)
    if estimator == "exact" and bent:
        raise ProblemError(
            f"The outputs bend along {len(bent)} of {len(problem.parameters.names)} parameters (first: `{bent[0]}`), "
            "so the Gauss-Newton diagonal is not that of the Hessian. Expected a network that is piecewise linear in "
            "every parameter. Take `--estimator auto`."
        )
    return Way("corrected" if bent else "exact", bent)


def exact(problem: "Problem") -> Entries:
    """Take the Gauss-Newton diagonal for that of the Hessian."""
    found, blocks = gauss_newton.diagonal(problem), problem.parameters.blocks()
    quartiles, zeros = quartiles_of(found.mean, blocks)
    traces = np.asarray([float(found.mean[where].sum()) for where in blocks.values()])
    spread = trace_spread = None
    if found.chunks is not None and problem.samples >= 2 * CHUNKS and bool(found.mean.isfinite().all()):
        # the mean of a half is over its own weight
        weights = np.bincount(problem.chunk_of.numpy(), relative_weights(problem), minlength=CHUNKS).astype(float)
        if np.count_nonzero(weights) > CHUNKS // 2:  # else a half may hold nothing that counts
            spread, trace_spread = halved(found.mean, found.chunks, weights, blocks)
    rounding = ROUNDING * torch.finfo(problem.dtype).eps + found.unsure
    errors = "numerical error: rounding; sampling error: from balanced halves of 32 chunks of samples"
    return Entries(
        quartiles,
        zeros,
        f"h_i is the diagonal of the Hessian: that of Gauss-Newton, as the network is piecewise linear; {errors}",
        errors=rounding * quartiles,
        sampling=spread,
        traces=traces,
        trace_errors=rounding * np.abs(traces),
        trace_sampling=trace_spread,
        trace_doc=errors,
        notes=("diagonal: exact, that of Gauss-Newton, because the network is piecewise linear in every parameter",),
    )


def corrected(context: "Context", probing: Probing, bent: Sequence[str]) -> Entries:
    """Add probes of the rest to the Gauss-Newton diagonal, along the parameters that bend."""
    problem = context.problem()
    layout = problem.parameters
    named = zip(layout.names, layout.shapes, strict=True)
    curved = layout.flatten([torch.full(shape, float(name in bent)) for name, shape in named])
    newton = gauss_newton.diagonal(problem)
    known = newton.mean.to(problem.dtype)
    # deflation would take 40 products before the first probe: as many as most networks need in all
    quick = Probing(probing.tolerance, probing.max_matvecs, 0)
    found = _probed(context, scaled(problem.residual(), curved), quick, known=known)
    method = f"Gauss-Newton exactly; {found.probes} sign probes of the rest, for {len(bent)} of {len(layout.names)}"
    doc = "h_i is the diagonal of the Hessian, Gauss-Newton + E[z * (rest z)]"
    return _entries(problem, found, (f"{method} parameters", doc, "raise `--max-matvecs`"), newton.unsure)


def hutchinson(context: "Context", hessian: Operator, probing: Probing, why: str) -> Entries:
    """Probe the Hessian itself."""
    found = _probed(context, hessian, probing)
    method = f"{found.probes} sign probes, {found.directions} Lanczos directions deflated"
    method = "entry by entry, exact" if found.status is Status.EXACT else method
    doc, cure = "h_i is the diagonal of the Hessian by E[z * Hz]", "raise `--max-matvecs`, and `--directions` with it"
    return _entries(context.problem(), found, (method + why, doc, cure))


def ratio(problem: "Problem", gradient: Tensor) -> Entries:
    """Divide the gradient by the weights."""
    quartiles, zeros = ratio_quartiles(gradient, problem.theta, problem.parameters.blocks())
    return Entries(quartiles, zeros, "h_i = |gradient_i| / |weight_i|; entries where either is 0 are left out")


def secant(problem: "Problem", gradient: Tensor, share: float) -> Entries:
    """Divide the change of the gradient by that of the weights, on a step of share |theta| along -gradient."""
    theta, blocks = problem.theta, problem.parameters.blocks()
    reach, norm = share * (float(length(theta)) or 1.0), float(length(gradient))
    found = []
    for step in (reach, reach / 2):
        # what really changed: rounding makes the step of a small gradient entry another, or none at all
        moved = theta - step * (gradient / (norm or 1.0))
        found.append(ratio_quartiles(problem.gradient(moved) - gradient, moved - theta, blocks))
    quartiles, zeros = found[0]
    return Entries(
        quartiles,
        zeros,
        f"h_i = |change of gradient_i| / |change of weight_i| on a step of {share:g} |theta| along "
        "-gradient; entries where either is 0 are left out; numerical error: the change when the step is halved",
        errors=np.abs(quartiles - found[1][0]),
    )


def few(names: Sequence[str]) -> str:
    """Return names for a note, the first of many."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _probed(
    context: "Context", operator: Operator, probing: Probing, *, known: Tensor | None = None
) -> DiagonalEstimate:
    problem = context.problem()
    return estimate_diagonal(
        operator,
        context.generator("curvature"),
        blocks=problem.parameters.blocks(),
        tolerance=probing.tolerance,
        max_matvecs=probing.max_matvecs,
        directions=probing.directions,
        basis_bytes=problem.memory_budget // 2,
        known=known,
        watch=lambda spent, value, error: context.monitor.say(
            f"product {spent}  median {value:.3g} ± {100 * error:.0f} % in the layer known worst"
        ),
    )


def _entries(problem: "Problem", found: DiagonalEstimate, said: tuple[str, str, str], unsure: float = 0.0) -> Entries:
    """Sum up; `unsure` is the share by which rounding of the scores moves the part that is known."""
    blocks, (method, doc, cure) = problem.parameters.blocks(), said
    rounding = ROUNDING * torch.finfo(problem.dtype).eps + unsure
    sizes = np.asarray([float(found.entries[where].cpu().double().abs().sum()) for where in blocks.values()])
    counts = np.asarray([where.stop - where.start for where in blocks.values()])
    inexact = problem.derivatives.of_differences  # along an axis as along any vector
    notes = [f"diagonal: {method}"]
    loud = [name for name, share in zip(blocks, found.noise_share, strict=True) if share > 1]
    if found.status is Status.NOISE_DOMINATED:
        notes.append(f"noise-dominated, so the median is too high: {few(loud or list(blocks))}; {cure}")
    elif found.status is Status.BUDGET_SPENT:
        notes.append("not converged: the products ran out; raise `--max-matvecs`; the errors stated still hold")
    return Entries(
        found.quartiles,
        found.zero_fraction,
        f"{doc}; numerical error: half of an interval that held the median of 92 % of runs or more, the lift by noise "
        "included, and rounding",
        errors=np.hypot(found.quartile_errors, rounding * found.quartiles[:, 2:] + inexact),
        noise_share=found.noise_share,
        traces=found.traces,
        trace_errors=np.hypot(found.trace_errors, rounding * sizes + np.sqrt(counts) * inexact),
        trace_doc="from the same probes; numerical error: standard error, and rounding",
        matvecs=found.matvecs,
        status=found.status,
        notes=tuple(notes),
    )
