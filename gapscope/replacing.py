"""Replace files in one step: a reader, a crash or a full disk finds the old file or the new one, never a part."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

SUFFIX = ".gapscope.tmp"
ABANDONED = 3600.0  # seconds; a file that is still written to is younger


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a stream under a temporary name in the same folder; then fsync, rename over `path`, fsync the folder.

    A symbolic link is followed.  Whatever is raised before the renaming removes the temporary file; what a kill left
    of earlier ones is removed after an hour.

    Raises: OSError if the place cannot be written; what was there is then unchanged.
    """
    with replacing_together([path]) as (stream,):
        yield stream


@contextlib.contextmanager
def replacing_together(paths: Iterable[str | os.PathLike[str]]) -> Iterator[list[BinaryIO]]:
    """Do the same for several files: all are on the disk before the last, and after it the others, is renamed.

    Only what stops a renaming leaves some new and some old: no lack of room does.
    """
    places = [Path(os.path.realpath(path)) for path in paths]
    temporary = [temporary_beside(place) for place in places]
    try:
        with contextlib.ExitStack() as opened:
            streams: list[BinaryIO] = []
            for one in temporary:
                streams.append(opened.enter_context(open(one, "xb")))
                _remove_abandoned(one.parent, os.fstat(streams[-1].fileno()).st_mtime)
            yield streams
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
        for one, place in zip(reversed(temporary), reversed(places), strict=True):
            os.replace(one, place)
    except BaseException as error:
        for one in temporary:
            with contextlib.suppress(OSError):
                one.unlink()
        # torch closes its archive whatever happened, and then complains that it is not whole
        reason = error.__context__
        if isinstance(error, RuntimeError) and isinstance(reason, OSError | KeyboardInterrupt | SystemExit):
            raise reason from None
        raise
    for folder in dict.fromkeys(place.parent for place in places):
        with contextlib.suppress(OSError):  # the files are in place, and some file systems cannot sync a folder
            opened_folder = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened_folder)
            finally:
                _close(opened_folder)


def temporary_beside(place: Path) -> Path:
    """Return a new name in the same folder, of what is removed after an hour."""
    return place.with_name(f".{secrets.token_hex(8)}{SUFFIX}")


@contextlib.contextmanager
def in_turn(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time read, merge and replace the files of a folder: none loses what another has written.

    Only where the file system can lock a folder; elsewhere (Windows, some network drives) nobody waits.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder = os.open(Path(os.path.realpath(path)).parent, os.O_RDONLY)
            held.callback(_close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _close(file: int) -> None:
    with contextlib.suppress(OSError):  # nothing was written through it
        os.close(file)


def _remove_abandoned(folder: Path, now: float) -> None:
    """Remove temporary files of killed processes; `now` by the clock of the file system."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < now - ABANDONED:
                        os.unlink(entry)
