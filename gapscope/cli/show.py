"""`gapscope show`: print a report or a comparison; no torch."""

from pathlib import Path
from typing import Annotated

import typer


def show(
    report: Annotated[Path, typer.Argument(help="report or comparison to show", metavar="REPORT", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show every quantity; long arrays in part")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Show a report or a comparison that was written earlier."""
    from gapscope.report.export import comparison_json, dumps, report_json
    from gapscope.report.file import Comparison, read

    found = read(report)
    if json:
        exported = comparison_json(found) if isinstance(found, Comparison) else report_json(found)
        print(dumps(exported))
        return
    from gapscope.report.terminal import output
    from gapscope.report.view import comparison_document, report_document

    output(
        comparison_document(found, verbose=verbose)
        if isinstance(found, Comparison)
        else report_document(found, verbose=verbose)
    )
