"""The console script: runs the command line and turns every outcome into an exit code.

0 pass; 1 a threshold is violated; 2 could not be measured or compared (usage, bad input, a bug); 3 the measurement
cannot tell; 130 interrupted.  An uncaught exception must not look like a violated threshold.
"""

import os
import sys
from collections.abc import Sequence

from gapscope.errors import GapscopeError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run gapscope on the given arguments (default: the command line) and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has left: that is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        from gapscope.cli import run

        return run(words)
    except GapscopeError as error:
        if "--debug" in words:
            raise_with_traceback(error)
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: no report was changed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except MemoryError as error:
        return _fail(f"out of memory: {error}. Expected the work to fit. Lower `--memory-budget` or `--batch-size`.")
    except Exception as error:  # a bug, or a failure of a library: never exit 1
        if "--debug" in words:
            raise_with_traceback(error)
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower():
            return _fail("out of memory. Expected the work to fit. Lower `--memory-budget` or `--batch-size`.")
        first = (str(error).splitlines() or [""])[0][:300]
        return _fail(
            f"unexpected {type(error).__name__}: {first}. This is a bug in gapscope or a model that it does not know. "
            "Run again with `--debug` and report what it prints."
        )


def raise_with_traceback(error: BaseException) -> None:
    """Print the traceback for `--debug`."""
    import traceback

    traceback.print_exception(error)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
