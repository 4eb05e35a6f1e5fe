"""Is L a fixed, finite, twice differentiable function of theta?  Asked once, before anything is measured.

Wrong second derivatives are often silent: double backward through `parametrizations.weight_norm` is off by 10 to 23 %,
through a once-differentiable custom Function by 63 %.  Two products and one central difference on a micro-batch show
it.
"""

import torch
from torch import Tensor

from gapscope.errors import ProblemError
from gapscope.measure import products
from gapscope.measure.batches import called, placed, scores, tensors
from gapscope.measure.problem import Problem

PROBE_SAMPLES = 32


def check(problem: Problem) -> float:
    """Raise ProblemError unless L is finite, repeatable and twice differentiable; return L(theta).

    Symmetry: u'Hv = v'Hu; truth: Hv equals a central difference of the gradient; both on a micro-batch of 32 samples,
    in float64 where the model allows it (kinks of ReLU then lie outside the step), else in the problem's dtype.
    """
    if not bool(torch.isfinite(problem.theta).all()):
        raise ProblemError(
            f"{int((~torch.isfinite(problem.theta)).sum())} of {problem.size} weights are NaN or infinite. "
            "Expected finite weights. This run diverged: measure an earlier checkpoint."
        )
    constants = {name: tensor.clone() for name, tensor in problem.constants.items()}
    losses, again = problem.losses(), problem.losses()
    finite = torch.isfinite(torch.from_numpy(losses))
    if not bool(finite.all()):
        raise ProblemError(
            f"The loss is NaN or infinite on {int((~finite).sum())} of {problem.samples} samples "
            f"(first: sample {int((~finite).int().argmax())}). Expected finite losses. "
            "Check the data (`--data`), the labels and the loss (`--loss`)."
        )
    change = abs(losses - again).max()
    if change > 1e3 * torch.finfo(problem.dtype).eps * (1 + abs(losses).max()):
        raise ProblemError(
            f"Two passes over the same samples gave losses that differ by up to {change:.2g}. "
            "Expected the same function twice. Look for dropout that ignores eval mode "
            "(`F.dropout(x, p)` without `training=self.training`) or random numbers in `forward`."
        )
    changed = [name for name, tensor in problem.constants.items() if not _same(tensor, constants[name])]
    if changed:
        raise ProblemError(
            f"A forward pass in eval mode changed the buffer `{changed[0]}`. Expected a function without memory. "
            "Update buffers only `if self.training`."
        )
    _check_derivatives(problem)
    return float(losses.mean())


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())  # NaN is NaN


def _check_derivatives(problem: Problem) -> None:
    rng = torch.Generator().manual_seed(0)
    theta = problem.theta.detach()
    u, v = (
        torch.randn(problem.size, generator=rng, dtype=torch.float64).to(theta.device, theta.dtype) for _ in range(2)
    )
    u, v = u / u.norm(), v / v.norm()
    for dtype in dict.fromkeys([torch.float64, problem.dtype]):
        if theta.device.type == "mps" and dtype == torch.float64:
            continue
        try:
            verdict = _probe(problem, theta.to(dtype), u.to(dtype), v.to(dtype))
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if dtype == problem.dtype:
                raise ProblemError(
                    f"The model's gradient cannot be differentiated again: {str(error).splitlines()[0][:200]}. "
                    "Expected operations with a second derivative. Replace fused, compiled or custom operations by "
                    "plain ones (for Hugging Face models: attn_implementation='eager')."
                ) from error
            continue  # the model holds float32 constants of its own: probe it as it is
        if verdict:
            raise ProblemError(verdict)
        return


def _probe(problem: Problem, theta: Tensor, u: Tensor, v: Tensor) -> str:
    """Return what is wrong with the second derivative on a micro-batch, or an empty string."""
    micro, layout = _micro(problem, theta.dtype), problem.parameters
    exact = theta.dtype == torch.float64
    eps = torch.finfo(theta.dtype).eps

    def gradient(point: Tensor) -> Tensor:
        return layout.flatten(products.gradient(micro, layout.split(point))[0])

    with problem.measuring():
        product = products.hessian(micro, layout.split(theta))
        hu, hv = (layout.flatten(product(layout.split(w))) for w in (u, v))
        slope, reach = float(gradient(theta).norm()), _reach(micro, problem, theta)
        left, right, scale = float(u @ hv), float(v @ hu), float(hu.norm() + hv.norm())
        if abs(left - right) > (1e-5 if exact else 1e-2) * scale + eps * (100 * slope + 4 * reach**2 / len(theta)):
            return (
                f"The second derivative is not symmetric: u'Hv = {left:.6g}, v'Hu = {right:.6g} on a micro-batch. "
                "Expected the same. An operation of the model has a wrong double backward (weight_norm "
                "parametrizations, reentrant checkpointing and custom autograd Functions are known): replace or remove "
                "it."
            )
        size = float(theta.norm()) + 1
        best = float("inf")
        for share in (1e-5, 1e-7, 1e-8, 1e-9) if exact else (3e-3, 3e-4, 3e-5):
            step = share * size
            difference = (gradient(theta + step * v) - gradient(theta - step * v)) / (2 * step)
            noise = eps * (1e3 * slope + 4 * reach) / step
            best = min(best, float((difference - hv).norm()) - noise)
            if best <= (0.01 if exact else 0.2) * float(hv.norm()):
                # a step across kinks says nothing, and ResNet-20 on 32 images has 6 million ReLUs: at a share of 3e-7
                # the difference was 28 times too large, at 3e-8 right to 3e-8; one step that agrees is enough
                return ""
        return (
            f"The Hessian-vector product differs from a central difference of the gradient by {best:.2g} "
            f"(its norm is {float(hv.norm()):.2g}). Expected agreement. An operation of the model has a wrong double "
            "backward (weight_norm parametrizations, reentrant checkpointing and custom autograd Functions are known): "
            "replace or remove it."
        )


def _reach(micro: products.Micro, problem: Problem, theta: Tensor) -> float:
    """Return |J'w| for random w on the outputs: what rounding of slopes of size 1 there does to the gradient.

    At a loss near 0 it is all there is: log-softmax takes 1 - p, and p rounds to 1.
    """
    rng = torch.Generator().manual_seed(1)

    def weighted(outputs: Tensor) -> Tensor:
        return outputs.flatten() * torch.randn(outputs.numel(), generator=rng).to(outputs)

    parts, _ = products.gradient(products.Micro(micro.outputs, weighted), problem.parameters.split(theta))
    return float(problem.parameters.flatten(parts).norm())


def _micro(problem: Problem, dtype: torch.dtype) -> products.Micro:
    """Return a micro-batch of samples spread over the data, everything cast to `dtype`."""
    picked = torch.linspace(0, problem.samples - 1, min(PROBE_SAMPLES, problem.samples)).long()
    batch = problem.picked(picked)
    inputs, targets = (placed(part, problem.device, dtype) for part in (batch.inputs, batch.targets))
    constants = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in problem.constants.items()
    }

    def outputs(leaves: products.Leaves) -> Tensor:
        own = {name: tensor.clone() for name, tensor in constants.items()}
        named = dict(zip(problem.parameters.names, leaves, strict=True))
        return scores(called(problem.model, inputs, {**named, **own}))

    return products.Micro(outputs, lambda produced: problem.bound.per_sample(produced, tensors(targets)[0]))
