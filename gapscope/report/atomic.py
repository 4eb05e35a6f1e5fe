"""Replace a file in one step: a reader, a crash or a full disk finds the old file or the new one, never a part."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from gapscope.errors import ReportError

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
    """Write under a temporary name in the same folder, fsync, rename over `path`, fsync the folder.

    A symbolic link is followed.  A kill may leave a `.*.gapscope.tmp` behind; everything else cleans up after itself.
    `option` is what names the place, for messages.

    Raises: ReportError if the place cannot be written; what was there is then unchanged.
    """
    if _withheld[-1]:
        return
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not os.path.isfile(path):  # renaming onto /dev/null would delete the device
        raise ReportError(f"{path} is not a regular file. Expected a regular file. Name one with `{option}`.")
    temporary = path.with_name(f".{secrets.token_hex(8)}.gapscope.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _discard(temporary)
        raise ReportError(
            f"{path} cannot be written: {error.strerror or error}. Nothing was lost: what was there is unchanged. "
            f"Make room or mend the folder, or name another place with `{option}`."
        ) from error
    except BaseException:
        _discard(temporary)
        raise
    with contextlib.suppress(OSError):  # the file is in place, and some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _discard(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        temporary.unlink()
