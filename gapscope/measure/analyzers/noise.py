"""How noisy the gradient of a mini-batch is, and what that noise does at the point measured."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.measure.analyzers.eigenvalues import REMEDIES
from gapscope.results import Array, Quantity, Result, Status, one_sided, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.operators import Operator
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.hutchinson import TraceEstimate
    from gapscope.measure.solvers.lanczos import Eigenpairs

# parameters x samples up to which `auto` measures the non-uniformity: 1 s on digits (6 million), minutes on 256 images
# with ResNet-20 (69 million)
AUTO_WORK = 30_000_000

When = Literal["auto", "yes", "no"]
TOLD = 20  # samples per noise scale from which errors over the data are stated for what has |G|^2 in it
_ROUNDING = 10  # epsilons, as in lanczos


@dataclass(frozen=True, kw_only=True)
class NoiseResult(Result):
    """What `noise` measures."""

    noise_scale: Quantity
    covariance_trace: Quantity
    covariance_trace_blocks: Quantity
    gradient_norm: Quantity
    population_square: Quantity
    curvature_noise: Quantity
    critical_batch: Quantity | None
    nonuniformity: Quantity | None
    nonuniformity_limit: Quantity | None
    sharpness: Quantity | None
    sharpness_limit: Quantity | None
    rate_over_batch: Quantity | None
    diffusion: Quantity | None


@dataclass(frozen=True)
class _Gradients:
    """The mean gradient and its distances to those of the samples."""

    mean: Any  # (n,) Tensor
    squares: Array  # (N, layers) |g_i - G|^2
    apart: Array  # (N,) the same, summed over layers
    along: Array  # (N,) 2 G'(g_i - G): what sample i adds to |G|^2
    square: float  # |G|^2
    rounding: float  # relative, of each of them


@dataclass(frozen=True)
class Noise:
    """Gradient noise of mini-batches: its scale (the batch size where noise and gradient are equal), its covariance
    Sigma by layer, and its alignment with the curvature.

    Sigma is the covariance of the gradients of single samples over the data measured: a mini-batch of B, drawn with
    replacement, has the gradient covariance Sigma / B.  tr(Sigma H) comes from products with random signs on the
    samples, the non-uniformity of their Hessians from Lanczos.  What needs the rate, the batch size and momentum takes
    them from the checkpoint.  Not invariant to rescaling the layers, and the noise scale is one of this point of
    training: it grows as the gradient vanishes.
    """

    name: ClassVar[str] = "noise"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    tolerance: Annotated[float, "relative: standard error of tr(Sigma H), and the non-uniformity's eigenvalue"] = 0.05
    probes: Annotated[int, "budget of products with random signs for tr(Sigma H)"] = 100
    nonuniformity: Annotated[When, "measure it; auto: up to 30 million parameters x samples, it is dear"] = "auto"
    max_matvecs: Annotated[int, "budget of products for the non-uniformity"] = 60

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data this takes: 30 to 50 probes are mostly enough."""
        probes, spread = min(self.probes, problem.samples, 40), 10 * self._spread_wanted(problem)
        return {
            "gradient_squares": 1,
            "slopes_along": probes + 1,
            "weighted_gradient": probes,
            "product": probes + spread + 1,
            "curvature_along": 1,
            "curvature_squares": spread,
        }

    def __call__(self, context: "Context") -> NoiseResult:
        """Measure the noise on the measured split."""
        from gapscope.errors import UsageError
        from gapscope.measure.operators import length
        from gapscope.measure.recipe import limits, recorded_sgd
        from gapscope.measure.shares import evened
        from gapscope.measure.solvers.hutchinson import PILOT

        if not 0 < self.tolerance < 1 or self.probes < PILOT or self.max_matvecs < 3:
            raise UsageError(
                f"noise got tolerance={self.tolerance}, probes={self.probes}, max_matvecs={self.max_matvecs}. Expected "
                f"0 < tolerance < 1, {PILOT} probes or more, and max_matvecs of 3 or more: 2 verify what others find."
            )
        problem, monitor = context.problem(), context.monitor
        monitor.begin("noise", 4)  # gradients of single samples: much dearer passes than those that follow
        found = _gradients(problem)
        monitor.begin("noise", 2 * min(self.probes, problem.samples, 30) + 40 * self._spread_wanted(problem))
        hessian = problem.hessian()
        found = replace(found, rounding=max(found.rounding, _worn(context, problem, hessian, found)))
        trace = self._curvature_noise(context, problem, hessian)
        size = math.sqrt(found.square)
        pulled, curvature = problem.curvature_along(found.mean / (size or 1.0))
        # G'HG moves with H_i and, twice, with g_i; all three go with 1 / m where samples have weights
        curvature = size**2 * curvature
        bends = evened(problem, curvature + 2 * size * problem.slopes_along(pulled))
        spread, pairs = self._spread(context, problem, hessian) if self._spread_wanted(problem) else (None, None)
        del hessian  # with it go the kept graphs
        recorded, notes = recorded_sgd(context, problem.data.total)
        covariance, bend = float(found.apart.mean()), float(curvature.mean())
        # |tr(Sigma E)| <= |E| tr(Sigma) where products are off by E
        inexact = problem.derivatives.error * covariance
        noise_error = math.hypot(
            trace.trace_error, found.rounding * math.sqrt(problem.samples) * trace.frobenius, inexact
        )
        finite = math.isfinite(covariance + found.square + trace.trace + bend)
        statuses = [trace.status] if pairs is None else [trace.status, pairs.status]
        critical = trace.trace / bend if bend > 0 and trace.trace > 0 else None
        if critical is None and finite:
            notes.append(f"no critical batch: tr(Sigma H) is {trace.trace:.3g} and G'HG {bend:.3g}, not both positive")
        # what rounding of G, as large as that of single gradients, does to G'HG
        lost = 2 * found.rounding * size * float(length(pulled)) * math.sqrt(found.square + covariance)
        lost /= bend or math.nan
        lost += problem.derivatives.error * found.square / (bend or math.nan)
        if critical is not None and not lost < 1:
            critical = None
            notes.append("no critical batch: rounding of the gradient, at its minimum, is as large as what it bends")
        told = _told(problem, found, covariance)
        if finite and not found.square:
            notes.append("no noise scale: the mean gradient is exactly 0, and tr(Sigma) over its square undefined")
        elif finite and not told:
            notes.append(
                f"the noise scale is more than a {TOLD}th of the samples: their gradient is largely their own luck, "
                "and noise scale and critical batch are those of these samples, without an upper limit beyond them"
            )
        return NoiseResult(
            status=_status(statuses) if finite else Status.NONFINITE,
            matvecs=trace.matvecs + (0 if pairs is None else pairs.matvecs),
            notes=(*self._notes(problem, trace, pairs), *notes),
            noise_scale=_noise_scale(problem, found, covariance),
            covariance_trace=Quantity(
                value=scalar(covariance),
                sampling_error=_standard_error(found.apart),
                chunks=problem.chunk_means(found.apart),
                higher_is="noisier",
                doc="trace of Sigma, the covariance of the samples' gradients: mean of |g_i - G|^2 over the N samples "
                "(divided by N: the noise of SGD on these data); a mini-batch of B has Sigma / B",
            ),
            covariance_trace_blocks=Quantity(
                value=found.squares.mean(0),
                sampling_error=_standard_error(found.squares),
                dims=("layer",),
                labels={"layer": tuple(problem.parameters.blocks())},
                doc="trace of each layer's block of Sigma; they add up to the covariance trace",
            ),
            gradient_norm=Quantity(
                value=scalar(math.sqrt(found.square)),
                sampling_error=_standard_error(found.along / (2 * math.sqrt(found.square or math.nan)))
                if told
                else None,
                drawn="detail",
                doc="|G|, norm of the mean gradient over all of the data: exact for these data",
            ),
            population_square=_population_square(problem, found, covariance),
            curvature_noise=Quantity(
                value=scalar(trace.trace),
                numerical_error=_known(noise_error),
                higher_is="noisier across the curvature",
                drawn="detail",
                doc="tr(Sigma H): the loss that one step of rate eta adds by noise is eta^2 / (2 B) times it; "
                "numerical error: standard error over probes, and rounding; its error over the data is not measured",
            ),
            critical_batch=None
            if critical is None
            else Quantity(
                value=scalar(critical),
                numerical_error=_known(math.hypot(noise_error / bend, critical * lost)),
                sampling_error=_standard_error(bends * critical / bend) if told else None,
                unit="samples",
                doc="B_noise = tr(Sigma H) / (G'HG) (arXiv 1812.06162): the batch size where noise and gradient bend "
                "the loss alike, one best-rate step then gains half of the most; a local, second-order statement; "
                "error over the data: that of G'HG alone",
            ),
            nonuniformity=spread,
            **limits(context, problem, recorded, found.apart),
        )

    def _curvature_noise(self, context: "Context", problem: "Problem", hessian: "Operator") -> "TraceEstimate":
        """Estimate tr(Sigma H) from signs on the samples.

        Hutch++ deflates the few large eigenvalues: on digits 30 products leave a standard error of 0.1 %, where 200
        single probes v'Hv leave 5 %.
        """
        from gapscope.measure.samples import noise_curvature
        from gapscope.measure.solvers.hutchinson import estimate_trace

        say = context.monitor.say
        return estimate_trace(
            noise_curvature(problem, hessian),
            context.generator("noise"),
            tolerance=self.tolerance,
            max_matvecs=self.probes,
            sketch_bytes=problem.memory_budget // 2,
            watch=lambda spent, value, error: say(f"product {spent}  tr(Sigma H) {value:.4g} ± {error:.1g}"),
        )

    def _spread_wanted(self, problem: "Problem") -> bool:
        dear = problem.size * problem.samples > AUTO_WORK
        return self.nonuniformity == "yes" or (self.nonuniformity == "auto" and not dear)

    def _spread(self, context: "Context", problem: "Problem", hessian: "Operator") -> tuple[Quantity, "Eigenpairs"]:
        """Find the top eigenpair u of mean H_i^2 - H^2; its last product gives |(H_i - H) u|^2 of every sample."""
        from gapscope.measure.operators import Operator
        from gapscope.measure.solvers.lanczos import Room, Stopping, extreme_eigenpairs

        last: list[Any] = []
        say = context.monitor.say

        def matvec(v: Any) -> Any:
            return problem.curvature_squares(v, hessian.matvec(v))[1]

        def verify(u: Any) -> Any:
            center = hessian.matvec(u)
            squares, image = problem.curvature_squares(u, center)
            last[:] = [squares, float(center.norm())]
            return image

        pairs = extreme_eigenpairs(
            Operator(problem.size, matvec, problem.dtype, problem.device),
            1,
            context.generator("noise/spread"),
            stopping=Stopping(self.tolerance, 1e-3, self.max_matvecs),
            room=Room(problem.memory_budget // 2, host=problem.memory_budget),
            verify=verify,
            watch=lambda step, value, error: say(f"step {step}  non-uniformity^2 {value:.4g} ± {error:.1g}"),
        )
        squares, length = last or (np.full(problem.samples, np.nan), math.nan)
        spread = _nonuniformity(problem, pairs, squares, length)
        if (
            pairs.spent_on == "precision"
            and spread.numerical_error is not None
            and spread.value <= spread.numerical_error
        ):
            pairs = replace(pairs, status=Status.CONVERGED, spent_on="")  # all Hessians are alike: 0 to rounding
        return spread, pairs

    def _notes(self, problem: "Problem", trace: "TraceEstimate", pairs: "Eigenpairs | None") -> list[str]:
        notes = []
        if trace.status is Status.BUDGET_SPENT:
            notes.append("tr(Sigma H) not converged: raise `--probes`; the error stated still holds")
        if pairs is not None and pairs.status is Status.BUDGET_SPENT:
            notes.append(f"non-uniformity not converged: {REMEDIES[pairs.spent_on]}")
        if pairs is None and self.nonuniformity == "auto":
            notes.append(
                f"non-uniformity left out: {problem.size:,} parameters x {problem.samples:,} samples are dear; "
                "`--nonuniformity yes` measures it"
            )
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return notes


def _gradients(problem: "Problem") -> _Gradients:
    import torch

    from gapscope.measure.operators import length
    from gapscope.measure.shares import evened

    mean = problem.gradient()
    size = float(length(mean))
    # along a unit vector: in float32 products of two small gradients vanish
    slopes = size * problem.slopes_along(mean / (size or 1.0))
    squares, along = evened(problem, problem.gradient_squares(mean)[0], power=2), 2 * evened(problem, slopes)
    along = along - along.mean()
    return _Gradients(mean, squares, squares.sum(1), along, size**2, _ROUNDING * torch.finfo(problem.dtype).eps)


def _worn(context: "Context", problem: "Problem", hessian: "Operator", found: _Gradients) -> float:
    """Return what rounding of theta, or as much inside the model, does to a gradient, relative to a sample's.

    eps/2 |H (z * theta)| for random signs z: of data far from zero, 100 epsilons and more.
    """
    import torch

    from gapscope.measure.operators import gaussian, length

    signs = gaussian(problem.size, context.generator("noise/rounding"), problem.dtype, problem.share).sign()
    moved = torch.finfo(problem.dtype).eps / 2 * float(length(hessian.matvec(signs.to(problem.theta) * problem.theta)))
    single = math.sqrt(found.square + float(found.apart.mean()))
    return moved / single if single > 0 and math.isfinite(moved) else 0.0


def _told(problem: "Problem", found: _Gradients, covariance: float) -> bool:
    """Say whether errors over the data by first order mean anything for what has |G|^2 in it.

    |G|^2 of N samples is tr(Sigma) / N too large.  At 5 noise scales per sample, 91 % of redraws lay beyond 3 such
    errors, at one noise scale per 8 samples 7 %, at one per 30 none.
    """
    return covariance * TOLD <= found.square * problem.samples


def _noise_scale(problem: "Problem", found: _Gradients, covariance: float) -> Quantity:
    """Return tr(Sigma) / |G|^2; its errors by first order in what each sample adds to both."""
    square = found.square or math.nan
    value = covariance / square
    shares = (found.apart - covariance - value * found.along) / square
    told = _told(problem, found, covariance)
    return Quantity(
        value=scalar(value),
        numerical_error=_known(2 * found.rounding * value * math.sqrt(1 + value)),
        sampling_error=_standard_error(shares) if told else None,
        chunks=_known(problem.chunk_means(value + shares)) if told else None,
        unit="samples",
        higher_is="noisier",
        doc="B_simple = tr(Sigma) / |G|^2 (arXiv 1812.06162): the batch size whose noise is as long as the gradient; "
        "G and Sigma are exact for these data, not estimated from two batch sizes; not the best batch size: it leaves "
        "out the curvature, and grows without bound toward a minimum; numerical error: rounding of G; errors over the "
        "data and chunks by first order",
    )


def _population_square(problem: "Problem", found: _Gradients, covariance: float) -> Quantity:
    """Return |G|^2 - tr(Sigma) / (N - 1), unbiased for the squared gradient of the distribution."""
    samples = problem.samples
    excess, error = covariance / max(1, samples - 1), _standard_error(found.along)
    return Quantity(
        value=scalar(found.square - excess),
        # beside the first order, that of N(0, Sigma / N): sqrt(2 tr Sigma^2) / N, at most sqrt(2) tr(Sigma) / N
        sampling_error=None if error is None else np.hypot(error, math.sqrt(2) * covariance / samples),
        contrast="difference",
        drawn="detail",
        doc="|G|^2 - tr(Sigma) / (N - 1): unbiased for the squared gradient of the distribution behind the N "
        "samples; near 0 or below, these samples cannot tell that gradient from 0; error over the data: an upper bound",
    )


def _nonuniformity(problem: "Problem", pairs: "Eigenpairs", squares: Array, length: float) -> Quantity:
    """Return the root of the mean of |(H_i - H) u|^2, never negative, at the eigenvector u; `length` is |H u|."""
    import torch

    from gapscope.measure.shares import evened

    value, top = math.sqrt(float(squares.mean())), float(pairs.values[0])
    slack = pairs.upper - top
    rounding = _ROUNDING * torch.finfo(problem.dtype).eps * length + problem.derivatives.error
    shares = (evened(problem, squares, power=2) - squares.mean()) / (2 * value or math.nan)
    return Quantity(
        value=scalar(value),
        numerical_error=_known(math.sqrt(value**2 + slack) - value + rounding),
        sampling_error=_standard_error(shares),
        chunks=_known(problem.chunk_means(value + shares)),
        bound=one_sided("lower", value, rounding),
        higher_is="less uniform",
        doc="s = sqrt of the top eigenvalue of mean H_i^2 - H^2 over the samples' Hessians (Wu, Ma, E 2018); numerical "
        "error: the distance to the upper bound that holds with probability 0.999; errors over the data and chunks "
        "from |(H_i - H) u|^2 at its eigenvector, by first order",
    )


def _status(statuses: list[Status]) -> Status:
    worst = [status for status in (Status.NONFINITE, Status.BUDGET_SPENT) if status in statuses]
    return worst[0] if worst else statuses[0] if len(set(statuses)) == 1 else Status.CONVERGED


def _standard_error(values: Array) -> Any:
    """Return the standard error of the mean over samples (N, ...), or None for one sample."""
    return _known(values.std(0, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _known(error: Any) -> Any:
    """Return an error, or None where it is not a number."""
    return np.asarray(error) if error is not None and np.isfinite(error).all() else None
