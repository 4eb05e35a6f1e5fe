"""`gapscope demo`: the main job on the embedded digits, from training to comparison, in under a minute."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gapscope.errors import ReportError


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for checkpoints and reports")] = Path("gapscope-demo"),
    threads: Annotated[int, typer.Option("--threads", help="CPU threads")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Train a small- and a large-batch network to the same loss, measure both, and compare them.

    One network (64-64-10) on 1,300 handwritten digits, one start, one rate, batch 8 against 650.
    """
    from gapscope.cli.measuring import SHARPNESS, configured, measure
    from gapscope.cli.settings import Common, Configuration
    from gapscope.report import comparison, file
    from gapscope.report.terminal import output as show
    from gapscope.report.view import comparison_document

    import torch

    from gapscope.training.pair import REGIMES, equal_epochs, make

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"The folder {output} cannot be made: {error.strerror}. Expected a folder. Mend `--output`.") from error
    torch.set_num_threads(max(1, threads))

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    common = Common(threads=max(1, threads), quiet=True)
    analyzers = configured(SHARPNESS, Configuration({}, {}))
    reports, epochs = [], []
    for regime in REGIMES:
        path = output / f"{regime.name}.pt"
        trained = make(regime.recipe, path)
        epochs.append(trained.epochs)
        say(f"{path}: batch {regime.recipe.batch_size}, {trained.steps:,} steps, training loss {trained.train_loss:.4f}")
        target = output / f"{regime.name}.report.h5"
        target.unlink(missing_ok=True)  # the demo's own, from an earlier run
        reports.append(measure(path, replace(common, output=target), analyzers).report)
    compared = comparison.compare(reports)
    file.write(compared, output / "comparison.h5")
    show(comparison_document(compared))
    under = output / "digits-large-batch-equal-epochs.pt"
    trained = make(equal_epochs(epochs[0]), under)
    target = output / f"{under.stem}.report.h5"
    target.unlink(missing_ok=True)
    early = measure(under, replace(common, output=target), configured(SHARPNESS[:1], Configuration({}, {}))).report
    tops = [float(r.results["eigenvalues"].quantities["top"].value) for r in (reports[0], early)]
    print(
        f"\nAt equal epochs ({epochs[0]}) the large batch is under-trained (loss {trained.train_loss:.2f}) and its top eigenvalue is "
        f"{tops[1] / tops[0]:.1f} times the small batch's: that contrast is of training progress, not of batch size."
    )
    print(f"\nreports: {output}/ · next: gapscope show {output / 'comparison.h5'} -v")
