"""Write the files of the reporting half in one step, or say why not."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gapscope.errors import ReportError
from gapscope.replacing import replacing, replacing_together, temporary_beside

_withheld = [False]  # the innermost last


@contextlib.contextmanager
def withheld(yes: bool) -> Iterator[None]:
    """Write nothing meanwhile: of several processes that find the same one writes."""
    _withheld.append(yes)
    try:
        yield
    finally:
        _withheld.pop()


def replace(path: str | os.PathLike[str], content: bytes, *, option: str = "--output") -> None:
    """Replace a file in one step; `option` is what names the place, for messages.

    Raises: ReportError if the place cannot be written; what was there is then unchanged.
    """
    if _withheld[-1]:
        return
    path = Path(os.path.realpath(path))
    _refuse_devices(path, option)
    try:
        with replacing(path) as stream:
            stream.write(content)
    except OSError as error:
        raise _unwritable(path, error, option) from error


def replace_together(contents: Mapping[Path, bytes], *, option: str = "--output") -> None:
    """Replace files that only make sense together; the first of them last, after all are on the disk.

    A kill between two renamings leaves them apart, all but the first new; anything else puts the old ones back.

    Raises: ReportError if a place cannot be written; what was there is then unchanged.
    """
    first, before = next(iter(contents)), dict[Path, Path | None]()
    for path in contents:
        _refuse_devices(path, option)
    with contextlib.ExitStack() as held:
        try:
            for path in contents:
                before[path] = held.enter_context(_kept(path))
            with replacing_together(contents) as streams:
                for stream, content in zip(streams, contents.values(), strict=True):
                    stream.write(content)
        except BaseException as error:
            if not first.exists() or first.read_bytes() != contents[first]:
                _put_back(before, contents)
            if isinstance(error, OSError):
                raise _unwritable(first, error, option) from error
            raise


@contextlib.contextmanager
def _kept(path: Path) -> Iterator[Path | None]:
    """Hold a copy of a file, which is put back without needing any room; None of one that is not there."""
    if not path.exists():
        yield None
        return
    copy = temporary_beside(Path(os.path.realpath(path)))
    try:
        copy.write_bytes(path.read_bytes())
        yield copy
    finally:
        for _ in range(2):  # what failed once may go the second time; else it goes after an hour
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)


def _put_back(before: Mapping[Path, Path | None], contents: Mapping[Path, bytes]) -> None:
    for path, copy in before.items():
        if copy is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() == contents[path]:
            os.replace(copy, os.path.realpath(path))


def _refuse_devices(path: Path, option: str) -> None:
    if path.exists() and not path.is_file():  # renaming onto /dev/null would delete the device
        raise ReportError(f"{path} is not a regular file. Expected a regular file. Name one with `{option}`.")


def _unwritable(path: Path, error: OSError, option: str) -> ReportError:
    return ReportError(
        f"{path} cannot be written: {error.strerror or error}. Nothing was lost: what was there is unchanged. "
        f"Make room or mend the folder, or name another place with `{option}`."
    )
