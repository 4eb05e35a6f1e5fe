"""`gapscope demo`: the main job on the embedded digits, from training to comparison, in under a minute."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapscope.cli.stderr import tell
from gapscope.errors import ReportError

if TYPE_CHECKING:
    from gapscope.measure.session import Session
    from gapscope.report.file import Report
    from gapscope.training.trainer import Recipe, Trained


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="folder for checkpoints and reports")
    ] = Path("gapscope-demo"),
    threads: Annotated[int, typer.Option("--threads", metavar="INT", help="CPU threads")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress")] = False,
    # __main__ looks for this word by itself
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,  # noqa: ARG001
) -> None:
    """Train a small- and a large-batch network to one loss, measure both, and compare them.

    One network (64-64-10) on 1,300 handwritten digits, one start, one rate, batch 8 against 650.
    """
    import torch

    from gapscope.cli.measuring import SHARPNESS, configured, prepare, say
    from gapscope.cli.settings import Common, Configuration
    from gapscope.cli.together import written
    from gapscope.report import comparison
    from gapscope.report.terminal import output as show
    from gapscope.report.view import comparison_document
    from gapscope.training.pair import REGIMES, equal_epochs, make

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"The folder {output} cannot be made: {error.strerror}. Expected a folder. Mend `--output`."
        ) from error
    torch.set_num_threads(max(1, threads))

    def tell_of(path: Path, recipe: "Recipe", trained: "Trained") -> None:
        if not quiet:
            loss = f"training loss {trained.train_loss:.4f}"
            tell(f"{path}: batch {recipe.batch_size}, {trained.steps:,} steps, {loss}")

    def measured(path: Path, names: Sequence[str]) -> "tuple[Session, Report]":
        """Measure a checkpoint; what else its report holds stays, and one of another subject is refused."""
        job = prepare(path, Common(quiet=True, output=path.with_suffix(".report.h5")))
        report = job.session.measure(configured(names, Configuration()))
        failure = job.written(report.results).failure
        if failure is not None:
            raise failure
        return job.session, report

    def trained(recipe: "Recipe", path: Path) -> "Trained":
        """Train a checkpoint; one of other weights whose report is there stays, as it may after an upgrade of torch."""
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=output) as folder:
            fresh, report = Path(folder) / path.name, path.with_suffix(".report.h5")
            found = make(recipe, fresh)
            if path.exists() and report.exists() and path.read_bytes() != fresh.read_bytes():
                raise ReportError(
                    f"{path} holds other weights than this machine trains, and {report.name} is of them. Expected the "
                    "same, or neither file. Name another folder with `--output`, or delete both."
                )
            fresh.replace(path)
        tell_of(path, recipe, found)
        return found

    pairs, trainings = [], []
    for regime in REGIMES:
        path = output / f"{regime.name}.pt"
        trainings.append(trained(regime.recipe, path))
        pairs.append(measured(path, SHARPNESS))
    reports = [report for _, report in pairs]
    compared = comparison.compare(reports)
    written(compared, [session for session, _ in pairs], output / "comparison.h5")
    show(comparison_document(compared))
    recipe = equal_epochs(trainings[0].epochs)
    under = output / "digits-large-batch-equal-epochs.pt"
    early = trained(recipe, under)
    _, report = measured(under, SHARPNESS[:1])
    tops = [float(r.results["eigenvalues"].quantities["top"].value) for r in (reports[0], report)]
    say(
        "",
        f"After equal epochs ({recipe.epochs}, {early.steps:,} steps) the large batch is under-trained: training loss "
        f"{early.train_loss:.2f} against {trainings[0].train_loss:.2f}, and {tops[1] / tops[0]:.1f} times the top "
        "eigenvalue of the small batch. Such a ratio is one of training progress, not of batch size.",
        "",
        f"reports: {output}/ · next: `gapscope show {output / 'comparison.h5'}`, or `gapscope sharpness CHECKPOINT`",
    )
