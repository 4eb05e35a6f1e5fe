"""How much an archive may promise to hold."""

import io
import zipfile
from io import BufferedReader
from pathlib import Path

from gapscope.errors import LoadError

_ROOMY = 2**30  # bytes that an archive may hold whatever its own size is
_RATIO = 50  # and beyond that per byte of its own: weights hardly compress, a bomb does 1,000 to 1


def check_archive(file: BufferedReader | io.BytesIO, where: Path | str) -> None:
    """Refuse an archive that declares far more than it holds, before anything is unpacked."""
    own = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        declared, packed = (
            sum(getattr(i, size) for i in archive.infolist()) for size in ("file_size", "compress_size")
        )
    file.seek(0)
    if packed > own or declared > max(_ROOMY, _RATIO * own):
        raise LoadError(
            f"{where} has {own:,} bytes and declares {declared:,} of content, far more than weights compress: "
            "it may be an attack. Nothing was unpacked. Save the weights again without compression."
        )
