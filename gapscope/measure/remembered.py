"""A problem whose passes over the data are parts of long work: kept as they finish, not made again by a resumed run.

Solvers are deterministic functions of what these passes return, so none of them knows.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gapscope.measure.blocks import Blocks
from gapscope.measure.differentiable import Precision
from gapscope.measure.operators import Operator
from gapscope.measure.problem import Problem
from gapscope.measure.resume import Parts
from gapscope.results import Array

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Remembered(Problem):
    """A problem that keeps what its passes return: the same numbers, computed at most once."""

    parts: Parts = field(default_factory=Parts)

    @classmethod
    def of(cls, problem: Problem, parts: Parts) -> "Remembered":
        """Return a problem, and the one on its other split, with their passes kept among these parts."""
        given = {one.name: getattr(problem, one.name) for one in fields(problem) if one.init}
        other = problem.origin.other
        if other is not None:
            given["origin"] = replace(problem.origin, other=cls.of(other, parts))
        made = cls(**{**given, "parts": parts})
        object.__setattr__(made, "repaired", problem.repaired)  # one and the same: what is met here is said there
        return made

    @cached_property
    def content(self) -> str:
        """Return a digest of all that a pass is a function of, beside what it is asked with."""
        facts = [self.origin.split, self.data.fingerprint, self.samples, self.origin.limit_seed, self.chosen]
        facts += [self.loss_function.name, self.batchnorm, self.micro_batch, self.hvp_method, str(self.dtype)]
        state = self.model.state_dict()
        return digest(repr((facts, sorted(state), repr(self.model))), *(state[name] for name in sorted(state)))

    def kept(self, name: str, compute: Callable[[], T], *asked: Any) -> T:
        """Return what a pass returns, a part whose key is its name, this problem and what it is asked with."""
        return self.parts.recall(lambda: f"{self.content} {digest(name, *asked)}", compute, self.device)

    def outcomes(self, theta: Tensor | None = None) -> tuple[Array, Array | None]:
        """Return the losses and what is right, (N,) each."""
        whole = super().outcomes
        return self.kept("outcomes", lambda: whole(theta), theta)

    def loss_and_gradient(self, theta: Tensor | None = None) -> tuple[float, Tensor]:
        """Return L(theta) and its gradient (n,)."""
        whole = super().loss_and_gradient
        return self.kept("gradient", lambda: whole(theta), theta)

    def hvp(self, v: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return H v (n,)."""
        whole = super().hvp
        return self.kept("product", lambda: whole(v, theta), v, theta)

    def hessian(self, precision: Precision = "full") -> Operator:
        """Return the Hessian."""
        return self._operator(f"hessian {precision}", super().hessian(precision))

    def gauss_newton(self) -> Operator:
        """Return the Gauss-Newton matrix."""
        return self._operator("gauss-newton", super().gauss_newton())

    def residual(self) -> Operator:
        """Return the Hessian less the Gauss-Newton matrix."""
        return self._operator("residual", super().residual())

    def hessian_blocks(self) -> Blocks:
        """Return the Hessian with its diagonal blocks."""
        return _Blocks(self)

    def gauss_newton_diagonal(self) -> Tensor:
        """Return the diagonal of the Gauss-Newton matrix (n,)."""
        return self.kept("gauss-newton-diagonal", super().gauss_newton_diagonal)

    def curvature_along(self, v: Tensor) -> tuple[Tensor, Array]:
        """Return H v (n,) and v' H_i v (N,)."""
        whole = super().curvature_along
        return self.kept("curvature-along", lambda: whole(v), v)

    def slopes_along(self, v: Tensor) -> Array:
        """Return g_i'v (N,)."""
        whole = super().slopes_along
        return self.kept("slopes-along", lambda: whole(v), v)

    def weighted_gradient(self, weights: Array | Tensor) -> Tensor:
        """Return 1/N sum_i w_i g_i (n,)."""
        whole = super().weighted_gradient
        return self.kept("weighted-gradient", lambda: whole(weights), torch.as_tensor(weights))

    def gradient_squares(self, center: Tensor | None = None) -> tuple[Array, Tensor]:
        """Return |g_i - center|^2 by layer (N, layers), and the mean gradient (n,)."""
        whole = super().gradient_squares
        return self.kept("gradient-squares", lambda: whole(center), center)

    def curvature_squares(self, v: Tensor, center: Tensor | None = None) -> tuple[Array, Tensor]:
        """Return |d_i|^2 (N,) and 1/N sum_i H_i d_i (n,)."""
        whole = super().curvature_squares
        return self.kept("curvature-squares", lambda: whole(v, center), v, center)

    def _operator(self, name: str, bare: Operator) -> Operator:
        both = bare.together
        return replace(
            bare,
            matvec=lambda v: self.kept(name, lambda: bare.matvec(v), v),
            together=both and (lambda vectors: self.kept(f"{name} together", lambda: both(vectors), vectors)),
        )


class _Blocks(Blocks):
    """The blocks of a remembered problem."""

    problem: Remembered

    def whole(self) -> Operator:
        return self.problem._operator("hessian full", super().whole())

    def layer(self, name: str) -> Operator:
        return self.problem._operator(f"hessian of {name}", super().layer(name))

    def apart(self) -> Operator:
        return self.problem._operator("hessian apart", super().apart())


def digest(*asked: Any) -> str:
    """Return a digest of tensors and of what has a text."""
    found = hashlib.blake2b(digest_size=16)
    for one in asked:
        if isinstance(one, Tensor):
            plain = one.detach().cpu().contiguous()
            found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
            found.update(np.ascontiguousarray(plain.reshape(-1).view(torch.uint8).numpy()).data)
        else:
            found.update(f"{one}\n".encode())
    return found.hexdigest()
