"""The models of `awkward`, each with a truth that uses nothing of gapscope.

A row is a model with data and a loss, what gapscope is expected to do about it, and its dense Hessian in float64: by
double backward where that is right and the model has kinks or rounds inside, else by Richardson's differences of its
gradient.

`python -m tests.benchmarks.gauntlet` prints what other tools make of the rows.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations

from gapscope.measure.loading import Data, Loss
from gapscope.measure.problem import Problem
from tests.awkward import (
    CE,
    MSE,
    SAMPLES,
    By,
    Cube,
    Integers,
    OnceCube,
    Rotary,
    Rounded,
    Shifted,
    SilentCube,
    Stubborn,
    attend,
    bag,
    batch_statistics,
    bce,
    between,
    bits,
    checkpointed,
    cholesky,
    classifier,
    compiled,
    conv,
    dropping,
    encoder,
    experts,
    frozen,
    hookless,
    in_bf16,
    integers,
    linear_term,
    llama,
    log1p,
    lora,
    mlp,
    named,
    normed,
    real,
    recurrent,
    residual,
    scaled,
    scripted,
    side_by_side,
    smoothed,
    stochastic_depth,
    tied,
    tokens,
    two,
    unscripted,
    unused,
)


@dataclass(frozen=True)
class Row:
    """A model, and what is expected: exact, repaired: NAME, differences, or refused: words."""

    name: str
    build: Callable[[], nn.Module]
    expected: str = "exact"
    shape: tuple[int, ...] = (4,)
    inputs: Callable[[torch.Generator], Any] | None = None
    loss: Loss = CE
    targets: Callable[[Tensor, torch.Generator], Tensor] | None = None  # scores (N, ...) -> targets
    smooth: bool = True  # and float64 throughout: else the truth is by double backward
    chosen: tuple[str, ...] = ()
    bare: Callable[[nn.Module], nn.Module] = lambda model: model  # the model that the truth is computed of
    needs: str = ""  # a package
    defined: bool = True  # whether there is a curvature that could be asked

    def material(self) -> tuple[nn.Module, Any, Tensor]:
        """Return the model, its inputs (N, ...) and its targets."""
        rng = torch.Generator().manual_seed(7)
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.nn.utils.weight_norm is old, and met all the same
            torch.manual_seed(3)
            model = self.build().eval()
        x = torch.randn(SAMPLES, *self.shape, generator=rng) if self.inputs is None else self.inputs(rng)
        if self.targets is None:
            return model, x, torch.randint(3, (SAMPLES,), generator=rng)
        with torch.no_grad():
            return model, x, self.targets(produced(model, x), rng)

    def problem(self, **more: Any) -> Problem:
        """Return it as gapscope sees it."""
        model, x, y = self.material()
        data = Data(x, y, "gauntlet", "-", SAMPLES)
        return Problem(model=model, data=data, loss_function=self.loss, chosen=self.chosen, **more)


def produced(model: nn.Module, x: Any) -> Tensor:
    """Call a model as its users do."""
    made = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
    return made.logits if hasattr(made, "logits") else made[0] if isinstance(made, tuple) else made


def wide(value: Any) -> Any:
    """Return inputs in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return {k: wide(v) for k, v in value.items()} if isinstance(value, dict) else tuple(wide(v) for v in value)


def true_hessian(row: Row) -> np.ndarray:
    """Return the dense Hessian (n, n) of the mean loss, in float64."""
    model, x, y = row.material()
    model = copy.deepcopy(row.bare(model))
    state = {name: t.to(torch.complex128) if t.is_complex() else wide(t) for name, t in model.state_dict().items()}
    model = model.double()
    for name, buffer in model.named_buffers():
        if buffer.is_complex():
            owner, _, own = name.rpartition(".")
            model.get_submodule(owner)._buffers[own] = state[name]
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None  # it hides a row from the gradient, on which L depends all the same
    x, y = wide(x), wide(y)
    chosen = [name for name, p in model.named_parameters() if p.requires_grad]
    if row.chosen:
        chosen = [name for name in chosen if row.chosen[0].strip("*") in name]
    parameters = [dict(model.named_parameters())[name] for name in chosen]

    def loss() -> Tensor:
        return row.loss.per_sample(produced(model, x), y).mean()

    if not row.smooth:
        with sdpa_kernel(SDPBackend.MATH):
            slopes = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
            flat = torch.cat([slope.reshape(-1) for slope in slopes])
            rows = [torch.autograd.grad(s, parameters, retain_graph=True, materialize_grads=True) for s in flat]
        return np.stack([torch.cat([part.reshape(-1) for part in r]).numpy() for r in rows])

    def gradient() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss().backward()  # not autograd.grad, which reentrant checkpoints refuse
        parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
        return torch.cat([part.reshape(-1) for part in parts])

    columns = []
    for p in parameters:
        step = 2e-3 * float(p.detach().square().mean().sqrt() or 1.0)
        for i in range(p.numel()):
            columns.append((4 * _difference(gradient, p, i, step / 2) - _difference(gradient, p, i, step)) / 3)
    dense = torch.stack(columns).numpy()
    return (dense + dense.T) / 2


def _difference(gradient: Callable[[], Tensor], p: nn.Parameter, i: int, step: float) -> Tensor:
    flat, own = p.data.view(-1), float(p.data.view(-1)[i])
    flat[i] = own + step
    ahead = gradient()
    flat[i] = own - step
    behind = gradient()
    flat[i] = own
    return (ahead - behind) / (2 * step)


ROWS = [
    Row("MLP, cross-entropy", mlp),
    Row("MLP, squared error", mlp, loss=MSE, targets=real),
    Row("MLP, BCE with logits", mlp, loss=Loss("bce", bce), targets=bits),
    Row("GELU MLP", lambda: mlp(nn.GELU)),
    Row("softplus MLP", lambda: mlp(nn.Softplus)),
    Row("in-place ReLU, residual", residual, smooth=False),
    Row(
        "convolution, BatchNorm, max-pool",
        lambda: conv(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        shape=(1, 6, 6),
        smooth=False,
    ),
    Row("convolution, GroupNorm", lambda: conv(nn.GroupNorm(2, 4), nn.GELU(), nn.AvgPool2d(2)), shape=(1, 6, 6)),
    Row(
        "transposed convolution",
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)),
        shape=(1, 3, 3),
    ),
    Row(
        "1-D convolution",
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 3)),
        shape=(2, 6),
    ),
    Row(
        "scaled_dot_product_attention",
        lambda: By(attend, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), head=nn.Linear(4, 3)),
        shape=(5, 4),
    ),
    Row(
        "MultiheadAttention",
        lambda: By(
            lambda m, x: m.head(m.attention(x, x, x, need_weights=False)[0].mean(1)),
            attention=nn.MultiheadAttention(4, 2, batch_first=True),
            head=nn.Linear(4, 3),
        ),
        shape=(5, 4),
    ),
    Row("TransformerEncoder", encoder, shape=(5, 4), smooth=False),
    Row("Llama (transformers)", llama, inputs=named, smooth=False, needs="transformers"),
    Row("LSTM", lambda: recurrent(nn.LSTM), shape=(4, 3)),
    Row("GRU", lambda: recurrent(nn.GRU), shape=(4, 3)),
    Row("tied embedding", tied, inputs=integers(7, 3), targets=tokens),
    Row("EmbeddingBag, mean", bag("mean"), "repaired: embedding_bag", inputs=integers(7, 4)),
    Row("EmbeddingBag, sum, sparse", bag("sum", sparse=True), "repaired: embedding_bag", inputs=integers(7, 4)),
    Row("EmbeddingBag, max", bag("max"), "repaired: embedding_bag", inputs=integers(7, 4)),
    Row("LayerNorm", lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))),
    Row("unused parameter", unused),
    Row("constant gradient, 0-d parameter", Shifted, loss=Loss("linear term", linear_term)),
    Row("frozen layer", frozen),
    Row("reentrant checkpoint", checkpointed(True), "repaired: checkpoint"),
    Row("non-reentrant checkpoint", checkpointed(False), "repaired: checkpoint"),
    Row("weight_norm (parametrization)", normed(parametrizations.weight_norm), "repaired: weight_norm"),
    Row("weight_norm (hook)", normed(nn.utils.weight_norm), "repaired: weight_norm", bare=hookless),
    Row("spectral_norm", normed(parametrizations.spectral_norm)),
    Row("custom Function, twice differentiable", lambda: between(Cube.apply)),
    Row("custom Function, once differentiable", lambda: between(OnceCube.apply), "differences"),
    Row("custom Function, loses its derivative", lambda: between(SilentCube.apply), "differences"),
    Row("float64 model", lambda: mlp().double()),
    Row("bfloat16 model", in_bf16),
    Row("compiled, eager", compiled("eager"), "repaired: compile", bare=lambda m: m._orig_mod),
    Row("compiled, aot_eager", compiled("aot_eager"), "repaired: compile", bare=lambda m: m._orig_mod),
    Row("compiled, inductor", compiled("inductor"), "repaired: compile", bare=lambda m: m._orig_mod),
    Row("DataParallel", lambda: nn.DataParallel(mlp())),
    Row("label smoothing + penalty on outputs", mlp, loss=Loss("smoothed", smoothed)),
    Row("log1p loss", mlp, loss=Loss("log1p", log1p), targets=real),
    Row("named inputs, logits", classifier, inputs=named),
    Row("two inputs, tuple out", side_by_side, inputs=two),
    Row("autoencoder", lambda: mlp(outputs=4), loss=MSE, targets=real),
    Row("mixture with an unused expert", experts, smooth=False),
    Row("LoRA, adapters only (peft)", lora, chosen=("*lora_*",), needs="peft"),
    Row("complex buffer", Rotary),
    Row("cholesky", lambda: between(cholesky)),
    Row("fft", lambda: between(lambda x: torch.fft.rfft(torch.tanh(x), n=8).abs()[:, :5])),
    Row("weights of 1e-8", lambda: scaled(1e-8)),
    Row("weights of 1e4", lambda: scaled(1e4)),
    Row(
        "dropout in eval mode",
        dropping,
        "refused: module `1` (By) returns something",
        defined=False,
    ),
    Row(
        "stochastic depth in eval mode",
        stochastic_depth,
        "refused: module `0` (By) returns something",
        defined=False,
    ),
    Row("batch statistics in eval mode", batch_statistics, "refused: the company of other samples", defined=False),
    Row(
        "BatchNorm that always trains",
        lambda: nn.Sequential(nn.Linear(4, 5), Stubborn(5), nn.Linear(5, 3)),
        "refused: changed the buffer `1.running_mean`",
        defined=False,
    ),
    Row(
        "straight-through rounding",
        lambda: between(Rounded.apply),
        "refused: not the derivative",
        defined=False,
    ),
    Row("integer weights", Integers, "refused: no trainable parameter", defined=False),
    Row("TorchScript", scripted, "refused: The model is TorchScript", bare=unscripted),
]
