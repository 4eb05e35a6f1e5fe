"""The checkpoints of one training run: which there are, that they are of one run, and in which order."""

import contextlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gapscope.cli.measuring import stem_of
from gapscope.cli.news import News, listed
from gapscope.cli.settings import Common
from gapscope.errors import GapscopeError, LoadError, UsageError
from gapscope.report.groups import KEYS

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")  # of the files that a folder of checkpoints is searched for
OURS = (".training.h5", ".report.h5")  # what gapscope itself writes beside checkpoints
NAMED, GIVEN = "number in the name", "order given"
FIXED = ("optimizer", "batch_size", "seed")  # what a run keeps from its first step to its last
RATES = ("lr", "learning_rate")


@dataclass(frozen=True)
class Found:
    """A checkpoint of the run, where it is in it, the name of its report, and the checksum it had."""

    path: Path
    place: str
    report: str
    digest: str = ""  # of what was looked at; of `--setup`'s there is none


def arranged(subjects: Sequence[Path], common: Common, news: News) -> tuple[str, list[Found]]:
    """Return what orders the checkpoints, and them in that order; copies and what cannot be read are left out.

    Raises: LoadError where there is nothing to read; UsageError where a folder holds several runs, or has no order.
    """
    searched = len(subjects) == 1 and subjects[0].is_dir()
    trainings: dict[Path, Mapping[str, Any]] = {}
    seen: dict[str, Path] = {}
    paths = _inside(subjects[0], news) if searched else list(dict.fromkeys(subjects))
    for number, path in enumerate(paths):
        news.tell_slowly(f"{number:,} of {len(paths):,} checkpoints have been read")
        try:
            digest, training = _look(path, common)
        except GapscopeError as error:
            news.failed(path, error)
            continue
        if digest in seen:
            news.tell(f"left out: {path} is a copy of {seen[digest]}")
            continue
        seen[digest], trainings[path] = path, training
    if not trainings:
        raise LoadError(f"{subjects[0]}: none of its checkpoints can be read. Expected one or more. Mend the path.")
    if searched:
        _refuse_several(subjects[0], trainings)
    axis, places = _places(trainings)
    if axis == GIVEN and searched and len(trainings) > 1:
        raise UsageError(
            f"Nothing orders the checkpoints of {subjects[0]}: they record neither steps nor epochs, and not every "
            "name has a number of its own. Expected one of these. Give the files in order: `gapscope track A B C`."
        )
    order = sorted(trainings, key=lambda path: places[path]) if places else list(trainings)
    names = _names(order)
    shown = {path: str(places[path]) if places else name for path, name in zip(order, names, strict=True)}
    digests = {} if common.setup is not None else {path: digest for digest, path in seen.items()}
    pairs = zip(order, names, strict=True)
    return axis, [Found(p, shown[p], f"{name}.report.h5", digests.get(p, "")) for p, name in pairs]


def _inside(folder: Path, news: News) -> list[Path]:
    """Return the checkpoints of a run's folder: files by their suffix, and folders that hold one."""
    from gapscope.measure.loading.checkpoints.formats import sniff

    def holds(path: Path) -> bool:
        if path.is_file():
            return path.suffix in SUFFIXES
        with contextlib.suppress(LoadError):
            return not sniff(path).instead
        return False

    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    kept = dict.fromkeys(path for path in inside if holds(path))
    if not kept:
        raise LoadError(
            f"{folder} holds no checkpoints ({len(inside)} other entries). Expected files that end in "
            f"{', '.join(SUFFIXES)}, or folders of checkpoints. Name the files: `gapscope track A B C`."
        )
    if others := [path.name for path in inside if path not in kept and not path.name.endswith(OURS)]:
        news.tell(f"left out: {listed(others)}")
    return list(kept)


def _look(path: Path, common: Common) -> tuple[str, Mapping[str, Any]]:
    """Return the digest of a checkpoint and what it records of its training; of `--setup`'s, only the name."""
    from gapscope.measure.loading import Trust, read_checkpoint

    if common.setup is not None:
        return str(path.resolve()), {}
    trust = Trust(common.trusted, common.trust_embedded, common.allow_global, common.trust_file)
    found = read_checkpoint(path, trust, values=False)
    return found.sha256, found.training


def _places(trainings: Mapping[Path, Mapping[str, Any]]) -> tuple[str, dict[Path, Any]]:
    """Return what all checkpoints have and not all share, best first, and its value for each."""
    ways = {
        axis: {
            path: next((one[key] for key in keys if one.get(key) is not None), None) for path, one in trainings.items()
        }
        for axis, keys in KEYS.items()
    }
    ways[NAMED] = {
        path: int(found[-1]) if (found := re.findall("[0-9]+", stem_of(path))) else None for path in trainings
    }
    for axis, places in ways.items():
        values = list(places.values())
        usable = all(isinstance(value, int | float) for value in values)
        if usable and (len(set(values)) > 1 or len(values) == 1):
            return axis, places
    return GIVEN, {}


def _names(paths: Sequence[Path]) -> list[str]:
    """Return names for the reports: stems, with their folders where those repeat, or else numbered."""
    ways = [[stem_of(p) for p in paths], [f"{p.resolve().parent.name}-{stem_of(p)}" for p in paths]]
    numbered = [f"{number}-{stem_of(path)}" for number, path in enumerate(paths, start=1)]
    return next((names for names in ways if len(set(names)) == len(names)), numbered)


# One run


def _refuse_several(folder: Path, trainings: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raise UsageError where the records tell that a folder holds several runs."""
    runs: dict[tuple[tuple[str, str], ...], list[Path]] = {}
    keys = _apart(list(trainings.values()))
    for path, training in trainings.items():
        if mark := tuple((key, str(training[key])) for key in keys if training.get(key) is not None):
            runs.setdefault(mark, []).append(path)
    if len(runs) < 2:
        return
    said = listed([f"{' '.join(map(' '.join, mark))} ({len(paths)})" for mark, paths in runs.items()])
    first = _command(folder, [path.name for path in next(iter(runs.values()))], [path.name for path in trainings])
    raise UsageError(
        f"{folder} holds the checkpoints of {len(runs)} runs: {said}. Expected one run. "
        f"Name its checkpoints: `{first}`."
    )


def _apart(trainings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the recorded keys that tell runs apart; a rate does so at one place alone, for it may have a schedule."""

    def differ(key: str, among: Sequence[Mapping[str, Any]]) -> bool:
        return len({str(one[key]) for one in among if one.get(key) is not None}) > 1

    places: dict[str, list[Mapping[str, Any]]] = {}
    for one in trainings:
        known = [one[key] for keys in KEYS.values() for key in keys if one.get(key) is not None]
        if known:
            places.setdefault(str(known[0]), []).append(one)
    fixed = [key for key in FIXED if differ(key, trainings)]
    return fixed + [key for key in RATES if any(differ(key, among) for among in places.values())]


def _command(folder: Path, names: Sequence[str], others: Sequence[str]) -> str:
    """Return the command for one run: by a pattern where that fits no other run's files."""
    endings = {Path(name).suffix for name in names}
    lead, ending = names[0], endings.pop() if len(endings) == 1 else ""
    while not all(name.startswith(lead) for name in names):
        lead = lead[:-1]
    if sum(name.startswith(lead) and name.endswith(ending) for name in others) == len(names) > 1:
        start = shlex.quote(str(folder / lead)) if lead else f"{shlex.quote(str(folder))}/"
        return f"gapscope track {start}*{ending}"
    return f"gapscope track {' '.join(shlex.quote(str(folder / name)) for name in names)}"
