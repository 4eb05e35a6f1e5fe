"""Long work that was interrupted goes on: what is kept beside a report, and what is said of it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapscope.cli.settings import Common
from gapscope.cli.stderr import tell

if TYPE_CHECKING:
    from gapscope.measure.resume import Parts
    from gapscope.measure.session import Session

PASSING = ("created", "notes", "written_out")  # facts of the environment that no number depends on


def new_parts(*, quiet: bool) -> "Parts":
    """Return where finished parts of long work are kept, once it begins."""
    from gapscope.measure.resume import Parts

    return Parts(say=lambda text: None if quiet else tell(text))


def missed(path: Path, common: Common) -> None:
    """Say that there is nothing to go on from, where that was asked for."""
    from gapscope.measure.resume import state_path

    if common.resume and not common.quiet and not state_path(path).is_file():
        tell(f"There is no {state_path(path)} to go on from: everything is measured anew.")


def remembered(session: "Session", parts: "Parts") -> "Session":
    """Return a session whose passes over the data are such parts; those of sharded parameters are not kept."""
    from gapscope.measure.remembered import Remembered

    if session.problem.share is not None:
        return session
    return replace(session, problem=Remembered.of(session.problem, parts))


@contextlib.contextmanager
def keeping(
    parts: "Parts",
    path: Path,
    sessions: "Sequence[Session]",
    *,
    resume: bool,
    done: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Keep finished parts beside a report; say, when interrupted, what is there and how to go on."""
    facts: dict[str, Any] = {}
    for number, session in enumerate(sessions):
        known = {**session.identity(), **session.conditions(), "memory_budget": session.problem.memory_budget}
        known |= {key: fact for key, fact in session.environment().items() if key not in PASSING}
        facts |= {key if len(sessions) == 1 else f"{key} of {number}": fact for key, fact in known.items()}

    def kept() -> str:
        return (
            f"finished parts are in {parts.kept.name}: the same command with `--resume` goes on" if parts.kept else ""
        )

    parts.begin(path, facts, resume=resume)
    with contextlib.closing(parts), telling(done, kept):
        yield


@contextlib.contextmanager
def telling(*said: Callable[[], str]) -> Iterator[None]:
    """Say what there is to say when interrupted."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter for SIGTERM, as schedulers send it
        for sentence in filter(None, (one() for one in said)):
            tell(sentence, start="\n", end="")
        raise
