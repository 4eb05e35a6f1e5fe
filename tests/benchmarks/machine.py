"""What every table needs: where it was made, how long things take and how much memory, and Markdown."""

import ctypes
import gc
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PAGE = resource.getpagesize()
INTERVAL = 0.005  # seconds between two looks at the memory


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what figures depend on, and the load now."""
    found = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }
    return found | ({"device": torch.cuda.get_device_name()} if device.startswith("cuda") else {})


def header(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the same as a line."""
    where = f"{before['device']}, " if "device" in before else ""
    return (
        f"{where}{before['cpu']}, {before['cores']} cores, {before['threads']} thread(s), torch {before['torch']}, "
        f"Python {before['python']}, load {before['load']} at the start, {after['load']} at the end"
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table; the columns are those of all rows, in the order in which they first come."""
    head = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(row.get(key, "")) for key in head] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells))


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Return how long a call takes, the device's work included."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


class Peak:
    """The most memory above that at the start, in bytes; -1 until known."""

    size = -1


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the peak: of the resident set, seen every 5 ms, or of what torch allocated on a CUDA device."""
    found = Peak()
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        yield found
        found.size = torch.cuda.max_memory_allocated() - base
        return
    if sys.platform != "linux":
        yield found
        return
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work left in the allocator would hide what this takes
    base = _resident()
    ended, highest = threading.Event(), [base]

    def watch() -> None:
        while not ended.wait(INTERVAL):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
    found.size = max(highest[0], _resident()) - base


def _resident() -> int:
    return PAGE * int(Path("/proc/self/statm").read_text().split()[1])


def _cpu() -> str:
    """Return the model of the processor; `platform.processor` knows only the architecture on Linux."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        if named:
            return named[0]
    return platform.processor() or platform.machine()
