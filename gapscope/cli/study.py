"""`gapscope study`: a paper's experiments on the user's data, with a verdict on each of its claims."""

import contextlib
import importlib
import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields, pages
from gapscope.cli.measuring import refuse_unwritable, say
from gapscope.cli.resuming import telling
from gapscope.cli.settings import Configuration
from gapscope.cli.stderr import tell
from gapscope.errors import ReportError, UsageError, did_you_mean

if TYPE_CHECKING:
    from gapscope.report.outcome import Outcome

PLANS = ("full", "quick", "smoke")
STUDIES = Path(__file__).parents[1] / "training" / "studies"
MOVES = " left"  # in what is said of work under way
SELDOM = 15.0  # seconds between lines where none can move


@dataclass(frozen=True)
class StudyOptions:
    """What `study` takes."""

    data: Annotated[str | None, "data to train on (default: as in the plan)", "-d"] = None
    model: Annotated[str | None, "network (default: as in the plan)", "-m"] = None
    model_arg: Annotated[tuple[str, ...], "KEY=VALUE for the network, repeatable; values are TOML", "-a"] = ()
    quick: Annotated[bool, "the plan for the digits that come with gapscope: minutes"] = False
    plan: Annotated[str, "full, quick, smoke, or a TOML file with a table [full]"] = "full"
    set: Annotated[tuple[str, ...], "KEY=VALUE of the plan, repeatable; values are TOML"] = ()
    seeds: Annotated[int | None, "training runs of each recipe"] = None
    jobs: Annotated[int | None, "processes of one thread each (default: one per core, on a GPU one)"] = None
    device: Annotated[str, "auto, cpu, cuda, cuda:N"] = "auto"
    output: Annotated[Path | None, "folder of runs, reports and page (default: NAME.study)", "-o"] = None
    show_plan: Annotated[bool, "print the built-in plans and end"] = False
    json: Annotated[bool, "print JSON only"] = False
    quiet: Annotated[bool, "no progress", "-q"] = False
    debug: Annotated[bool, "show the traceback of an error"] = False


SUBJECT = inspect.Parameter(
    "name",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[str, typer.Argument(help="which study", metavar="NAME", show_default=False)],
)


def names() -> list[str]:
    """Return the names of the studies: those that have a plan."""
    return sorted(path.parent.name.replace("_", "-") for path in STUDIES.glob("*/plan.toml"))


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def study(name: str, **values: Any) -> None:
        options: StudyOptions = fields.build(StudyOptions, values)
        configuration.tell_trust("study", quiet=options.quiet)
        study_and_print(name, options)

    return fields.command(
        "study",
        f"""Repeat a paper's experiments on your data, and say which of its claims show there.

        NAME is one of {", ".join(names())}. Every run is a checkpoint in the folder, made once: the same command goes
        on after an interrupt, and ends in a report and a page with the paper's tables beside these. `--show-plan`
        prints the built-in plans, TOML to copy; `--plan FILE` runs one of your own.
        """,
        [SUBJECT, *fields.options(StudyOptions, prefix="GAPSCOPE_STUDY")],
        study,
    )


def study_and_print(name: str, options: StudyOptions) -> None:
    """Run a study, write its report and page, and print what it found."""
    known = names()
    if name not in known:
        raise UsageError(
            f"There is no study `{name}`.{did_you_mean(name, known)} Expected one of {', '.join(known)}. Name one of "
            "them."
        )
    if options.quick and options.plan != "full":
        raise UsageError(f"`--quick` stands beside `--plan {options.plan}`. Expected one of them. Leave one out.")
    stem = name.replace("-", "_")
    table = "quick" if options.quick else options.plan if options.plan in PLANS else "full"
    built_in = STUDIES / stem / "plan.toml"
    path = built_in if options.plan in PLANS else Path(options.plan)
    if options.show_plan:
        print(built_in.read_text(encoding="utf-8"), end="")
        return

    from gapscope.training.studies.lab import Lab, jobs
    from gapscope.training.studies.plan import read_plan

    module = importlib.import_module(f"gapscope.training.studies.{stem}")
    plan, count = read_plan(module.Plan, path, table, _changes(options)), jobs(options.jobs, options.device)
    folder = _made(options.output or Path(f"{name}.study"))
    kept = f"finished runs are kept in {folder}: the same command goes on from there"
    with (
        telling(lambda: kept),
        _teller(quiet=options.quiet) as tell,
        Lab(folder / "runs", jobs=count, device=options.device, tell=tell) as lab,
    ):
        outcome: Outcome = module.study(lab, plan)
    _show(outcome, folder, json=options.json)


def _made(folder: Path) -> Path:
    """Make the folder; raises ReportError where that is not possible, or nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"The folder {folder} cannot be made: {error.strerror}. Expected a folder. Mend `--output`."
        ) from error
    refuse_unwritable(folder / "study.h5")
    return folder


def _changes(options: StudyOptions) -> dict[str, Any]:
    """Return what the user would have otherwise than in the plan; another network does not take its arguments."""
    from gapscope.measure.loading.models import parse_args

    changes: dict[str, Any] = dict(parse_args(options.set, flag="--set"))
    arguments = parse_args(options.model_arg)
    changes |= {"model": options.model, "model_args": arguments} if options.model else {}
    changes |= {"model_args": arguments} if arguments else {}
    given = (("data", options.data), ("seeds", options.seeds))
    return changes | {key: value for key, value in given if value is not None}


@contextlib.contextmanager
def _teller(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Yield what says how far the work is: one line that moves on a terminal, else a line now and then."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty() and not os.environ.get("CI"):
        from rich.console import Console
        from rich.text import Text

        from gapscope.report.terminal import printable

        console = Console(stderr=True)
        with console.status("") as status:

            def move(text: str) -> None:
                line = Text(printable(text), no_wrap=True, overflow="ellipsis")
                status.update(line) if MOVES in text else console.print(line)

            yield move
    else:
        last = -math.inf

        def write(text: str) -> None:
            nonlocal last
            if MOVES not in text or time.monotonic() - last >= SELDOM:
                last = time.monotonic()
                tell(text)

        yield write


def _show(outcome: "Outcome", folder: Path, *, json: bool) -> None:
    """Print what was found, and write it; what cannot be written keeps nothing from being seen."""
    from gapscope.report.export import dumps
    from gapscope.report.file import write
    from gapscope.report.folders import plain, without_folders
    from gapscope.report.outcome import outcome_document, outcome_json, outcome_report
    from gapscope.report.outcome_sheet import outcome_sheet
    from gapscope.report.terminal import output

    about = tuple(map(without_folders, outcome.about))  # the data by the name that was typed
    outcome = replace(outcome, about=about, conditions=plain(outcome.conditions))
    written, failures = pages.write(outcome_sheet(outcome), folder / "study.html", None)
    try:
        write(outcome_report(outcome), folder / "study.h5")
        written.append(f"report: {folder / 'study.h5'}")
    except ReportError as failure:
        failures.append(failure)
    if json:
        print(dumps(outcome_json(outcome)))
    else:
        output(outcome_document(outcome))
        say("", *written)
    if failures:
        raise failures[0]
