"""What is said on stderr beside the results: it may quote a file that anybody may have written."""

import sys


def tell(text: str, *, start: str = "", end: str = "\n") -> None:
    """Print a line, of which no control character reaches the terminal, and no command a workflow's runner."""
    from gapscope.report.terminal import harmless, shortened

    print(f"{start}{shortened(harmless(text))}", end=end, file=sys.stderr, flush=True)
