"""Plain operations in the place of those whose second derivative is missing or wrong, while a model is measured.

Each is the same function of the weights, to rounding; only how it is computed changes, and only inside `plain`.

- `torch._weight_norm` (both kinds of weight_norm): its double backward is 10 to 23 % off, without a word.
- `embedding_bag`: has no second derivative.
- `torch.utils.checkpoint`: what it recomputes in the backward pass are the model's own weights, not those it was called
  with, and the reentrant kind hides the weights from autograd altogether.
- compiled modules and functions: a compiled backward pass is not differentiable again.
- the `forward` that accelerate puts in the place of a model's own: its autocast would be measured as float32.
- cuDNN's recurrent networks: no backward pass in eval mode, and no second one in any.
- TF32, which torch takes for convolutions by default: its 10 bits round away perturbations of 5e-4 of a weight.
- the fast path of attention layers: other kernels where no gradient is asked for.
- `torch.func` imports the compiler to switch it off: left out where nothing was compiled.
- `sparse`, `scale_grad_by_freq` and `padding_idx` of embeddings: gradients of another shape, or of another function.
"""

import contextlib
import importlib
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
import torch.utils.checkpoint
from torch import Tensor, nn

NOTES = {
    "weight_norm": "weight_norm is written out as v * (g / |v|): the second derivative of the fused one is wrong",
    "embedding_bag": "embedding_bag is written out as a lookup and a reduction: the fused one has no second derivative",
    "checkpoint": "activation checkpointing is off while measuring: it recomputes with other weights than those asked",
    "compile": "compiled modules run uncompiled: a compiled backward pass cannot be differentiated again",
    "autocast": "the model's own forward runs, without the autocast that accelerate put around it",
}
_EMBEDDING_BAG = F.embedding_bag
Precision = Literal["full", "tf32", "bf16"]
_HELD = threading.RLock()  # what is swapped belongs to all threads
_GENERATORS = {  # of the checkpoints that are not reentrant: the second since torch 2.15
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
}
_OLD_HOOKS = ("WeightNorm", "SpectralNorm")  # of torch.nn.utils: they leave a computed weight behind, graph included


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """Return the module inside of (Distributed)DataParallel and torch.compile, and whether it was compiled."""
    compiled = False
    while True:
        if type(model).__name__ == "OptimizedModule":
            model, compiled = model._orig_mod, True  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model, compiled


def without_autocast(module: nn.Module) -> Callable[..., Any] | None:
    """Return a module's forward inside of accelerate's mixed precision, or None where there is none.

    accelerate sets forward to its `ConvertOutputsToFp32` of a `torch.autocast` of what was there, maybe repeatedly.
    """
    found, forward = None, vars(module).get("forward")
    while type(wrapper := _wrapped(forward)).__name__ == "ConvertOutputsToFp32":
        inner = _wrapped(_wrapped(wrapper))
        found = forward = types.MethodType(inner, module) if isinstance(forward, types.MethodType) else inner
    return found


def _wrapped(function: Any) -> Any:
    return getattr(getattr(function, "__func__", function), "__wrapped__", None)


@contextlib.contextmanager
def plain(model: nn.Module, repaired: set[str]) -> Iterator[None]:
    """Hold plain operations in place; what was needed of NOTES is added to `repaired`.  One thread at a time.

    Cost: 50 microseconds a pass over the data and 2 for each module, nothing for operations.
    """

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*args: Any, **kwargs: Any) -> Any:
            repaired.add(name)
            return function(*args, **kwargs)

        return stand_in

    checkpoint = torch.utils.checkpoint
    modules = list(model.modules())
    with _HELD, contextlib.ExitStack() as held:
        for owner in (torch, sys.modules["torch.nn.utils.weight_norm"]):
            held.enter_context(_swapped(owner, "_weight_norm", noted("weight_norm", _weight_norm)))
        held.enter_context(_swapped(F, "embedding_bag", noted("embedding_bag", _embedding_bag)))
        run = type("Run", (), {"apply": staticmethod(noted("checkpoint", _run))})
        held.enter_context(_swapped(checkpoint, "CheckpointFunction", run))
        generator = noted("checkpoint", _nothing)
        composable = sys.modules.get("torch.distributed._composable.checkpoint_activation")  # keeps a name of its own
        for owner in filter(None, (checkpoint, composable)):
            for name in _GENERATORS & vars(owner).keys():
                held.enter_context(_swapped(owner, name, generator))
        held.enter_context(_fast_path_off())
        held.enter_context(_factors_in("ieee"))
        if any(isinstance(module, nn.RNNBase) for module in modules):
            held.enter_context(_swapped(torch.backends.cudnn, "enabled", False))
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes seconds
            if any(type(module).__name__ == "OptimizedModule" for module in modules):
                repaired.add("compile")
            held.enter_context(torch.compiler.set_stance("force_eager"))
        else:
            held.enter_context(_without_compiler())
        for module in modules:
            if forward := without_autocast(module):
                repaired.add("autocast")
                held.enter_context(_swapped(module, "forward", forward))
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                held.enter_context(_swapped(module, "sparse", False))
                held.enter_context(_swapped(module, "scale_grad_by_freq", False))
            if isinstance(module, nn.Embedding):
                held.enter_context(_swapped(module, "padding_idx", None))
            for hook in module._forward_pre_hooks.values():
                if type(hook).__name__ in _OLD_HOOKS:
                    held.enter_context(_kept(module, hook.name))  # type: ignore[attr-defined]
        yield


class _Compiler:
    """Stands for `torch._dynamo` where nothing was compiled: whoever asks for more imports it."""

    def __init__(self, name: str = "torch._dynamo", **known: Any) -> None:
        self.__dict__ |= {"_name": name, **known}

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Keep `torch.func` from importing the compiler, only to switch it off: that takes more than a second."""
    if "_dynamo" in vars(torch):
        yield
        return
    off = _Compiler("torch._dynamo.compiled_autograd", _disable=contextlib.nullcontext)
    stand_in = _Compiler(compiled_autograd=off)
    vars(torch)["_dynamo"] = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:  # else it was imported after all
            del vars(torch)["_dynamo"]


@contextlib.contextmanager
def _swapped(owner: Any, name: str, stand_in: Any) -> Iterator[None]:
    own = getattr(owner, name)
    setattr(owner, name, stand_in)
    try:
        yield
    finally:
        setattr(owner, name, own)


@contextlib.contextmanager
def _kept(module: nn.Module, name: str) -> Iterator[None]:
    own = module.__dict__.get(name)
    try:
        yield
    finally:
        if own is not None:
            module.__dict__[name] = own


@contextlib.contextmanager
def _fast_path_off() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def in_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Multiply and convolve with so many bits, inside `plain`; what a kept graph holds stays in float32.

    tf32: 10 bits of each factor, of NVIDIA's GPUs.  bf16: 7 bits of each factor and of each result, by autocast.
    """
    if precision == "full":
        yield
    elif precision == "tf32":
        with _factors_in("tf32"):
            yield
    else:
        with torch.autocast(device.type, torch.bfloat16):
            yield


@contextlib.contextmanager
def _factors_in(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Round the factors of products of float32 to TF32, or not, and on a CPU never to bfloat16."""
    known: Any = torch.backends
    with contextlib.ExitStack() as held:
        if hasattr(getattr(known.cudnn, "conv", None), "fp32_precision"):  # torch 2.9 warns of the older switches
            inner = [known.cudnn.conv, known.cudnn.rnn, known.cuda.matmul, known.mkldnn.conv, known.mkldnn.matmul]
            # outer ones first: what follows them is not set itself, or it would follow them no more
            for owner in (known, known.cudnn, known.mkldnn, *inner):
                if owner.fp32_precision != precision:
                    held.enter_context(_swapped(owner, "fp32_precision", precision))
        else:
            held.enter_context(_swapped(known.cudnn, "allow_tf32", precision == "tf32"))
            held.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
        yield


def _run(function: Callable[..., Any], _: bool, *args: Any) -> Any:
    return function(*args)


def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    """Stand before and after a checkpointed function, and do nothing."""
    yield


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Return what `F.embedding_bag` returns: bags (B, L), or one row cut at `offsets`, reduced over their entries."""
    if max_norm is not None:  # it changes the weights: the check of the model says so
        return _EMBEDDING_BAG(
            input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
            include_last_offset, padding_idx,
        )  # fmt: skip
    bags, shares, counted = input, per_sample_weights, torch.ones_like(input, dtype=torch.bool)
    if offsets is not None:
        ends = offsets[1:] if include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(input)])])
        starts = offsets[: len(ends)]
        place = starts[:, None] + torch.arange(int((ends - starts).max().clamp(min=1)), device=input.device)
        counted, place = place < ends[:, None], place.clamp(max=len(input) - 1)
        bags, shares = input[place], None if shares is None else shares[place]
    if padding_idx is not None:
        counted = counted & (bags != padding_idx % len(weight))
    rows = F.embedding(bags, weight)
    if mode == "max":
        least = torch.where(counted[..., None], rows, -torch.inf).max(1).values
        return torch.where(counted.any(1, keepdim=True), least, 0.0)
    shares = counted.to(rows) if shares is None else counted * shares
    total = (shares[..., None] * rows).sum(1)
    return total / counted.sum(1, keepdim=True).clamp(min=1) if mode == "mean" else total
