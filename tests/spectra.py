"""Symmetric matrices with prescribed spectra: what a solver must say about each is known before it runs."""

import torch
from torch import Tensor

_BULK = torch.linspace(-0.2, 1.0, 117, dtype=torch.float64)

SPECTRA: dict[str, Tensor] = {
    "separated": torch.cat([_BULK, torch.tensor([8.0, 4.0, 2.0], dtype=torch.float64)]),
    "gap of 1.4 %": torch.cat([_BULK, torch.tensor([5.0, 5.0 / 1.014, 3.0], dtype=torch.float64)]),
    "clustered": torch.cat([_BULK, 2.0 + 1e-3 * torch.arange(3, dtype=torch.float64)]),
    "degenerate": torch.cat([_BULK, torch.full((3,), 3.0, dtype=torch.float64)]),
    "negative definite": -torch.linspace(0.5, 9.0, 120, dtype=torch.float64),
    "low rank": torch.cat([torch.zeros(115, dtype=torch.float64), torch.arange(1.0, 6.0, dtype=torch.float64)]),
    "zero": torch.zeros(120, dtype=torch.float64),
}


def matrix(spectrum: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return Q diag(spectrum) Q' with Q a seeded random rotation, symmetric to the last bit."""
    rng = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=rng, dtype=torch.float64))
    dense = (basis * spectrum) @ basis.T
    return (0.5 * (dense + dense.T)).to(dtype)
