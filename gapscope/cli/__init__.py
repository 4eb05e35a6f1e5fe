"""The command line: one file per verb; each parses, calls one function and prints.

Measuring commands are generated from the analyzers' dataclasses.  Nothing here imports torch before a command runs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import typer.main

from gapscope.cli import compare, demo, measuring, show, train
from gapscope.cli.settings import Configuration, read_configuration

EPILOG = (
    "Exit codes: 0 done, 2 could not be measured or compared, 130 interrupted. Every option is also an environment variable "
    "(GAPSCOPE_DATA, GAPSCOPE_EIGENVALUES_K ...) and a key of gapscope.toml or [tool.gapscope] in pyproject.toml."
)


def app(configuration: Configuration) -> typer.Typer:
    """Return the application, with one command per analyzer."""
    root = typer.Typer(
        name="gapscope",
        help="Sharpness and generalization-gap analysis of PyTorch checkpoints: numbers with their errors.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @root.callback(invoke_without_command=True)
    def main(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            import gapscope

            print(f"gapscope {gapscope.__version__}")
            raise typer.Exit

    for name, body in measuring.commands(configuration):
        root.command(name)(body)
    root.command("compare")(compare.command(configuration))
    root.command("show")(show.show)
    root.command("train")(train.command(configuration))
    root.command("demo")(demo.demo)
    return root


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; usage errors are printed with the usage line."""
    configuration = read_configuration(Path.cwd())
    command = typer.main.get_command(app(configuration))
    try:
        code: Any = command.main(
            args=list(words), prog_name="gapscope", standalone_mode=False, default_map=_defaults(configuration)
        )
    except Exception as error:
        # Typer carries its own click, whose usage errors know how to show themselves
        if not hasattr(error, "format_message") or not hasattr(error, "show"):
            if type(error).__name__ == "Abort":
                raise KeyboardInterrupt from error
            raise
        error.show()
        return 2
    return code if isinstance(code, int) else 0


def _defaults(configuration: Configuration) -> dict[str, Any]:
    """Return what the configuration files say, by command and option."""
    from gapscope.measure.analyzers import names

    common = dict(configuration.common)
    analyzers = {name: {**common, **configuration.measure.get(name, {})} for name in names()}
    return analyzers | {"sharpness": common, "compare": common, "train": common}
