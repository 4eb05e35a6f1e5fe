"""The console script: runs the command line and turns every outcome into an exit code.

0 pass; 1 a threshold is violated; 2 could not be measured or compared (usage, bad input, a bug); 3 the measurement
cannot tell; 130 interrupted.  An uncaught exception must not look like a violated threshold.
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from gapscope.errors import GapscopeError, out_of_memory

OUT_OF_MEMORY = "Out of memory. Expected the work to fit. Lower `--memory-budget` or `--batch-size`."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run gapscope on the given arguments (default: the command line) and exit."""
    if arguments is None:  # leave by an exception, so that a half-written file and the bar are taken away
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        _keep_signals()
        _mend_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    code = 0
    try:
        code = _run(words)
        sys.stdout.flush()
    except OSError as error:
        _to_nowhere(sys.stdout.fileno())  # the interpreter's own flush at exit
        code = _fail(
            f"The output cannot be written: {error.strerror or error}. Expected room for it. Send it elsewhere."
        )
    sys.exit(code)


def _run(words: list[str]) -> int:
    try:
        from gapscope.cli import run

        if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:  # by `torchrun`
            from gapscope.cli.rank import run_as_rank

            return run_as_rank(words, run)
        return run(words)
    except SystemExit as stop:
        if stop.code == 128 + signal.SIGTERM:
            return 128 + signal.SIGTERM
        return _fail(f"Something asked Python to exit ({stop.code}). Expected a measurement. See `--debug`.")
    except GapscopeError as error:
        _trace(words)
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\ninterrupted: every file that was there before is whole", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is None and sys.stdout is not None and _is_full(error):
            raise  # standard output: the files that gapscope writes report their own
        return _unexpected(words, error)
    except MemoryError:
        _trace(words)
        return _fail(OUT_OF_MEMORY)
    except Exception as error:  # a bug, or a failure of a library: never exit 1
        return _unexpected(words, error)


def _is_full(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


def _unexpected(words: list[str], error: Exception) -> int:
    _trace(words)
    if out_of_memory(error):
        return _fail(OUT_OF_MEMORY)
    first = (str(error).splitlines() or [""])[0][:300]
    return _fail(
        f"Unexpected {type(error).__name__}: {first}. This is a bug in gapscope or a model that it does not know. "
        "Run again with `--debug` and report what it prints."
    )


def _trace(words: list[str]) -> None:
    """Print the traceback where it was asked for; cli.run sets the variable where the configuration asks."""
    if "--debug" in words or os.environ.get("GAPSCOPE_DEBUG", "").lower() not in ("", "0", "false", "no", "off"):
        import traceback

        from gapscope.report.terminal import harmless

        print("\n".join(map(harmless, traceback.format_exc().splitlines())), file=sys.stderr)


def _fail(message: str) -> int:
    """Print an error; it may quote a file, so nothing in it reaches the terminal as a control character."""
    from gapscope.report.terminal import error_lines

    print("\n".join(error_lines(f"error: {message}")), file=sys.stderr)
    return 2


class _Forgiving(io.FileIO):
    """The end of a stream that goes nowhere once its reader has left: the work goes on, and its exit code counts."""

    def __init__(self, number: int, forgiven: type[OSError]) -> None:
        super().__init__(number, "wb", closefd=False)
        self.forgiven = forgiven

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except self.forgiven:
            _to_nowhere(self.fileno())
            return super().write(data)


def _keep_signals() -> None:
    """Send a signal again that came in a `__del__` or a weak reference's callback, as imports have: Python drops it.

    Of interrupts on a busy machine, while much is imported, one in fourteen was lost, and the work went on to its end.
    """
    own = sys.unraisablehook

    def hook(dropped: Any) -> None:
        terminated = getattr(dropped.exc_value, "code", None) == 128 + signal.SIGTERM  # and no exit of others
        if dropped.exc_type is not KeyboardInterrupt and not terminated:
            own(dropped)
            return
        import threading

        number = signal.SIGTERM if terminated else signal.SIGINT
        # by another thread: raised here it would be dropped again
        again = threading.Timer(0.01, os.kill, (os.getpid(), number))
        again.daemon = True
        with contextlib.suppress(RuntimeError):  # the interpreter is ending, and takes no more threads
            again.start()

    sys.unraisablehook = hook


def _mend_streams() -> None:
    """Let what is printed go nowhere where there is no stream, and show letters that its encoding lacks as escapes.

    A reader of a pipe may leave at any time.  Results that do not fit on a disk are an error, what is said beside not.
    """
    for name, forgiven in (("stdout", BrokenPipeError), ("stderr", OSError)):
        stream = getattr(sys, name)
        if stream is None:  # closed: by `>&-`, or in a process without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (open to the end)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if not stream.isatty():
                setattr(sys, name, _forgiving(stream, forgiven))


def _forgiving(stream: io.TextIOWrapper, forgiven: type[OSError]) -> io.TextIOWrapper:
    """Return the same stream with an end that forgives."""
    stream.flush()
    raw = _Forgiving(stream.fileno(), forgiven)
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)  # as Python does for PYTHONUNBUFFERED
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _to_nowhere(number: int) -> None:
    """Let everything that is written to an open file from now on go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


if __name__ == "__main__":
    main()
