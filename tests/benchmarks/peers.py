"""What other tools are asked, each as its documentation shows, for its own stopping rule where it has one.

A way takes a case, the size of its batches (None: all samples at once), a seed and a setting, from the loosest on.
Products are counted at the tool's own function, the same way for all: one matrix times one vector over all the data.
"""

import importlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.benchmarks.cases import Case

Way = Callable[[Case, int | None, int, float], "Found"]
TOP = 5
MOST = 1000  # iterations of a power method, after which it counts as not converged


@dataclass(frozen=True)
class Found:
    """What one run came to."""

    value: Any  # a number, numbers, or (nodes, weights)
    converged: bool | None  # by its own word; None where it has none
    products: int


@dataclass(frozen=True)
class Ask:
    """How a tool is asked one thing."""

    way: Way
    settings: tuple[float, ...] = (0.0,)  # from the loosest on
    of: str = ""  # what the setting is; "": there is none
    rule: bool = True  # whether the tool decides when to stop


TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5)


# --- PyHessian 0.1


def _pyhessian(case: Case, batch: int | None) -> tuple[Any, Callable[[], int]]:
    """Return its object, and how many products it has made: it keeps the graph of one batch, not of several."""
    module = importlib.import_module("pyhessian.hessian")  # the package's attribute of that name is a class

    cuda = case.inputs.device.type == "cuda"
    data: dict[str, Any] = (
        {"data": (case.inputs, case.targets)} if batch is None else {"dataloader": case.batches(batch)}
    )
    tool = module.hessian(case.model, case.loss, cuda=cuda, **data)
    count = itertools.count()
    plain, own = module.hessian_vector_product, tool.dataloader_hv_product

    def one(*given: Any) -> Any:
        next(count)
        return plain(*given)

    def all_batches(v: Any) -> Any:
        next(count)
        return own(v)

    module.hessian_vector_product, tool.dataloader_hv_product = one, all_batches

    def ended() -> int:
        module.hessian_vector_product = plain
        case.model.zero_grad(set_to_none=True)  # its .grad hold the graph, in a circle
        return next(count)

    return tool, ended


def pyhessian_top(case: Case, batch: int | None, seed: int, setting: float, k: int = 1) -> Found:
    """Power iteration until two values in a row agree; what it finds is largest in magnitude."""
    torch.manual_seed(seed)
    tool, ended = _pyhessian(case, batch)
    values, _ = tool.eigenvalues(maxIter=MOST, tol=setting, top_n=k)
    products = ended()
    return Found(values if k > 1 else values[0], products < k * MOST, products)


def pyhessian_trace(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Hutchinson until two means in a row agree."""
    torch.manual_seed(seed)
    tool, ended = _pyhessian(case, batch)
    samples = tool.trace(maxIter=MOST, tol=setting)
    products = ended()
    return Found(float(np.mean(samples)), products < MOST, products)


def pyhessian_density(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Raise what it raises: `torch.eig` is gone."""
    torch.manual_seed(seed)
    tool, ended = _pyhessian(case, batch)
    try:
        nodes, weights = tool.density(iter=STEPS, n_v=PROBES)
    finally:
        products = ended()
    return Found((nodes, weights), None, products)


# --- curvlinops 3.0


def _curvlinops(case: Case, batch: int | None) -> Any:
    from curvlinops import HessianLinearOperator

    class Counting(HessianLinearOperator):
        products = 0

        def _matmat(self, m: list[Tensor]) -> list[Tensor]:
            self.products += m[0].shape[-1]
            found: list[Tensor] = super()._matmat(m)
            return found

    return Counting(case.model, case.loss, case.parameters, case.batches(batch))


def _eigsh(linear: Any, seed: int, tolerance: float, k: int) -> tuple[Any, bool]:
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    start = np.random.default_rng(seed).standard_normal(linear.shape[0])
    try:
        values = eigsh(linear, k=k, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        values = error.eigenvalues
        return (np.resize(values, k) if len(values) else np.full(k, np.nan)), False
    return np.sort(values)[::-1], True


def curvlinops_top(case: Case, batch: int | None, seed: int, setting: float, k: int = 1) -> Found:
    """SciPy's eigsh over `to_scipy()`, as its examples do; its check of determinism is on, as by default."""
    torch.manual_seed(seed)
    operator = _curvlinops(case, batch)
    values, converged = _eigsh(operator.to_scipy(), seed, setting, k)
    return Found(list(values) if k > 1 else float(values[0]), converged, operator.products)


def _curvlinops_trace(name: str) -> Way:
    def way(case: Case, batch: int | None, seed: int, setting: float) -> Found:
        import curvlinops

        torch.manual_seed(seed)
        operator = _curvlinops(case, batch)
        estimate = getattr(curvlinops, name)(operator, int(setting))
        return Found(float(estimate), None, operator.products)

    return way


def curvlinops_density(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the quadratures of its `fast_lanczos`, without the bounds for which its smoothed form asks more."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    operator = _curvlinops(case, batch)
    runs = [fast_lanczos(operator, STEPS) for _ in range(PROBES)]
    nodes, weights = zip(*((values.tolist(), (vectors[0] ** 2).tolist()) for values, vectors in runs), strict=True)
    return Found((nodes, weights), None, operator.products)


# --- hessian-eigenthings 1.0.0a5


def _eigenthings(case: Case, batch: int | None) -> Any:
    from hessian_eigenthings import HessianOperator
    from hessian_eigenthings.loss_fns import supervised_loss

    class Counting(HessianOperator):
        products = 0

        def matvec(self, v: Tensor) -> Tensor:
            self.products += 1
            found: Tensor = super().matvec(v)
            return found

    return Counting(case.model, case.batches(batch), supervised_loss(case.loss))


def eigenthings_power(case: Case, batch: int | None, seed: int, setting: float, k: int = 1) -> Found:
    """Power iteration with deflation until value and residual settle; largest in magnitude."""
    from hessian_eigenthings.algorithms import deflated_power_iteration

    operator = _eigenthings(case, batch)
    found = deflated_power_iteration(operator, k=k, max_iter=MOST, tol=setting, seed=seed)
    values = found.eigenvalues.tolist()
    return Found(values if k > 1 else values[0], bool(found.converged.all()), operator.products)


def eigenthings_doubling(case: Case, batch: int | None, seed: int, setting: float, k: int = 1) -> Found:
    """Lanczos of 2 k steps, its default, then twice as many until it says that all converged: it has no other rule."""
    from hessian_eigenthings.algorithms import lanczos

    operator, steps = _eigenthings(case, batch), 2 * k
    while True:
        found = lanczos(operator, k=k, max_iter=steps, tol=setting, which="LA", seed=seed, reorthogonalize=True)
        if bool(found.converged.all()) or steps > MOST:
            values = found.eigenvalues.tolist()
            return Found(values if k > 1 else values[0], bool(found.converged.all()), operator.products)
        steps *= 2


def _eigenthings_steps(k: int) -> Way:
    def way(case: Case, batch: int | None, seed: int, setting: float) -> Found:
        from hessian_eigenthings.algorithms import lanczos

        operator = _eigenthings(case, batch)
        found = lanczos(operator, k=k, max_iter=int(setting), tol=1e-3, which="LA", seed=seed, reorthogonalize=True)
        values = found.eigenvalues.tolist()
        return Found(values if k > 1 else values[0], None, operator.products)

    return way


def eigenthings_trace(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Hutch++ of as many products as the user says."""
    from hessian_eigenthings.algorithms import trace

    operator = _eigenthings(case, batch)
    found = trace(operator, num_matvecs=int(setting), seed=seed)
    return Found(found.estimate, None, operator.products)


def eigenthings_density(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the raw quadratures."""
    from hessian_eigenthings.algorithms import spectral_density

    operator = _eigenthings(case, batch)
    found = spectral_density(operator, num_runs=PROBES, lanczos_steps=STEPS, seed=1000 * seed)
    return Found((found.raw_eigenvalues.tolist(), found.raw_weights.tolist()), None, operator.products)


# --- SciPy over a plain product


def plain_product(case: Case, batches: Iterable[tuple[Tensor, Tensor]], v: Tensor) -> Tensor:
    """Return H v by two backward passes through a fresh graph for every batch."""
    total, parameters = torch.zeros_like(v), case.parameters
    cut = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
    for x, y in batches:
        slopes = torch.autograd.grad(case.loss(case.model(x), y), parameters, create_graph=True)
        parts = torch.autograd.grad(slopes, parameters, cut)
        total.add_(torch.cat([part.reshape(-1) for part in parts]), alpha=len(y) / case.samples)
    return total


def scipy_top(case: Case, batch: int | None, seed: int, setting: float, k: int = 1) -> Found:
    """eigsh with its own tolerance."""
    from scipy.sparse.linalg import LinearOperator

    count, batches, like = itertools.count(), case.batches(batch), case.parameters[0]

    def matvec(v: np.ndarray) -> np.ndarray:
        next(count)
        return plain_product(case, batches, torch.from_numpy(v.reshape(-1)).to(like)).double().cpu().numpy()

    size = sum(p.numel() for p in case.parameters)
    values, converged = _eigsh(LinearOperator((size, size), matvec=matvec, dtype=np.float64), seed, setting, k)
    return Found(list(values) if k > 1 else float(values[0]), converged, next(count))


PROBES, STEPS = 4, 20  # of a spectral density
ORACLE = "hessian-eigenthings, oracle steps"
COUNTS = (6, 12, 24, 48, 96, 192)

PEERS: dict[str, dict[str, Ask]] = {
    "top": {
        "PyHessian": Ask(pyhessian_top, TOLERANCES[2:], "tol"),
        "curvlinops": Ask(curvlinops_top, TOLERANCES, "tol"),
        "hessian-eigenthings, power": Ask(eigenthings_power, TOLERANCES, "tol"),
        "hessian-eigenthings, Lanczos doubled": Ask(eigenthings_doubling, TOLERANCES, "tol"),
        "SciPy eigsh": Ask(scipy_top, TOLERANCES, "tol"),
        ORACLE: Ask(_eigenthings_steps(1), (20.0,), "steps", rule=False),
    },
    "top5": {
        "PyHessian": Ask(partial(pyhessian_top, k=TOP), TOLERANCES[2:], "tol"),
        "curvlinops": Ask(partial(curvlinops_top, k=TOP), TOLERANCES, "tol"),
        "hessian-eigenthings, power": Ask(partial(eigenthings_power, k=TOP), TOLERANCES, "tol"),
        "hessian-eigenthings, Lanczos doubled": Ask(partial(eigenthings_doubling, k=TOP), TOLERANCES, "tol"),
        "SciPy eigsh": Ask(partial(scipy_top, k=TOP), TOLERANCES, "tol"),
        ORACLE: Ask(_eigenthings_steps(TOP), (60.0,), "steps", rule=False),
    },
    "trace": {
        "PyHessian": Ask(pyhessian_trace, TOLERANCES[1:], "tol"),
        "curvlinops, Hutchinson": Ask(_curvlinops_trace("hutchinson_trace"), COUNTS, "products", rule=False),
        "curvlinops, Hutch++": Ask(_curvlinops_trace("hutchpp_trace"), COUNTS, "products", rule=False),
        "curvlinops, XTrace": Ask(_curvlinops_trace("xtrace"), COUNTS, "products", rule=False),
        "hessian-eigenthings, Hutch++": Ask(eigenthings_trace, COUNTS, "products", rule=False),
    },
    "density": {
        "PyHessian": Ask(pyhessian_density),
        "curvlinops": Ask(curvlinops_density),
        "hessian-eigenthings": Ask(eigenthings_density),
    },
}
