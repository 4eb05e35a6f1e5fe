"""Which module of a model is to blame: for what is not repeatable, and for a second derivative that is not there."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gapscope.measure import products
from gapscope.measure.probe import Probe, micro_batch

if TYPE_CHECKING:
    from gapscope.measure.problem import Problem

Seen = Callable[[str, nn.Module, list[Tensor], list[Tensor]], None]  # name, module, what goes in, what comes out


def unrepeatable(problem: "Problem") -> str:
    """Return the first module whose outputs differ between two passes though its inputs agree, in words."""
    passes: list[list[tuple[str, nn.Module, list[Tensor], list[Tensor]]]] = [[], []]
    for found in passes:

        def record(name: str, module: nn.Module, given: list[Tensor], made: list[Tensor], found: Any = found) -> None:
            found.append((name, module, [x.detach().clone() for x in given], [x.detach().clone() for x in made]))

        _watched(problem, problem.dtype, record)
    for (name, module, given, made), (_, _, given_again, made_again) in zip(*passes, strict=False):
        if _equal(given, given_again) and not _equal(made, made_again):
            return _words(name, module)
    return "the model"


def without_second_derivative(problem: "Problem", dtype: torch.dtype) -> str:
    """Return a sentence that names the custom Functions of the model, or the leaf module that fails by itself."""
    functions: dict[str, str] = {}
    suspects: list[str] = []

    def look(name: str, module: nn.Module, given: list[Tensor], made: list[Tensor]) -> None:
        before = set(_nodes(given))
        for node in _nodes(made):
            owner = getattr(type(node), "_forward_cls", None)  # of custom Functions alone
            if owner is not None and node not in before:
                functions.setdefault(f"`{owner.__module__}.{owner.__qualname__}`", _words(name, module))
        if not functions and not list(module.children()) and _fails(module, given):
            suspects.append(_words(name, module))

    _watched(problem, dtype, look)
    if functions:
        function, where = next(iter(functions.items()))
        return f" The custom autograd Function {function} in {where} is the likely cause."
    return f" By itself, {suspects[0]} fails so." if suspects else ""


def _watched(problem: "Problem", dtype: torch.dtype, seen: Seen) -> None:
    """Run the model once on a micro-batch; every module that finishes is shown, inner ones first."""
    batch = micro_batch(problem)  # counting its samples is a pass of its own, not to be watched
    leaves = products.leaves_of([part.to(dtype) for part in problem._split(None)])
    with contextlib.ExitStack() as hooked:
        for name, module in problem.model.named_modules():

            def hook(module: nn.Module, args: Any, kwargs: Any, made: Any, name: str = name) -> None:
                seen(name, module, list(_tensors((args, kwargs))), list(_tensors(made)))

            hooked.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        with problem.measuring():
            problem._micro(batch).outputs(leaves)


def _fails(module: nn.Module, given: list[Tensor]) -> bool:
    """Return whether a module of tensors, by itself, has a wrong second derivative or none."""
    names = [name for name, _ in module.named_parameters()]
    real = [i for i, x in enumerate(given) if x.is_floating_point()]
    own = [getattr(module, name) for name in names]  # inside the model's own call: the tensors it is called with

    def outputs(leaves: products.Leaves) -> Tensor:
        args = [x.detach() for x in given]
        for i, leaf in zip(real, leaves[len(names) :], strict=True):
            args[i] = leaf
        made = functional_call(module, dict(zip(names, leaves, strict=False)), tuple(args))
        return next(_tensors(made))

    def losses(made: Tensor) -> Tensor:
        weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(2)).to(made)
        return (weights * made).flatten(1).sum(1) if made.ndim > 1 else weights * made

    leaves = [x.detach() for x in [*own, *(given[i] for i in real)]]
    forward_hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
    try:
        with torch.enable_grad():
            return bool(leaves) and bool(Probe(products.Micro(outputs, losses), leaves).fault)
    except Exception:  # it does not run by itself: nothing is known of it
        return False
    finally:
        module._forward_hooks = forward_hooks


def _nodes(made: list[Tensor]) -> Iterator[Any]:
    """Yield every node of the graphs that end in these tensors."""
    waiting: list[Any] = [x.grad_fn for x in made]
    known = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in known:
            known.add(node)
            yield node
            waiting.extend(before for before, _ in node.next_functions)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _words(name: str, module: nn.Module) -> str:
    return f"module `{name}` ({type(module).__name__})" if name else f"the model itself ({type(module).__name__})"
