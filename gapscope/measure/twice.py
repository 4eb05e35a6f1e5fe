"""Convolutions and BatchNorm in eval mode whose second derivative costs what its multiply-adds say.

Autograd's own second derivative of a convolution turns the tensors round and convolves with kernels as large as images;
that of BatchNorm writes some ten tensors a layer, where four will do.  Both operations are linear in each of their
arguments, so that derivatives of any order are the operation itself and its two transposes again, with the kernels that
the gradient has anyway:

    y = C(x, w),  x' = T(g, w),  w' = W(g, x);   <g, C(x, w)> = <T(g, w), x> = <W(g, x), w>.

ResNet-20, 32 images, one thread, with the graph kept: 2.22 gradients a product where autograd takes 2.35, and 0.45
where it takes 0.64 for the diagonal block of a layer (mean of seven); as many bytes are kept.  Everything else is left
to autograd.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

_DEVICES = ("cpu", "cuda")


class Twice(TorchFunctionMode):
    """While it is on, what is computed by those operations can be differentiated again at its arithmetic cost."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call the stand-in of a function, or the function."""
        return _STAND_INS.get(function, function)(*args, **(kwargs or {}))


class _Convolution(Function):
    """C(x, w) + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, how: Any) -> Any:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return torch.ops.aten.convolution(*_narrowed(x, w, b), *how).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x, w), (to_x, to_w, to_b) = ctx.saved_tensors, _asked(ctx, 3)
        return (
            _of(_Input, g, w, x.detach(), ctx.how) if to_x else None,
            _of(_Weight, g, x, w.detach(), ctx.how) if to_w else None,
            g.sum([0, *range(2, g.dim())]) if to_b else None,
            None,
        )


class _Input(Function):
    """T(g, w), of the form of x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, how: Any) -> Any:  # of x only the form is read
        ctx.save_for_backward(g, w)
        ctx.how = how
        return torch.ops.aten.convolution_backward(*_narrowed(g, x, w), None, *how, [True, False, False])[0].to(g.dtype)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> Any:
        (g, w), (to_g, to_w) = ctx.saved_tensors, _asked(ctx, 2)
        return (
            _of(_Convolution, x, w, None, ctx.how) if to_g else None,
            _of(_Weight, g, x, w.detach(), ctx.how) if to_w else None,
            None,
            None,
        )


class _Weight(Function):
    """W(g, x), of the form of w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, how: Any) -> Any:  # of w only the form is read
        ctx.save_for_backward(g, x)
        ctx.how = how
        return torch.ops.aten.convolution_backward(*_narrowed(g, x, w), None, *how, [False, True, False])[1].to(g.dtype)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> Any:
        (g, x), (to_g, to_x) = ctx.saved_tensors, _asked(ctx, 2)
        return (
            _of(_Convolution, x, w, None, ctx.how) if to_g else None,
            _of(_Input, g, w, x.detach(), ctx.how) if to_x else None,
            None,
            None,
        )


class _Normalized(Function):
    """N(x, w, b) = (x - m) r w + b by channel, with m the mean and r = (v + eps)^-1/2 fixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, m: Tensor, v: Tensor, eps: float) -> Any:
        ctx.save_for_backward(x, w, m, v)
        ctx.eps = eps
        return torch.ops.aten.native_batch_norm(x, w, b, m, v, False, 0.0, eps)[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_of(_Slopes, g, *ctx.saved_tensors, ctx.eps), None, None, None


class _Slopes(Function):
    """The slopes of <g, N(x, w, b)> by x, w and b: g r w, sum g (x - m) r and sum g."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, m: Tensor, v: Tensor, eps: float) -> Any:
        ctx.save_for_backward(g, x, w, m, v)
        ctx.eps = eps
        return torch.ops.aten.native_batch_norm_backward(g, x, w, m, v, None, None, False, eps, [True, True, True])

    @staticmethod
    def backward(ctx: Any, x_: Tensor, w_: Tensor, b_: Tensor) -> Any:
        g, x, w, m, v = ctx.saved_tensors
        to_g, to_x, to_w = _asked(ctx, 3)
        scale = (w * torch.rsqrt(v + ctx.eps)).view(-1, *[1] * (g.dim() - 2))
        along = torch.addcmul(_of(_Normalized, x, w_, b_, m, v, ctx.eps), x_, scale) if to_g else None
        if not (to_x or to_w):
            return along, None, None, None, None, None
        return along, *_of(_Slopes, g, x_, w_, torch.zeros_like(m), v, ctx.eps)[:2], None, None, None


def _of(function: type[Function], *given: Any) -> Any:
    return function.apply(*given)  # type: ignore[no-untyped-call]  # of torch


def _asked(ctx: Any, inputs: int) -> list[bool]:
    """Return of which of its first inputs, tensors, a node is asked the derivative in the pass that runs.

    Of a part of a graph not all are: autograd's own nodes know, a Function has to ask.
    """
    nodes = [node for node, _ in ctx.next_functions[:inputs]] + [None] * (inputs - len(ctx.next_functions))
    return [need and _runs(node) for need, node in zip(ctx.needs_input_grad, nodes, strict=False)]


def _runs(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):  # another torch, or a leaf
        return True


def _plain(*given: Tensor | None) -> bool:
    """Return whether all are real numbers of one type, computed with as they are."""
    present = [tensor for tensor in given if tensor is not None]
    kind, device = present[0].dtype, present[0].device.type
    alike = all(type(tensor) in (Tensor, torch.nn.Parameter) and tensor.dtype == kind for tensor in present)
    return alike and kind.is_floating_point and device in _DEVICES and not torch.is_autocast_enabled(device)


def _narrowed(*given: Tensor | None) -> list[Any]:
    """Return tensors as autocast hands them to a convolution: it does not look into a Function."""
    present = next(tensor for tensor in given if tensor is not None)
    device = present.device.type
    if not torch.is_autocast_enabled(device) or present.dtype == torch.float64:
        return list(given)
    return [tensor if tensor is None else tensor.to(torch.get_autocast_dtype(device)) for tensor in given]


def _convolving(function: Callable[..., Tensor], dims: int) -> Callable[..., Tensor]:
    def stand_in(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if isinstance(padding, str) or input.dim() != dims + 2 or not _plain(input, weight, bias):
            return function(input, weight, bias, stride, padding, dilation, groups)
        sizes = [list(size) * (dims // len(size)) for size in map(_several, (stride, padding, dilation))]
        return _of(_Convolution, input, weight, bias, (*sizes, False, [0] * dims, groups))

    return stand_in


def _several(size: Any) -> Sequence[int]:
    return [size] if isinstance(size, int) else size


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    mean, variance = running_mean, running_var
    if training or mean is None or variance is None or not _plain(input, mean, variance, weight, bias):
        return F.batch_norm(input, mean, variance, weight, bias, training, momentum, eps)
    w = torch.ones_like(mean) if weight is None else weight
    b = torch.zeros_like(mean) if bias is None else bias
    return _of(_Normalized, input, w, b, mean, variance, eps)


_STAND_INS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: _convolving(torch.conv1d, 1),
    torch.conv2d: _convolving(torch.conv2d, 2),
    torch.conv3d: _convolving(torch.conv3d, 3),
    F.batch_norm: _batch_norm,
}
