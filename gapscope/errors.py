"""Every deliberate error of gapscope, as one tree.

    GapscopeError          printed as one message without a traceback; the process exits 2
      UsageError           the request makes no sense: unknown name, contradictory settings
      LoadError            a checkpoint, model or data set cannot be read, or they do not fit each other
      ProblemError         L is not a fixed, finite, twice differentiable function of theta
      ReportError          a report is missing, damaged, foreign or from the future
      ComparisonError      two reports do not measure the same thing
      RankError            one of several processes that measure together has died, hangs or went another way

Every message says what was observed, what was expected, and what to do.  Not errors: a solver that ran
out of budget (a `Status`), a failed threshold (a verdict).
"""

import difflib
from collections.abc import Iterable, Sequence


class GapscopeError(Exception):
    """Base of the errors that gapscope raises on purpose."""


class UsageError(GapscopeError):
    """The request makes no sense."""


class LoadError(GapscopeError):
    """A checkpoint, model or data set cannot be read, or they do not fit each other."""


class ProblemError(GapscopeError):
    """L is not a fixed, finite, twice differentiable function of theta."""


class ReportError(GapscopeError):
    """A report is missing, damaged, foreign or from the future."""


class ComparisonError(GapscopeError):
    """Two reports do not measure the same thing."""


class RankError(GapscopeError):
    """One of several processes that measure together has died, hangs or went another way."""


def out_of_memory(error: Exception) -> bool:
    """Return whether an exception says that memory ran out: torch has a class for that on accelerators alone."""
    said = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "out of memory" in said or "can't allocate memory" in said


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean `x`?" for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean `{near[0]}`?" if near else ""


def one_of(name: str, given: object, known: Sequence[str]) -> None:
    """Raise UsageError where a setting is none of the words that it may be."""
    if given not in known:
        raise UsageError(
            f"`{name}` is {given!r}.{did_you_mean(str(given), known)} Expected one of {', '.join(known)}. Mend it."
        )
