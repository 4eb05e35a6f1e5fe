"""What a caller may have switched on around a measurement, and what a measurement must give back.

Under `torch.no_grad()`, say in an evaluation loop, every derivative would be an exact 0; autocast would measure another
function; and random numbers that are used up would change the training that goes on.

Ctrl-C raises between any two steps of the interpreter, also while a mode is being put back, in torch's code as in ours.
So it waits, while a model is held, until the next micro-batch is asked for: there it raises as any other exception.
"""

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

_waiting: list[Any] = []  # the frame that Ctrl-C came in, if it came
_own: list[Callable[[int, Any], Any]] = []  # the caller's handler, while it has to wait


@contextlib.contextmanager
def with_gradients() -> Iterator[None]:
    """Differentiate, in the precision of the model itself, whatever the caller is in.  Cost: 10 microseconds."""
    with contextlib.ExitStack() as held:
        held.enter_context(torch.inference_mode(False))
        held.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                held.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":  # seeds are heeded, and indices kept, on the CPU
            held.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def apart(threads: int | None = None) -> Iterator[None]:
    """Measure apart from the caller: with gradients, on so many threads; random states and threads are put back.

    Once around a whole measurement: that a model draws random numbers of its own must show between two passes.
    """
    before = torch.get_num_threads()
    python, state = random.getstate(), np.random.get_state()
    drawn = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's; else there is nothing to put back
    devices = range(torch.cuda.device_count()) if drawn else ()
    try:
        with torch.random.fork_rng(devices), with_gradients():
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(state)
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait for `interruption_point`, or the end; a second one does not wait.  Elsewhere nothing changes.

    It raises what the caller's handler raises.  Other threads than the main one never see it, and one that is ignored
    stays ignored.
    """
    handler = signal.getsignal(signal.SIGINT)
    if _own or not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    _waiting.clear()
    try:
        _own.append(handler)
        signal.signal(signal.SIGINT, _note)
        yield
    finally:
        _own.clear()
        signal.signal(signal.SIGINT, handler)
        if _waiting:
            handler(signal.SIGINT, _waiting.pop())


def interruption_point() -> None:
    """Raise what Ctrl-C raises if it came: everything that is held is put back as after any exception."""
    if _waiting and _own and threading.current_thread() is threading.main_thread():
        _own[-1](signal.SIGINT, _waiting.pop())


def _note(_: int, frame: Any) -> None:
    interruption_point()  # for the one before
    _waiting.append(frame)
