"""Post-activation outputs of every layer, by forward hooks: streamed float64 Gram matrices, or the columns themselves.

What a layer is (gapscope's own choice): a Linear, convolution, embedding, recurrent or attention module of torch, any
other leaf that owns a parameter of two or more dimensions and is no normalization, and every module below the model
whose class is named like an attention, MLP or feed-forward block and that contains such layers.  A block whose output
is the very tensor of its last layer is that layer's row.

What its output is (gapscope's own choice): that of the activation, a module or a function such as `F.relu`, that is
called on the very tensor which the layer, or a normalization or dropout module right after it, returned; else the
layer's own, as before a shortcut is added.  Softmax is no activation here.

What the matrix is: units x columns.  Dense: the last dimension are units, every other position a column.
Convolution: (c H W) x samples, or c x (samples H W).  A layer that is called several times contributes all its calls.
Positions that the data's `attention_mask` calls padding are left out.
"""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from gapscope.errors import ProblemError
from gapscope.measure.batches import Batch, Inputs, called, count, taken
from gapscope.measure.problem import Problem
from gapscope.measure.ranks import PIECE, TALL, Columns, Gram, Spectra, gram_multiply_adds, qr_multiply_adds

View = Literal["flat", "channels"]
Hook = Callable[[nn.Module, Any, Any], None]

KNOWN = (nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.RNNBase)
BLOCKS = ("attention", "mlp", "feedforward", "ffn")
ACTIVATIONS = ("activation", "relu", "gelu", "silu", "swish", "mish", "tanh", "sigmoid")
FUNCTIONS = frozenset(
    f"{name}{ending}"
    for name in (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid"),
        *("softplus", "softsign", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "prelu", "rrelu"),
    )
    for ending in ("", "_")
)
NORMS = ("torch.nn.modules.batchnorm", "torch.nn.modules.instancenorm", "torch.nn.modules.normalization")
TRANSPARENT = (*NORMS, "torch.nn.modules.dropout")
WHOLE_MODEL = "model"
FUNCTION = nn.Identity()  # stands for the module of every activation that is called as a function


@dataclass(frozen=True, eq=False)
class Layer:
    """One row: where its output is seen, and how large its matrix is."""

    name: str
    convolution: bool
    points: tuple[tuple[nn.Module, int], ...]  # (module, which of its calls in one forward pass)
    activated: bool  # an activation follows
    units: int
    per_sample: int  # columns of one sample
    dtype: torch.dtype
    flat: bool  # a convolution by whole maps: of the chosen samples alone
    columns: int = 0

    @property
    def streamed(self) -> bool:
        """Return whether its Gram matrix is summed over the data: else the columns are fewer, and kept."""
        return self.units <= self.columns

    @property
    def kept_bytes(self) -> int:
        """Return what the pass over the data holds for this layer."""
        return 8 * (self.units + 1) ** 2 if self.streamed else self.dtype.itemsize * self.units * self.columns

    @property
    def work_bytes(self) -> int:
        """Return what the spectrum takes beside it: two Gram matrices and a piece, or blocks of a factorization."""
        small, large = sorted((self.units, self.columns))
        if self._factored:
            return 3 * 8 * small * (min(TALL * small, large) + small)
        return 8 * (2 * (small + 1) ** 2 + min(PIECE + small, small * large))

    @property
    def multiply_adds(self) -> int:
        """Return the multiply-adds of both spectra."""
        small, large = sorted((self.units, self.columns))
        return qr_multiply_adds(large, small) if self._factored else gram_multiply_adds(small, large)

    @property
    def _factored(self) -> bool:
        return not self.streamed and self.dtype == torch.float64


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found for one layer."""

    layer: Layer
    spectra: Spectra


# --- which outputs


def layers(problem: Problem, view: View = "flat") -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Return the layers in the order in which they are first called, and the names of those that never are.

    Cost: one forward pass over at most two samples.
    """
    named = _candidates(problem.model)
    watched = _Watch({module: name for name, module in named.items()})
    batch = problem._batch(0, min(2, problem.samples))
    with problem.measuring(), _hooked((FUNCTION, *problem.model.modules()), watched):
        _forward(problem, batch.inputs)
    found = []
    for name, seen in watched.outputs.items():
        module = named[name]
        convolution = _is_convolution(module)
        shapes = {_matrix_shape(output.shape, convolution, view) for output in seen}
        if len({units for units, _ in shapes}) > 1:
            raise ProblemError(
                f"The layer `{name}` is called on several sizes: {', '.join(str(tuple(o.shape)) for o in seen)}. "
                "Expected one number of units. Take `--view channels`, or leave it out with `--layers`."
            )
        columns = sum(_matrix_shape(output.shape, convolution, view)[1] for output in seen)
        found.append(
            Layer(
                name=name,
                convolution=convolution,
                points=tuple(watched.points[name]),
                activated=any(point is not module for point, _ in watched.points[name]),
                units=next(iter(shapes))[0],
                per_sample=max(1, columns // len(batch.targets)),
                dtype=seen[0].dtype,
                flat=convolution and view == "flat",
            )
        )
    return tuple(found), tuple(name for name in named if name not in watched.outputs and name not in watched.repeated)


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return layers and blocks by name, in the model's own order; nothing inside a layer is another."""
    found: dict[str, nn.Module] = {}

    def visit(module: nn.Module, name: str) -> bool:
        if _is_layer(module):
            found[name or WHOLE_MODEL] = module
            return True
        inside = [visit(child, f"{name}.{key}" if name else key) for key, child in module.named_children()]
        if name and any(inside) and any(word in type(module).__name__.lower() for word in BLOCKS):
            found[name] = module
        return any(inside)

    visit(model, "")
    once = {id(module): name for name, module in reversed(found.items())}  # a shared module has its first name
    return {name: module for name, module in found.items() if once[id(module)] == name}


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, KNOWN):
        return True
    wide = any(parameter.dim() >= 2 for parameter in module.parameters(recurse=False))
    return wide and next(module.children(), None) is None and not _from(module, *NORMS)


def _is_convolution(module: nn.Module) -> bool:
    inner = [one for one in module.modules() if _is_layer(one)]
    return bool(inner) and all(isinstance(one, _ConvNd) for one in inner)


def _is_activation(module: nn.Module) -> bool:
    if isinstance(module, nn.MultiheadAttention) or "softmax" in type(module).__name__.lower():
        return False
    alike = any(word in type(module).__name__.lower() for word in ACTIVATIONS)
    leaf = next(module.children(), None) is None
    return _from(module, "torch.nn.modules.activation") or (alike and leaf and not _is_layer(module))


def _from(module: nn.Module, *places: str) -> bool:
    return any(cls.__module__ in places for cls in type(module).__mro__)


class _Watch:
    """A hook that follows tensors from layers to activations during one forward pass."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self.names = names
        self.calls: Counter[nn.Module] = Counter()
        self.points: defaultdict[str, list[tuple[nn.Module, int]]] = defaultdict(list)
        self.outputs: dict[str, list[Tensor]] = {}
        self.repeated: set[str] = set()
        self.origins: dict[int, tuple[str, int]] = {}  # of a tensor: the layer, and which of its calls
        self.alive: list[Tensor] = []  # so that no identity is given twice

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        call = self.calls[module]
        self.calls[module] += 1
        produced = first_tensor(output)
        if produced is None:
            return
        self.alive.append(produced)
        given = first_tensor(arguments)
        origin = self.origins.get(id(given)) if given is not None else None
        if module in self.names:
            name = self.names[module]
            if any(produced is other for seen in self.outputs.values() for other in seen):
                self.repeated.add(name)  # a block that returns what its last layer did
                return
            self.points[name].append((module, call))
            self.outputs.setdefault(name, []).append(produced)
            self.origins[id(produced)] = (name, len(self.points[name]) - 1)
        elif origin and (module is FUNCTION or _is_activation(module)):
            name, index = origin
            if module is not FUNCTION:  # a module calls its function first: the module is what counts
                del self.origins[id(given)]
            elif self.points[name][index][0] is FUNCTION:
                return  # the first of several functions of one tensor
            self.points[name][index] = (module, call)
            self.outputs[name][index] = produced
        elif origin and (_from(module, *TRANSPARENT) or isinstance(module, nn.Identity)):
            self.origins[id(produced)] = origin


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating tensor of what a module takes or returns, or None."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.dim() >= 1 else None
    inside = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((found for one in inside if (found := first_tensor(one)) is not None), None)


def _matrix_shape(shape: torch.Size, convolution: bool, view: View) -> tuple[int, int]:
    if not convolution:
        return shape[-1], shape[:-1].numel()
    return (shape[1:].numel(), shape[0]) if view == "flat" else (shape[1], shape[:1].numel() * shape[2:].numel())


# --- the pass over the data


def chosen_samples(total: int, samples: int, seed: int) -> Tensor:
    """Return the first `samples` of a seeded permutation, in the order of the data: smaller sets lie in larger ones."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return order[:samples].sort().values


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which samples each layer is measured on, in as few passes as the memory budget allows."""

    problem: Problem
    view: View
    chosen: Tensor  # (samples,) for layers whose columns are kept, or for all
    only_chosen: bool
    passes: tuple[tuple[Layer, ...], ...] = field(default=())

    @classmethod
    def of(
        cls, problem: Problem, wanted: Sequence[Layer], view: View, chosen: Tensor, *, only_chosen: bool = False
    ) -> "Plan":
        """Group the layers into passes; raises ProblemError where one alone is beyond the memory budget."""
        passes: list[list[Layer]] = [[]]
        for layer in wanted:
            samples = len(chosen) if layer.flat or only_chosen else problem.samples
            sized = replace(layer, columns=layer.per_sample * samples)
            if peak([sized]) > problem.memory_budget:
                what = f"Gram matrix of {layer.units:,} units" if sized.streamed else f"{sized.columns:,} columns"
                raise ProblemError(
                    f"The layer `{layer.name}` of {layer.units:,} units needs {peak([sized]):,} bytes for its {what}. "
                    f"Expected at most the memory budget of {problem.memory_budget:,}. Raise `--memory-budget`"
                    + (", take `--view channels` or fewer `--samples`" if layer.convolution else "")
                    + ", or leave it out with `--layers`."
                )
            if peak([*passes[-1], sized]) > problem.memory_budget:
                passes.append([])
            passes[-1].append(sized)
        return cls(problem=problem, view=view, chosen=chosen, only_chosen=only_chosen, passes=tuple(map(tuple, passes)))

    @property
    def multiply_adds(self) -> int:
        """Return the multiply-adds of all spectra, the forward passes left out."""
        return sum(layer.multiply_adds for group in self.passes for layer in group)

    def run(self) -> Iterator[Measured]:
        """Yield what is measured of every layer; a pass over the data is made when its first layer is asked for."""
        for group in self.passes:
            kept = _stream(self, group)
            for layer in group:
                yield Measured(layer, kept.pop(layer.name).joined(self.problem.device).spectra())


def peak(group: Sequence[Layer]) -> int:
    """Return the most bytes that a pass and its spectra hold, the model's own activations left out."""
    return sum(layer.kept_bytes for layer in group) + max((layer.work_bytes for layer in group), default=0)


def _stream(plan: Plan, group: Sequence[Layer]) -> dict[str, Gram | Columns]:
    """Go over the data once.  Each hook uses its output at once: nothing else outlives a micro-batch."""
    problem = plan.problem
    kept: dict[str, Gram | Columns] = {one.name: Gram() if one.streamed else Columns() for one in group}
    at = {(module, call): layer for layer in group for module, call in layer.points}
    chosen = torch.zeros(problem.samples, dtype=torch.bool)
    chosen[plan.chosen] = True
    # samples that no layer asks for need no forward pass, unless BatchNorm looks at its whole micro-batch
    few = plan.only_chosen or not (any(not layer.flat for layer in group) or by_batch(problem))
    calls: Counter[nn.Module] = Counter()
    rows, size = torch.empty(0), 0
    inputs: Inputs = rows

    def hook(module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001  (torch passes all three)
        layer = at.get((module, calls[module]))
        calls[module] += 1
        produced = first_tensor(output)
        if layer is None or produced is None:
            return
        if layer.flat:
            each, left = divmod(len(produced), size)  # more than 1 where the model folds a dimension into the samples
            if left:
                raise ProblemError(
                    f"The layer `{layer.name}` returned {len(produced)} maps of {size} samples. Expected a multiple, "
                    "sample by sample. Take `--view channels`, or leave it out with `--layers`."
                )
            matrix = produced.reshape(size, each, layer.units)[... if few else rows].reshape(-1, layer.units)
        else:
            matrix = produced.movedim(1, -1) if layer.convolution else produced
            real = filled(inputs, matrix.shape[:-1])
            matrix = matrix.reshape(-1, layer.units) if real is None else matrix[real]
        kept[layer.name].add(matrix)

    def per_batch(batch: Batch) -> Tensor:
        nonlocal rows, size, inputs
        calls.clear()
        rows = chosen[batch.start : batch.stop].nonzero().squeeze(1).to(problem.device)
        inputs = taken(batch.inputs, rows) if few else batch.inputs
        size = count(inputs)
        # hooked for this call only: the loop runs the model for itself too, to find out the size of a micro-batch
        if size:
            with _hooked([*dict.fromkeys(module for module, _ in at)], hook):
                _forward(problem, inputs)
        return torch.tensor(float(size))

    problem.mean(per_batch)
    return kept


@contextlib.contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Hook) -> Iterator[None]:
    """Register a hook on every module, and remove it whatever happens.

    The fused inference path of attention skips the modules inside, and with them their hooks: it is off meanwhile.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    handles = []
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for module in modules:
            handles.append(module.register_forward_hook(hook))
        with _Functions(hook) if FUNCTION in modules else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()
        torch.backends.mha.set_fastpath_enabled(fused)


class _Functions(TorchFunctionMode):
    """Tells a hook of activations that are called as functions."""

    def __init__(self, hook: Hook) -> None:
        super().__init__()
        self.hook = hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in FUNCTIONS:
            self.hook(FUNCTION, args, output)
        return output


def _forward(problem: Problem, inputs: Inputs) -> None:
    constants = problem.constants
    if problem.batchnorm == "batch":  # running statistics are written to
        constants = {name: tensor.clone() for name, tensor in constants.items()}
    with torch.no_grad():
        called(problem.model, inputs, {**problem.parameters.unflatten(problem.theta), **constants})


def filled(inputs: Inputs, positions: Sequence[int]) -> Tensor | None:
    """Return which positions (B, T) are no padding, or None where no `attention_mask` of this shape says so."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    return mask.bool() if mask is not None and tuple(mask.shape) == tuple(positions) else None


def by_batch(problem: Problem) -> bool:
    """Return whether BatchNorm takes its statistics from each micro-batch."""
    layers = [module for module in problem.model.modules() if isinstance(module, _BatchNorm)]
    return bool(layers) and (problem.batchnorm == "batch" or any(layer.running_mean is None for layer in layers))
