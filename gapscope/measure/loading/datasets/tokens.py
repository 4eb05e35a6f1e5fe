"""Token files of language models: one long row of token numbers, cut into blocks with the next tokens as targets."""

from pathlib import Path

import numpy as np
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import Pair, check_size

_TYPES = ("uint8", "uint16", "uint32", "int32", "int64")


def read_tokens(path: Path, options: str, spec: str) -> Pair:
    """Return blocks that do not overlap, and for each of their tokens the one that follows.

    `options`: `block=128`, and for a file without a header `dtype=uint16`.
    x_i = tokens[i b : (i+1) b],  y_i = tokens[i b + 1 : (i+1) b + 1]

    Shapes: x and y are (N, b) with N = floor((tokens - 1) / b).
    """
    block, dtype = _options(options, spec)
    tokens = _mapped(path, dtype, spec)
    count = (len(tokens) - 1) // block
    if count < 1:
        raise LoadError(f"{spec} holds {len(tokens)} tokens. Expected at least {block + 1}: give a smaller `block`.")
    check_size(8 * (count * block + 1), spec)
    row = torch.from_numpy(tokens[: count * block + 1].astype(np.int64))
    left = len(tokens) - len(row)
    note = f"data: {spec}: {count} blocks of {block} tokens that do not overlap; the last {left} tokens are left out"
    return Pair(row[:-1].view(count, block), row[1:].view(count, block), (note,))


def _options(options: str, spec: str) -> tuple[int, str | None]:
    given = dict(part.partition("=")[::2] for part in options.split(","))
    block, dtype = given.pop("block", ""), given.pop("dtype", None)
    if given or not (block.isascii() and block.isdigit() and int(block)) or dtype not in (None, *_TYPES):
        raise LoadError(
            f"`{spec}`: unknown options. Expected `block=128` (tokens per sample) and, of a file without a header, "
            f"`dtype=uint16` ({', '.join(_TYPES)})."
        )
    return int(block), dtype


def _mapped(path: Path, dtype: str | None, spec: str) -> np.ndarray:
    tokens: np.ndarray
    try:
        if path.suffix == ".npy":
            tokens = np.lib.format.open_memmap(path, mode="r")  # np.load takes archives and pickles, too
        elif dtype is None:
            raise LoadError(f"`{spec}` does not say how long a token is. Expected `:block=128,dtype=uint16`, say.")
        else:
            tokens = np.memmap(path, np.dtype(dtype).newbyteorder("<"), mode="r")
    except LoadError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise LoadError(
            f"{path} cannot be read as tokens ({str(error)[:80]}). Expected a row of integers: "
            "`np.save('tokens.npy', tokens)`, or `tokens.tofile(...)` with its `dtype`."
        ) from None
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise LoadError(
            f"{path} holds an array of shape {tokens.shape}, {tokens.dtype}. Expected one row of integer tokens."
        )
    return tokens
