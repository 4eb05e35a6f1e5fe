"""Finished parts of long work, kept in a file beside the report until that is written, so that a kill costs little.

A part is one pass over the data, or one point of a grid.  Its key is a digest of all that it is a function of: parts
that were kept are simply not computed again, every other number is, and a resumed run comes to the same digits.

The file: MAGIC, then records, each its length and digest before it.  The first is a JSON of the facts that the numbers
depend on beside their keys (versions, device, threads, sizes); the others are a key and a value.  A torn end is cut
off.  Nothing in it is executable.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import stat
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from gapscope.measure.distributed import ranks
from gapscope.results import Array

SAVE_SECONDS = 60.0  # work younger than this is not worth a file; and a machine that loses power loses this much more
MAGIC = b"gapscope parts 1\n"
_HEAD = struct.Struct("<Q16s")  # bytes of what follows, and their digest
_KEY = 16
CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(eq=False)
class Parts:
    """What is finished of one run; without `begin` nothing is kept.  Of ranks, the first has the file.

    Cost: while a file is kept, a digest of every vector that goes in and one write of every one that comes out; the
    file grows to about the size of the Krylov basis.  Values: tensors, arrays, numbers, None, and tuples of them.
    """

    path: Path | None = None
    say: Callable[[str], None] = lambda _: None
    _facts: bytes = b""
    _file: BinaryIO | None = None
    _known: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # key -> where its record is
    _begun: float = 0.0
    _synced: float = 0.0
    _inside: bool = True  # nothing is kept before the beginning
    _going_on: bool = False  # from what an earlier run kept; the same in all ranks
    _proven: bool = False

    @property
    def kept(self) -> Path | None:
        """Return the file that this run keeps, if it does yet."""
        return self.path if self._file is not None else None

    def begin(self, report: Path, facts: Mapping[str, Any], *, resume: bool) -> None:
        """Keep parts beside a report from now on; `resume`: go on from those that are there, if they have these facts.

        Why a file that is there is not gone on from is said, and the work starts anew.
        """
        self.close()
        self._inside = False
        self.path = state_path(report)
        self._facts = json.dumps(facts, sort_keys=True, default=str).encode()
        self._begun = self._synced = time.monotonic()
        self._going_on = self._proven = False
        if why := ranks().first(lambda: _foreign(state_path(report))):  # by the file that the first process sees
            self._leave(why)
        elif resume:
            self._going_on = ranks().first(self._open)
        elif self.path.is_file():
            self.say(
                f"{self.path.name} holds work that was interrupted: with `--resume` this command goes on from it. "
                "Without, everything is measured anew, and the file is replaced."
            )

    def recall(self, key: Callable[[], str], compute: Callable[[], T], device: torch.device = CPU) -> T:
        """Return what `compute` returns, from the file where it is there; parts inside a part are not kept.

        Tensors that were on a device come back to this one.
        """
        if self._inside or self.path is None or not (self._due() or self._going_on):
            return compute()
        mark = hashlib.blake2b(key().encode(), digest_size=_KEY).digest()
        stored = ranks().first(lambda: self._read(mark)) if self._going_on else None
        if stored is not None and self._proven:
            value: T = _decoded(stored, device)
            return value
        self._inside = True
        try:
            value = compute()
        finally:
            self._inside = False
        try:
            fresh = _encoded(value)
        except MemoryError:
            self._give_up("out of memory")
            return value
        if stored is None:
            self._append(mark + fresh)
        elif stored == fresh:  # one part is computed again: other code or another machine would show here
            self._proven = True
        else:
            self.say(
                f"{self.path.name} was left aside: its first part, measured again, came out otherwise. Expected the "
                "same model code, libraries and machine. Everything is measured anew."
            )
            self._start()
            self._append(mark + fresh)
        return value

    def rows(self, digest: str, points: int, measure: Callable[[int], Array]) -> Array:
        """Return measure(0) ... measure(points - 1) as rows, each a part."""

        def row(index: int) -> Array:
            return self.recall(lambda: f"{digest} {index}", lambda: measure(index))

        return np.stack([row(index) for index in range(points)])

    def forget(self) -> None:
        """Remove the file, also one of an earlier run, unless another process is at it: the report holds everything."""
        self.close()
        if self.path is not None and not ranks().rank:
            with contextlib.suppress(OSError), _opened(self.path, "r+b") as file:
                if not _foreign(self.path) and _locked(file):
                    self.path.unlink()

    def close(self) -> None:
        """Keep no more parts, and what is kept."""
        self._inside = True
        self._drop()

    # --- the file

    def _due(self) -> bool:
        """Return whether parts are kept by now; a run makes its file when it is old enough."""
        if self._file is None and not ranks().rank and time.monotonic() - self._begun >= SAVE_SECONDS:
            self._start()
        return self._file is not None

    def _start(self) -> None:
        """Make the file anew."""
        self._drop()
        self._going_on = False
        assert self.path is not None
        if ranks().rank:
            return
        try:
            file = _opened(self.path, "a+b")
            if not self._is_mine(file):
                return
            self._file = file
            file.truncate(0)
            if file.write(MAGIC) != len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._give_up(error.strerror)
            return
        self._append(self._facts)

    def _is_mine(self, file: BinaryIO) -> bool:
        """Say whether this process may keep parts in this file; where not, it is closed, and none is made."""
        assert self.path is not None
        why = _foreign(self.path)  # which opens it as well: some file systems drop a lock at any closing
        if not why and not _locked(file):
            why = "is kept by another process that measures for the same report"
        if why:
            file.close()
            self._leave(why)
        return not why

    def _leave(self, why: str) -> None:
        """Keep no parts from now on, where the file is not for this run to write."""
        assert self.path is not None
        self._begun = math.inf
        self.say(f"{self.path.name} {why}: this run keeps no finished parts.")

    def _open(self) -> bool:
        """Find the records of an earlier run, if it measured the same, and cut off a torn end."""
        assert self.path is not None
        try:
            file = _opened(self.path, "r+b")
            if not self._is_mine(file):
                return False
            self._file = file
            places, end = _scanned(file)
            found = _at(file, places[0]) if places else None
            if found != self._facts:
                self._drop()
                self.say(f"{self.path.name} was left aside: {_apart(found, self._facts)}. Everything is measured anew.")
                return False
            file.truncate(end)
            for start, size in places[1:]:
                file.seek(start)
                self._known[file.read(_KEY)] = (start, size)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._drop()
            self.say(f"{self.path.name} cannot be read ({error.strerror}): everything is measured anew.")
            return False
        self.say(f"resumed: {len(self._known)} finished parts are in {self.path.name}")
        return True

    def _read(self, mark: bytes) -> bytes | None:
        """Return the value of a key, or None; a record that was damaged is none."""
        if self._file is None or mark not in self._known:
            return None
        try:
            found = _at(self._file, self._known[mark])
        except OSError:
            return None
        return None if found is None else found[_KEY:]

    def _append(self, record: bytes) -> None:
        if self._file is None:
            return
        try:
            # one write: a kill tears at most the last record
            whole = _HEAD.pack(len(record), _digest(record)) + record
            self._file.seek(0, os.SEEK_END)
            if self._file.write(whole) != len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > SAVE_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            self._give_up(error.strerror)
        except MemoryError:
            self._give_up("out of memory")

    def _give_up(self, why: str | None) -> None:
        """Go on without a file: a full disk must not end the work, and the report will want the room."""
        assert self.path is not None
        made = self._file is not None
        self._drop()
        self._begun = math.inf  # no other file; what other ranks ask this one for is not there
        if made:
            _unlink(self.path)
        self.say(f"{self.path.name} cannot be written ({why}): the work goes on, but cannot be resumed.")

    def _drop(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        self._known.clear()


def state_path(report: Path) -> Path:
    """Return where the parts of a report are kept."""
    return report.with_name(f"{report.name}.state")


def _opened(path: Path, mode: Literal["rb", "r+b", "a+b"]) -> BinaryIO:
    """Open a file, never what a link leads to: who packed an archive may have put one there."""

    def itself(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, mode, buffering=0, opener=itself)


def _foreign(path: Path) -> str:
    """Say why what is at a path is not to be written to; an empty string of nothing, or a file of parts."""
    what = ""
    with contextlib.suppress(OSError):  # nothing there; or nothing that can be opened, as is said when it has to be
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            what = "is a link"
        elif not stat.S_ISREG(found.st_mode):
            what = "is not a file"
        elif found.st_nlink > 1:
            what = "is a file of several names"
        else:
            with _opened(path, "rb") as file:
                what = "" if MAGIC.startswith(file.read(len(MAGIC))) else "was not written by gapscope"
    return what and f"{what}, and stays as it is. Expected nothing there, or what gapscope kept. Move it away"


def _locked(file: BinaryIO) -> bool:
    """Keep other processes from this file until it is closed; False where one has it already."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # no locks here
        return True
    return True


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # of a folder that cannot be written any more: nothing to be done
        return


def _digest(record: bytes) -> bytes:
    return hashlib.blake2b(record, digest_size=16).digest()


def _scanned(file: BinaryIO) -> tuple[list[tuple[int, int]], int]:
    """Return where the records are, whole by their lengths, and where the last of them ends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    places: list[tuple[int, int]] = []
    end = len(MAGIC)
    if file.read(len(MAGIC)) != MAGIC:
        return places, 0
    while end + _HEAD.size <= size:
        file.seek(end)
        length, _ = _HEAD.unpack(file.read(_HEAD.size))
        if end + _HEAD.size + length > size:
            break
        places.append((end + _HEAD.size, length))
        end += _HEAD.size + length
    return places, end


def _at(file: BinaryIO, place: tuple[int, int]) -> bytes | None:
    """Return the record at a place, or None where it is not what was written."""
    start, size = place
    file.seek(start - _HEAD.size)
    _, digest = _HEAD.unpack(file.read(_HEAD.size))
    record = file.read(size)
    return record if _digest(record) == digest else None


def _apart(found: bytes | None, wanted: bytes) -> str:
    """Say in which facts an earlier run differs."""
    theirs, ours = None, json.loads(wanted)
    with contextlib.suppress(ValueError, RecursionError):
        theirs = json.loads(found or b"null")
    if not isinstance(theirs, dict):
        return "it is damaged"
    keys = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    return f"it is of other work ({', '.join(keys)} differ)"


# --- values


def _encoded(value: Any) -> bytes:
    """Return a value as bytes: a JSON of its shape, then its arrays."""
    arrays: list[Array] = []

    def shape(one: Any) -> Any:
        if isinstance(one, tuple):
            return ["tuple", *map(shape, one)]
        if isinstance(one, Tensor):
            arrays.append(one.detach().cpu().numpy())
            return ["host" if one.device.type == "cpu" else "device"]
        if isinstance(one, np.ndarray):
            arrays.append(one)
            return ["array"]
        if one is None or isinstance(one, int | float):
            return one
        raise TypeError(f"a part is a {type(one).__name__}. Expected tensors, arrays, numbers, None or tuples of them.")

    content, text = io.BytesIO(), json.dumps(shape(value))
    content.write(text.encode() + b"\n")
    for array in arrays:
        np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _decoded(record: bytes, device: torch.device) -> Any:
    content = io.BytesIO(record)

    def value(said: Any) -> Any:
        if not isinstance(said, list):
            return said
        if said[0] == "tuple":
            return tuple(map(value, said[1:]))
        array = np.load(content, allow_pickle=False)
        return array if said[0] == "array" else torch.from_numpy(array).to(device if said[0] == "device" else CPU)

    return value(json.loads(content.readline()))
