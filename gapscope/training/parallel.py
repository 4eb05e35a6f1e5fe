"""Data-parallel training under `torchrun`: every process takes its share of each batch, and gradients are summed."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes that train together; alone it is both the first and the last."""

    rank: int = 0
    count: int = 1

    def share(self) -> slice:
        """Return which samples of a batch are this process's: by stride, so that shares differ by one at most."""
        return slice(self.rank, None, self.count)

    def total(self, vector: Tensor) -> Tensor:
        """Return the sum over the processes, the same bits in each."""
        if self.count > 1:
            dist.all_reduce(vector)
        return vector

    def from_first(self, value: Any) -> Any:
        """Return the first process's value."""
        box = [value]
        if self.count > 1:
            dist.broadcast_object_list(box)
        return box[0]


ALONE = Ranks()


def local_device(name: str) -> str:
    """Return the device that a process takes: under `torchrun` each has a GPU of its own."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    own_gpu = several and torch.cuda.is_available() and name in ("auto", "cuda")
    return f"cuda:{os.environ['LOCAL_RANK']}" if own_gpu else name


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, and leave them; a process that was started by itself is alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL sends objects from
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # one that leaves while another is still at its last reduction aborts it
    finally:
        dist.destroy_process_group()
