"""Run a program on a terminal of its own."""

import os
import pty
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

EVERY = ("stdin", "stdout", "stderr")


def on_a_terminal(
    words: Sequence[str], environment: Mapping[str, str], *, streams: Sequence[str] = EVERY, cwd: Path | None = None
) -> tuple[int, str]:
    """Return its exit code and what it wrote to the streams that are the terminal; a silence of 60 s ends the wait."""
    ours, theirs = pty.openpty()
    drawn = b""
    with subprocess.Popen(words, cwd=cwd, env=environment, **dict.fromkeys(streams, theirs)) as process:
        os.close(theirs)
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            drawn += part
    os.close(ours)
    return process.returncode, drawn.decode()
