"""Long work on a grid of points, resumable: what is finished is kept in a file beside the report until that is written.

A part is an array of rows with NaN where nothing has been measured.  It belongs to a digest of everything that its
numbers depend on, so another checkpoint, data set or setting never picks it up.
"""

import contextlib
import io
import json
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gapscope.results import Array

SAVE_SECONDS = 5.0  # a kill costs at most this much work


@dataclass(frozen=True)
class Parts:
    """Where finished parts are kept: beside the report at `path`, a file for each digest; without a path nowhere."""

    path: Path | None = None
    _seen: list[Path] = field(default_factory=list)

    @property
    def kept(self) -> list[Path]:
        """Return the files that wait for the same work to be asked for again."""
        return [path for path in self._seen if path.is_file()]

    def _file(self, digest: str) -> Path | None:
        if self.path is None:
            return None
        file = self.path.with_name(f"{self.path.name}.{digest[:8]}.parts.npz")
        if file not in self._seen:
            self._seen.append(file)
        return file

    def rows(self, digest: str, points: int, columns: int, measure: Callable[[int], Array]) -> tuple[Array, int]:
        """Return measure(0) ... measure(points - 1) as rows (points, columns), and how many were there already."""
        table = self._read(digest, (points, columns))
        ready = ~np.isnan(table).all(axis=1)
        saved = time.monotonic()
        try:
            for index in np.flatnonzero(~ready):
                row = np.asarray(measure(int(index)), dtype=np.float64)
                table[index] = row
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._write(digest, table)
                    saved = time.monotonic()
        except BaseException:  # an interrupt, too
            self._write(digest, table)
            raise
        return table, int(ready.sum())

    def forget(self) -> None:
        """Remove the files of this run: the report holds everything now."""
        for path in self._seen:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _read(self, digest: str, shape: tuple[int, int]) -> Array:
        empty = np.full(shape, np.nan)
        path = self._file(digest)
        if path is None or not path.is_file():
            return empty
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                table = np.asarray(file["rows"], dtype=np.float64)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return empty  # damaged: the work is done again
        return table if about == digest and table.shape == shape else empty

    def _write(self, digest: str, table: Array) -> None:
        path = self._file(digest)
        if path is None or np.isnan(table).all():
            return
        content = io.BytesIO()
        np.savez(content, about=np.asarray(json.dumps(digest)), rows=table)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):  # a full disk must not end the work that it was to protect
            temporary.write_bytes(content.getvalue())
            os.replace(temporary, path)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
