"""The batch sizes that `train --regimes` names: `small,large` or `16,64,256`."""

from gapscope.errors import UsageError, did_you_mean

SMALL = 32
LARGE_SHARE = 10  # a large batch is this part of the data, unless it is given


def regime_sizes(given: str, samples: int, small: int | None, large: int | None) -> list[int]:
    """Return the batch sizes of the regimes, in the order given.

    Raises: UsageError for other words, for sizes that the data do not have, and for a size twice.
    """
    known = {
        "small": SMALL if small is None else small,
        "large": max(1, samples // LARGE_SHARE) if large is None else large,
    }
    words = _words(given)
    for word in words:
        if word not in known and not (word.isdecimal() and int(word) > 0):
            raise UsageError(
                f"There is no regime `{word}`.{did_you_mean(word, known)} Expected small, large or a batch size. Mend "
                "`--regimes`, like small,large or 16,64,256."
            )
    sizes = [known[word] if word in known else int(word) for word in words]
    for word, size in zip(words, sizes, strict=True):
        refuse_large(size, samples, f"--{word}-batch" if word in known else "--regimes")
    if len(set(sizes)) < len(sizes):
        raise UsageError(
            f"`--regimes {given}` has the batch sizes {', '.join(map(str, sizes))}. Expected each once. Mend it, or "
            "`--small-batch` and `--large-batch`."
        )
    return sizes


def refuse_idle(given: str | None, small: int | None, large: int | None) -> None:
    """Raise UsageError where a size is given for a regime that is not trained."""
    for word, size in (("small", small), ("large", large)):
        if size is not None and word not in _words(given or ""):
            raise UsageError(
                f"`--{word}-batch {size}` was given, and no regime `{word}`. Expected both or neither. Name it in "
                f"`--regimes`, like small,large, or leave `--{word}-batch` out."
            )


def refuse_large(size: int, samples: int, option: str) -> None:
    """Raise UsageError for a batch size that the data do not have."""
    if not 1 <= size <= samples:
        raise UsageError(
            f"The batch size is `{size}` of {samples:,} samples. Expected 1 to {samples:,}. Mend `{option}`."
        )


def _words(given: str) -> list[str]:
    return [word.strip() for word in given.split(",")]
