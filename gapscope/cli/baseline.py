"""`gapscope baseline`: accept a report as what later ones are judged against, or compare with it; no torch."""

import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from gapscope.errors import ReportError, UsageError


def baseline(
    action: Annotated[
        Literal["accept", "diff"],
        typer.Argument(
            help="accept a report as the baseline, or compare one with it", metavar="accept|diff", show_default=False
        ),
    ],
    report: Annotated[Path, typer.Argument(help="report", metavar="REPORT", show_default=False)],
    reason: Annotated[str, typer.Option("--reason", help="(accept) why these numbers are accepted")] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="(accept) baseline to write, with a text beside it")
    ] = Path("baseline.h5"),
    against: Annotated[Path, typer.Option("--baseline", help="(diff) baseline to compare with")] = Path("baseline.h5"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="(diff) show every quantity")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Accept a report as the baseline of `gapscope gate`, or compare a report with it.

    `gapscope baseline accept REPORT --reason TEXT` writes baseline.h5 and baseline.txt: the text says what was
    measured with which versions, each number before and after, and the reason. Keep both under version control.
    `gapscope baseline diff REPORT` compares a report with the baseline.
    """
    if action == "accept":
        accept(report, output, reason)
    else:
        diff(report, against, verbose=verbose)


def accept(path: Path, output: Path, reason: str) -> None:
    """Copy a report to the baseline, byte by byte, and write the text beside it."""
    from gapscope.replacing import in_turn
    from gapscope.report.atomic import replace_together
    from gapscope.report.file import read_report
    from gapscope.report.sidecar import TITLE, sidecar

    beside = output.with_suffix(".txt")
    if beside == output:
        raise UsageError(f"`--output {output}` is the name of the text. Expected one such as baseline.h5. Mend it.")
    report = read_report(path)
    with in_turn(output):
        if beside.is_file() and not beside.read_bytes().startswith(TITLE.encode()):
            raise UsageError(
                f"{beside} is no text of a baseline, and would be overwritten. Expected its name to be free. Move it "
                "away, or name another baseline with `--output`."
            )
        old = read_report(output) if output.exists() else None
        text = sidecar(report, old, reason=reason, date=datetime.datetime.now(datetime.UTC).date().isoformat())
        replace_together({output: path.read_bytes(), beside: text.encode()})
    print(f"baseline: {output}, {beside}")


def diff(path: Path, against: Path, *, verbose: bool) -> None:
    """Print the comparison of a report with the baseline."""
    from gapscope.report.comparison import compare
    from gapscope.report.file import read_report
    from gapscope.report.terminal import output
    from gapscope.report.view import comparison_document

    if not against.exists():
        raise ReportError(
            f"There is no baseline {against}. Expected one to compare with. "
            f'Accept one: `gapscope baseline accept {path} -o {against} --reason "..."`.'
        )
    output(
        comparison_document(
            compare([read_report(against), read_report(path)], labels=["baseline", "now"]), verbose=verbose
        )
    )
