"""`gapscope show`: print a report or a comparison, or write it as a page, a picture or a table; no torch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gapscope.report.records import Comparison, Report


def show(
    report: Annotated[Path, typer.Argument(help="report or comparison to show", metavar="REPORT", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="write one self-contained page with figures", metavar="FILE")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="write the figures as a .png, .svg or .pdf", metavar="FILE")
    ] = None,
    csv: Annotated[
        str | None, typer.Option("--csv", help="write one row per number; - for stdout", metavar="FILE")
    ] = None,
    cite: Annotated[
        bool, typer.Option("--cite", help="print a methods paragraph and the BibTeX of its sources")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show every quantity; long arrays in part")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Show a report or a comparison that was written earlier."""
    from gapscope.errors import UsageError
    from gapscope.report.file import read

    asked = [name for name, given in (("--json", json), ("--csv -", csv == "-"), ("--cite", cite)) if given]
    if len(asked) > 1:
        raise UsageError(
            f"{' and '.join(asked)} both print on stdout. Expected one of them. Give one command for each."
        )
    found = read(report)
    if html is not None or plot is not None:
        from gapscope.cli import pages
        from gapscope.report.sheets import sheet

        _, failures = pages.write(sheet(found), html, plot)
        if failures:
            raise failures[0]
    if csv not in (None, "-"):
        _write_table(found, str(csv))
    written = [name for name in (str(html or ""), str(plot or ""), csv or "") if name not in ("", "-")]
    if not asked and written:
        print(*written, sep="\n")
        return
    _print(found, asked[0] if asked else "", verbose)


def _write_table(found: "Report | Comparison", path: str) -> None:
    from gapscope.report.export import TABLE, save, tabled

    save(path, tabled(found), mark=TABLE, option="--csv")


def _print(found: "Report | Comparison", what: str, verbose: bool) -> None:
    from gapscope.report.records import Comparison

    if what == "--json":
        from gapscope.report.export import comparison_json, dumps, report_json

        print(dumps(comparison_json(found) if isinstance(found, Comparison) else report_json(found)))
    elif what == "--csv -":
        from gapscope.report.export import tabled

        sys.stdout.write(tabled(found))
    elif what == "--cite":
        from gapscope.report.citations import citation

        print(citation(found))
    else:
        from gapscope.report.terminal import output
        from gapscope.report.view import comparison_document, report_document

        if isinstance(found, Comparison):
            output(comparison_document(found, verbose=verbose))
        else:
            output(report_document(found, verbose=verbose))
