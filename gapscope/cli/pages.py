"""A page and a picture beside what a command prints: refused before the work, written after it."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gapscope.cli.measuring import refuse_unwritable
from gapscope.errors import ReportError

if TYPE_CHECKING:
    from gapscope.report.sheet import Sheet


def refuse(html: Path | None, plot: Path | None) -> None:
    """Raise where a page or a picture cannot be written, before the work.

    Raises: ReportError where nothing can be written, or for a picture something else is there; UsageError as
    `plot.check`.
    """
    if html is not None:
        refuse_unwritable(html, "--html")
    if plot is not None:
        from gapscope.report.plot import check

        refuse_unwritable(plot, "--plot")
        check(plot)


def write(sheet: "Sheet", html: Path | None, plot: Path | None) -> tuple[list[str], list[ReportError]]:
    """Write what was asked for, each by itself; return lines on what was written, and why something was not."""
    from gapscope.report import page
    from gapscope.report import plot as picture

    written, failures = [], []
    for word, path, draw in (
        ("page", html, partial(page.write, sheet)),
        ("picture", plot, partial(picture.write, sheet.figures)),
    ):
        try:
            if path is not None:
                draw(path)
                written.append(f"{word}: {path}")
        except ReportError as failure:
            failures.append(failure)
    return written, failures
