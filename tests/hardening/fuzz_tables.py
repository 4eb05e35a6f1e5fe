"""Targets that read foreign tables as data: parquet and Arrow, packed and not, written by pyarrow."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np

from gapscope.measure.loading import Reading, Trust, load_data
from tests.hardening.mutations import damaged

WORDS = (b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, (2**40).to_bytes(8, "little"), bytes(8), b"PAR1")


def _columns() -> dict[str, object]:
    import pyarrow

    names = pyarrow.array(["a", "b"] * 100).dictionary_encode()
    return {"x": np.zeros(200), "rows": [[1.0, 2.0]] * 200, "text": ["some text"] * 200, "y": names}


def parquet(folder: Path) -> Callable[[Random], list[str]]:
    """Parquet of both page versions; half of the damage is in the footer."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(_columns())
    for version, packed in (("1.0", "none"), ("1.0", "snappy"), ("2.0", "zstd"), ("2.0", "none")):
        pyarrow.parquet.write_table(
            table, folder / f"s{version}{packed}", data_page_version=version, compression=packed, row_group_size=150
        )
    return _attempt(folder, ".parquet")


def arrow(folder: Path) -> Callable[[Random], list[str]]:
    """Arrow streams and files."""
    import pyarrow

    table = pyarrow.table(_columns())
    for opened in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        for packed in (None, "lz4", "zstd"):
            options = pyarrow.ipc.IpcWriteOptions(compression=packed)
            with opened(str(folder / f"s{opened.__name__}{packed}"), table.schema, options=options) as sink:
                sink.write_table(table, max_chunksize=150)
    return _attempt(folder, ".arrow")


def _attempt(folder: Path, suffix: str) -> Callable[[Random], list[str]]:
    seeds = tuple(path.read_bytes() for path in sorted(folder.glob("s*")))

    def attempt(rng: Random) -> list[str]:
        data = rng.choice(seeds)
        start = len(data) - int.from_bytes(data[-8:-4], "little") % len(data) if rng.random() < 0.5 else 0
        path = folder / f"t{suffix}"
        path.write_bytes(data[:start] + damaged(data[start:], rng, seeds, WORDS))
        found = load_data(str(path), "train", recorded=False, trust=Trust(), reading=Reading())
        return [*found.notes] if found else []

    return attempt


TARGETS = {"data parquet": parquet, "data arrow": arrow}
