"""What gapscope, PyHessian and a plain double backward make of the gauntlet: `python -m tests.benchmarks.gauntlet`.

Eigenvalues of the first two, a product of the last, each against the truth of the row; right: to 0.5 %.
"""

import importlib.util
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gapscope
from gapscope.errors import ProblemError
from tests.gauntlet import ROWS, Row, produced, true_hessian


def gapscope_says(row: Row, truth: np.ndarray | None) -> str:
    """Return how gapscope's top eigenvalue came out."""
    try:
        given = row.problem()
        report = gapscope.measure(given, [gapscope.Eigenvalues()])
    except ProblemError as error:
        return f"refused: {_short(error)}"
    how = given.derivatives
    top = report.results["eigenvalues"].quantities["top"]
    verdict = _verdict(float(top.value), np.linalg.eigvalsh(truth)[-1])
    return verdict if how.method == "exact" else f"{verdict}, differences, error {how.relative_error:.0e}"


def pyhessian_says(row: Row, truth: np.ndarray | None) -> str:
    """Return how PyHessian's eigenvalue of largest magnitude came out."""
    from pyhessian import hessian

    model, x, y = _fed(row)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tool = hessian(model, lambda made, y: row.loss.per_sample(_scores(made), y).mean(), data=(x, y), cuda=False)
        found = tool.eigenvalues(maxIter=300, tol=1e-6, top_n=1)[0][0]
    return _verdict(float(found), None if truth is None else max(np.linalg.eigvalsh(truth), key=abs))


def double_backward_says(row: Row, truth: np.ndarray | None) -> str:
    """Return how a plain product came out: the gradient's graph, and a backward pass through it."""
    model, x, y = _fed(row)
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(
        row.loss.per_sample(produced(model, x), y).mean(), parameters, create_graph=True, allow_unused=True
    )
    v = torch.randn(sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(0))
    cut = [part.view(p.shape) for part, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
    along = torch.stack([(s * part).sum() for s, part in zip(slopes, cut, strict=True) if s is not None]).sum()
    parts = torch.autograd.grad(along, parameters, allow_unused=True)
    found = torch.cat(
        [(torch.zeros_like(p) if a is None else a).reshape(-1) for a, p in zip(parts, parameters, strict=True)]
    )
    return _verdict(found.double().numpy(), None if truth is None else truth @ v.double().numpy())


def _fed(row: Row) -> tuple[nn.Module, Any, Tensor]:
    """Return the material with the chosen parameters free, and the inputs in the model's own dtype."""
    model, x, y = row.material()
    for name, p in model.named_parameters():
        if row.chosen and row.chosen[0].strip("*") not in name:
            p.requires_grad_(False)
    if isinstance(x, Tensor) and x.is_floating_point():
        x = x.to(next(model.parameters()).dtype if any(True for _ in model.parameters()) else x.dtype)
    return model, x, y


def _scores(made: Any) -> Tensor:
    return made.logits if hasattr(made, "logits") else made[0] if isinstance(made, tuple) else made


def _verdict(found: Any, truth: Any) -> str:
    if truth is None:
        return "a number, without a word"
    error = float(np.linalg.norm(np.asarray(found) - np.asarray(truth)) / np.linalg.norm(truth))
    return "right" if error < 5e-3 else f"WRONG by {100 * error:.2g} %"


def _short(error: Exception) -> str:
    return str(error).replace("\n", " ").split(". ")[0][:90] or type(error).__name__


def table() -> str:
    """Return what every tool makes of every row, as Markdown."""
    lines = ["| model | gapscope | PyHessian 0.1 | plain double backward |", "|---|---|---|---|"]
    for row in ROWS:
        if row.needs and importlib.util.find_spec(row.needs) is None:
            continue
        truth = true_hessian(row) if row.defined else None
        cells = []
        for says in (gapscope_says, pyhessian_says, double_backward_says):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    cells.append(says(row, truth))
            except Exception as error:
                cells.append(f"error: {_short(error)}")
        lines.append("| " + " | ".join([row.name, *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
