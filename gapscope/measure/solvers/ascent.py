"""Maximize a smooth function over a box |y_i| <= r_i: as Keskar et al. did, and by a better way.

`keskar`: 10 iterations of SciPy's L-BFGS-B.  Their stopping rules and start are not published; SciPy's default gradient
tolerance stops at once at a good minimizer and returns exactly 0, so it is off here, the start is a seeded random point
of the box, and the best point seen is kept, y = 0 among them.  Its value is the metric by definition, maximum or not.

`ascent`: projected gradients in u = y / r, of which the box is a cube; g is the gradient by u.  The first step, along
that by y at y = 0, takes a tenth of the coordinates to the walls.  After that, with s and d what the last step moved
u and g by,

    u <- P(u + (s's / -s'd) g)               where s'd < 0: the function bends down (Barzilai and Borwein 1988),
    u <- P(u + 30 e / mean|e|), e = g + d/2  else: all but coordinates of small slope go to the walls,

where P clips to the cube.  A convex function has its maximum at a vertex, and the second step, the gradient carried on,
goes to one; but coordinates whose slope changes its sign are not thrown from wall to wall.  After 6 evaluations, or
where it settles, it looks at the opposite of the best point, because the sign decides between maxima, if a quadratic
function would add .8 there of what the best does, and climbs from there if it does (1.13 and .88 on two boxes, whose
maximum is 1.0 and .02 % higher there, foretold as .99 and .87; .58 or less on fifteen others, where climbing from there
ended up to 10 % lower, and seven were looked at).  In another space, a manifold say, the gradient's change towards a
maximum that is known, H y about, takes the place of the gradient, in both signs.  No product of the Hessian, no memory
beyond a few vectors, nothing on the host.

Measured in the full space on 16 boxes (both digits networks and a perceptron 196-128-128, half-widths 5e-4, 1e-3, 5e-3;
MLP 784-512-512-10, 1e-3, 5e-3, and 5e-4 on 500 samples; on 128 sequences a transformer, 5e-4, 1e-3, 5e-3; on 48 images
ResNet-20, 1e-3), with 5 to 12 gradients, that at y = 0 counted: above L-BFGS-B's 10 iterations (12 or more) by up to
13 %, but .04 % below on ResNet-20; .9994 or more of its 100 where those were run; against 20 steps of APGD (21) .99 to
1.05, but .87 on the transformer at 5e-3, whose loss triples there.  Steps to vertices alone, r sign(g + .85 d) after
two shorter ones, as they were before, ended up to 14 % lower where the loss is no parabola within the box.  A top Ritz
vector as the start did not do better than gradients, and costs five products and the memory of their graphs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.optimize
import torch
from torch import Generator, Tensor

from gapscope.measure.operators import inner
from gapscope.results import Array, Status

Objective = Callable[[Tensor], tuple[float, Tensor]]  # y -> (value, gradient)

KESKAR_ITERATIONS = 10
KESKAR_START = 0.1  # of the box: gapscope's choice, the paper gives none


@dataclass(frozen=True)
class Maximum:
    """The best point found; `gap` bounds what a first-order step inside the box can still add there."""

    point: Tensor  # (n,)
    value: float
    start_value: float  # at y = 0
    evaluations: int  # of value and gradient
    iterations: int
    gap: float
    status: Status
    message: str
    slope: Tensor | None = field(default=None, kw_only=True)  # (n,) gradient at the point, where the solver knows it


def keskar(objective: Objective, radius: Tensor, start_value: float, rng: Generator) -> Maximum:
    """Run 10 iterations of L-BFGS-B; theta and the gradient pass through float64 on the host.

    Shapes: radius (n,).  Cost: about 11 evaluations, 20 vectors of length n.  Source: Keskar et al. 2017, metric 2.1.
    """
    box = radius.detach().cpu().double().numpy()
    start = KESKAR_START * box * (2 * torch.rand(len(box), generator=rng, dtype=torch.float64).numpy() - 1)
    best, best_point, evaluations = -math.inf, start, 0

    def negated(y: Array) -> tuple[float, Array]:
        nonlocal best, best_point, evaluations
        value, gradient = objective(torch.from_numpy(y).to(radius.device, radius.dtype))
        evaluations += 1
        if value > best:
            best, best_point = value, y.copy()
        return -value, -gradient.cpu().double().numpy()

    end = scipy.optimize.minimize(
        negated,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(-box, box),
        options={"maxiter": KESKAR_ITERATIONS, "gtol": 0.0, "ftol": 1e-14},
    )
    if -math.inf < best < start_value:  # its start was no higher: at a maximum, say
        best, best_point = start_value, np.zeros_like(box)
    status = Status.NONFINITE if not math.isfinite(best) else Status.EXACT
    if end.nit == 0 and status is Status.EXACT:
        status = Status.BUDGET_SPENT  # no iteration is a failure of the solver, not a flat loss
    point = torch.from_numpy(np.asarray(best_point)).to(radius.device, radius.dtype)
    return Maximum(point, best, start_value, evaluations, int(end.nit), math.nan, status, str(end.message))


def ascent(
    objective: Objective,
    radius: Tensor,
    start_value: float,
    starts: Sequence[Tensor],
    *,
    slope: Tensor | None = None,
    known: Maximum | None = None,
    evaluations: int = 12,
    tolerance: float = 1e-3,
) -> Maximum:
    """Climb to a point where no first-order step inside the box adds more, from one direction or several.

    `slope` is the gradient at y = 0 where a single start is another direction: it is 0 there.
    One start, the gradient at y = 0, has a look at the opposite; several have two steps to the walls each, and the
    climb goes on from the best point.  The promise g'(r sign(g) - y) of a full step is the conditional-gradient gap;
    CONVERGED means that it is within `tolerance` of the increase over y = 0.  Where three steps in a row go down,
    shorter ones are tried from the best point.  Where a `known` maximum of another solver is higher than what was
    found, the climb goes on from there: never lower than that, nor than at y = 0.

    Shapes: radius and starts (n,).  Cost: at most `evaluations`, a single start counted as one, and one more where
    `known` is higher; six vectors beside the radius.  Source: Barzilai and Borwein 1988, projected as by Birgin,
    Martinez and Raydan 2000; Frank and Wolfe 1956 (the gap); first step, extrapolation and opposite are ours.
    """
    climb = _Climb(objective, radius)
    for start in starts:
        climb.path(start, ONE if len(starts) == 1 else SEVERAL, slope)
    waiting, untried = known, len(starts) == 1
    evaluations -= untried  # what it starts from
    if -math.inf < climb.best < start_value:  # so far all is lower than y = 0, whose opposite is itself
        climb.look(torch.zeros_like(radius))
        untried = False
    while math.isfinite(climb.best):
        gap = climb.gap()
        rise = climb.best - start_value
        settled = gap <= CLOSER * tolerance * rise
        if untried and (settled or climb.evaluations >= PATIENCE) and climb.evaluations + 2 <= evaluations:
            untried = False
            if climb.opposite_is_worth(start_value, starts[0] if slope is None else slope):
                climb.opposite(start_value)
                continue
        if settled or climb.stuck or climb.evaluations >= evaluations:
            if waiting is not None and waiting.value > climb.best:  # one more than the budget, if need be
                climb.look(waiting.point)
                waiting = None
                continue
            why = "fixed point" if settled else "no step up" if climb.stuck else "out of evaluations"
            status = Status.CONVERGED if gap <= tolerance * rise else Status.BUDGET_SPENT
            return Maximum(
                climb.point,
                climb.best,
                start_value,
                climb.evaluations,
                climb.steps,
                gap,
                status,
                why,
                slope=climb.gradient,
            )
        climb.step()
    spent, nothing = climb.evaluations, "the loss is not finite"
    return Maximum(climb.point, climb.best, start_value, spent, climb.steps, math.nan, Status.NONFINITE, nothing)


ONE, SEVERAL = (0.1,), (0.2, 1.0)  # share of the coordinates at the walls, step by step: from one start, from several
AHEAD = 0.5  # of the last change of the gradient
FAR = 30.0  # half-widths that a coordinate of mean slope goes where the function bends up: small ones stay inside
MOST = 1e30  # of either factor: an infinite one would make coordinates without a slope NaN
PATIENCE = 6  # evaluations before the opposite is looked at in any case
CLOSER = 0.25  # of the tolerance: 1 to 5 evaluations more, for .02 to .4 % of the increase on seven boxes of seventeen
WORTH = 0.8  # of the increase at the best point: what the opposite has to add to be followed
FALLS = 2  # steps in a row that may go down: those of Barzilai and Borwein do, and rise the more after it


class _Climb:
    """The best point so far with its gradient, and where the path stands."""

    def __init__(self, objective: Objective, radius: Tensor) -> None:
        self.objective, self.radius, self.evaluations, self.steps, self.falls = objective, radius, 0, 0, 0
        self.best = self.value = -math.inf
        self.here = self.slope = self.point = self.gradient = torch.zeros_like(radius)
        self.moved: Tensor | None = None  # the last step, and what it did to the gradient
        self.turned = self.slope
        self.rate = 0.0  # of the last step of Barzilai and Borwein, in half-widths squared
        self.length = 1.0  # of steps from the best point, where others went down: of such a step, or to a vertex

    @property
    def stuck(self) -> bool:
        """Return whether no step goes up."""
        return self.length < 1 / 16

    def gap(self) -> float:
        """Return what a first-order step inside the box adds to the best point."""
        return float(inner(self.gradient, _vertex(self.gradient, self.radius, self.point) - self.point))

    def path(self, start: Tensor, shares: Sequence[float], slope: Tensor | None) -> None:
        """Go along a start, and then along the gradient, so many coordinates to the walls."""
        self.here, self.slope, self.turned = torch.zeros_like(start), start, torch.zeros_like(start)
        for share in shares:
            ahead = self.slope + AHEAD * self.turned
            if slope is not None and self.slope is start:
                self.slope = slope
            self.look(_clipped(ahead, self.radius, share) if share < 1 else _vertex(ahead, self.radius, self.here))

    def step(self) -> None:
        """Go on; after some steps down, again from the best point, less and less far."""
        if self.falls > FALLS:
            self.here, self.slope = self.point, self.gradient  # what the next step is told of
            if not self.look(self._again()):
                self.length /= 4
            return
        if self.moved is None:
            self.here, self.slope, self.turned = self.point, self.gradient, torch.zeros_like(self.point)
        bend = float(inner(self.moved, self.turned)) if self.moved is not None else 0.0
        if bend < 0:
            assert self.moved is not None
            scaled = self.moved / self.radius
            self.rate = min(float(inner(scaled, scaled)) / -bend, MOST)
            to = self._within(self.here + self.slope * self.radius * self.radius * self.rate)
        else:
            to = self.radius * (self.slope + AHEAD * self.turned)
            to *= self.radius * min(FAR / max(float(to.abs().mean()), 1e-300), MOST)
            to = self._within(self.here + to)
        if torch.equal(to, self.here):
            self.falls = FALLS + 1
        else:
            self.look(to)

    def _again(self) -> Tensor:
        if self.rate:
            return self._within(self.point + self.gradient * self.radius * self.radius * (self.rate * self.length))
        return self.point + self.length * (_vertex(self.gradient, self.radius, self.point) - self.point)

    def _within(self, y: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(y, -self.radius), self.radius)

    def opposite_is_worth(self, start_value: float, slope: Tensor) -> bool:
        """Return whether a quadratic function with this slope at y = 0 would add enough at the opposite."""
        rise = self.best - start_value
        return rise <= 0 or rise - 2 * float(inner(slope, self.point)) > WORTH * rise

    def opposite(self, start_value: float) -> None:
        """Evaluate at the opposite of the best point, and go on from there where it is nearly as high."""
        stood, best = (self.here, self.slope, self.moved, self.turned, self.falls), self.best
        self.look(-self.point)
        if self.value - start_value > WORTH * (best - start_value):
            self.moved = None
            if self.value <= best:
                self.look(_vertex(self.slope, self.radius, self.here))
        else:
            self.here, self.slope, self.moved, self.turned, self.falls = stood

    def look(self, y: Tensor) -> bool:
        """Evaluate at y, go there, and return whether it is the best so far."""
        self.value, slope = self.objective(y)
        self.evaluations += 1
        self.moved, self.turned = y - self.here, slope - self.slope
        self.here, self.slope = y, slope
        rose = self.value > self.best
        self.falls = 0 if rose else self.falls + 1 if math.isfinite(self.value) else FALLS + 1
        if rose:
            self.best, self.point, self.gradient, self.length = self.value, y, slope, 1.0
            self.steps += 1
        return rose


def _clipped(direction: Tensor, radius: Tensor, share: float) -> Tensor:
    """Return r clip(d / c, -1, 1), c such that this share of the coordinates sits at the walls."""
    sizes = direction.abs()
    sizes = sizes[:: 1 + len(sizes) // 1_000_000]  # a sample will do, and torch.quantile takes 16 million at most
    scale = torch.quantile(sizes, 1 - share).clamp_min(torch.finfo(radius.dtype).tiny)
    return radius * (direction / scale).clamp(-1, 1)


def _vertex(direction: Tensor, radius: Tensor, otherwise: Tensor) -> Tensor:
    """Return r sign(d), keeping `otherwise` where d is exactly zero (dead units)."""
    return torch.where(direction == 0, otherwise, radius * direction.sign())
