"""Spectral density of the Hessian."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np

from gapscope.results import Quantity, Result, Status, one_sided, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.solvers.quadrature import SpectralDensity

PROBES = 3  # as quadrature.FEWEST
REACH = 4  # widths of grid beyond the outermost Ritz values


@dataclass(frozen=True, kw_only=True)
class DensityResult(Result):
    """What `density` measures."""

    density: Quantity
    mass_near_zero: Quantity
    mass_below_zero: Quantity
    largest: Quantity
    smallest: Quantity
    width: Quantity
    cut: Quantity


@dataclass(frozen=True)
class _Masses:
    """The shares of eigenvalues near and below zero, and their errors: what is chance, and what more steps move."""

    cut: float
    near: float
    below: float
    errors: tuple[float, float]
    noise: float
    moved: float


@dataclass(frozen=True)
class Density:
    """Spectral density of the Hessian of the loss, by stochastic Lanczos quadrature, with the masses near and below 0.

    1/n sum_i delta(t - lambda_i), each delta broadened to a Gaussian of a stated width.  What a first run finds weighs
    1/n each, and probes tell what all else weighs.  The error of a mass is its standard error over probes, widened
    where they are few, its standard deviation over the last third of their Lanczos steps, and one eigenvalue at each
    edge within the spectrum.  Probes are added until both masses are known to the tolerance.
    """

    name: ClassVar[str] = "density"
    version: ClassVar[str] = "3"  # "2": no first run taken out, and the last of the Gauss rules alone
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()

    probes: Annotated[int, "random vectors after the first, at most: three are enough where they agree"] = 8
    steps: Annotated[int, "Lanczos steps, one product each, from every vector"] = 20
    cut: Annotated[float, "near zero means |lambda| <= this times the largest |Ritz value|"] = 1e-2
    broadening: Annotated[float, "width of the Gaussians over the range of the Ritz values"] = 1e-2
    points: Annotated[int, "points of the grid"] = 201
    tolerance: Annotated[float, "error allowed on the two masses"] = 0.02
    gauss_newton: Annotated[bool, "measure the Gauss-Newton matrix instead of the Hessian"] = False

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return how many passes over the data this takes, if three probes are enough."""
        return {"product": self._products(problem, min(self.probes, PROBES))}

    def memory(self, problem: "Problem") -> int:
        """Return about how many bytes this takes above the loaded model: two bases, kept graphs, a micro-batch's."""
        from gapscope.measure.allocation import idle_beside

        vector = problem.size * problem.theta.element_size()
        graphs = min(problem.memory_budget // 2, problem.samples * problem.graph_bytes_per_sample)
        graphs += idle_beside(graphs) if problem.device.type == "cpu" else 0
        graphs += problem.micro_batch * problem.graph_bytes_per_sample
        return graphs + (2 * min(self.steps, problem.size) + 8) * vector

    def __call__(self, context: "Context") -> DensityResult:
        """Run Lanczos from every probe on the measured split."""
        from gapscope.measure.solvers.hutchinson import caution
        from gapscope.measure.solvers.quadrature import spectral_density

        self._refuse_nonsense()
        problem, monitor = context.problem(), context.monitor
        monitor.begin("density", self._products(problem, self.probes))
        found = spectral_density(
            problem.gauss_newton() if self.gauss_newton else problem.hessian(),
            context.generator("density"),
            probes=self.probes,
            steps=self.steps,
            basis_bytes=problem.memory_budget // 2,
            enough=lambda found: found.finite and max(self._masses(found).errors) <= self.tolerance,
            watch=lambda spent, largest, _: monitor.say(f"product {spent}  largest Ritz value {largest:.4g}"),
        )
        if not found.finite:
            return self._nonfinite(problem, found.matvecs)
        largest, smallest = found.largest, found.smallest
        scale, inexact = max(abs(largest), abs(smallest)), problem.derivatives.error
        # a spectrum of one point still gets a bell: a thousandth of its distance from zero (of 1 at zero) for the range
        width = self.broadening * max(largest - smallest, 1e-3 * scale, 1e-3 * (scale == 0))
        masses = self._masses(found)
        cut = masses.cut
        grid = np.linspace(smallest - REACH * width, largest + REACH * width, self.points)
        density, noise, moved = found.broadened(grid, width)
        close = max(masses.errors) <= self.tolerance
        notes = list(self._notes(problem))
        if not close:
            remedy = "probes" if masses.noise >= masses.moved else "steps"
            notes.insert(0, f"not converged: the masses are not that well known; raise `--{remedy}`")
        how = (
            f"; error: standard error over {len(found.nodes)} probes, deviation over the last third of their steps, "
            "and one eigenvalue at each edge within the spectrum"
        )
        return DensityResult(
            status=Status.CONVERGED if close else Status.BUDGET_SPENT,
            matvecs=found.matvecs,
            notes=tuple(notes),
            density=Quantity(
                value=density,
                numerical_error=np.hypot(caution(len(found.nodes) - 1) * noise, moved),
                drawn="bars",
                contrast="difference",
                dims=("grid",),
                labels={"grid": tuple(f"{t:.12g}" for t in grid)},
                doc=f"spectral density at each lambda, Gaussians of width {width:.4g}; error: standard error over "
                f"{len(found.nodes)} probes, and deviation over the last third of their steps; not how far the "
                "bells of the single largest eigenvalues may lie from their places: 1 % of the largest at most",
            ),
            mass_near_zero=Quantity(
                value=scalar(masses.near),
                numerical_error=scalar(masses.errors[0]),
                contrast="difference",
                doc=f"share of eigenvalues with |lambda| <= {cut:.4g}" + how,
            ),
            mass_below_zero=Quantity(
                value=scalar(masses.below),
                numerical_error=scalar(masses.errors[1]),
                contrast="difference",
                doc=f"share of eigenvalues with lambda < -{cut:.4g}" + how,
            ),
            largest=Quantity(
                value=scalar(largest),
                bound=one_sided("lower", largest, inexact),
                drawn="detail",
                doc="largest Ritz value: a lower bound on the top eigenvalue, not converged",
            ),
            smallest=Quantity(
                value=scalar(smallest),
                contrast="difference",
                bound=one_sided("upper", smallest, inexact),
                drawn="detail",
                doc="smallest Ritz value: an upper bound on the smallest eigenvalue, not converged",
            ),
            width=Quantity(
                value=scalar(width), drawn="detail", doc="standard deviation of the Gaussians of the density"
            ),
            cut=Quantity(value=scalar(cut), drawn="detail", doc="|lambda| up to this is near zero"),
        )

    def _products(self, problem: "Problem", probes: int) -> int:
        first = min(self.steps, problem.size)
        return first + probes * min(self.steps, problem.size - first)

    def _masses(self, found: "SpectralDensity") -> _Masses:
        from gapscope.measure.solvers.hutchinson import caution

        cut = max(self.cut * max(abs(found.largest), abs(found.smallest)), found.rounding)
        near, near_noise, near_moved = found.mass(-cut, cut)
        below, below_noise, below_moved = found.mass(-np.inf, np.nextafter(-cut, -np.inf))
        wider = caution(len(found.nodes) - 1)
        errors = float(np.hypot(wider * near_noise, near_moved)), float(np.hypot(wider * below_noise, below_moved))
        return _Masses(cut, near, below, errors, wider * max(near_noise, below_noise), max(near_moved, below_moved))

    def _refuse_nonsense(self) -> None:
        from gapscope.errors import UsageError

        if self.probes < 2 or self.steps < 3 or not 0 < self.cut < 1 or not 0 < self.tolerance < 1:
            raise UsageError(
                f"density got probes={self.probes}, steps={self.steps}, cut={self.cut}, tolerance={self.tolerance}. "
                "Expected probes >= 2 (one has no error), steps >= 3, 0 < cut < 1 and 0 < tolerance < 1."
            )
        if not 0 < self.broadening <= 1 or self.points < 1 / self.broadening + 2 * REACH + 1:
            raise UsageError(
                f"density got broadening={self.broadening}, points={self.points}. Expected 0 < broadening <= 1 and "
                f"points of 1 / broadening + {2 * REACH + 1} or more: the grid must not step over a Gaussian."
            )

    def _notes(self, problem: "Problem") -> tuple[str, ...]:
        notes = []
        if self.gauss_newton:
            notes.append("operator: Gauss-Newton, not the Hessian")
        if problem.samples < problem.data.total:
            notes.append(f"measured on {problem.samples:,} of {problem.data.total:,} samples")
        return tuple(notes)

    def _nonfinite(self, problem: "Problem", spent: int) -> DensityResult:
        lost = Quantity(value=scalar(float("nan")), doc="not finite")
        labels = {"grid": tuple(str(i + 1) for i in range(self.points))}
        return DensityResult(
            status=Status.NONFINITE,
            matvecs=spent,
            notes=self._notes(problem),
            density=Quantity(value=np.full(self.points, np.nan), dims=("grid",), labels=labels, doc="not finite"),
            mass_near_zero=lost,
            mass_below_zero=lost,
            largest=lost,
            smallest=lost,
            width=lost,
            cut=lost,
        )
