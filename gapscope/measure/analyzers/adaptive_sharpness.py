"""Adaptive sharpness, which rescaling of layers leaves alone, with SAM sharpness, which it moves, for contrast."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from gapscope.measure.monitor import Portion
from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from torch import Tensor

    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.apgd import Peak

JUDGED: dict[str, Any] = {"better": "lower", "higher_is": "sharper"}
BATCH_SEED = 0  # of the batches of m-sharpness: the same for every subject, like the chunks
SCORE_FLOOR = 1e-10  # of the norm of centered class scores (Andriushchenko et al. 2023)


@dataclass(frozen=True, kw_only=True)
class AdaptiveSharpnessResult(Result):
    """What `adaptive-sharpness` measures."""

    worst_l2: Quantity
    worst_linf: Quantity | None = None
    average: Quantity | None = None
    sam: Quantity | None = None
    sam_step: Quantity | None = None
    worst_l2_normalized: Quantity | None = None
    worst_linf_normalized: Quantity | None = None
    average_normalized: Quantity | None = None
    relative_flatness: Quantity | None = None
    fisher_rao: Quantity


@dataclass(frozen=True)
class AdaptiveSharpness:
    """Rise of the loss when every weight moves in proportion to its own size: adaptive sharpness.

    max L(theta + d) - L(theta) over norm(d / |theta|) <= rho, in l2 and l_inf, by APGD (20 steps), and the mean rise
    under Gaussian d / |theta|.  A maximum is a local one, converged or not; more `--steps` try more starts.  Unchanged
    when layers are rescaled without changing the function, because all parameters take part, biases too (ASAM's own
    variant, weights only and |theta| + 0.01, is not).  A weight of exactly 0 stays 0.  Beside it SAM sharpness, over
    the plain l2 ball, which rescaling does change; relative flatness of every linear and convolutional layer; the
    Fisher-Rao norm.  Scaling the class scores changes all of them but what `--normalize-logits` adds.
    """

    name: ClassVar[str] = "adaptive-sharpness"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    rhos_l2: Annotated[tuple[float, ...], "radii of the adaptive l2 ball"] = (0.5, 0.25)
    rhos_linf: Annotated[tuple[float, ...], "radii of the adaptive l_inf ball"] = (4e-3, 2e-3)
    rhos_average: Annotated[tuple[float, ...], "standard deviations of the relative Gaussian change"] = (0.1, 0.05)
    rhos_sam: Annotated[tuple[float, ...], "radii of the plain l2 ball (SAM)"] = (0.05,)
    steps: Annotated[int, "gradients for each maximum; every 10 beyond 20 add a random start"] = 20
    draws: Annotated[int, "antithetic pairs of Gaussian draws for the average"] = 30
    probes: Annotated[int, "random probes for relative flatness; 0 leaves it out"] = 20
    m: Annotated[int, "m-sharpness: the mean over maxima on batches of m samples; 0: one ball for all data"] = 0
    normalize_logits: Annotated[bool, "measure also with class scores centered and scaled to length 1"] = False

    def __call__(self, context: "Context") -> AdaptiveSharpnessResult:
        """Measure the split."""
        problem = context.problem()
        self._refuse_nonsense(problem)
        context.monitor.begin(self.name, round(sum(self.passes(problem).values())))
        worst = {"worst_l2": ("l2", self.rhos_l2), "worst_linf": ("linf", self.rhos_linf)}
        found = _Search(self, context, problem)
        quantities: dict[str, Any] = found.maxima({**worst, "sam": ("l2", self.rhos_sam)}) | found.average()
        if self.normalize_logits:
            other = dataclasses.replace(found, problem=_normalized(found.problem), suffix="_normalized")
            quantities |= other.maxima(worst) | other.average()
        layers = _layers(problem) if self.probes else {}
        quantities |= _relative_flatness(problem, layers, self.probes, context) if layers else {}
        quantities["fisher_rao"] = _fisher_rao(problem)
        statuses = found.statuses
        if not all(np.isfinite(quantity.value).all() for quantity in quantities.values()):
            statuses.append(Status.NONFINITE)
        return AdaptiveSharpnessResult(
            status=next((bad for bad in (Status.NONFINITE, Status.BUDGET_SPENT) if bad in statuses), Status.CONVERGED),
            matvecs=self.probes if layers else 0,
            notes=tuple(self._notes(problem, found, len(layers))),
            **quantities,
        )

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data this takes."""
        views = 1 + self.normalize_logits
        maxima = views * (len(self.rhos_l2) + len(self.rhos_linf)) + len(self.rhos_sam)
        return {
            "gradient": maxima * self.steps + views * (1 + (self.rhos_average != ())) + 1,
            "outcomes": maxima + views * 2 * (1 + self.draws * len(self.rhos_average)),
            "slopes_along": 1,
            "product": 1 + (self.probes if _layers(problem) else 0),
        }

    def _notes(self, problem: "Problem", found: "_Search", layers: int) -> Iterator[str]:
        zeros = int((problem.theta == 0).sum())
        if zeros:
            yield f"{zeros:,} of {problem.size:,} parameters are exactly 0 and stay 0 in the adaptive balls"
        if self.m:
            sizes = [len(places) for places in found.batches]
            yield (
                f"m-sharpness: means over {len(sizes)} batches of {min(sizes)} to {max(sizes)} samples, each with its "
                "own maximum; averages do not depend on m"
            )
        if self.probes and not layers:
            yield "no relative flatness: the model has no linear or convolutional layer with a trainable weight"
        if self.normalize_logits:
            yield (
                "normalized: class scores centered and scaled to length 1 for each sample; SAM, relative flatness and "
                "the Fisher-Rao norm are of the loss as it is"
            )
        if "no slope" in found.messages:
            cure = "" if "64" in str(problem.dtype) else ": add `--dtype float64`"
            yield (
                "in a ball no point that was tried has a slope, as far as the precision goes: its value is what was "
                f"seen, not a maximum{cure}"
            )
        if "out of evaluations" in found.messages:
            yield "a maximum was still rising after the last step: raise `--steps`; the values are lower bounds"
        if problem.samples < problem.data.total:
            yield f"measured on {problem.samples:,} of {problem.data.total:,} samples; a maximum over fewer is higher"

    def _refuse_nonsense(self, problem: "Problem") -> None:
        from gapscope.errors import UsageError

        radii = (*self.rhos_l2, *self.rhos_linf, *self.rhos_average, *self.rhos_sam)
        counts = self.steps >= 2 and self.draws >= 2 and self.probes >= 0 and self.probes != 1 and self.m >= 0
        if not self.rhos_l2 or not all(0 < rho < math.inf for rho in radii) or not counts:
            raise UsageError(
                f"adaptive-sharpness got rhos_l2={list(self.rhos_l2)}, rhos_linf={list(self.rhos_linf)}, "
                f"rhos_average={list(self.rhos_average)}, rhos_sam={list(self.rhos_sam)}, steps={self.steps}, "
                f"draws={self.draws}, probes={self.probes}, m={self.m}. Expected positive radii, at least one in "
                "rhos_l2, steps >= 2, draws >= 2, probes 0 or >= 2, m >= 0."
            )
        if self.normalize_logits and problem.loss_function.ignored is None:
            raise UsageError(
                f"The loss `{problem.loss_function.name}` is not one of class scores. Expected cross-entropy, because "
                "`--normalize-logits` normalizes the scores of the classes. Leave that option out."
            )
        if self.m and problem.depends_on_batches:
            raise UsageError(
                "BatchNorm in batch mode (or without running statistics) makes L depend on the micro-batches, and "
                f"m-sharpness has batches of its own. Expected fixed statistics for m={self.m}. Leave `--m` out, or "
                "add `--batchnorm re-estimated`."
            )


@dataclass(frozen=True)
class _Search:
    """What the maxima and averages of one problem share."""

    settings: AdaptiveSharpness
    context: "Context"
    problem: "Problem"
    suffix: str = ""
    statuses: list[Status] = dataclasses.field(default_factory=list)
    messages: set[str] = dataclasses.field(default_factory=set)

    @property
    def batches(self) -> list[NDArray[np.int64]]:
        """Return the places of the samples that share a maximum: all, or batches of m."""
        samples, m = self.problem.samples, self.settings.m
        # as even as can be: the maximum over a short last batch would be higher
        order = np.random.default_rng(BATCH_SEED).permutation(samples)
        return [np.sort(places) for places in np.array_split(order, max(1, round(samples / m)) if m else 1)]

    def maxima(self, kinds: Mapping[str, tuple[Any, tuple[float, ...]]]) -> dict[str, Quantity]:
        """Maximize over every ball; all share the gradient at u = 0, batch by batch."""
        kinds = {name: kind for name, kind in kinds.items() if kind[1]}
        rises = {name: np.empty((len(rhos), self.problem.samples)) for name, (_, rhos) in kinds.items()}
        gaps = {name: np.zeros(len(rhos)) for name, (_, rhos) in kinds.items()}
        firsts = {name: np.zeros(len(rhos)) for name, (_, rhos) in kinds.items()}
        squares = 0.0
        for number, places in enumerate(self.batches):
            part, share = _part(self.problem, places), len(places) / self.problem.samples
            base, origin = part.losses(), part.loss_and_gradient()
            squares += share * float((base**2).mean())
            for name, (norm, rhos) in kinds.items():
                for j, rho in enumerate(rhos):
                    purpose = f"{name}/{rho:g}/{number}"
                    peak, there, moved = self._peak(part, origin, norm, rho, purpose, adaptive=name != "sam")
                    rises[name][j, places] = there - base
                    # what a first-order step promises, and what the second half of the steps added
                    gaps[name][j] += share * (max(peak.gap, peak.value - peak.halfway) + moved)
                    firsts[name][j] += share * (peak.first - peak.start_value)
                    self.statuses.append(peak.status)
                    self.messages.add(peak.message)
        found = {}
        for name, (norm, rhos) in kinds.items():
            ball = "plain l2 ball (SAM)" if name == "sam" else f"adaptive {norm} ball"
            doc = (
                f"highest L(theta + d) - L(theta) found in the {ball}; a local maximum, also where converged, so a "
                "lower bound: another may be higher by more than the error; numerical error: rounding, and the larger "
                "of what a first-order step promises and what the second half of the steps added"
            )
            error = gaps[name] + self._rounding(squares + (rises[name] ** 2).mean(1))
            high = self._quantity(name, rhos, rises[name], doc, numerical_error=error, bound="lower")
            found[name + self.suffix] = high
            if name == "sam":
                doc = "L(theta + rho g/|g|) - L(theta): the rise that SAM's single step sees"
                found["sam_step"] = Quantity(
                    value=firsts[name], dims=high.dims, labels=high.labels, doc=doc, drawn="detail"
                )
        return found

    def average(self) -> dict[str, Quantity]:
        """Average the rise over antithetic pairs: odd terms of the loss, the gradient first, drop out exactly."""
        from gapscope.measure.operators import rounded
        from gapscope.measure.solvers.hutchinson import error_of_mean

        settings, problem, rhos = self.settings, self.problem, self.settings.rhos_average
        if not rhos:
            return {}
        theta, base = problem.theta, problem.losses()
        rises, errors = np.zeros((len(rhos), problem.samples)), np.zeros(len(rhos))
        for j, rho in enumerate(rhos):
            draw = self._draw(f"average/{rho:g}", problem)
            pairs = []
            for _ in range(settings.draws):
                change = rho * theta.abs() * draw()
                pair = (problem.losses(theta + change) + problem.losses(theta - change)) / 2 - base
                if not np.isfinite(pair).all():
                    pair = np.full_like(pair, np.nan)
                pairs.append(float(pair.mean()))
                rises[j] += pair / settings.draws
            errors[j] = error_of_mean(np.asarray(pairs))
        doc = (
            f"mean rise of the loss under d = |theta| N(0, rho^2), {settings.draws} antithetic pairs of draws; "
            "numerical error: of the mean over the pairs, few and skewed, and rounding"
        )
        rounding = self._rounding(float((base**2).mean()) + (rises**2).mean(1))
        error = np.hypot(errors, rounding + 2 * rounded(problem.gradient(), theta))
        return {"average" + self.suffix: self._quantity("average", rhos, rises, doc, numerical_error=error)}

    def _peak(
        self,
        part: "Problem",
        origin: "tuple[float, Tensor]",
        norm: Literal["l2", "linf"],
        rho: float,
        purpose: str,
        *,
        adaptive: bool,
    ) -> "tuple[Peak, Array, float]":
        """Return the maximum over one ball, the loss of every sample there, and what rounding of theta does at both."""
        from gapscope.measure.operators import rounded
        from gapscope.measure.solvers.apgd import Ball, apgd

        theta, (value, slope) = part.theta, origin
        scale = theta.abs() if adaptive else theta.new_ones(())
        # in u = d / |theta| a rescaled layer looks like itself: start, steps and projections cannot tell them apart
        moved = {value: (here := rounded(slope, theta))}  # by the loss there

        def objective(u: "Tensor") -> "tuple[float, Tensor]":
            loss, gradient = part.loss_and_gradient(there := theta + scale * u)
            moved[loss] = rounded(gradient, there)
            self.context.monitor.say(f"{purpose}  loss {loss:.4g} (at theta: {value:.4g})")
            return loss, scale * gradient

        draw = self._draw(purpose, part, adaptive=adaptive)
        peak = apgd(objective, Ball(norm, rho), (value, scale * slope), draw, steps=self.settings.steps)
        there = part.losses(theta + scale * peak.point)
        there = there if peak.status is not Status.NONFINITE else np.full_like(there, np.nan)
        return peak, there, here + moved.get(peak.value, 0.0)

    def _draw(self, purpose: str, problem: "Problem", *, adaptive: bool = True) -> Any:
        """Return a source of N(0, 1) vectors (n,) that depend on the seed alone; 0 where an adaptive ball is flat."""
        import torch

        rng, theta = self.context.generator(f"adaptive-sharpness/{purpose}"), problem.theta
        alive = (theta != 0).to(theta.dtype) if adaptive else 1.0
        # in float32 whatever the dtype of theta, so that both precisions measure the same draws
        return lambda: torch.randn(problem.size, generator=rng, dtype=torch.float32).to(theta) * alive

    def _rounding(self, squares: Any) -> Any:
        """Return what rounding does to a difference of mean losses: some ten eps of each, at random over samples."""
        import torch

        eps = float(torch.finfo(self.problem.dtype).eps)
        return 10 * eps * np.sqrt((squares + 1) / self.problem.samples)

    def _quantity(self, name: str, rhos: tuple[float, ...], rises: Array, doc: str, **more: Any) -> Quantity:
        from gapscope.measure.shares import evened

        weights = self.context.problem().loss_function.weights  # also of normalized scores
        rises = np.stack([evened(self.problem, rise, weights) for rise in rises])
        chunks = [self.problem.chunk_means(rise) for rise in rises]
        parted = [chunk for chunk in chunks if chunk is not None]  # too few samples leave all of them out
        dimension = "rho_" + name.removeprefix("worst_")
        return Quantity(
            value=rises.mean(1),
            sampling_error=rises.std(1, ddof=1) / math.sqrt(rises.shape[1]) if rises.shape[1] > 1 else None,
            chunks=np.stack(parted, axis=1) if parted else None,
            dims=(dimension,),
            labels={dimension: tuple(f"{rho:g}" for rho in rhos)},
            doc=doc + ("; class scores normalized" if self.suffix else ""),
            **JUDGED,
            **more,
        )


def _variant(problem: "Problem", **changes: Any) -> "Problem":
    """Return the problem with changes, at the theta and with the constants that it holds.

    A new problem would read them from its model, which may have been trained on since; and where BatchNorm's statistics
    are re-estimated, from the part of the data.
    """
    variant = dataclasses.replace(problem, examined=problem.derivatives, **changes)
    for name in ("parameters", "theta", "constants"):
        variant.__dict__[name] = getattr(problem, name)  # where cached_property keeps them
    return variant


def _part(problem: "Problem", places: NDArray[np.int64]) -> "Problem":
    """Return the problem of some of the samples; of all of them, the same problem."""
    import torch

    if len(places) == problem.samples:
        return problem
    return _variant(
        problem,
        data=problem.data.part(torch.from_numpy(places)),
        loss_function=problem.bound,  # weighted as in the whole data
        batch_size=problem.micro_batch,  # counted once for all parts
        monitor=Portion(problem.monitor, len(places) / problem.samples),
    )


def _normalized(problem: "Problem") -> "Problem":
    """Return the same problem, with z <- (z - mean z) / max(|z - mean z|, 1e-10) for the scores of every sample."""
    from gapscope.measure.loading.losses import classes_last

    loss = problem.bound

    def per_sample(outputs: "Tensor", targets: "Tensor") -> "Tensor":
        scores = classes_last(outputs, targets)
        centered = scores - scores.mean(-1, keepdim=True)
        return loss.per_sample(centered / centered.norm(dim=-1, keepdim=True).clamp_min(SCORE_FLOOR), targets)

    changed = dataclasses.replace(loss, per_sample=per_sample)
    return _variant(problem, loss_function=changed, batch_size=problem.micro_batch)


def _layers(problem: "Problem") -> "dict[str, tuple[slice, Tensor]]":
    from gapscope.measure.solvers.invariants import matrices

    return matrices(problem.model, problem.parameters.unflatten(problem.theta))


def _relative_flatness(problem: "Problem", layers: Any, probes: int, context: "Context") -> dict[str, Quantity]:
    from gapscope.measure.solvers.invariants import relative_flatness

    rng = context.generator("adaptive-sharpness/relative-flatness")
    found = relative_flatness(problem.hessian(), layers, probes, rng, off=problem.derivatives.of_differences)
    quantity = Quantity(
        value=found.values,
        numerical_error=found.errors,
        dims=("layer",),
        labels={"layer": tuple(layers)},
        doc="sum over units s, s' of <w_s, w_s'> tr(H_ss') for the weights of each layer, convolutions as out x rest; "
        f"numerical error: standard error over {probes} probes, and rounding; no error over the data is measured",
        **JUDGED,
    )
    return {"relative_flatness": quantity}


def _fisher_rao(problem: "Problem") -> Quantity:
    import torch

    from gapscope.measure.operators import rounded
    from gapscope.measure.shares import evened

    slopes, how = problem.slopes_along(problem.theta), problem.derivatives
    squares, eps = slopes**2, float(torch.finfo(problem.dtype).eps)
    spread = evened(problem, squares, power=2)  # for errors over the data
    # a slope is good to that of the terms it sums, at least of order one, and moves with theta by H theta + g
    moved = rounded(problem.hvp(problem.theta) + problem.gradient(), problem.theta)
    off = 10 * eps * (1 + np.abs(slopes)) + (moved if math.isfinite(moved) else 0.0)
    if how.method == "differences":  # of losses on either side, each good to some eps
        eps = float(torch.finfo(how.dtype).eps) * float(problem.theta.norm()) / how.step
        off = off + 4 * eps * (1 + np.abs(problem.losses()))
    return Quantity(
        value=scalar(squares.mean()),
        numerical_error=scalar(2 * float((np.abs(slopes) * off).mean())),
        sampling_error=scalar(spread.std(ddof=1) / math.sqrt(problem.samples)) if problem.samples > 1 else None,
        chunks=problem.chunk_means(spread),
        doc="theta'F theta, the mean of <g_i, theta>^2: the squared Fisher-Rao norm with the empirical Fisher matrix "
        "(gradients at the data's own labels)",
        **JUDGED,
    )
