"""`gapscope inspect`: say what a file is and holds, and what to type next; nothing from it runs."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.errors import LoadError

if TYPE_CHECKING:
    from gapscope.measure.loading.checkpoints.inspection import Inspection
    from gapscope.report.document import Document

SHOWN = 12  # settings, keys or names that are listed before the rest is counted


def inspect(
    file: Annotated[Path, typer.Argument(help="file or folder to look at", metavar="FILE", show_default=False)],
    json: Annotated[bool, typer.Option("--json", help="print JSON, and nothing else, on stdout")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Say what a checkpoint is and holds, and what to type next; nothing from it runs.

    Format, size, digest, weights with their keys, types and wrappers, what loading would run, recorded settings, and
    the models that its names and shapes fit.
    """
    from gapscope.measure.loading.checkpoints.inspection import inspect as look

    found = look(file)
    if json:
        from gapscope.report.export import dumps

        print(dumps(_exported(found)))
    else:
        from gapscope.report.terminal import harmless, output

        output(_document(found))
        if found.next:
            print(f"\nnext: {harmless(found.next)}")  # not wrapped: it is to be copied
    if found.refusal and not found.next:
        raise LoadError(found.refusal)


def _exported(found: "Inspection") -> dict[str, Any]:
    import dataclasses

    exported: dict[str, Any] = _finite({**dataclasses.asdict(found), "path": str(found.path)})
    return exported


def _finite(value: Any) -> Any:
    """Return plain values that JSON knows; a file may record NaN."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _document(found: "Inspection") -> "Document":
    from gapscope.report.document import Column, Document, Line, Note, Table

    facts = [
        ("format", found.format),
        ("size", f"{found.bytes:,} bytes"),
        ("sha256", found.sha256),
        ("trust needed", found.trust),
        ("pickled names", _some(found.names)),
        ("recorded", _pairs({k: v for k, v in found.recorded.items() if k not in ("format_version", "training")})),
        ("settings", _pairs(found.settings)),
        ("training", _pairs(found.training)),
        ("optimizer state", "yes" if found.optimizer else ""),
        ("models that fit", "; ".join(found.models)),
    ]
    columns = Column(header="", numeric=False), Column(header="", numeric=False, wraps=True)
    table = Table(columns=columns, lines=tuple(Line(cells=(k, v)) for k, v in facts if v), caption=str(found.path))
    heads = ("weights", "tensors", "numbers", "types", "")
    weights = Table(
        columns=tuple(Column(header=head, numeric=head in heads[1:3], wraps=head not in heads[1:3]) for head in heads),
        lines=tuple(
            Line(
                cells=(
                    one.key,
                    f"{one.tensors:,}",
                    f"{one.numbers:,}",
                    ", ".join(f"{kind}" if len(one.types) == 1 else f"{kind} {n:,}" for kind, n in one.types.items()),
                    ", ".join([*(["averaged"] if one.averaged else []), *(f"in {word}" for word in one.wrappers)]),
                )
            )
            for one in found.weights[:SHOWN]
        ),
    )
    notes = []
    if len(found.weights) > SHOWN:
        notes.append(Note(text=f"and {len(found.weights) - SHOWN} more: --json"))
    if len(found.weights) > 1:
        notes.append(Note(text="Raw weights go before averaged ones. Choose: `--weights KEY`.", bullet=True))
    return Document(blocks=((table,), (weights,) if found.weights else (), tuple(notes)))


def _pairs(table: Mapping[str, Any]) -> str:
    return _some([f"{key}={_plain(value)}" for key, value in table.items()])


def _some(values: Any) -> str:
    shown = [str(value)[:120] for value in values][:SHOWN]
    return ", ".join(shown) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def _plain(value: Any) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
