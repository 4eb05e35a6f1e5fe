"""Who is told how the work goes.  The command line has its own that draws a bar; nothing here imports torch."""


class Monitor:
    """Is told how the work goes; this one keeps quiet."""

    def begin(self, name: str, passes: int) -> None:
        """Note that `name` starts and will go over the data about `passes` times."""

    def tick(self, fraction: float) -> None:
        """Note that this fraction of one pass over the data is done."""

    def say(self, text: str) -> None:
        """Note the current value and residual of an iteration."""

    def plan(self, text: str) -> None:
        """Announce long work."""

    def end(self) -> None:
        """Note that what began is done."""


class Portion(Monitor):
    """Passes on the progress of a part of the data."""

    def __init__(self, whole: Monitor, share: float) -> None:
        self.whole, self.share = whole, share

    def tick(self, fraction: float) -> None:
        """Note that this fraction of a pass over the part is done."""
        self.whole.tick(fraction * self.share)
