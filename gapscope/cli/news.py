"""What is said while many checkpoints are worked on: each thing once, and what happened again as a count."""

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gapscope.cli.stderr import tell

NAMED = 5  # names that one line lists
PAUSE = 10.0  # seconds between two lines on the same long work


def listed(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if names[NAMED:] else "")


@dataclass
class News:
    """Where the work stands and what could not be measured, on stderr."""

    quiet: bool = False
    later: bool = False  # somebody else says what failed
    failures: dict[str, str] = field(default_factory=dict)  # who -> why
    heard: set[str] = field(default_factory=set)
    alike: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # what happened -> who first, then where else
    spoken: float = field(default_factory=time.monotonic)

    def tell(self, text: str) -> None:
        """Say where the work stands, unless it is to be quiet."""
        if not self.quiet:
            tell(text)

    def tell_slowly(self, text: str) -> None:
        """Say how far long work is, once in ten seconds."""
        if time.monotonic() - self.spoken > PAUSE:
            self.tell(text)
            self.spoken = time.monotonic()

    def failed(self, path: Path, why: object, what: str = "") -> None:
        """Remember what could not be measured, and say it at once, unless it was said of another checkpoint."""
        who = f"{what} of {path}" if what else str(path)
        self.failures[who] = str(why)
        if self.later:
            return
        nameless = str(why)
        for name in (str(path), path.name, f"{path.stem}.report.h5"):
            nameless = nameless.replace(name, "")
        before = self.alike.setdefault((what, nameless), [])
        before.append(str(path) if before else who)
        if len(before) == 1:
            lead = "" if str(why).startswith(who) else f"{who} could not be measured: "
            tell(f"error: {lead}{why}")

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Say at the end, also of interrupted work, where else the same failed."""
        try:
            yield
        finally:
            for who, *others in self.alike.values():
                if others:
                    many = f"{len(others)} more checkpoint{'s' * (len(others) > 1)}"
                    tell(f"error: as {who}, {many}: {listed(others)}")

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """Pass on what is said on stderr, but nothing twice: the checkpoints of a run are loaded alike."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                yield
        finally:
            for line in dict.fromkeys(said.getvalue().splitlines()):
                if line not in self.heard:
                    tell(line)
                self.heard.add(line)
