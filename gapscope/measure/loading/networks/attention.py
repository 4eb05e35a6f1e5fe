"""Small transformers: a vision transformer (Dosovitskiy et al. 2021) and a language model (GPT-2, Radford et al. 2019).

Both normalize before each branch.  Attention is written out, since fused kernels have no second derivative.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gapscope.errors import LoadError


class _Attention(nn.Module):
    """softmax(q k' / sqrt(d)) v of every head; `causal`: no token sees a later one.

    The buffer `scale` holds 1 / sqrt(d) once for each head: its shape tells how many there are, which that of no weight
    does, so that a file describes its network.
    """

    scale: Tensor  # (heads, 1, 1)

    def __init__(self, dim: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.register_buffer("scale", torch.full((heads, 1, 1), (dim // heads) ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).view(batch, tokens, 3, len(self.scale), -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = self.scale * q @ k.transpose(-2, -1)  # (B, heads, T, T)
        if self.causal:
            later = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    """Attention and a two-layer perceptron of four times the width, each added to what comes in."""

    def __init__(self, dim: int, heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return out


class _Encoder(nn.Module):
    """Learned positions, blocks, and a last normalization; rows may be shorter than there are positions."""

    def __init__(self, tokens: int, dim: int, *, depth: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.positions = nn.Parameter(nn.init.normal_(torch.empty(tokens, dim), std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(dim, heads, dropout, causal=causal) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.blocks(self.dropout(x + self.positions[: x.shape[1]])))
        return out


class _ViT(nn.Module):
    def __init__(self, channels: int, size: int, outputs: int, *, patch: int, dim: int, encoder: _Encoder) -> None:
        super().__init__()
        self.size = size
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.first = nn.Parameter(torch.zeros(dim))
        self.encoder = encoder
        self.fc = nn.Linear(dim, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):  # smaller ones would run, at the positions of others
            raise LoadError(
                f"`vit` was built for images of {self.size} pixels and given {tuple(x.shape[-2:])}. Expected those. "
                f"Say their size: `-a size={x.shape[-1]}`."
            )
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(x), 1, -1), patches], dim=1)
        out: Tensor = self.fc(self.encoder(tokens)[:, 0])
        return out


class _GPT(nn.Module):
    def __init__(self, outputs: int, *, dim: int, encoder: _Encoder) -> None:
        super().__init__()
        self.tokens = nn.Embedding(outputs, dim)
        # the same weights give the scores: at torch's standard deviation of 1 these would start at sqrt(dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > len(self.encoder.positions):
            raise LoadError(
                f"`gpt` was built for rows of {len(self.encoder.positions)} tokens and given {x.shape[1]}. Expected no "
                f"longer ones. Say their length: `-a block={x.shape[1]}`."
            )
        return F.linear(self.encoder(self.tokens(x)), self.tokens.weight)


def vit(
    channels: int = 3,
    size: int = 32,
    outputs: int = 10,
    patch: int = 4,
    dim: int = 64,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.1,
) -> nn.Module:
    """Return a vision transformer over square patches, read off at a token of its own."""
    _check_heads("vit", dim, heads)
    if not 1 <= patch <= size or size % patch:
        raise LoadError(
            f"`vit` was asked for images of {size} pixels in patches of {patch}. Expected a multiple: "
            "`-a size=32 -a patch=4`."
        )
    tokens = (size // patch) ** 2 + 1
    encoder = _Encoder(tokens, dim, depth=depth, heads=heads, dropout=dropout, causal=False)
    return _ViT(channels, size, outputs, patch=patch, dim=dim, encoder=encoder)


def gpt(
    outputs: int = 64, block: int = 32, dim: int = 64, depth: int = 2, heads: int = 4, dropout: float = 0.1
) -> nn.Module:
    """Return a language model of `outputs` tokens in rows of at most `block`, its scores by the embedding's weights.

    Shapes: tokens (B, T) -> scores (B, T, outputs), at each place those of the next token.
    """
    _check_heads("gpt", dim, heads)
    encoder = _Encoder(block, dim, depth=depth, heads=heads, dropout=dropout, causal=True)
    return _GPT(outputs, dim=dim, encoder=encoder)


def _check_heads(network: str, dim: int, heads: int) -> None:
    if heads < 1 or dim % heads:
        raise LoadError(
            f"`{network}` was asked for {dim} units in {heads} heads. Expected a multiple: `-a dim=64 -a heads=4`."
        )
