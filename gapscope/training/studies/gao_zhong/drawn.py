"""One step of SGD from the weights at hand, for several batch sizes: taken and logged, and by the formulas."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from gapscope.measure.operators import length
from gapscope.results import Array, Quantity, Result, Status
from gapscope.training.recipe import Recipe
from gapscope.training.trainer import Running, Trained, train

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem


@dataclass(frozen=True, kw_only=True)
class DrawnStepsResult(Result):
    """Means over draws as logged, with standard errors over draws, and the same by the formulas."""

    gradient_square: Quantity
    gradient_square_formula: Quantity
    step_square: Quantity
    loss_change: Quantity
    loss_change_formula: Quantity
    own_loss_change: Quantity


@dataclass(frozen=True)
class DrawnSteps:
    """What one step of plain SGD does for several batch sizes, at the same weights.

    Every draw is a training of one step from the weights that are measured, with its log.  The formulas, G and Sigma
    being mean and covariance of the samples' gradients g_i, for B of N samples drawn without replacement:

        E|g_B|^2 = |G|^2 + tr(Sigma) s,    s = (N - B) / ((N - 1) B)            by layer
        E L(w - eta g_B) - L(w) = -eta |G|^2 + eta^2 / 2 (G'HG + tr(H Sigma) s)    to second order

    `noise` gives tr(Sigma) by layer and tr(H Sigma).  Networks with dropout or BatchNorm train in another mode than
    they are measured in: there logged and predicted differ by that.

    Cost: for every draw a step and a pass over the data.  Source: gapscope's own, after Gao and Zhong 2020.
    """

    name: ClassVar[str] = "gao-zhong-draws"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("noise",)

    batch_sizes: tuple[int, ...]
    rate: float
    draws: int

    def __call__(self, context: "Context") -> DrawnStepsResult:
        """Measure at the weights of the measured split."""
        problem, noise = context.problem(), context.result("noise").quantities()
        sizes, samples = np.array(self.batch_sizes, dtype=np.float64), problem.samples
        share = (samples - sizes) / (max(samples - 1, 1) * sizes)
        gradient = problem.gradient()
        blocks = problem.parameters.blocks()
        square = np.array([float(length(gradient[where])) ** 2 for where in blocks.values()])
        bend = float(problem.curvature_along(gradient)[1].mean())
        before = problem.loss()
        first = self.draws * int(context.training().get("seed", 0))  # other batches for other runs: they average out
        draws = range(first, first + self.draws)
        drawn = [[self._step(problem, size, draw) for draw in draws] for size in self.batch_sizes]
        dims = {"batch size": tuple(map(str, self.batch_sizes))}
        layers = dims | {"layer": tuple(blocks)}
        noisy = float(noise["curvature_noise"].value)
        return DrawnStepsResult(
            status=Status.EXACT,
            gradient_square=_over_draws(_logged(drawn, "gradient_norm") ** 2, "|g_B|^2, logged", layers),
            gradient_square_formula=_formula(
                square + share[:, None] * noise["covariance_trace_blocks"].value, "|G|^2 + tr(Sigma) s", layers
            ),
            step_square=_over_draws(_logged(drawn, "step_length") ** 2, "squared length of the step, logged", layers),
            loss_change=_over_draws(
                np.array([[one.train_loss for one in several] for several in drawn]) - before,
                "change of the loss over all data, logged",
                dims,
            ),
            loss_change_formula=_formula(
                -self.rate * square.sum() + self.rate**2 / 2 * (bend + noisy * share),
                "-eta |G|^2 + eta^2 / 2 (G'HG + tr(H Sigma) s)",
                dims,
            ),
            own_loss_change=_over_draws(
                _logged(drawn, "loss_change"),
                "change of the loss of the batch that the step was taken on, logged",
                dims,
            ),
        )

    def _step(self, problem: "Problem", size: int, draw: int) -> Trained:
        recipe = Recipe(batch_size=size, lr=self.rate, steps=1, seed=draw)
        running = Running(device=problem.device, log_every=1)
        return train(lambda: copy.deepcopy(problem.model), problem.data, problem.loss_function, recipe, running=running)


def _logged(drawn: Sequence[Sequence[Trained]], name: str) -> Array:
    """Return one quantity of the logs, (sizes, draws) or (sizes, draws, layers)."""
    logs = [[one.log for one in several] for several in drawn]
    return np.array([[log.quantities()[name].value[0] for log in several if log] for several in logs])


def _over_draws(values: Array, doc: str, dims: dict[str, tuple[str, ...]]) -> Quantity:
    draws = values.shape[1]
    error = values.std(axis=1, ddof=1) / np.sqrt(draws) if draws > 1 else None
    doc = f"{doc}; mean over {draws} draws, the error is over draws"
    return Quantity(value=values.mean(axis=1), sampling_error=error, doc=doc, dims=tuple(dims), labels=dims)


def _formula(values: Array, doc: str, dims: dict[str, tuple[str, ...]]) -> Quantity:
    return Quantity(value=values, doc=doc, dims=tuple(dims), labels=dims)
