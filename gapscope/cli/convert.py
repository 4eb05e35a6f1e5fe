"""`gapscope convert`: write the weights of any checkpoint as safetensors."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(help="file or folder to read", metavar="FILE", show_default=False)],
    out: Annotated[Path, typer.Argument(help="file to write", metavar="OUT.safetensors", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="raw, ema, or the key of the weights in the file (default: raw)", metavar="TEXT")
    ] = None,
    trust_file: Annotated[bool, typer.Option("--trust-file", help="run what the file itself runs")] = False,
    allow_global: Annotated[
        list[str] | None,
        typer.Option(help="allow this class inside the checkpoint's pickle, repeatable", metavar="TEXT"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that is there")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Write the weights of a checkpoint as safetensors, which never run code.

    Raw weights go before averaged ones. Tensors that share memory are written apart, and what was decided is said.
    """
    from gapscope.cli.measuring import say
    from gapscope.measure.loading.checkpoints.conversion import convert as write
    from gapscope.measure.loading.checkpoints.inspection import inspect
    from gapscope.measure.loading.trust import Trust
    from gapscope.report.terminal import harmless

    trust = Trust(allowed_globals=tuple(allow_global or ()), file=trust_file)
    say(*write(file, out, trust, weights, force=force))
    print(f"next: {harmless(inspect(out).next)}")  # not wrapped: it is to be copied
