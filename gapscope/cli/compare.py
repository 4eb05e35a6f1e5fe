"""`gapscope compare`: two or more checkpoints or reports side by side."""

import dataclasses
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields
from gapscope.cli.settings import Common, Configuration
from gapscope.errors import LoadError, ReportError

if TYPE_CHECKING:
    from gapscope.report.file import Report

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

SUBJECTS = inspect.Parameter(
    "subjects",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[list[Path], typer.Argument(help="checkpoints or reports, two or more", show_default=False)],
)


@dataclass(frozen=True)
class Own:
    """What only `compare` takes."""

    labels: Annotated[str | None, "names of the columns, separated by commas"] = None
    force: Annotated[bool, "compare although conditions or settings differ; the output is marked"] = False


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def compare(subjects: list[Path], **values: Any) -> None:
        compare_and_print(subjects, fields.build(Common, values), fields.build(Own, values), configuration)

    return fields.command(
        "compare",
        """Compare two or more checkpoints or reports, freely mixed.

        Checkpoints are measured first, as by `gapscope sharpness`, with the same settings.
        The labels small and large come from the recorded batch sizes.
        """,
        [SUBJECTS, *fields.options(Own), *fields.options(Common)],
        compare,
    )


def compare_and_print(subjects: Sequence[Path], common: Common, own: Own, configuration: Configuration) -> None:
    """Measure what is not a report yet, compare, write where asked, and print."""
    from gapscope.report import comparison, file
    from gapscope.report.export import comparison_json

    _refuse_missing(subjects, common.output)
    known = {path: file.read_report(path) for path in subjects if _is_report(path)}  # a bad report must not cost a measurement
    found, paths = [], []
    for subject in subjects:
        report, path = (known[subject], subject) if subject in known else _measure(subject, common, configuration)
        found.append(report)
        paths.append(path)
    labels = [label.strip() for label in own.labels.split(",")] if own.labels else None
    compared = comparison.compare(found, labels=labels, force=own.force)
    if common.output is not None:
        file.write(compared, common.output)
    if common.json:
        print(json.dumps(comparison_json(compared), indent=2, allow_nan=False))
        return
    from gapscope.report.terminal import output
    from gapscope.report.view import comparison_document

    output(comparison_document(compared, verbose=common.verbose))
    seconds = sum(record.seconds for report in found for record in report.results.values())
    products = sum(record.matvecs for report in found for record in report.results.values())
    print(f"reports: {', '.join(map(str, paths))} · {seconds:.1f} s, {products} products · `gapscope show FILE` for the rest")
    if common.output is not None:
        print(f"comparison: {common.output}")


def _measure(subject: Path, common: Common, configuration: Configuration) -> "tuple[Report, Path]":
    from gapscope.cli.measuring import SHARPNESS, configured, measure

    alone = dataclasses.replace(common, output=None)
    measured = measure(subject, alone, configured(SHARPNESS, configuration))
    return measured.report, measured.path


def _refuse_missing(subjects: Sequence[Path], output: Path | None) -> None:
    for subject in subjects:
        if not subject.is_file():
            raise LoadError(f"{subject} is no file. Expected a checkpoint or a report. Mend the path.")
    if output is not None and not output.resolve().parent.is_dir():
        raise ReportError(f"The folder of {output} does not exist. Expected a folder to write to. Make it, or mend `--output`.")


def _is_report(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
