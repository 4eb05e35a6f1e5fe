"""The options that all measuring commands share, and the configuration files that set them.

Command line > environment (GAPSCOPE_...) > gapscope.toml > [tool.gapscope] of pyproject.toml > what the checkpoint
recorded.  Files are read from the current folder and hold exactly the command line's names.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from gapscope.cli import fields
from gapscope.cli.stderr import tell
from gapscope.errors import UsageError, did_you_mean

BUDGET = ("time_budget",)  # of commands that measure one thing
TRUST = ("setup", "trusted", "trust_embedded", "allow_global", "trust_file")  # what may run code
NAMING = ("model", "data", "test_data", "loss")  # what may name it
PLANNING = (*BUDGET, "dry_run")  # of those that give no verdict on it


@dataclass(frozen=True)
class Common:
    """What every measuring command takes."""

    model: Annotated[str | None, "built-in name, pkg.mod:attr or file.py:attr", "-m"] = None
    model_arg: Annotated[tuple[str, ...], "KEY=VALUE for the model, repeatable; values are TOML", "-a"] = ()
    data: Annotated[str | None, "digits, teacher:samples=1000, a data file or pkg.mod:factory", "-d"] = None
    test_data: Annotated[str | None, "the same for the test split"] = None
    loss: Annotated[str | None, "cross-entropy, mse or pkg.mod:attr (default: from the targets)"] = None
    setup: Annotated[str | None, "pkg.mod:attr or file.py:attr: a function of the path that returns a Problem"] = None
    weights: Annotated[str | None, "raw, ema, or the key of the weights in the file (default: raw)"] = None
    parameters: Annotated[tuple[str, ...], "glob of the parameters that make up theta, repeatable (default: all)"] = ()
    x_key: Annotated[str | None, "name of the inputs in the data; several with commas"] = None
    y_key: Annotated[str | None, "name of the targets in the data"] = None
    reshape: Annotated[str | None, "shape of one input sample, like 3,32,32"] = None
    normalize: Annotated[str | None, "scale, mnist, cifar10, cifar100, imagenet, or MEAN,.../STD,... by channel"] = None
    split: Annotated[Literal["train", "test"], "which data to measure sharpness on"] = "train"
    limit: Annotated[int | None, "measure a random subset of this many samples"] = None
    data_seed: Annotated[int, "seed of that subset"] = 0
    batchnorm: Annotated[Literal["eval", "batch", "re-estimated"], "statistics that BatchNorm uses"] = "eval"
    device: Annotated[str, "auto, cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[Literal["float32", "float64"], "precision of the measurement"] = "float32"
    threads: Annotated[int | None, "CPU threads (default: 1 for small networks and data, else torch's own)"] = None
    seed: Annotated[int, "seed of the estimators"] = 0
    hvp: Annotated[
        Literal["auto", "exact", "differences"], "Hessian products by autograd, or by differences of the gradient"
    ] = "auto"
    batch_size: Annotated[str, "samples per micro-batch, or auto; changes speed, not results"] = "auto"
    memory_budget: Annotated[str, "bytes for kept graphs and the Krylov basis, half each, like 500MB"] = "4GB"
    shard_parameters: Annotated[
        bool, "spread parameters and Krylov vectors over torchrun's ranks; products by differences"
    ] = False
    trusted: Annotated[tuple[str, ...], "pattern of names that a checkpoint may ask to import, repeatable"] = ()
    trust_embedded: Annotated[bool, "import whatever names the checkpoint recorded"] = False
    allow_global: Annotated[tuple[str, ...], "allow this class inside the checkpoint's pickle, repeatable"] = ()
    trust_file: Annotated[bool, "run what the file itself runs: a full pickle, TorchScript, .pt2"] = False
    output: Annotated[Path | None, "report to write (default: NAME.report.h5 in the current folder)", "-o"] = None
    time_budget: Annotated[str | None, "time to spend, like 90s, 10min or 2h; what does not fit is skipped"] = None
    dry_run: Annotated[bool, "load, check, time one product, print the plan, and measure and write nothing"] = False
    resume: Annotated[bool, "go on from NAME.report.h5.state, which long work that was interrupted leaves"] = False
    json: Annotated[bool, "print JSON, and nothing else, on stdout"] = False
    quiet: Annotated[bool, "no progress", "-q"] = False
    verbose: Annotated[bool, "show every quantity; long arrays in part", "-v"] = False
    debug: Annotated[bool, "show the traceback of an error"] = False


@dataclass(frozen=True)
class Configuration:
    """What the files say: values of common options, of each analyzer's, of single commands, and the gate's limits."""

    common: Mapping[str, Any] = field(default_factory=dict)
    measure: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by selector
    trusted: Mapping[tuple[str, str], Sequence[str]] = field(default_factory=dict)  # by table and file, may run code

    def tell_trust(self, table: str = "", *, quiet: bool) -> None:
        """Say which keys of the files may run code: the folder may be anybody's."""
        for (of, source), keys in () if quiet else self.trusted.items():
            if of in ("", table):
                tell(f"trusted as if typed: {', '.join(keys)} of {of and f'[{of}] in '}{source}")


def read_configuration(folder: Path, tables: Callable[[], Mapping[str, type[Any]]] = dict) -> Configuration:
    """Merge gapscope.toml over [tool.gapscope] of pyproject.toml; raises UsageError for what they cannot say.

    `tables` returns the options of commands that have a table of their own, such as [train]; asked if a file is there.
    """
    tool, nearer = _table(folder / "pyproject.toml").get("tool", {}), _table(folder / "gapscope.toml")
    project = tool.get("gapscope", {}) if isinstance(tool, dict) else {}
    commands = tables() if project or nearer else {}
    common: dict[str, Any] = {}
    measure: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, Any]] = {}
    thresholds: dict[str, dict[str, Any]] = {}
    trusted: dict[tuple[str, str], list[str]] = {}
    for source, table in (
        ("[tool.gapscope] of pyproject.toml", project),
        ("gapscope.toml", nearer),
    ):
        plain = dict(_as_table(table, "[tool.gapscope]", source))
        for name, settings in _as_table(plain.pop("measure", {}), "[measure.NAME]", source).items():
            cls = _analyzer(name, source)
            checked = _checked(_as_table(settings, f"[measure.{name}]", source), cls, f"[measure.{name}] in {source}")
            measure[name] = measure.get(name, {}) | checked
        for selector, limits in _thresholds(plain, source).items():
            thresholds[selector] = {**thresholds.get(selector, {}), **limits}
        for name, cls in commands.items():
            checked = _checked(_as_table(plain.pop(name, {}), f"[{name}]", source), cls, f"[{name}] in {source}")
            own[name] = own.get(name, {}) | checked
            if keys := _that_may_run(checked):
                trusted[name, source] = keys
        checked = _checked(plain, Common, source, tables=["measure", *commands])
        if "model_arg" in checked:  # arguments go by key: a later source adds to them
            checked["model_arg"] = [*common.get("model_arg", []), *checked["model_arg"]]
        if keys := _that_may_run(checked):
            trusted["", source] = keys
        common |= checked
    return Configuration(common, measure, own, thresholds, trusted)


def _that_may_run(checked: Mapping[str, Any]) -> list[str]:
    """Return the keys that give trust, or may name code, as pkg.mod:attr does and `digits:size=32` does not."""

    def may(key: str, value: Any) -> bool:
        names = (key in NAMING and ":" in value and "=" not in value) or (key == "plan" and value.endswith(".toml"))
        return bool(value) and (key in TRUST or names)

    return [key.replace("_", "-") for key, value in checked.items() if may(key, value)]


def _thresholds(plain: dict[str, Any], source: str) -> Mapping[str, Mapping[str, Any]]:
    """Take [gate.thresholds] out of the tables of a file; raises UsageError for limits that make no sense."""
    if "gate" not in plain:
        return {}
    from gapscope.report.thresholds import threshold

    plain["gate"] = dict(_as_table(plain["gate"], "[gate]", source))
    found = _as_table(plain["gate"].pop("thresholds", {}), "[gate.thresholds]", source)
    for selector, limits in found.items():
        threshold(selector, limits, f"[gate.thresholds] of {source}")
    return found


def _as_table(found: Any, name: str, source: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise UsageError(f"{source} has {_shown(found)} where a table is due. Expected {name}.")
    return found


def _analyzer(name: str, source: str) -> type[Any]:
    from gapscope.measure.analyzers import analyzer_class, names

    if name not in names():
        known = ", ".join(f"[measure.{one}]" for one in names())
        raise UsageError(
            f"{source} has a table [measure.{name}]. Expected one of {known}.{did_you_mean(name, names())}"
        )
    return analyzer_class(name)


def _checked(table: Mapping[str, Any], cls: type[Any], source: str, tables: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values by field name, as texts that the command line's own parser reads."""
    known = {one.name.replace("_", "-"): one.name for one in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            near = _belongs(key) or did_you_mean(key, [*known, *tables])
            raise UsageError(f"{source} has an unknown key `{key}`.{near} Expected one of {', '.join(known)}.")
        if key == "model-arg" and isinstance(value, dict):  # model-arg = { hidden = [32] }
            value = [f"{name}={_toml(entry, source)}" for name, entry in value.items()]
        expected = fields.misfit(cls, known[key], value)
        if expected:
            raise UsageError(f"{source} has `{key} = {_shown(value)}`. Expected {expected}.")
        texts = [str(entry) for entry in value] if isinstance(value, list) else str(value)
        values[known[key]] = value if isinstance(value, bool) else texts
    return values


def _belongs(key: str) -> str:
    from gapscope.measure.analyzers import analyzer_class, names

    field_name = key.replace("-", "_")
    found = [name for name in names() if field_name in (f.name for f in dataclasses.fields(analyzer_class(name)))]
    tables = " or ".join(f"[measure.{name}]" for name in found)
    return f" It belongs to {tables}." if found else ""


def _toml(value: Any, source: str) -> str:
    """Write a value as TOML again: JSON is, for texts, numbers, truth values and lists of them."""
    plain = (str, int, float, bool)
    if isinstance(value, plain) or (isinstance(value, list) and all(isinstance(entry, plain) for entry in value)):
        return json.dumps(value, ensure_ascii=False)
    raise UsageError(
        f"{source} has `{_shown(value)}` for the model. Expected a number, a text, true, false or a list of them."
    )


def _shown(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # of whole numbers, tomllib raises Python's own errors
        raise UsageError(f"{path.name} cannot be read: {error}. Expected TOML. Mend or move it.") from error


def parse_bytes(text: str) -> int:
    """Read `500MB`, `4GB`, `2GiB` or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kMGT]?)(i?)B?\s*", text, re.ASCII)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix or " "))
    if size < 1:
        raise UsageError(f"The memory budget is `{text}`. Expected bytes, like 500MB or 4GB. Mend `--memory-budget`.")
    return size


def parse_seconds(text: str, name: str = "time budget") -> float:
    """Read `90s`, `10min`, `1.5h` or a plain number of seconds; `name` is the option's, in words."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*(s|m|min|h)?\s*", text, re.ASCII)
    seconds = float(match.group(1)) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match.group(2) or "s"] if match else 0.0
    if seconds <= 0:
        option = f"--{name.replace(' ', '-')}"
        raise UsageError(f"The {name} is `{text}`. Expected a time, like 90s, 10min or 2h. Mend `{option}`.")
    return seconds


def parse_batch_size(text: str) -> int | None:
    """Read `auto` (None) or a positive number."""
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < 1:
        raise UsageError(f"The batch size is `{text}`. Expected a positive number or auto. Mend `--batch-size`.")
    return int(text)
