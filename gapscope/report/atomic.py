"""Write the files of the reporting half in one step, or say why not."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from gapscope.errors import ReportError
from gapscope.replacing import replacing, settle

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
    if os.path.exists(path) and not os.path.isfile(path):  # renaming onto /dev/null would delete the device
        raise ReportError(f"{path} is not a regular file. Expected a regular file. Name one with `{option}`.")
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
    before = {path: path.read_bytes() if path.exists() else None for path in contents}
    first = next(iter(contents))
    try:
        with contextlib.ExitStack() as streams:
            for path, content in contents.items():
                stream = streams.enter_context(replacing(path))
                stream.write(content)
                settle(stream)
    except BaseException as error:
        if not first.exists() or first.read_bytes() != contents[first]:
            _put_back(before)
        if isinstance(error, OSError):
            raise _unwritable(first, error, option) from error
        raise


def _put_back(before: Mapping[Path, bytes | None]) -> None:
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        elif path.read_bytes() != content:
            replace(path, content)


def _unwritable(path: Path, error: OSError, option: str) -> ReportError:
    return ReportError(
        f"{path} cannot be written: {error.strerror or error}. Nothing was lost: what was there is unchanged. "
        f"Make room or mend the folder, or name another place with `{option}`."
    )
