"""The options that all measuring commands share, and the configuration files that set them.

Command line > environment (GAPSCOPE_...) > gapscope.toml > [tool.gapscope] of pyproject.toml > what the checkpoint
recorded.  Files are read from the current folder and hold exactly the command line's names.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from gapscope.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Common:
    """What every measuring command takes."""

    model: Annotated[str | None, "built-in name, pkg.mod:attr or file.py:attr", "-m"] = None
    model_arg: Annotated[tuple[str, ...], "KEY=VALUE for the model, repeatable; values are TOML", "-a"] = ()
    data: Annotated[str | None, "digits, digits:size=32, a .npz/.pt/.safetensors file, or pkg.mod:factory", "-d"] = None
    test_data: Annotated[str | None, "the same for the test split"] = None
    loss: Annotated[str | None, "cross-entropy, mse or pkg.mod:attr (default: from the targets)"] = None
    split: Annotated[Literal["train", "test"], "which data to measure sharpness on"] = "train"
    limit: Annotated[int | None, "measure a random subset of this many samples"] = None
    data_seed: Annotated[int, "seed of that subset"] = 0
    batchnorm: Annotated[Literal["eval", "batch", "re-estimated"], "statistics that BatchNorm uses"] = "eval"
    device: Annotated[str, "auto, cpu, cuda, cuda:1 or mps"] = "auto"
    dtype: Annotated[Literal["float32", "float64"], "precision of the measurement"] = "float32"
    threads: Annotated[int | None, "CPU threads"] = None
    seed: Annotated[int, "seed of the estimators"] = 0
    batch_size: Annotated[str, "samples per micro-batch, or auto; changes speed, not results"] = "auto"
    memory_budget: Annotated[str, "bytes for kept graphs and the Krylov basis, like 500MB"] = "4GB"
    trusted: Annotated[tuple[str, ...], "pattern of names that a checkpoint may ask to import, repeatable"] = ()
    trust_embedded: Annotated[bool, "import whatever names the checkpoint recorded"] = False
    allow_global: Annotated[tuple[str, ...], "allow this class inside the checkpoint's pickle, repeatable"] = ()
    output: Annotated[Path | None, "report to write (default: NAME.report.h5 in the current folder)", "-o"] = None
    json: Annotated[bool, "print JSON, and nothing else, on stdout"] = False
    quiet: Annotated[bool, "no progress", "-q"] = False
    verbose: Annotated[bool, "show every quantity", "-v"] = False
    debug: Annotated[bool, "show the traceback of an error"] = False


@dataclass(frozen=True)
class Configuration:
    """What the files say: values of common options, and of each analyzer's."""

    common: Mapping[str, Any]
    measure: Mapping[str, Mapping[str, Any]]


def read_configuration(folder: Path) -> Configuration:
    """Merge gapscope.toml over [tool.gapscope] of pyproject.toml; raises UsageError for what they cannot say."""
    project = _table(folder / "pyproject.toml").get("tool", {}).get("gapscope", {})
    own = _table(folder / "gapscope.toml")
    common: dict[str, Any] = {}
    measure: dict[str, dict[str, Any]] = {}
    for source, table in (("[tool.gapscope] of pyproject.toml", project), ("gapscope.toml", own)):
        tables = table.get("measure", {})
        plain = {key: value for key, value in table.items() if key != "measure"}
        common |= _checked(plain, Common, source)
        if not isinstance(tables, dict) or not all(isinstance(value, dict) for value in tables.values()):
            raise UsageError(f"{source} has a `measure` that is no table of tables. Expected [measure.NAME].")
        for name, settings in tables.items():
            from gapscope.measure.analyzers import analyzer_class

            checked = _checked(settings, analyzer_class(name), f"[measure.{name}] in {source}")
            measure[name] = measure.get(name, {}) | checked
    return Configuration(common, measure)


def _checked(table: Mapping[str, Any], cls: type[Any], source: str) -> dict[str, Any]:
    known = {field.name.replace("_", "-"): field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in table.items():
        if key not in known:
            raise UsageError(f"{source} has an unknown key `{key}`. Expected one of {', '.join(known)}.{did_you_mean(key, known)}")
        default = known[key].default
        if isinstance(value, dict):  # model-arg = { hidden = [32] }
            value = [f"{name}={json.dumps(entry)}" for name, entry in value.items()]
        if isinstance(default, tuple) != isinstance(value, list) or isinstance(default, bool) != isinstance(value, bool):
            expected = "a list" if isinstance(default, tuple) else "true or false" if isinstance(default, bool) else "one value"
            raise UsageError(f"{source} has `{key} = {json.dumps(value, default=str)}`. Expected {expected}.")
        values[known[key].name] = value if isinstance(value, list | bool) else str(value)
    return values


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}. Expected TOML. Mend or move it.") from error


def parse_bytes(text: str) -> int:
    """Read `500MB`, `4GB`, `2GiB` or a plain number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?\s*", text)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kMGT".index(prefix or " "))
    if size < 1:
        raise UsageError(f"The memory budget is `{text}`. Expected bytes, like 500MB or 4GB. Mend `--memory-budget`.")
    return size


def parse_batch_size(text: str) -> int | None:
    """Read `auto` (None) or a positive number."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"The batch size is `{text}`. Expected a positive number or auto. Mend `--batch-size`.")
    return int(text)
