"""`gapscope gate`: judge reports, or checkpoints that are measured first, by thresholds."""

import dataclasses
import inspect
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gapscope.cli import fields
from gapscope.cli.measuring import Job, common_of, configured, prepare
from gapscope.cli.settings import PLANNING, Common, Configuration
from gapscope.cli.stderr import tell
from gapscope.errors import LoadError, ReportError, UsageError
from gapscope.measure.analyzers import analyzer_class, names

if TYPE_CHECKING:
    from gapscope.report.records import Report
    from gapscope.report.thresholds import Threshold
    from gapscope.report.verdicts import Check

FLAGS = ("max", "min", "max_increase", "max_decrease")
LIMIT = "SELECTOR=NUMBER, such as eigenvalues/top=50"
CHANGE = "SELECTOR=NUMBER or SELECTOR=25%, against the baseline"
SUBJECTS = inspect.Parameter(
    "subjects",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        list[Path], typer.Argument(help="reports or checkpoints to judge", metavar="SUBJECT", show_default=False)
    ],
)


@dataclass(frozen=True)
class Own:
    """What only `gate` takes."""

    max: Annotated[tuple[str, ...], LIMIT] = ()
    min: Annotated[tuple[str, ...], LIMIT] = ()
    max_increase: Annotated[tuple[str, ...], CHANGE] = ()
    max_decrease: Annotated[tuple[str, ...], CHANGE] = ()
    baseline: Annotated[Path | None, "report that changes are measured against (`gapscope baseline accept`)"] = None
    allow_differences: Annotated[bool, "judge numbers whose second derivatives are differences of the gradient"] = False
    on_unsure: Annotated[Literal["pass", "fail", "3"], "exit code where a check is unsure: 0, 1 or 3"] = "3"
    exit_zero: Annotated[bool, "exit 0 whatever the verdicts are; a mistake still exits 2"] = False
    format: Annotated[
        Literal["auto", "rich", "plain", "json", "markdown", "junit", "github"],
        "auto is rich on a terminal, github in a GitHub workflow, else plain",
    ] = "auto"


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def gate(subjects: list[Path], **values: Any) -> int:
        own = fields.build(Own, values)
        return gate_and_print(subjects, common_of({**values, "output": None}, configuration), own, configuration)

    return fields.command(
        "gate",
        """Judge reports or checkpoints by thresholds: pass, fail, or unsure.

        Exit codes: 0 pass, 1 a threshold is violated, 2 a check cannot be judged, 3 a check is unsure; of several the
        first in the order 2, 1, 3, 0. Limits stand in [gate.thresholds] of gapscope.toml, such as
        "eigenvalues/top" = { max = 50, max_increase = "25%", min_delta = 0.5, level = "warn" }, or are options. A
        selector may end in labels, and * stands for any text: "near-rank/near_rank[fc1,*]". Checkpoints are measured
        first, by the analyzers that the limits name, and their reports written to the current folder.
        """,
        [
            SUBJECTS,
            *fields.options(Own, prefix="GAPSCOPE_GATE"),
            *fields.options(Common, without=("output", "json", *PLANNING)),
        ],
        gate,
    )


def gate_and_print(subjects: Sequence[Path], common: Common, own: Own, configuration: Configuration) -> int:
    """Measure what is not a report yet, judge, print, and return the exit code."""
    from gapscope.report.file import read_report
    from gapscope.report.verdicts import exit_code, judge

    thresholds = thresholds_of(own, configuration.thresholds)
    known = quantities()
    baseline = None if own.baseline is None else read_report(_there(own.baseline))
    reports = _reports([_there(path) for path in subjects], thresholds, known, common, configuration)
    checks = judge(reports, thresholds, baseline=baseline, known=known, allow_differences=own.allow_differences)
    code = 0 if own.exit_zero else exit_code(checks, own.on_unsure)
    show(checks, own, code, verbose=common.verbose)
    return code


def thresholds_of(own: Own, tables: Mapping[str, Mapping[str, Any]]) -> "list[Threshold]":
    """Return the thresholds of the files, with the options' limits over them.

    Raises: UsageError if there are none, or an option is none.
    """
    from gapscope.report.thresholds import parsed, threshold

    merged = {selector: dict(limits) for selector, limits in tables.items()}
    for name in FLAGS:
        for text in getattr(own, name):
            selector, limits = parsed(name.replace("_", "-"), text)
            merged[selector] = merged.get(selector, {}) | limits
    if not merged:
        raise UsageError(
            "There are no thresholds. Expected one or more. Write them in [gate.thresholds] of gapscope.toml, or give "
            "`--max eigenvalues/top=50`."
        )
    return [threshold(selector, limits, "the thresholds") for selector, limits in merged.items()]


def quantities() -> dict[str, tuple[str, ...]]:
    """Return the quantities of every analyzer of one checkpoint, as far as it declares them; imports no torch."""
    from gapscope.results import Quantity

    found = {}
    for name in names():
        try:
            cls = analyzer_class(name)
            result = cls.__call__.__annotations__.get("return")  # which Python 3.14 evaluates only now
        except Exception:  # another package's, of which `measuring.commands` warns
            continue
        if cls.arity == 1 and dataclasses.is_dataclass(result):
            kinds = (Quantity, Quantity | None)
            found[name] = tuple(field.name for field in dataclasses.fields(result) if field.type in kinds)
    return found


def _reports(
    paths: Sequence[Path],
    thresholds: "Sequence[Threshold]",
    known: Mapping[str, Sequence[str]],
    common: Common,
    configuration: Configuration,
) -> "dict[str, Report]":
    from gapscope.report.file import read_report
    from gapscope.report.thresholds import analyzers

    paths = list(dict.fromkeys(paths))
    read = {path: read_report(path) for path in paths if _is_hdf5(path)}
    wanted = list(dict.fromkeys(name for one in thresholds for name in analyzers(one.selector, known)))
    if len(read) < len(paths) and not wanted:
        listed = ", ".join(one.selector for one in thresholds)
        raise UsageError(
            f"The thresholds ({listed}) name no analyzer that could measure {next(p for p in paths if p not in read)}. "
            "Expected a quantity such as `eigenvalues/top`. Mend them."
        )
    jobs: dict[Path, Job] = {}
    for path in paths:
        if path not in read:
            jobs[path] = prepare(path, common, list(jobs.values()))
    found = {}
    for path in paths:
        if path in read:
            found[str(path)] = read[path]
            continue
        if not common.quiet:
            tell(f"measuring {path}")
        measured = jobs[path].measure(configured(wanted, configuration))
        if measured.failure is not None:
            raise measured.failure
        found[str(measured.path)] = measured.report
    return found


def _there(path: Path) -> Path:
    if not path.exists():
        kind = ReportError if path.suffix in (".h5", ".hdf5") else LoadError
        raise kind(
            f"{path} does not exist, so nothing can be judged. Expected a report or a checkpoint. Mend the path."
        )
    return path


def _is_hdf5(path: Path) -> bool:
    import h5py

    return bool(h5py.is_hdf5(path))


def show(checks: "Sequence[Check]", own: Own, code: int, *, verbose: bool) -> None:
    """Print the verdicts in the format asked for."""
    from gapscope.report import ci, terminal

    document = ci.gate_document(checks, verbose=verbose)
    chosen = own.format
    if chosen == "auto":
        chosen = "github" if os.environ.get("GITHUB_ACTIONS") else "rich" if sys.stdout.isatty() else "plain"
    if chosen == "json":
        from gapscope.report.export import dumps

        print(dumps(ci.gate_json(checks, code)))
    elif chosen == "junit":
        print(ci.junit(checks, own.on_unsure), end="")
    elif chosen == "markdown":
        print(ci.markdown(checks), end="")
    elif chosen == "rich":
        terminal.output(document)
    else:
        console = terminal.open_console()
        lines = terminal.text(document, console.width, console.encoding)
        if chosen == "plain":
            print(lines)
        else:
            _show_github(checks, lines)


def _show_github(checks: "Sequence[Check]", lines: str) -> None:
    from gapscope.report import ci

    # a line of the table may begin with a name from a file: until the secret word it is no workflow command
    word = secrets.token_hex(16)
    print(f"::stop-commands::{word}\n{lines}\n::{word}::\n{ci.annotations(checks)}".rstrip("\n"))
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with open(summary, "a", encoding="utf-8") as stream:
            stream.write(ci.markdown(checks))
    except OSError as error:
        raise ReportError(
            f"The summary {summary} cannot be written: {error.strerror or error}. Expected the file that "
            "GITHUB_STEP_SUMMARY names. Mend it, or choose `--format plain`."
        ) from error
