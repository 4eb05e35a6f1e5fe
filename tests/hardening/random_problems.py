"""Random problems, reproducible from a number, and what is true of each: dense, in float64, by torch.func alone.

Models, losses and data are drawn by kind; every third problem is made awkward in one way: weights or data scaled by
1e-6 to 1e6, all samples alike, one class, one sample, ...  Weights and data are float32 numbers, so that a problem in
float32 and its truth in float64 are of the same function.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.measure.problem import Problem
from tests.problems import ZOO, problem

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, nn.Identity)
LOSSES = ("cross-entropy", "mse", "bce-with-logits")
AWKWARD = ("weights", "data", "alike", "constant", "zero data", "one class", "one sample", "two samples", "twice")
OUTPUTS = 3
SIZE = 300  # parameters at most: the dense Hessian is the truth


@dataclass(frozen=True, eq=False)
class Drawn:
    """A problem with its truth; `awkward` says in what way, `trained` how many steps of Adam it has behind it."""

    number: int
    kind: str
    awkward: str
    trained: int
    problem: Problem

    def __repr__(self) -> str:
        where = self.problem
        return (
            f"{self.number}: {self.kind}, {where.loss_function.name}, n {where.size}, N {where.samples}, "
            f"{str(where.dtype)[6:]}, {self.awkward or 'plain'}, trained {self.trained}"
        )

    @cached_property
    def _function(self) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], Tensor, Tensor, Tensor]:
        """Return the losses (B,) as a function of theta and samples, and theta, inputs and targets, in float64."""
        where = self.problem
        fixed = {name: b.double() if b.is_floating_point() else b for name, b in where.model.named_buffers()}
        x, y = (t.double() if t.is_floating_point() else t for t in (where.data.inputs, where.data.targets))

        def losses(theta: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
            named = where.parameters.unflatten(theta)
            return where.bound.per_sample(functional_call(where.model, {**named, **fixed}, (inputs,)), targets)

        return losses, where.theta.double(), x, y

    def loss(self, theta: Tensor) -> float:
        """Return L at theta (n,)."""
        losses, _, x, y = self._function
        with torch.no_grad():
            return float(losses(theta, x, y).mean())

    @cached_property
    def hessian(self) -> np.ndarray:
        """Return H (n, n)."""
        losses, theta, x, y = self._function
        with sdpa_kernel(SDPBackend.MATH):
            _, pull = vjp(grad(lambda at: losses(at, x, y).mean()), theta)
            rows = torch.stack([pull(e)[0] for e in torch.eye(len(theta), dtype=torch.float64)])
        dense = rows.detach().numpy()
        return (dense + dense.T) / 2

    @cached_property
    def spectrum(self) -> np.ndarray:
        """Return the eigenvalues of H, ascending."""
        return np.linalg.eigvalsh(self.hessian)

    @cached_property
    def gradients(self) -> np.ndarray:
        """Return the gradient of every sample (N, n)."""
        losses, theta, x, y = self._function
        one = grad(lambda at, a, b: losses(at, a[None], b[None])[0])
        with sdpa_kernel(SDPBackend.MATH):
            if self.kind == "lstm":  # vmap has no rule for it
                return torch.stack([one(theta, a, b) for a, b in zip(x, y, strict=True)]).detach().numpy()
            return vmap(one, in_dims=(None, 0, 0))(theta, x, y).detach().numpy()

    @cached_property
    def spread(self) -> float:
        """Return the top eigenvalue of the mean of H_i^2 less H^2."""
        losses, theta, x, y = self._function
        with sdpa_kernel(SDPBackend.MATH):
            each = [self._hessian_of(losses, theta, a, b) for a, b in zip(x, y, strict=True)]
        apart = torch.stack(each) - torch.from_numpy(self.hessian)
        return float(torch.linalg.eigvalsh((apart @ apart).mean(0))[-1])

    @staticmethod
    def _hessian_of(losses: Callable[..., Tensor], theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        _, pull = vjp(grad(lambda at: losses(at, x[None], y[None])[0]), theta)
        return torch.stack([pull(e)[0] for e in torch.eye(len(theta), dtype=torch.float64)]).detach()

    def along(self, directions: Tensor) -> np.ndarray:
        """Return L(theta + d) (k,) for many d (k, n)."""
        losses, theta, x, y = self._function
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            if self.kind == "lstm":  # vmap has no rule for it
                return torch.stack([losses(theta + d, x, y).mean() for d in directions]).numpy()
            return vmap(lambda d: losses(theta + d, x, y).mean())(directions).numpy()


def drawn(number: int, dtype: torch.dtype | None = None) -> Drawn:
    """Return the problem of a number; its dtype is drawn, too, where none is given: the same otherwise."""
    rng = np.random.default_rng([7, number])
    kind = str(
        rng.choice(["mlp", "mlp", "mlp", "mlp", "norm mlp", *(name for name in ZOO if name != "tied embedding")])
    )
    loss = str(rng.choice(LOSSES, p=[0.5, 0.3, 0.2]))
    awkward = str(rng.choice(AWKWARD)) if rng.random() < 1 / 3 else ""
    trained = int(rng.choice([0, 0, 30, 200]))
    wide = bool(rng.random() < 0.4)
    samples = {"one sample": 1, "two samples": 2}.get(awkward, int(rng.choice([8, 33, 50, 70])))
    torch_rng = Generator().manual_seed(number)
    model, shape = _model(kind, rng, number)
    x = torch.randn(samples, *shape, generator=torch_rng) * float(10 ** rng.uniform(-0.5, 0.5))
    y = torch.randint(OUTPUTS, (samples,), generator=torch_rng)
    if awkward == "data":
        x *= float(10 ** rng.uniform(-6, 6))
    elif awkward == "alike":
        x[:] = x[:1].clone()
    elif awkward == "constant":
        x[:] = 1.0
    elif awkward == "zero data":
        x.zero_()
    elif awkward == "one class":
        y.zero_()
    elif awkward == "twice":
        half = samples // 2
        x[half : 2 * half], y[half : 2 * half] = x[:half].clone(), y[:half].clone()
    if loss == "mse":
        y = torch.randn(samples, OUTPUTS, generator=torch_rng)
    elif loss == "bce-with-logits":
        y = torch.nn.functional.one_hot(y, OUTPUTS).float()
    scale = float(10 ** rng.uniform(-6, 6)) if awkward == "weights" else float(10 ** rng.uniform(-0.3, 0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    _train(model, problem(model, x, y, loss), trained)
    dtype = dtype or (torch.float64 if wide else torch.float32)
    return Drawn(number, kind, awkward, trained, problem(model.to(dtype).eval(), x, y, loss))


def _model(kind: str, rng: np.random.Generator, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        if kind in ZOO:
            return ZOO[kind].build().eval(), ZOO[kind].shape
        activation, inputs = ACTIVATIONS[rng.integers(len(ACTIVATIONS))], int(rng.integers(1, 8))
        widths = [inputs, *(int(w) for w in rng.integers(2, 9, size=int(rng.integers(0, 4)))), OUTPUTS]
        bias, layers = bool(rng.random() < 0.8), list[nn.Module]()
        for width, after in itertools.pairwise(widths):
            layers += [nn.Linear(width, after, bias=bias)]
            if len(layers) < 3 * (len(widths) - 2):
                layers += [nn.LayerNorm(after) if kind == "norm mlp" else nn.Identity(), activation()]
        model = nn.Sequential(*layers)
        assert sum(p.numel() for p in model.parameters()) <= SIZE
        return model, (inputs,)
    finally:
        torch.set_rng_state(state)


def _train(model: nn.Module, where: Problem, steps: int) -> None:
    """Take full-batch Adam steps; weights that are not finite any more stay as they were."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        where.loss_function.per_sample(model(where.data.inputs), where.data.targets).mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        model.load_state_dict(before)
