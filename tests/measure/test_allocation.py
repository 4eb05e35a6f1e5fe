import ctypes
import platform
import subprocess
import sys

import pytest

from gapscope.measure.allocation import HELD, hold_freed_memory

PROGRAM = """
import ctypes, os, pathlib, sys
from gapscope.measure.allocation import hold_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "hold":
    assert hold_freed_memory()
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
blocks = [libc.malloc(1 << 23) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 23)
for block in blocks:
    libc.free(block)
print((resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_freed_memory_stays_only_where_it_is_held():
    kept = {
        way: int(
            subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, check=True, text=True).stdout
        )
        for way in ("hold", "default")
    }
    assert 127 <= kept["hold"] <= HELD >> 20
    assert kept["default"] <= 16


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not hold_freed_memory()
