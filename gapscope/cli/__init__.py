"""The command line: one file per verb; each parses, calls one function and prints.

Measuring commands are generated from the analyzers' dataclasses.  Nothing here imports torch before a command runs.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
import typer.main

from gapscope.cli import fields
from gapscope.cli.planning import COMMAND
from gapscope.cli.settings import Configuration, read_configuration

VERBS = (
    "analyze",
    "compare",
    "track",
    "gate",
    "baseline",
    "show",
    "inspect",
    "convert",
    "train",
    "study",
    "demo",
)  # one module each, imported when it is wanted
EPILOG = (
    "Exit codes: 0 done, 1 a threshold is violated (gate), 2 could not be measured, compared or judged, 3 the "
    "measurement cannot tell (gate), 130 interrupted. Options of measuring commands are also environment variables "
    "(GAPSCOPE_DATA, GAPSCOPE_EIGENVALUES_K ...) and keys of gapscope.toml or of [tool.gapscope] in pyproject.toml."
)
SHARED = (
    "model",
    "model_arg",
    "data",
    "loss",
    "threads",
    "device",
    "quiet",
    "debug",
)  # common keys that mean the same to `train`
TRAINING = ("train", "study", "demo")  # offered where the package that trains is there
INTERRUPTED = 130
UNCONFIGURED = ("-h", "--help", "--version", "show", "inspect", "convert", "demo", "baseline")


def app(configuration: Configuration, wanted: str = "") -> typer.Typer:
    """Return the application, with one command per analyzer; or, to start sooner, with the wanted verb alone."""
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

    trains = find_spec("gapscope.training") is not None
    offered = [verb for verb in VERBS if trains or verb not in TRAINING]
    bodies = [(verb, _body(verb, configuration)) for verb in offered if wanted not in offered or verb == wanted]
    if wanted not in offered:
        from gapscope.cli.measuring import commands

        bodies = [*commands(configuration), *bodies]
    for name, body in bodies:
        root.command(name, short_help=fields.headline(body.__doc__))(body)
    return root


def _body(verb: str, configuration: Configuration) -> Callable[..., int | None]:
    module = importlib.import_module(f"gapscope.cli.{verb}")
    body: Callable[..., int | None] = (
        module.command(configuration) if hasattr(module, "command") else getattr(module, verb)
    )
    return body


def tables() -> dict[str, type]:
    """Return the commands with a table of their own in a configuration file, and the fields of each."""
    from gapscope.cli import analyze, compare, gate, study, track, train

    return {
        "train": train.TrainOptions,
        "compare": compare.Own,
        "analyze": analyze.Own,
        "gate": gate.Own,
        "track": track.Own,
        "study": study.StudyOptions,
    }


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; usage errors are printed with the command to ask for help."""
    COMMAND.start()
    # a mistake in a file of this folder must keep nobody from reading the help or a report
    plain = not words or words[0] in UNCONFIGURED or bool({"-h", "--help"} & set(words))
    configuration = Configuration() if plain else read_configuration(Path.cwd(), tables)
    if configuration.common.get("debug"):
        os.environ.setdefault("GAPSCOPE_DEBUG", "1")
    command = typer.main.get_command(app(configuration, words[0] if words else ""))
    try:
        code: Any = command.main(
            args=list(words),
            prog_name="gapscope",
            standalone_mode=False,
            default_map={} if plain else _defaults(configuration),
        )
    except Exception as error:
        if type(error).__name__ == "Abort":
            raise KeyboardInterrupt from error
        # Typer carries its own click, whose usage errors know how to show themselves
        if not hasattr(error, "format_message") or not hasattr(error, "show"):
            raise
        if not words:
            error.show()  # the help
            return 2
        from gapscope.report.terminal import error_lines

        context = getattr(error, "ctx", None)
        asked = context.command_path if context else "gapscope"
        said = error.format_message().rstrip(".")
        stop = "" if said.endswith("?") else "."
        print("\n".join(error_lines(f"error: {said}{stop} See `{asked} --help`.")), file=sys.stderr)
        return 2
    if code == INTERRUPTED:  # Typer turns a KeyboardInterrupt into this, older ones into Abort
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _defaults(configuration: Configuration) -> dict[str, Any]:
    """Return what the configuration files say, by command and option."""
    from gapscope.measure.analyzers import names

    common, own = dict(configuration.common), configuration.commands
    analyzers = {name: {**common, **configuration.measure.get(name, {})} for name in names()}
    shared = {key: value for key, value in common.items() if key in SHARED}
    verbs = {
        "sharpness": common,
        "analyze": {**common, **own.get("analyze", {})},
        # the report that all commands write to is no place for a comparison
        "compare": {**{k: v for k, v in common.items() if k != "output"}, **own.get("compare", {})},
        "gate": {**common, **own.get("gate", {})},
        "track": {**common, **own.get("track", {})},
        "train": {**shared, **own.get("train", {})},
        "study": own.get("study", {}),
    }
    return {**analyzers, **verbs}
