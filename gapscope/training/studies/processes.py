"""Work in several processes of one thread each, which end with the one that started them, whatever ends that."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from gapscope.errors import UsageError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(eq=False)
class Processes:
    """As many fresh processes as `count`: forked ones would share the locks of torch's threads.

    Each waits for the end of a pipe that only this process holds open, so a kill, too, leaves none behind.
    """

    count: int

    def each(self, works: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
        """Do the works, and yield the position and result of each as it is done.

        Raises: what a work raises; UsageError where a process dies.
        """
        pool = self._pool  # made before signals are held back: making one lets them through again
        try:
            with _unheard():
                futures = {pool.submit(_told, work): position for position, work in enumerate(works)}
            for future in concurrent.futures.as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            self.end()
            raise UsageError(
                "A process died in the middle of its work, as happens where memory runs out. Expected room for "
                f"{self.count} at once. Ask for fewer, such as `--jobs 1`: what is finished is kept. A script of your "
                'own needs `if __name__ == "__main__":` around what starts it.'
            ) from error

    def finish(self) -> None:
        """Let idle processes leave."""
        if "_pool" in vars(self):
            self._pool.shutdown()
        self.end()

    def end(self) -> None:
        """End the processes, whatever they do."""
        if "_pool" in vars(self):
            self._pipe[1].close()
            self._pool.shutdown(cancel_futures=True)
            del self._pool, self._pipe

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(
            self.count, context, initializer=_begin, initargs=(self._pipe[0],)
        )

    @functools.cached_property
    def _pipe(self) -> tuple[Connection, Connection]:
        return multiprocessing.Pipe(duplex=False)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach; here a signal waits until they have what they start from.

    The mask is what they inherit; here another thread may take the signal, so its handler is put off, too.
    """
    late: list[int] = []
    alone = threading.current_thread() is threading.main_thread()  # no other may set handlers
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    handlers = {number: signal.signal(number, lambda which, _: late.append(which)) for number in SIGNALS * alone}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for which in late:
            signal.raise_signal(which)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as the processes do: sums come out the same to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# In the processes


def _begin(pipe: Connection) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with, args=(pipe,), daemon=True).start()


def _leave_with(pipe: Connection) -> None:
    """Leave when the other end of the pipe is closed, by its holder or by its death."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)


def _told(work: Callable[[], Any]) -> Any:
    """Do a work; an error that cannot travel between processes is told in the words of one that can."""
    try:
        return work()
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise
