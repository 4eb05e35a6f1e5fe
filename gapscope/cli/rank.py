"""One of several processes that `torchrun` started: the first speaks and writes; of failed ones, the first to fail."""

import atexit
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from gapscope.errors import RankError

BY_ITSELF = ("show", "inspect", "convert", "baseline", "demo", "study", "-h", "--help", "--version")  # one process does


def run_as_rank(words: list[str], run: Callable[[list[str]], int]) -> int:
    """Run a command in all processes, or in the first where one is enough, and return this one's exit code.

    Where one fails, torchrun ends the others: so an exception leaves only after it was said, by one of them.
    """
    if not words or words[0] in BY_ITSELF or {"-h", "--help"} & set(words):
        if os.environ.get("RANK", "0") != "0":
            return 0
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):  # what it starts is alone, too
            os.environ.pop(name, None)
        return run(words)
    from gapscope.measure.distributed import joined
    from gapscope.report.atomic import withheld

    with joined() as group:
        loud, silent = sys.stderr, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  (open to the end)
        if group.rank:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing to clean up
            sys.stdout = sys.stderr = silent
        try:
            with withheld(group.rank > 0):
                code = run(words)
            group.wait("end")
        except (Exception, SystemExit) as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends, and says why
            if group.speaks():
                sys.stderr = loud
                atexit.register(group.spoken)
            else:
                sys.stderr = silent
                with suppress(RuntimeError):  # the one that speaks has died
                    group.hear()
            if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
                raise RankError(
                    "This rank was told to end (SIGTERM), as torchrun does when another one has died. Expected all of "
                    "them to the end. Every file that was there before is whole: give the same command again."
                ) from error
            raise
    return 0 if group.rank else code
