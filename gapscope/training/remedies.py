"""Remedies against the generalization gap of large batches: what to change in a training loop, one thing each."""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.optim.optimizer import Optimizer

from gapscope.errors import UsageError


def discarded_mean(losses: Tensor, share: float) -> Tensor:
    """Return the mean of losses (B,) without the floor(share B) smallest: samples long learned no longer count.

    At least one is left.  Its expectation over batches is not the training loss, but more.
    Source: Gao, Zhong 2020 (arXiv 2012.08795), abstract; the rule is gapscope's own.  Raises UsageError.
    """
    if not 0 <= share < 1:
        raise UsageError(f"The share to discard is {share}. Expected 0 or more, below 1. Give for example 0.25.")
    if losses.ndim != 1 or not len(losses):
        raise UsageError(
            f"The losses have the shape {tuple(losses.shape)}. Expected one for each sample, (B,). Take the criterion "
            'with `reduction="none"`.'
        )
    if not share:
        return losses.mean()  # to the bit
    # the slack is for products such as 0.29 x 100 = 28.999...
    dropped = math.floor(share * len(losses) * (1 + 4 * torch.finfo(torch.float64).eps))
    return losses.topk(max(1, len(losses) - dropped), sorted=False).values.mean()


def augmented(images: Tensor, generator: Generator, *, shift: int | None = None, flip: bool = False) -> Tensor:
    """Return images (B, C, H, W) moved by up to `shift` pixels each way, zeros moved in; with `flip`, half mirrored.

    shift: an eighth of the smaller side by default, at least 1 (4 of 32).  Mirrored digits are other signs.  The
    generator is on the CPU: the same draws on every device.  Raises UsageError where these are no images.
    """
    if images.ndim != 4:
        raise UsageError(
            f"The inputs have the shape {tuple(images.shape)}. Expected images, (B, C, H, W). Leave augmentation out, "
            "or reshape the data: `--reshape 3,32,32`."
        )
    count, _, height, width = images.shape
    reach = max(1, min(height, width) // 8) if shift is None else shift
    if not 0 <= reach < min(height, width):
        raise UsageError(
            f"Images of {height} x {width} are to move by {reach}. Expected 0 or more, less than a side. Mend `shift`."
        )
    draws = torch.randint(0, 2 * reach + 1, (2, count), generator=generator).to(images.device)
    padded = torch.nn.functional.pad(images, (reach,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 reach + 1, 2 reach + 1, H, W), a view
    moved = windows[torch.arange(count, device=images.device), :, draws[0], draws[1]]
    if not flip:
        return moved
    mirrored = torch.randint(0, 2, (count, 1, 1, 1), generator=generator).to(images.device, torch.bool)
    return torch.where(mirrored, moved.flip(-1), moved)


def adversarial(loss: Callable[[Tensor], Tensor], inputs: Tensor, radius: float) -> Tensor:
    """Return inputs + radius sign(slope of the loss by them), to be trained on instead (FGSM); costs a gradient.

    Parameters get no gradient from it.  Source: Goodfellow, Shlens, Szegedy 2014 (arXiv 1412.6572).
    """
    point = inputs.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss(point), [point])
    return inputs + radius * slope.sign()


class Proximal:
    """Conservative training: every batch is solved for a while, near where its step began.

    A step takes `steps` steps of the optimizer towards argmin_x f_B(x) + strength / 2 |x - x_k|^2 from x_k, on one
    batch, and costs so many gradients.  The first is one of f_B alone.

    Source: Keskar et al. 2017, Appendix E, with 3 steps of Adam and strength 1e-3; the form is that of Li et al. 2014.
    """

    def __init__(self, optimizer: Optimizer, *, strength: float = 1e-3, steps: int = 3) -> None:
        if not 0 <= strength < math.inf or steps < 1:
            raise UsageError(
                f"Proximal got strength={strength}, steps={steps}. Expected a strength of 0 or more and at least one "
                "step. Mend them."
            )
        self.optimizer, self.strength, self.steps = optimizer, strength, steps

    def step(self, closure: Callable[[], float]) -> float:
        """Take the inner steps; return the first loss.  The closure clears and computes loss and gradients."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        start = [p.detach().clone() for p in params]
        losses = []

        def pulled() -> float:
            losses.append(closure())
            for parameter, before in zip(params, start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter.detach() - before, alpha=self.strength)
            return losses[-1]

        for _ in range(self.steps):
            self.optimizer.step(pulled)
        return losses[0]
