"""`gapscope sharpness` and one command per analyzer: measure a checkpoint, write its report, print it."""

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields
from gapscope.cli.settings import Common, Configuration, parse_batch_size, parse_bytes
from gapscope.errors import ReportError, UsageError
from gapscope.measure.analyzers import analyzer_class, names

if TYPE_CHECKING:
    from gapscope.measure.session import Session
    from gapscope.report.file import Report

SHARPNESS = ("eigenvalues", "epsilon-sharpness", "gap")

CHECKPOINT = inspect.Parameter(
    "checkpoint",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[Path, typer.Argument(help="checkpoint to measure", show_default=False)],
)


def commands(configuration: Configuration) -> Iterator[tuple[str, Callable[..., int | None]]]:
    """Yield the measuring commands by name."""

    def sharpness(checkpoint: Path, **values: Any) -> None:
        measure_and_print(checkpoint, fields.build(Common, values), configured(SHARPNESS, configuration))

    summary = f"""The main job: {", ".join(SHARPNESS)} of one checkpoint, on one loaded problem.

    Settings of each stand in gapscope.toml, as [measure.eigenvalues] and so on.
    """
    yield "sharpness", fields.command("sharpness", summary, [CHECKPOINT, *fields.options(Common)], sharpness)
    for name in names():
        yield name, _analyzer_command(name)


def _analyzer_command(name: str) -> Callable[..., int | None]:
    cls = analyzer_class(name)

    def body(checkpoint: Path, **values: Any) -> None:
        measure_and_print(checkpoint, fields.build(Common, values), [fields.build(cls, values)])

    own = fields.options(cls, prefix=f"GAPSCOPE_{name.upper().replace('-', '_')}")
    return fields.command(name, cls.__doc__ or "", [CHECKPOINT, *own, *fields.options(Common)], body)


def configured(wanted: Sequence[str], configuration: Configuration) -> list[Any]:
    """Return analyzers with the settings of the configuration files; raises UsageError for values of a wrong type."""
    return [_converted(analyzer_class(name), configuration.measure.get(name, {})) for name in wanted]


def _converted(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Build an analyzer from configuration values exactly as its command would read them."""
    parser = typer.main.get_command(_single(cls))
    context = parser.make_context(cls.name, [], default_map=dict(values))
    return fields.build(cls, context.params)


def _single(cls: type[Any]) -> typer.Typer:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(fields.command(cls.name, "", fields.options(cls), lambda **_: None))
    return single


@dataclass(frozen=True)
class Measured:
    """A report, where it was written, and what is to be said of that."""

    report: "Report"
    path: Path
    said: tuple[str, ...]


def measure(checkpoint: Path, common: Common, analyzers: Sequence[Any]) -> Measured:
    """Measure a checkpoint and write its report, keeping what the file already held of the same subject."""
    from gapscope.cli.progress import monitor
    from gapscope.measure.loading import Request
    from gapscope.measure.loading.models import parse_args
    from gapscope.measure.loading.trust import Trust
    from gapscope.measure.session import Execution, open_session
    from gapscope.report.file import merge, read_report, write

    if common.limit is not None and common.limit < 1:
        raise UsageError(f"The limit is {common.limit}. Expected 1 or more samples. Mend `--limit`.")
    request = Request(
        checkpoint=checkpoint,
        model=common.model,
        model_args=parse_args(list(common.model_arg)),
        data=common.data,
        test_data=common.test_data,
        loss=common.loss,
        limit=common.limit,
        data_seed=common.data_seed,
        trust=Trust(common.trusted, common.trust_embedded, common.allow_global),
    )
    execution = Execution(
        split=common.split,
        batchnorm=common.batchnorm,
        dtype=common.dtype,
        device=common.device,
        threads=common.threads,
        seed=common.seed,
        batch_size=parse_batch_size(common.batch_size),
        memory_budget=parse_bytes(common.memory_budget),
    )
    session = open_session(request, execution, monitor(quiet=common.quiet or common.json))
    if not common.quiet:
        for note in session.loaded.notes:
            print(note, file=sys.stderr)
    path = _output(checkpoint, common.output, session)  # before the work: a refusal must not cost any
    report = session.measure(analyzers)
    said: tuple[str, ...] = ()
    if path.exists():
        report, said = merge(read_report(path), report)
    write(report, path)
    return Measured(report, path, said)


def _output(checkpoint: Path, asked: Path | None, session: "Session") -> Path:
    """Return where the report goes; raises ReportError when that file must not be touched.

    A default name that is taken by another checkpoint gets the folder's name in front, one taken by other conditions
    (split, limit, dtype ...) their digest behind.
    """
    import hashlib

    from gapscope.report.file import read_report
    from gapscope.report.records import differing

    def taken_by(path: Path) -> list[str]:
        if not path.exists():
            return []
        old = read_report(path)
        return differing(old.identity, session.identity()) + differing(old.conditions, session.conditions())

    if asked is not None:
        if not asked.resolve().parent.is_dir():
            raise ReportError(f"The folder of {asked} does not exist. Expected a folder to write to. Make it, or mend `--output`.")
        keys = taken_by(asked)
        if keys:
            raise ReportError(
                f"{asked.name} holds a report of another subject ({', '.join(keys)} differ). Expected the same checkpoint "
                "under the same conditions. Name another file with `--output`, or move this one."
            )
        return asked
    digest = hashlib.sha256(json.dumps([session.identity(), session.conditions()], sort_keys=True).encode()).hexdigest()[:8]
    folder = checkpoint.resolve().parent.name
    for stem in (checkpoint.stem, f"{folder}-{checkpoint.stem}"):
        path = Path(f"{stem}.report.h5")
        keys = taken_by(path)
        if not keys:
            return path
        if "sha256" not in keys:
            break  # the same checkpoint under other conditions
    path = Path(f"{stem}.{digest}.report.h5")
    if taken_by(path):
        raise ReportError(f"{path} is taken by another subject. Expected a free name. Give one with `--output`.")
    return path


def measure_and_print(checkpoint: Path, common: Common, analyzers: Sequence[Any]) -> None:
    """Measure, write, and print the report: JSON alone on stdout where that was asked for."""
    measured = measure(checkpoint, common, analyzers)
    if common.json:
        from gapscope.report.export import report_json

        print(json.dumps(report_json(measured.report), indent=2, allow_nan=False))
        return
    from gapscope.report.terminal import output
    from gapscope.report.view import report_document

    output(report_document(measured.report, verbose=common.verbose, only=[a.name for a in analyzers]))
    for sentence in measured.said:
        print(sentence)
    print(f"report: {measured.path}")
