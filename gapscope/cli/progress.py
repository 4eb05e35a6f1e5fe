"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

import os
import sys
import time
from typing import Any

from gapscope.cli.stderr import tell
from gapscope.measure.monitor import Monitor

PLAN_SECONDS = 5.0  # work expected to take longer is announced
LINE_SECONDS = 30.0


def monitor(*, quiet: bool) -> Monitor:
    """Return what suits stderr; FORCE_COLOR must not turn a CI log into a flood, so only isatty counts."""
    if quiet:
        return Monitor()
    return Bar() if sys.stderr.isatty() and not os.environ.get("CI") else Lines()


class Lines(Monitor):
    """Announces long work, then says where it stands every half minute."""

    first: float | None

    def begin(self, name: str, passes: int) -> None:
        """Start counting passes over the data; 0 where nobody knows how many there will be."""
        self.name, self.passes, self.done, self.text = name, passes, 0.0, ""
        self.started = self.spoken = time.monotonic()
        self.announced, self.first = False, None

    def tick(self, fraction: float) -> None:
        """Count, announce once the first pass has shown what one costs, and speak every half minute."""
        if not getattr(self, "name", ""):
            return
        self.done += fraction
        now = time.monotonic()
        if self.first is None and self.done >= 1:
            self.first = now  # the first pass also sets up
        if not self.announced and self.done >= 2 and self.first is not None:
            self.announced = True
            each = (now - self.first) / (self.done - 1)
            if (whole := each * self.passes) > PLAN_SECONDS:
                self.plan(f"{self.name}: about {self.passes} passes over the data, about {whole:.0f} s at most")
        self.show(now)

    def show(self, now: float) -> None:
        """Write a line when the last is half a minute old."""
        if now - self.spoken > LINE_SECONDS:
            self.spoken = now
            left = (now - self.started) / max(self.done, 1e-9) * max(self.passes - self.done, 0)
            of = f" of about {self.passes}, about {left:.0f} s left" if self.passes else ""
            tell(f"{self.name}: pass {self.done:.0f}{of}  {self.text}")

    def say(self, text: str) -> None:
        """Keep the current value for the next line."""
        self.text = text

    def plan(self, text: str) -> None:
        """Write the plan line."""
        tell(text)

    def end(self) -> None:
        """Forget the work."""
        self.name = ""


class Bar(Lines):
    """A Rich bar with passes, current value and time left."""

    _bar: Any = None

    def begin(self, name: str, passes: int) -> None:
        """Open a bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.end()
        super().begin(name, passes)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.completed:.0f}/~{task.total:.0f} passes"),
        )
        self._bar = Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=passes, text="")
        self._bar.start()

    def show(self, now: float) -> None:  # noqa: ARG002  (a bar keeps its own clock)
        """Move the bar; the total is an estimate and grows when it was too small."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=max(self.passes, self.done), text=self.text)

    def plan(self, text: str) -> None:
        """Write the plan line above the bar."""
        if self._bar is not None:
            from gapscope.report.terminal import harmless

            self._bar.console.print(harmless(text), markup=False, highlight=False)
        else:
            super().plan(text)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        super().end()
