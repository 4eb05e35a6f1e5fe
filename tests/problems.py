"""Small real problems that know their dense Hessian: closed forms, and a zoo of models with the Hessian by torch.func.

Closed forms are independent of autograd.  `dense_hessian` is independent of gapscope: float64, all samples at once,
one `torch.func.vjp` of `torch.func.grad` a row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.measure.context import Context, Subject
from gapscope.measure.loading import Data, Loss
from gapscope.measure.loading.losses import LOSSES
from gapscope.measure.problem import Problem


def data(inputs: Tensor, targets: Tensor, total: int | None = None) -> Data:
    """Return data without a file."""
    return Data(inputs, targets, "here", "-", len(inputs) if total is None else total)


def problem(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: str | Loss = "cross-entropy", **more: Any
) -> Problem:
    """Return a problem over data at hand; the model is cast by the caller."""
    found = LOSSES[loss] if isinstance(loss, str) else loss
    return Problem(model=model, data=data(inputs, targets), loss_function=found, **more)


def context(*analyzers: Any, seed: int = 0, training: dict[str, Any] | None = None, **problems: Problem) -> Context:
    """Return a context over problems by split."""
    subject = Subject(problems=problems, training=training or {})
    return Context(subjects=(subject,), seed=seed, analyzers={analyzer.name: analyzer for analyzer in analyzers})


def measure(analyzer: Any, where: Problem, *, seed: int = 0, training: dict[str, Any] | None = None) -> Any:
    """Return what an analyzer finds on one problem."""
    return context(analyzer, seed=seed, training=training, train=where).result(analyzer.name)


def dense_hessian(where: Problem) -> np.ndarray:
    """Return H (n, n) in float64 from all samples at once, by torch.func alone."""
    named = {name: p for name, p in where.model.named_parameters() if p.requires_grad}
    fixed = {name: p.double() for name, p in where.model.named_parameters() if not p.requires_grad}
    fixed |= {name: b.double() if b.is_floating_point() else b for name, b in where.model.named_buffers()}
    x, y = (t.double() if t.is_floating_point() else t for t in (where.data.inputs, where.data.targets))
    theta = torch.cat([p.detach().double().flatten() for p in named.values()])

    def loss(vector: Tensor) -> Tensor:
        parts, start = {}, 0
        for name, p in named.items():
            parts[name] = vector[start : start + p.numel()].reshape(p.shape)
            start += p.numel()
        return where.loss_function.per_sample(functional_call(where.model, {**parts, **fixed}, (x,)), y).mean()

    modes = [(module, module.training) for module in where.model.modules()]
    where.model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        _, pull = vjp(grad(loss), theta)
        rows = torch.stack([pull(e)[0] for e in torch.eye(len(theta), dtype=torch.float64)])
    for module, mode in modes:
        module.training = mode
    return rows.detach().numpy()


# --- closed forms


@dataclass(frozen=True)
class Closed:
    """A problem with its Hessian (n, n) by formula."""

    problem: Problem
    hessian: np.ndarray


def least_squares(samples: int = 40, size: int = 6, dtype: torch.dtype = torch.float64, **more: Any) -> Closed:
    """Return 1/N sum (w'x - y)^2, whose Hessian is 2/N X'X; targets have the shape (N, 1)."""
    rng = torch.Generator().manual_seed(1)
    x, y = (torch.randn(samples, width, generator=rng, dtype=torch.float64) for width in (size, 1))
    model = nn.Linear(size, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, size, generator=rng, dtype=torch.float64))
    return Closed(problem(model, x, y, "mse", **more), (2 / samples * x.T @ x).numpy())


def softmax_regression(
    samples: int = 70, size: int = 5, classes: int = 3, dtype: torch.dtype = torch.float64, **more: Any
) -> Closed:
    """Return softmax regression: H = 1/N sum_i (diag p_i - p_i p_i') (x) x_i x_i'."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(samples, size, generator=rng, dtype=torch.float64)
    y = torch.randint(classes, (samples,), generator=rng)
    weight = torch.randn(classes, size, generator=rng, dtype=torch.float64)
    model = nn.Linear(size, classes, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
    scores = (x @ weight.T).numpy()
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    inner = np.einsum("ic,cd->icd", p, np.eye(classes)) - np.einsum("ic,id->icd", p, p)
    hessian = np.einsum("icd,ij,ik->cjdk", inner, x.numpy(), x.numpy()) / samples
    return Closed(problem(model, x, y, **more), hessian.reshape(classes * size, classes * size))


class Bowl(nn.Module):
    """x -> theta for every sample: what is squared belongs to the loss."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), -1)


def bowl(
    curvature: Tensor, center: Tensor, theta: Tensor | None = None, shifts: Tensor | None = None, **more: Any
) -> Problem:
    """Return L = 1/2 sum_j h_j (theta_j - c_j)^2, each sample's center moved by a row of `shifts` (N, n); theta = c."""
    shifts = torch.zeros(3, len(center), dtype=center.dtype) if shifts is None else shifts

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        h = curvature.to(outputs)
        return 0.5 * (h * (outputs - center.to(outputs) - targets).square()).sum(1)

    model = Bowl(center if theta is None else theta)
    return problem(model, shifts[:, :1].clone(), shifts, Loss("bowl", per_sample), **more)


# --- the zoo


class Attention(nn.Module):
    """Fused attention, layer norm, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm, self.head = nn.Linear(4, 12), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.norm(x + mixed).mean(1))


class MultiHead(nn.Module):
    """`nn.MultiheadAttention`, whose fast path must not be taken."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Recurrent(nn.Module):
    """An LSTM, read at its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Tied(nn.Module):
    """A language model whose decoder shares the embedding: integer tokens in, scores for each position out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.decoder = nn.Embedding(7, 5), nn.Linear(5, 5), nn.Linear(5, 7, bias=False)
        self.decoder.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.mix(self.embed(tokens))))


def _mlp(activation: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 6), activation(), nn.Linear(6, 3))


def _batchnorm() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    )
    with torch.no_grad():
        model[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        model[1].running_var.copy_(torch.tensor([0.5, 2.0, 1.3]))
        model[1].weight.copy_(torch.tensor([1.5, 0.7, -0.4]))
    return model


def _groupnorm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


@dataclass(frozen=True)
class Kind:
    """One kind of model: how to build it, one sample's shape (or a vocabulary), and its targets."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    targets: str = "classes"  # classes, tokens, real

    def problem(self, seed: int = 0, dtype: torch.dtype = torch.float64, samples: int = 50, **more: Any) -> Problem:
        """Return the problem of a seed: the same weights and data in either dtype."""
        rng = torch.Generator().manual_seed(seed + 1000)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        model = self.build().to(dtype).eval()
        torch.set_rng_state(state)
        if self.targets == "tokens":
            x, y = (torch.randint(7, (samples, *self.shape), generator=rng) for _ in range(2))
        else:
            x = torch.randn(samples, *self.shape, generator=rng)
            y = (
                torch.randint(3, (samples,), generator=rng)
                if self.targets == "classes"
                else torch.randn(samples, 3, generator=rng, dtype=torch.float64)
            )
        return problem(model, x, y, "mse" if self.targets == "real" else "cross-entropy", **more)


ZOO = {
    "tanh mlp": Kind(_mlp(nn.Tanh), (6,)),
    "relu mlp": Kind(_mlp(nn.ReLU), (6,)),
    "regression": Kind(_mlp(nn.SiLU), (6,), "real"),
    "conv batchnorm": Kind(_batchnorm, (1, 6, 6)),
    "conv groupnorm": Kind(_groupnorm, (1, 6, 6)),
    "fused attention": Kind(Attention, (5, 4)),
    "multihead": Kind(MultiHead, (5, 4)),
    "lstm": Kind(Recurrent, (4, 3)),
    "tied embedding": Kind(Tied, (4,), "tokens"),
}


def train(where: Problem, steps: int, rate: float = 0.01) -> Problem:
    """Take full-batch Adam steps on the model of a problem and return a fresh problem at the point reached."""
    model = where.model
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    x = where.data.inputs
    x = x.to(where.dtype) if x.is_floating_point() else x
    for _ in range(steps):
        optimizer.zero_grad()
        where.loss_function.per_sample(model(x), where.data.targets).mean().backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Problem(model=model, data=where.data, loss_function=where.loss_function)


def both(*given: Problem, seed: int = 0, parts: Any = None, analyzers: Any = ()) -> Context:
    """Return a context over several subjects, each with its own."""
    singles = tuple(context(train=one, seed=seed, training=dict(one.origin.training)) for one in given)
    subjects = tuple(Subject.of(one) for one in given)
    more = {} if parts is None else {"parts": parts}
    known = {analyzer.name: analyzer for analyzer in analyzers}
    return Context(subjects=subjects, seed=seed, singles=singles, analyzers=known, **more)


class Well(nn.Module):
    """A point of a landscape as a model; the loss is the landscape's."""

    def __init__(self, point: Tensor) -> None:
        super().__init__()
        self.point = nn.Parameter(point.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.point.expand(len(x), -1)


def double_well(point: Sequence[float], samples: int = 4, height: float = 0.25, **more: Any) -> Problem:
    """Return L = height (x^2 - 1)^2 + sum of the other squares: minima at x = -1 and 1, a saddle of `height` at 0."""

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        return height * (outputs[:, 0].square() - 1).square() + outputs[:, 1:].square().sum(1)

    theta, x = torch.tensor(point, dtype=torch.float64), torch.zeros(samples, 1, dtype=torch.float64)
    return problem(Well(theta), x, x, Loss("double well", per_sample), **more)
