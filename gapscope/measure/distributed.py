"""Processes that `torchrun` started, which measure together: each takes its share of the data, and sums are reduced.

Every mean over data is linear in them, so one reduction of a product's n numbers is exact.  Each rank takes whole
micro-batches of one partition of all data, by stride: then chunks, per-sample arrays and BatchNorm's batches are what
they are in one process, whatever N and the number of ranks.  Every rank runs the same recurrence on the same bits:
both gloo's ring and NCCL's ring and tree reduce an element on one rank and hand that out.

Before every sum the hosts agree, over gloo (0.2 ms, no wait for an accelerator), that all of them got there: an
exception of one is raised in all, one that died or hangs is noticed, and one without a sample learns the shape.
"""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gapscope.errors import RankError, UsageError

T = TypeVar("T")
SECONDS = 600.0  # that ranks wait for each other: longer than any micro-batches of two ranks come apart
_NOTHING = -(1 << 62)
_PATIENCE = 0.1  # seconds between two looks at the others


@dataclass(frozen=True)
class Ranks:
    """One of `count` processes that work together; alone it is both the first and the last."""

    rank: int = 0
    count: int = 1
    store: Any = field(default=None, repr=False, compare=False)  # what all of them see, also when they have failed

    def share(self) -> slice:
        """Return which of a sequence of samples, or of micro-batches, are this process's: by stride."""
        return slice(self.rank, None, self.count)

    def even(self, samples: int, most: int) -> int:
        """Return a size of micro-batches, at most `most`, of which every rank gets as many, as far as they go."""
        rounds = -(-samples // (most * self.count))
        return most if self.count == 1 else -(-samples // (rounds * self.count))

    def total(self, vector: Tensor) -> Tensor:
        """Return the sum over the processes, in the place of the vector and the same bits in each."""
        if self.count > 1:
            with _together():
                dist.all_reduce(vector)
        return vector

    def summed(self, work: Callable[[], Tensor | None], device: torch.device | None = None) -> Tensor:
        """Return the sum over the processes of what `work` returns in each; None is 0 in at most all but one.

        Raises, in all of them, the exception of the first in which there was one; RankError where one has died, hangs
        or computes something else.
        """
        if self.count == 1:
            alone = work()
            assert alone is not None  # there is a sample
            return alone
        part, failure = None, None
        try:
            part = work()
        except Exception as error:  # whatever it is, the others wait: it is raised in all of them below
            failure = error
        # the first that failed, and that has something, from the end; whether one has nothing; the extreme sizes
        last, some = self.count - self.rank, part is not None
        sizes = (_NOTHING, _NOTHING) if part is None else (part.numel(), -part.numel())
        control = torch.tensor([last * (failure is not None), last * some, not some, *sizes])
        with _together():
            dist.all_reduce(control, dist.ReduceOp.MAX)
        failed, holding, lacking, most, least = control.tolist()
        if failed:
            raise self._sent(failure and _portable(failure), self.count - failed)
        if most != -least:
            raise RankError(
                f"The ranks have come apart: they sum vectors of {-least:,} and {most:,} numbers. Expected the same in "
                "each. Run all of them on machines of one kind, with the same files."
            )
        if lacking:
            told = None if part is None else (part.shape, part.dtype, part.device.type)
            shape, dtype, kind = self._sent(told, self.count - holding)
            if part is None:  # where the others have theirs: each kind of device has a backend of its own
                own = device is not None and device.type == kind
                part = torch.zeros(shape, dtype=dtype, device=device if own else kind)
        assert part is not None
        return self.total(part)

    def agreed(self, work: Callable[[], T]) -> T:
        """Return what `work` returns here, once it has been done in all; raises as `summed`."""
        done: list[T] = []

        def marked() -> Tensor:
            done.append(work())
            return torch.zeros(1)

        self.summed(marked)
        return done[0]

    def in_order(self, rows: Mapping[int, Tensor], count: int) -> Tensor:
        """Return rows (count, ...) in float64 on the CPU, of pieces that each rank holds, by their first index."""
        if self.count == 1:
            return torch.cat(list(rows.values())).cpu().double()

        def own() -> Tensor | None:
            whole: Tensor | None = None
            for start, piece in rows.items():
                if whole is None:
                    whole = torch.zeros(count, *piece.shape[1:], dtype=torch.float64)
                whole[start : start + len(piece)] = piece.cpu().double()
            return whole

        return self.summed(own)

    def gathered(self, value: T) -> list[T]:
        """Return every process's value, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """Return the first process's value."""
        return self._sent(value) if self.count > 1 else value

    def first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns in the first process, which alone does it, or raise what it raises there."""
        if self.count == 1:
            return work()
        result, failure = None, None
        if self.rank == 0:
            try:
                result = work()
            except Exception as error:  # raised in all of them below
                failure = error
        done: tuple[T, Exception | None] = self._sent((result, failure and _portable(failure)))
        if done[1]:
            raise done[1]
        return done[0]

    def wait(self, what: str) -> None:
        """Wait until every process is here, as long as it takes: each works by itself meanwhile.

        Raises RankError when another one has failed.
        """
        if self.count > 1:
            self.store.set(f"{what}/{self.rank}", "here")
            while not self.store.check([f"{what}/{other}" for other in range(self.count)]):
                if self.store.check(["failed"]):
                    raise RankError("Another rank has failed. Expected all of them to the end. See what it says.")
                time.sleep(_PATIENCE)

    def speaks(self) -> bool:
        """Return whether this process is the one to say what has failed: the first that asks."""
        return bool(self.store.add("failed", 1) == 1)

    def spoken(self) -> None:
        """Tell the others that what has failed was said."""
        self.store.set("spoken", "yes")

    def hear(self) -> None:
        """Wait until it was said: the first process that leaves takes the others with it."""
        self.store.wait(["spoken"], timedelta(seconds=10))

    def _sent(self, value: Any, source: int = 0) -> Any:
        box = [value]
        with _together():
            dist.broadcast_object_list(box, source, device=torch.device("cpu"))
        return box[0]


ALONE = Ranks()
_now = [ALONE]  # the innermost last


def ranks() -> Ranks:
    """Return who measures together now."""
    return _now[-1]


@contextlib.contextmanager
def as_ranks(group: Ranks) -> Iterator[None]:
    """Measure as one of these; as `ALONE`, each by itself."""
    _now.append(group)
    try:
        yield
    finally:
        _now.pop()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that `torchrun` started, and leave them when all is well; raises RankError without them."""
    # not in every build of torch; and the module that takes the group there is for a default of its functions, and so
    # keeps its threads to the interpreter's end, where they abort it: taken here, while there is none
    import torch.distributed.nn.functional
    from torch.distributed.rendezvous import rendezvous

    limit = timedelta(seconds=waiting_time())
    with _together():
        store, rank, count = next(iter(rendezvous("env://", timeout=limit)))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
    group = Ranks(rank, count, store)
    with as_ranks(group):
        yield group
    dist.destroy_process_group()


def waiting_time() -> float:
    """Return how many seconds ranks wait for each other; raises UsageError where the environment says nonsense."""
    text = os.environ.get("GAPSCOPE_RANK_TIMEOUT", str(SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise UsageError(
        f"GAPSCOPE_RANK_TIMEOUT is `{text}`. Expected the seconds that ranks wait for each other. Mend it, or unset it."
    )


def local_device(name: str) -> str:
    """Return the device that a process takes: of several on a machine each has a GPU of its own.

    Also while each measures by itself, as `ALONE`.
    """
    kind, _, index = name.partition(":")
    started = max(group.count for group in _now)
    if started == 1 or kind not in ("auto", "cuda") or not torch.cuda.is_available():
        return name
    own, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index or own >= there:
        said = f"`--device {name}` names one GPU" if index else f"This machine has {there} GPU{'s' * (there > 1)}"
        each = os.environ.get("LOCAL_WORLD_SIZE", own + 1)
        raise UsageError(
            f"{said} for {each} ranks. Expected one for each. Start as many ranks as there are GPUs "
            "(`--nproc-per-node gpu`), with `--device cuda`, or take `--device cpu`."
        )
    torch.cuda.set_device(own)
    return f"cuda:{own}"


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Raise RankError for what the backends raise where another process is gone or silent."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).lower()
        late = "timed out" in said or "timeout" in said
        what = f"did not come within {waiting_time():.0f} s" if late else "ended without a word (killed, say)"
        raise RankError(
            f"Rank {os.environ.get('RANK', 0)} waited for the others, and one of them {what}. Expected all "
            f"{os.environ.get('WORLD_SIZE')} to the end. Every file that was there before is whole: look at the "
            "machine and its memory, then give the same command again."
        ) from error


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # exceptions of others pickle, or fail to, in ways of their own
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
