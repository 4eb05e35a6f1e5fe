"""Curvature of every layer and SGD's steps in it (after Gao and Zhong 2020; the definitions are gapscope's own)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.operators import Operator
    from gapscope.measure.problem import Problem

# products for all layers together; on digits they leave a standard error of 10 to 16 % of the second-order part
# (13 to 100 % if what the deflated directions know of other layers is not subtracted)
STEP_PROBES = 32
TOP_TOLERANCE = 0.05
PRODUCT, SINGLES = 3, 4  # gradients that a Hessian product and all gradients sample by sample cost
LONG_WORK = 10_000_000_000  # products x samples x parameters
NAMED = 6


@dataclass(frozen=True, kw_only=True)
class CurvatureResult(Result):
    """What `curvature` measures, each by layer."""

    median: Quantity
    zero_fraction: Quantity
    top: Quantity | None
    lower_quartile: Quantity
    upper_quartile: Quantity
    noise_share: Quantity | None
    trace: Quantity | None
    gradient_norm: Quantity
    step_length: Quantity | None
    loss_step: Quantity | None


@dataclass(frozen=True)
class Curvature:
    """Curvature per parameter in every layer: median and quartiles of |h_i|, the top eigenvalue of the layer's block of
    the Hessian, and the length and effect of an SGD step.

    The quantities are those of Gao and Zhong (2020), whose equations are not public: the definitions are gapscope's
    own. h_i is the diagonal of the Hessian (hutchinson); |change of the gradient| / |change of the weight| on a step of
    stated length along the negative gradient, which mixes in what the step changes elsewhere (secant); or |gradient| /
    |weight| (ratio). Medians are over non-zero entries: dead units have none. Not invariant to rescaling the layers.
    The noise of probes lifts the median, so its error says how much, and the status where the noise is larger.
    """

    # Cost: at most `max_matvecs` products for the diagonal, `top_matvecs` a layer, 32 for the loss step.  ResNet-20 on
    # 1,024 samples, 8 s a product on one core: 13 minutes, 52 (39 layers) and 6.
    # Source: abstract of Gao and Zhong 2020 (arXiv 2012.08795); definitions.md, 2; SGD's noise as in step_length's doc.

    name: ClassVar[str] = "curvature"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    estimator: Annotated[Literal["hutchinson", "secant", "ratio"], "how curvature per parameter is estimated"] = (
        "hutchinson"
    )
    tolerance: Annotated[float, "error of every layer's median, relative to it"] = 0.25
    max_matvecs: Annotated[int, "budget of Hessian-vector products for the diagonal"] = 100
    directions: Annotated[int, "Lanczos directions whose share of the diagonal is exact; 0 for none"] = 40
    top_matvecs: Annotated[int, "budget of products for each layer's top eigenvalue; 0 for none"] = 10
    secant_length: Annotated[float, "length of the secant's step, relative to |theta|"] = 1e-3

    def gradients(self, problem: "Problem") -> float:
        """Return about how many gradients over the data this costs, at most."""
        entries = {"hutchinson": PRODUCT * self.max_matvecs, "secant": 2, "ratio": 0}[self.estimator]
        tops = PRODUCT * self.top_matvecs * len(problem.parameters.blocks())
        return entries + tops + 1 + SINGLES + STEP_PROBES * (1 + PRODUCT)

    def __call__(self, context: "Context") -> CurvatureResult:
        """Measure every layer on the measured split."""
        self._refuse_nonsense()
        problem = context.problem()
        blocks = problem.parameters.blocks()
        names = tuple(blocks)
        self._announce(context, problem)
        gradient = problem.gradient()
        operator = problem.hessian()  # one for everything: its graphs are kept once
        measured = self._entries(context, problem, operator, gradient)
        tops = self._tops(context, problem, operator) if self.top_matvecs else None
        recipe, said = _recipe(context.training())
        steps, refused = _steps(context, operator, gradient, recipe, measured.across) if recipe else (None, ())
        del operator  # with it go the kept graphs
        said += refused
        spent = measured.matvecs + (tops.matvecs if tops else 0) + (STEP_PROBES if steps else 0)
        norms = np.asarray([float(gradient[where].double().norm()) for where in blocks.values()])
        finite = np.isfinite(norms).all() and (tops is None or np.isfinite(tops.values).all())

        def each(value: Array, doc: str, **more: Any) -> Quantity:
            return Quantity(value=value, doc=doc, dims=("layer",), labels={"layer": names}, **more)

        def quartile(i: int, doc: str, **more: Any) -> Quantity:
            error = None if measured.errors is None else _known(measured.errors[:, i])
            return each(measured.quartiles[:, i], f"{doc}; {measured.doc}", numerical_error=error, **more)

        return CurvatureResult(
            status=measured.status if finite else Status.NONFINITE,
            matvecs=spent,
            notes=(*measured.notes, *self._notes(problem, measured, tops, names), *said),
            median=quartile(1, "median over the layer's non-zero entries", drawn="strip", higher_is="more curved"),
            zero_fraction=each(measured.zeros, "fraction of entries left out as exactly zero", contrast="difference"),
            top=each(
                tops.values,
                "largest eigenvalue of the layer's diagonal block of the Hessian; numerical error: the wider of the "
                "residual and the distance to a bound that holds with probability 0.999",
                numerical_error=_known(tops.errors),
                bound="lower",
            )
            if tops
            else None,
            lower_quartile=quartile(0, "lower quartile"),
            upper_quartile=quartile(2, "upper quartile"),
            noise_share=each(
                measured.noise_share,
                "median error of an entry over the median of |h_i|: above 1 the probes' noise dominates",
                contrast="difference",
            )
            if measured.noise_share is not None
            else None,
            trace=each(
                measured.traces,
                "trace of the layer's diagonal block, from the same probes; numerical error: standard error",
                numerical_error=None if measured.trace_errors is None else _known(measured.trace_errors),
                contrast="difference",
            )
            if measured.traces is not None
            else None,
            gradient_norm=each(norms, "norm of the layer's part of the full gradient"),
            step_length=each(
                steps.length,
                "eta sqrt(|G|^2 + tr(Sigma) / B): root mean square of the layer's SGD step at the recorded learning "
                "rate eta and batch size B; Sigma is the covariance of the samples' gradients",
            )
            if steps
            else None,
            loss_step=each(
                steps.loss,
                "-eta |G|^2 + eta^2 / 2 (G'HG + tr(H Sigma) / B), H the layer's block: expected change of the loss by "
                "the layer's step, to second order; numerical error: standard error over random signs",
                numerical_error=_known(steps.loss_error),
                contrast="difference",
            )
            if steps
            else None,
        )

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError

        sound = 0 < self.tolerance < 1 and self.max_matvecs >= 1 and self.directions >= 0
        if not sound or 0 < self.top_matvecs < 3 or self.top_matvecs < 0 or not 0 < self.secant_length < math.inf:
            raise UsageError(
                f"curvature got tolerance={self.tolerance}, max_matvecs={self.max_matvecs}, "
                f"directions={self.directions}, top_matvecs={self.top_matvecs}, secant_length={self.secant_length}. "
                "Expected 0 < tolerance < 1, max_matvecs of 1 or more, directions of 0 or more, top_matvecs of 0 or of "
                "3 or more (two products verify what the others find), and a positive secant_length. Mend the first "
                "that is not."
            )

    def _announce(self, context: "Context", problem: "Problem") -> None:
        layers = len(problem.parameters.blocks())
        diagonal = self.max_matvecs if self.estimator == "hutchinson" else 0
        products = diagonal + self.top_matvecs * layers + STEP_PROBES
        context.monitor.begin("curvature", products)
        if products * problem.samples * problem.size > LONG_WORK:
            context.monitor.plan(
                f"curvature: up to {products:,} Hessian-vector products: {diagonal} for the diagonal, "
                f"{self.top_matvecs} for the top eigenvalue of each of {layers} layers (`--top-matvecs 0` leaves them "
                f"out), {STEP_PROBES} for the loss step"
            )

    # --- curvature per parameter

    def _entries(self, context: "Context", problem: "Problem", operator: "Operator", gradient: Any) -> "_Entries":
        from gapscope.measure.solvers.diagonal import ratio_quartiles

        if self.estimator == "hutchinson":
            return self._hutchinson(context, problem, operator)
        theta, blocks = problem.theta, problem.parameters.blocks()
        if self.estimator == "ratio":
            quartiles, zeros = ratio_quartiles(gradient, theta, blocks)
            return _Entries(quartiles, zeros, "h_i = |gradient_i| / |weight_i|; entries where either is 0 are left out")
        length = self.secant_length * (float(theta.norm()) or 1.0)
        norm = float(gradient.norm())
        found = []
        for step in (length, length / 2):
            # what really changed: rounding makes the step of a small gradient entry another, or none at all
            moved = theta - (step / norm if norm else 0.0) * gradient
            found.append(ratio_quartiles(problem.gradient(moved) - gradient, moved - theta, blocks))
        quartiles, zeros = found[0]
        return _Entries(
            quartiles,
            zeros,
            f"h_i = |change of gradient_i| / |change of weight_i| on a step of {self.secant_length:g} |theta| along "
            "-gradient; entries where either is 0 are left out; numerical error: the change when the step is halved",
            errors=np.abs(quartiles - found[1][0]),
        )

    def _hutchinson(self, context: "Context", problem: "Problem", operator: "Operator") -> "_Entries":
        from gapscope.measure.solvers.diagonal import estimate_diagonal

        blocks = problem.parameters.blocks()
        found = estimate_diagonal(
            operator,
            context.generator("curvature"),
            blocks=blocks,
            tolerance=self.tolerance,
            max_matvecs=self.max_matvecs,
            directions=self.directions,
            basis_bytes=problem.memory_budget // 2,
            watch=lambda spent, value, error: context.monitor.say(
                f"product {spent}  median {value:.3g} ± {100 * error:.0f} % in the layer known worst"
            ),
        )
        method = f"{found.probes} sign probes, {found.directions} Lanczos directions deflated"
        notes = [f"diagonal: {'entry by entry, exact' if found.status is Status.EXACT else method}"]
        loud = [name for name, share in zip(blocks, found.noise_share, strict=True) if share > 1]
        if found.status is Status.NOISE_DOMINATED:
            notes.append(
                f"noise-dominated, so the median is too high: {_few(loud or list(blocks))}; raise `--max-matvecs`, "
                "and `--directions` with it"
            )
        elif found.status is Status.BUDGET_SPENT:
            notes.append("not converged: the products ran out; raise `--max-matvecs`; the errors stated still hold")
        return _Entries(
            found.quartiles,
            found.zero_fraction,
            "h_i is the diagonal of the Hessian by E[z * Hz]; numerical error: half of an interval that held the "
            "median of 92 % of runs or more, the lift by noise included",
            errors=found.quartile_errors,
            noise_share=found.noise_share,
            traces=found.traces,
            trace_errors=found.trace_errors,
            matvecs=found.matvecs,
            status=found.status,
            notes=tuple(notes),
            across=found.across,
        )

    def _tops(self, context: "Context", problem: "Problem", operator: "Operator") -> "_Tops":
        from gapscope.measure.operators import restricted
        from gapscope.measure.solvers.lanczos import Stopping, extreme_eigenpairs

        stopping = Stopping(TOP_TOLERANCE, 1e-3, self.top_matvecs)
        blocks = problem.parameters.blocks()
        rows = []
        for number, (name, where) in enumerate(blocks.items(), 1):
            pairs = extreme_eigenpairs(
                restricted(operator, where),
                1,
                context.generator(f"curvature/{name}"),
                stopping=stopping,
                basis_bytes=problem.memory_budget // 2,
            )
            top = float(pairs.values[0])
            rows.append((top, max(pairs.upper - top, float(pairs.residuals[0])), pairs.matvecs))
            context.monitor.say(f"top eigenvalue of {name} {top:.3g}, layer {number} of {len(blocks)}")
        table = np.asarray(rows)
        return _Tops(table[:, 0], table[:, 1], int(table[:, 2].sum()))

    def _notes(
        self, problem: "Problem", measured: "_Entries", tops: "_Tops | None", names: Sequence[str]
    ) -> tuple[str, ...]:
        notes = []
        empty = [name for name, fraction in zip(names, measured.zeros, strict=True) if fraction == 1]
        if empty:
            notes.append(f"no entry is left, so there is no median: {_few(empty)}")
        if tops is not None:
            open_ = tops.errors > 2 * TOP_TOLERANCE * np.abs(tops.values)
            loose = [name for name, wide in zip(names, open_, strict=True) if wide]
            if loose:
                notes.append(
                    f"top eigenvalue not known to {200 * TOP_TOLERANCE:.0f} %: {_few(loose)}; raise `--top-matvecs`"
                )
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return tuple(notes)


# --- what is found on the way


@dataclass(frozen=True)
class _Entries:
    """Quartiles of |h_i| by layer (layers, 3), and what else an estimator knows."""

    quartiles: Array
    zeros: Array
    doc: str
    errors: Array | None = None
    noise_share: Array | None = None
    traces: Array | None = None
    trace_errors: Array | None = None
    matvecs: int = 0
    status: Status = Status.EXACT
    notes: tuple[str, ...] = ()
    across: Callable[[Any], Any] = lambda _: 0.0  # u -> what the other layers add to u_l'H u, as far as it is known

    def __post_init__(self) -> None:
        if not np.isfinite(self.quartiles[self.zeros < 1]).all():
            object.__setattr__(self, "status", Status.NONFINITE)


@dataclass(frozen=True)
class _Tops:
    values: Array  # (layers,)
    errors: Array  # (layers,)
    matvecs: int


@dataclass(frozen=True)
class _Steps:
    length: Array  # (layers,)
    loss: Array  # (layers,)
    loss_error: Array  # (layers,)


def _recipe(training: Mapping[str, Any]) -> tuple[tuple[float, int] | None, tuple[str, ...]]:
    """Return rate and batch size of recorded SGD, or None, and what to say; a checkpoint may have recorded anything."""
    optimizer = str(training.get("optimizer", "")).lower()
    rate, size = training.get("lr"), training.get("batch_size")
    if "adam" in optimizer:
        return None, ("trained with Adam, which preconditions its steps: step lengths and loss steps are not shown",)
    missing = [] if optimizer == "sgd" else ["the optimizer as sgd"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
        missing.append("a learning rate")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        missing.append("a batch size")
    if missing:
        return None, (f"no step lengths: the checkpoint did not record {', '.join(missing)}",)
    more = [
        f"{word} {training[word]:g}"
        for word in ("momentum", "weight_decay")
        if isinstance(training.get(word), int | float) and training[word]
    ]
    notes = (f"steps are those of one mini-batch gradient of the loss, without {' and '.join(more)}",) if more else ()
    return (float(rate), size), notes  # type: ignore[arg-type, return-value]


def _steps(
    context: "Context", operator: "Operator", gradient: Any, recipe: tuple[float, int], across: Callable[[Any], Any]
) -> tuple[_Steps | None, tuple[str, ...]]:
    """Measure the SGD step by layer, or say why not.

    y = G + v / sqrt(B), v = sum_i e_i (g_i - G) / sqrt(N) with random signs e_i, has the mean G and the covariance
    Sigma / B of a mini-batch gradient (B drawn with replacement).  With one more random sign s_l a layer, the layer's
    part of (s y) * H (s y) has the mean G'HG + tr(H Sigma) / B of its block: one product serves all layers.  What other
    layers add has the mean 0; the part of it that the deflated directions know is subtracted.
    """
    import torch

    from gapscope.errors import ProblemError

    problem, (eta, size) = context.problem(), recipe
    blocks = problem.parameters.blocks()
    try:
        squares, _ = problem.gradient_squares(gradient)
    except ProblemError as error:
        return None, (f"no step lengths: {error}",)
    square = np.asarray([float(gradient[where].double().square().sum()) for where in blocks.values()])
    rng, bends = context.generator("curvature/step"), []

    def signs(count: int) -> Any:
        return (2 * torch.randint(0, 2, (count,), generator=rng) - 1).to(problem.dtype).to(problem.device)

    for number in range(STEP_PROBES):
        each = signs(problem.samples)
        noise = math.sqrt(problem.samples / size) * problem.weighted_gradient(each - each.mean())
        turned = gradient + noise
        for where, sign in zip(blocks.values(), signs(len(blocks)), strict=True):
            turned[where] *= sign
        image = operator.matvec(turned)
        parts = [float(torch.dot(turned[w].double(), image[w].double())) for w in blocks.values()]
        bends.append(np.asarray(parts) - across(turned))
        context.monitor.say(f"loss step, probe {number + 1} of {STEP_PROBES}")
    table = np.asarray(bends)  # (probes, layers)
    half = eta**2 / 2
    return _Steps(
        length=eta * np.sqrt(square + squares.mean(0) / size),
        loss=-eta * square + half * table.mean(0),
        loss_error=half * table.std(0, ddof=1) / math.sqrt(STEP_PROBES),
    ), ()


def _known(error: Array) -> Array | None:
    """Return an error, or None where it is nowhere known."""
    return None if np.isnan(error).all() else error


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
