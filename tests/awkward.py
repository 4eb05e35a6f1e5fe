"""Models that tools for second derivatives stumble over, with their inputs, losses and targets."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from gapscope.measure.loading.losses import LOSSES

SAMPLES = 24
CE, MSE = LOSSES["cross-entropy"], LOSSES["mse"]


# --- losses and targets


def real(scores: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(scores.shape, generator=rng)


def bits(scores: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randint(2, scores.shape, generator=rng).float()


def tokens(scores: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randint(scores.shape[-1], scores.shape[:-1], generator=rng)


def integers(high: int, *shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda rng: torch.randint(high, (SAMPLES, *shape), generator=rng)


def bce(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    smoothed = F.cross_entropy(outputs, targets, label_smoothing=0.1, reduction="none")
    return smoothed + 0.01 * outputs.square().sum(1)


def log1p(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.log1p((outputs - targets).square()).sum(1)


# --- custom Functions


class Cube(Function):
    """x^3, twice differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class OnceCube(Function):
    """x^3, honest about its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        return 3 * ctx.saved_tensors[0] ** 2 * slope


class SilentCube(Function):
    """x^3, whose second derivative is lost without an error, as extensions lose it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return 3 * ctx.x**2 * slope


class Rounded(Function):
    """x to a grid, with the slope of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return slope


# --- models


class By(nn.Module):
    """A forward pass over named parts: `By(lambda m, x: ..., part=...)`."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *x: Any, **named: Any) -> Any:
        return self.run(self, *x, **named)


def mlp(activation: Callable[[], nn.Module] = nn.Tanh, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, outputs))


def between(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return By(lambda m, x: m.head(function(m.inner(x))), inner=nn.Linear(4, 5), head=nn.Linear(5, 3))


def settled(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics of its own."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def conv(norm: nn.Module, activation: nn.Module, pool: nn.Module) -> nn.Module:
    return settled(nn.Sequential(nn.Conv2d(1, 4, 3), norm, activation, pool, nn.Flatten(), nn.Linear(16, 3)))


def attend(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).view(len(x), 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
    return m.head(m.norm(x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    return By(
        lambda m, x: m.head(m.encoder(x).mean(1)),
        encoder=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        head=nn.Linear(4, 3),
    )


def recurrent(kind: type[nn.Module]) -> nn.Module:
    return By(lambda m, x: m.head(m.cell(x)[0][:, -1]), cell=kind(3, 3, batch_first=True), head=nn.Linear(3, 3))


def tied() -> nn.Module:
    model = By(
        lambda m, x: m.decoder(torch.tanh(m.mix(m.embed(x)))),
        embed=nn.Embedding(7, 5),
        mix=nn.Linear(5, 5),
        decoder=nn.Linear(5, 7, bias=False),
    )
    model.decoder.weight = model.embed.weight
    return model


def bag(mode: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: By(
        lambda m, x: m.head(torch.tanh(m.bag(x))), bag=nn.EmbeddingBag(7, 5, mode=mode, **more), head=nn.Linear(5, 3)
    )


def unused() -> nn.Module:
    return By(lambda m, x: m.used(x), used=mlp(), spare=nn.Linear(2, 2))


class Shifted(nn.Module):
    """An MLP whose loss also holds a parameter linearly, through a 0-dimensional scale of a constant output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.shift = mlp(), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(x), self.shift.expand(len(x), 1)], 1)


def linear_term(outputs: Tensor, targets: Tensor) -> Tensor:
    return CE.per_sample(outputs[:, :3], targets) + 0.5 * outputs[:, 3]


def frozen() -> nn.Module:
    model = mlp()
    model[0].requires_grad_(False)
    return model


def checkpointed(reentrant: bool) -> Callable[[], nn.Module]:
    return lambda: By(
        lambda m, x: m.head(checkpoint(m.inner, m.first(x), use_reentrant=reentrant)),
        first=nn.Linear(4, 4),
        inner=nn.Sequential(nn.Tanh(), nn.Linear(4, 5), nn.Tanh()),
        head=nn.Linear(5, 3),
    )


def normed(norm: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3))


def compiled(backend: str) -> Callable[[], nn.Module]:
    return lambda: torch.compile(mlp(), backend=backend)


def in_bf16() -> nn.Module:
    return mlp().bfloat16()


def experts() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        chosen = m.router(x)[:, :2].argmax(1)  # the third expert is never asked
        made = torch.stack([expert(x) for expert in (m.first, m.second)], 1)
        weights = m.router(x).softmax(1)
        return (made * F.one_hot(chosen, 2)[..., None] * weights[:, :2, None]).sum(1)

    experts = {name: nn.Sequential(nn.Linear(4, 3), nn.Tanh()) for name in ("first", "second", "third")}
    return By(run, router=nn.Linear(4, 3), **experts)


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(mlp(), LoraConfig(r=2, target_modules=["0", "2"], lora_dropout=0.1))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.5)  # 0 at the start: then half of the curvature is
    return model


class Rotary(nn.Module):
    """Pairs turned by a complex buffer of phases."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("phases", torch.polar(torch.ones(3), torch.tensor([0.3, 1.0, 2.0])))

    def forward(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(torch.tanh(self.inner(x)).view(-1, 3, 2))
        return self.head(torch.view_as_real(pairs * self.phases).flatten(1))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), By(lambda m, x: F.dropout(x, 0.3)), nn.Linear(5, 3))


def batch_statistics() -> nn.Module:
    own = By(lambda m, x: F.batch_norm(x, None, None, training=True))
    return nn.Sequential(nn.Linear(4, 5), own, nn.Tanh(), nn.Linear(5, 3))


class Stubborn(nn.BatchNorm1d):
    """BatchNorm that trains in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1)


def stochastic_depth() -> nn.Module:
    def run(m: Any, x: Tensor) -> Tensor:
        return x + m.branch(x) * (torch.rand(len(x), 1) < 0.7)

    return nn.Sequential(By(run, branch=nn.Sequential(nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 3))


class Integers(nn.Module):
    """Weights of 8 bits, as a quantized model keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-127, 128, (3, 4), dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.weight.float() / 100).T


def scaled(scale: float) -> nn.Module:
    """An MLP with weights of that size and the function of an ordinary one."""
    model = By(
        lambda m, x: m.head(torch.tanh(m.inner(x) / scale)) / scale,
        inner=nn.Linear(4, 6, bias=False),
        head=nn.Linear(6, 3, bias=False),
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def cholesky(x: Tensor) -> Tensor:
    spread = x[:, :, None] * x[:, None, :] + 2 * torch.eye(5, dtype=x.dtype)
    return torch.linalg.cholesky(spread).sum(1)


def residual() -> nn.Module:
    return By(
        lambda m, x: m.head(m.relu(m.second(m.relu(m.first(x))) + x)),
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 4),
        relu=nn.ReLU(inplace=True),
        head=nn.Linear(4, 3),
    )


def classifier() -> nn.Module:
    def run(m: Any, input_ids: Tensor, attention_mask: Tensor) -> Any:
        shown = torch.tanh(m.mix(m.embed(input_ids))) * attention_mask[..., None]
        return SimpleNamespace(logits=m.head(shown.sum(1) / attention_mask.sum(1, keepdim=True)), hidden_states=None)

    return By(run, embed=nn.Embedding(7, 4), mix=nn.Linear(4, 4), head=nn.Linear(4, 3))


def named(rng: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.randint(1, 6, (SAMPLES, 1), generator=rng)
    return {
        "input_ids": torch.randint(7, (SAMPLES, 5), generator=rng),
        "attention_mask": (torch.arange(5) < lengths).long(),
    }


def two(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(SAMPLES, 4, generator=rng), torch.randint(5, (SAMPLES,), generator=rng)


def side_by_side() -> nn.Module:
    return By(
        lambda m, x, kind: (m.head(torch.tanh(m.inner(x) + m.embed(kind))), x),
        inner=nn.Linear(4, 5),
        embed=nn.Embedding(5, 5),
        head=nn.Linear(5, 3),
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_labels": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "use_cache": False}
    return LlamaForSequenceClassification(LlamaConfig(**sizes, **heads))


def hookless(model: nn.Module) -> nn.Module:
    """Return the model with a computed weight that can be copied: it is computed anew at every call."""
    model[0].weight = model[0].weight.detach()
    return model


def scripted() -> nn.Module:
    return torch.jit.script(mlp())


def unscripted(model: nn.Module) -> nn.Module:
    own = mlp()
    own.load_state_dict(model.state_dict())
    return own
