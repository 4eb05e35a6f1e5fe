"""Second opinions on the same problem: PyHessian and SciPy.  Never the engine."""

import contextlib
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure.batches import in_dtype, scores
from gapscope.measure.differentiable import without_autocast
from gapscope.measure.landscape import copied, fill
from gapscope.measure.operators import Operator
from gapscope.measure.problem import Problem


def pyhessian_top(problem: Problem, *, tolerance: float = 1e-4, steps: int = 300, seed: int = 0) -> float:
    """Return PyHessian's eigenvalue of largest magnitude on the whole data of a problem.

    It iterates on a model's own parameters, with its own gradients: it gets a copy that holds what the problem does.
    Raises ProblemError for models that are not in eval mode statistics, which PyHessian does not know.
    """
    if problem.batchnorm != "eval":
        raise ProblemError("PyHessian measures in eval mode only. Expected `--batchnorm eval`.")
    if problem.chosen or not isinstance(problem.data.inputs, Tensor):
        raise ProblemError(
            "PyHessian takes all parameters that require a gradient, and one tensor of inputs. Expected no "
            "`--parameters` and data of one input. Take the referee `scipy`."
        )
    from pyhessian import hessian

    model = copied(problem.model)
    model._apply(lambda tensor: in_dtype(tensor, problem.dtype))  # type: ignore[no-untyped-call]  # of torch
    for module in model.modules():
        if forward := without_autocast(module):
            module.forward = forward
    fill(model, {**problem.parameters.unflatten(problem.theta), **problem.constants})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in problem.parameters.names)
    trainable = [p for p in model.parameters() if p.requires_grad]

    def criterion(outputs: Any, targets: Tensor) -> Tensor:
        # nothing, but twice differentiable: PyHessian fails on parameters that L does not use or is linear in
        nothing = torch.stack([0.0 * p.square().sum() for p in trainable]).sum()
        return problem.bound.per_sample(scores(outputs), targets).mean() + nothing

    whole = problem._batch(0, problem.samples)
    cuda = problem.device.type == "cuda"
    # PyHessian takes the current one
    there: contextlib.AbstractContextManager[Any] = (
        torch.cuda.device(problem.device) if cuda else contextlib.nullcontext()
    )
    try:
        with (
            there,
            warnings.catch_warnings(),
            torch.random.fork_rng(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            warnings.simplefilter("ignore")  # backward(create_graph=True) warns of a reference cycle
            torch.manual_seed(seed)
            tool = hessian(model, criterion, data=(whole.inputs, whole.targets), cuda=cuda)
            values, _ = tool.eigenvalues(maxIter=steps, tol=tolerance, top_n=1)
    finally:
        model.zero_grad(set_to_none=True)  # that cycle: a gradient holds the graph, and the graph its parameter
    return float(values[0])


def scipy_top(operator: Operator, *, tolerance: float = 1e-6, seed: int = 0) -> float:
    """Return the largest algebraic eigenvalue by ARPACK (`scipy.sparse.linalg.eigsh`)."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    def matvec(v: np.ndarray) -> np.ndarray:
        image = operator.matvec(torch.from_numpy(v.reshape(-1)).to(operator.device, operator.dtype))
        return np.asarray(image.cpu().double().numpy())

    if operator.size < 3:  # ARPACK needs room
        dense = np.stack([matvec(column) for column in np.eye(operator.size)])
        return float(np.linalg.eigvalsh(dense)[-1])
    start = np.random.default_rng(seed).standard_normal(operator.size)
    if not matvec(start).any():  # A = 0, on which ARPACK fails
        return 0.0
    linear = LinearOperator((operator.size,) * 2, matvec=matvec, dtype=np.float64)
    return float(eigsh(linear, k=1, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)[0])
