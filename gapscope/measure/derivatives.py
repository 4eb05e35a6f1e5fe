"""How the second derivatives of a problem are taken: exactly, where a probe agrees, or by differences of the gradient.

Wrong second derivatives are often silent: a custom Function that forgets to save with `save_for_backward` is off by
63 %.  Two products, one central difference of the gradient and one of the loss, on a micro-batch, show it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gapscope.errors import ProblemError, out_of_memory
from gapscope.measure import products
from gapscope.measure.culprits import without_second_derivative
from gapscope.measure.differences import Differences
from gapscope.measure.distributed import ranks
from gapscope.measure.probe import UNKNOWN, Probe, Slopes

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

APART = 1e12  # of one weight over the median: differences, in float64, then say nothing of the others
UNSEEN = "second derivatives were checked in float32 alone, as float64 did not run: how they round is not known"
WORST = 0.1  # relative error of products beyond which nothing is measured with them


@dataclass(frozen=True)
class Derivatives:
    """How products are taken, and how far they are known.

    `error` is |A v - H v| for a unit vector v, and `relative_error` that over |H w| for a sharp direction w; both as
    two steps disagree.  Of exact products, `error` is the rounding of the model, as float32 and float64 disagree on the
    micro-batch (0 in float64: the solvers know their own), and NaN where the gradient is not finite.
    """

    method: Literal["exact", "differences"] = "exact"
    error: float = 0.0
    relative_error: float = 0.0
    step: float = 0.0
    dtype: torch.dtype = torch.float64
    note: str = ""  # what every number depends on

    @property
    def of_differences(self) -> float:
        """Return `error` of products by differences; 0 of exact ones, whose rounding is as small as what they find."""
        return self.error if self.method == "differences" else 0.0

    @property
    def ways(self) -> products.Ways:
        """Return the functions that take them."""
        return products if self.method == "exact" else Differences(self.step, self.dtype)


def examine(problem: "Problem") -> Derivatives:
    """Probe a problem on a micro-batch of 32 samples; raise ProblemError where neither way gives its curvature.

    Cost: 3 products and 3 gradients of the micro-batch, in float64 where the model allows it (kinks of ReLU then lie
    outside the step), but one product in the problem's dtype.  Differences: 2 gradients of it for each of 8 steps or
    more, and 8 to 24 of all data.
    """
    probe = _widest(problem)
    with problem.measuring():
        if not bool(probe.slope.isfinite().all()):
            return Derivatives(error=math.nan, relative_error=math.nan)
        refuse_wrong_slope(probe)
        fault = "" if problem.hvp_method == "differences" else probe.fault
    why = fault + without_second_derivative(problem, probe.theta.dtype) if fault else "As asked for."
    if fault and problem.hvp_method == "exact":
        raise ProblemError(
            f"{why} Expected a second derivative for `--hvp exact`. Replace that operation by plain ones (for Hugging "
            "Face models: attn_implementation='eager'), or take `--hvp differences`."
        )
    if not fault and problem.hvp_method != "differences":
        with problem.measuring():
            narrow = probe.theta.dtype != torch.float64
            return Derivatives(error=probe.rounding(), note=UNSEEN if narrow else "")

    def product(v: Tensor, step: float) -> Tensor:
        ways, cut = Differences(step, probe.theta.dtype), problem.parameters.split(v.to(problem.dtype))
        parameters = problem._split(None)
        return problem.mean(
            lambda batch: problem.parameters.flatten(ways.hessian(problem._micro(batch), parameters)(cut))
        )

    return by_differences(problem, probe, product, why)


def _widest(problem: "Problem") -> Probe:
    """Return the probe in float64 where the model runs in it, and memory holds it, else in the problem's dtype."""
    wide = None if problem.device.type == "mps" else Probe.of(problem, torch.float64)  # no float64 there
    able = wide is not None and _able(problem, wide)
    # the same in every process: differences, which one of them may need, are of the data of all
    return wide if wide is not None and all(ranks().gathered(able)) else Probe.of(problem, problem.dtype)


def _able(problem: "Problem", wide: Probe) -> bool:
    """Return whether a probe has its gradient and, of products that are asked for, memory for what is asked of them."""
    try:
        with problem.measuring():
            known = bool(wide.slope.isfinite().all())  # the model may hold float32 constants of its own
            _ = known and problem.hvp_method != "differences" and wide.fault
    except (*UNKNOWN, MemoryError) as error:
        if out_of_memory(error) and problem.dtype == torch.float64:
            raise
        return False
    return True


def refuse_wrong_slope(probe: Slopes) -> None:
    """Raise ProblemError where differences of the loss are not what its gradient says."""
    wrong = probe.wrong_slope()
    sizes = probe.theta.abs()
    largest, middle = float(sizes.max()), float(sizes[sizes > 0].median()) if bool(sizes.any()) else 0.0
    if wrong and largest > APART * middle:
        raise ProblemError(
            f"A weight is {largest:.2g} in size, where their median is {middle:.2g}: no step along all of them shows "
            "whether the gradient is the derivative of the loss. Expected weights less far apart. Look whether the "
            "training diverged, or leave that parameter out of theta (`--parameters`)."
        )
    if wrong:
        raise ProblemError(
            f"The gradient is not the derivative of the loss: it differs by {100 * wrong:.2g} % from differences of "
            "the loss. Expected the same. Rounding or quantization inside the model (straight-through estimators), "
            "gradient reversal and custom backward passes do this: measure the model without them."
        )


# --- differences


def by_differences(
    problem: "Problem", probe: Slopes, product: Callable[[Tensor, float], Tensor], why: str
) -> Derivatives:
    """Choose the step on a micro-batch, and measure the error of products over all data, of v and a step, with it."""
    with problem.measuring():
        step, known = _best_step(probe)
        lopsided = _lopsided(probe, step)
    if lopsided > max(WORST, 10 * known):
        raise ProblemError(
            f"The gradient is that of no function: its differences are not symmetric, by {100 * lopsided:.2g} %. "
            f"Expected u'Hv = v'Hu. {why} A custom backward pass or entries without a gradient (`padding_idx` of "
            "F.embedding) do this: mend it."
        )
    slope = probe.length(problem.gradient())
    found = _known(probe, product, slope, step)
    for smaller in (step / 10, step / 100):  # more samples have more kinks, and nearer ones
        if found.relative_error <= max(10 * known, 1e-6):
            break
        found = min(found, _known(probe, product, slope, smaller), key=lambda one: one.relative_error)
    if not found.relative_error <= WORST:
        raise ProblemError(
            f"Neither autograd nor differences give the second derivatives. {why} Central differences with two steps "
            f"disagree by {100 * found.relative_error:.2g} %. Expected {100 * WORST:.0f} % or less. Take "
            "`--dtype float64`, or measure what needs no second derivative: `gapscope gap`, `near-rank`."
        )
    note = (
        f"second derivatives by central differences of the gradient in {str(found.dtype)[6:]}, step {found.step:.1g}, "
        f"relative error {found.relative_error:.1g} as two steps disagree. {why}"
    )
    return replace(found, note=note)


def _best_step(probe: Slopes) -> tuple[float, float]:
    """Return the smallest step at which two decades agree well enough, or best, and their relative disagreement.

    The smallest: other directions meet kinks that these do not.  On ReLU networks with the step of best agreement
    (7e-11) the top eigenvalue came out 24 times too large, 2 of 42 off; with the smallest at 1e-6 all were right.
    """
    v, size, length = probe.directions[0], probe.length(probe.theta), probe.length
    enough, rounding = (1e-6 if probe.eps < 1e-10 else 1e-3), probe.eps * length(probe.slope)
    noise = 1e3 * rounding
    step, floor = 1e-2 * (size + 1), (1e-9 if probe.eps < 1e-10 else 1e-5) * (size or 1.0)
    larger, best = probe.difference(v, step), (step, float("inf"))
    if length(larger) <= noise / step:
        return step, 0.0  # nothing but rounding: the gradient is constant
    while step > floor:
        smaller = probe.difference(v, step / 10)
        # two differences that both round to 0 agree, too
        apart = length(larger - smaller) + rounding / (step / 10)
        gap = apart / max(length(larger), length(smaller), 1e-300)
        if gap < best[1] or gap <= enough:
            best = step / 10**0.5, gap
        step, larger = step / 10, smaller
    return best


def _lopsided(probe: Slopes, step: float) -> float:
    """Return |u'Hv - v'Hu| of differences, relative to what random numbers of their size would show."""
    u, v = probe.directions
    hu, hv = probe.difference(u, step), probe.difference(v, step)
    scale = (probe.length(hu) + probe.length(hv)) / probe.size**0.5
    return abs(probe.dot(u, hv) - probe.dot(v, hu)) / scale if scale > 0 else 0.0


def _known(probe: Slopes, product: Callable[[Tensor, float], Tensor], slope: float, step: float) -> Derivatives:
    """Return differences with this step, with their error: of steps half a decade larger and smaller, over all data.

    Truncation grows by 10 from the middle to the larger, rounding by 3 to the smaller: their disagreement is above
    either.  Along a random direction, and along its image, which is a sharp one.
    """

    def apart(v: Tensor) -> tuple[float, Tensor]:
        larger, smaller = (product(v, step * factor) for factor in (10**0.5, 10**-0.5))
        return probe.length(larger - smaller) + rounding, smaller

    rounding = probe.eps * slope / (step * 10**-0.5)
    error, image = apart(probe.directions[0])
    length = probe.length(image)
    if length > 0:
        sharp, image = apart(image / length)
        error, length = max(error, sharp), max(length, probe.length(image))
    return Derivatives("differences", error, error / length if length > 0 else 0.0, step, probe.theta.dtype)
