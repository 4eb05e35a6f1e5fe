"""How a model is cut over the ranks: which blocks are gathered together, and which part of theta each rank holds."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gapscope.measure.distributed import ranks
from gapscope.measure.operators import Share


def cut(model: nn.Module, device: torch.device) -> None:
    """Cut every parameter over the ranks, and bring the parts to the device."""
    if ranks().count == 1:
        model.to(device)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (ranks().count,))
    # gathered only while passed through, the rest of the model too: else moved shards would not be seen
    for module in (*blocks(model), model):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks that are gathered one at a time: of ModuleLists and Sequentials, the children.

    The outermost ones, or where those hold more than a quarter of the model, the ones inside of them.  A block with a
    parameter that is used outside of it, too (a tied weight), is left to the rest of the model.
    """
    most = count(model) // 4
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))

    def inside(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            inner = list(inside(child))
            listed = isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict)
            callable_ = not isinstance(child, nn.ModuleList | nn.ModuleDict)
            if listed and callable_ and count(child) and (count(child) <= most or not inner):
                yield child
            else:
                yield from inner

    def closed(block: nn.Module) -> bool:
        own = {id(module) for module in block.modules()}
        return all(owners[id(parameter)] <= own for parameter in block.parameters())

    return list(dict.fromkeys(block for block in inside(model) if closed(block)))


def count(module: nn.Module) -> int:
    """Return how many numbers a module holds as parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def share_of(parameters: list[nn.Parameter]) -> Share:
    """Return where this rank's parts lie in theta: of each parameter the same share of rows as `torch.chunk` gives."""
    group = ranks()
    places, start = [], 0
    held = [0] * group.count
    for parameter in parameters:
        rows = len(parameter) if parameter.dim() else 1
        each = parameter.numel() // max(1, rows)
        chunk = -(-rows // group.count)
        ends = [start + each * min(rows, chunk * rank) for rank in range(group.count + 1)]
        held = [sum_ + ends[rank + 1] - ends[rank] for rank, sum_ in enumerate(held)]
        places.append(slice(ends[group.rank], ends[group.rank + 1]))
        start += parameter.numel()
    return Share(tuple(places), max(held), group.total)


def local(tensor: Tensor) -> Tensor:
    """Return the numbers themselves that this rank holds of a parameter or its gradient."""
    plain = tensor.detach()
    part: Tensor = plain.to_local() if hasattr(plain, "to_local") else plain
    return part
