"""What a caller may have switched on around a measurement, and what a measurement must give back.

Under `torch.no_grad()`, say in an evaluation loop, every derivative would be an exact 0; autocast would measure another
function; and random numbers that are used up would change the training that goes on.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


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
