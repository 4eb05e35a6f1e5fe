"""Where a study trains and measures: in one folder, in several processes, and nothing twice.

A run's file name has a digest of what it is made from, and its reports one of how they were measured: the same plan
finds both again, after an interrupt too, and a changed plan does not mistake them for its own.  What is found is taken
only where it is whole and of these data and weights.
"""

import contextlib
import datetime
import functools
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gapscope
from gapscope.errors import LoadError, ReportError, UsageError
from gapscope.measure.context import Analyzer
from gapscope.measure.interface import measure_together
from gapscope.measure.loading import Request
from gapscope.measure.session import Execution, Session, device_named, open_session, skipped
from gapscope.report.atomic import replace
from gapscope.report.file import read, write
from gapscope.report.records import Comparison, Facts, Report, Subject
from gapscope.results import Array
from gapscope.training.studies.processes import Processes, one_thread
from gapscope.training.studies.runs import Run as Run
from gapscope.training.studies.runs import Spec as Spec
from gapscope.training.studies.runs import digest, fitted, loaded, make, short, training_data


@dataclass(eq=False)
class Lab:
    """A folder to work in, and how: `jobs` processes of one thread each, or one process on a GPU."""

    folder: Path
    jobs: int = 1
    device: str = "auto"
    tell: Callable[[str], None] = lambda _: None

    def samples(self, data: str) -> int:
        """Return how many training samples there are."""
        return len(training_data(data))

    def conditions(self, data: str) -> Facts:
        """Return on which data a study was, as its report has them."""
        found = training_data(data)
        return {"data": data, "samples": len(found), "data_fingerprint": found.fingerprint}

    def environment(self) -> Facts:
        """Return by what and when a study was made."""
        return {
            "gapscope": gapscope.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": str(device_named(self.device)),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def train(self, specs: Sequence[Spec], what: str = "runs") -> list[Run]:
        """Return the runs in the order asked for; the same run twice is made once.

        Raises: LoadError where model and data do not fit; a run that diverges is returned as such.
        """
        device, whole = device_named(self.device), [fitted(spec) for spec in specs]
        stems = [spec.stem for spec in whole]
        works = {
            stem: functools.partial(make, spec, stem, self.folder, device)
            for stem, spec in zip(stems, whole, strict=True)
        }
        made = dict(zip(works, self._all([*works.values()], f"train {what}"), strict=True))
        return [made[stem] for stem in stems]

    def measure(
        self, runs: Sequence[Run], analyzers: Sequence[Analyzer], what: str = "", *, split: str = "train"
    ) -> list[Report]:
        """Return one report per run, of these analyzers in this order.

        Raises: LoadError for a run that diverged.
        """
        return self.measure_files(files_of(runs), analyzers, what, split=split)

    def measure_files(
        self,
        files: Sequence[tuple[Spec, Path]],
        analyzers: Sequence[Analyzer],
        what: str = "",
        *,
        split: str = "train",
    ) -> list[Report]:
        """Return one report per checkpoint, which a run of that spec has saved; the same twice is measured once."""
        unique = list(dict.fromkeys((_named(spec), path) for spec, path in files))
        specs = {_named(spec): spec for spec, _ in files}
        works = [
            functools.partial(_report, specs[name], path, tuple(analyzers), split, self.device) for name, path in unique
        ]
        made = dict(zip(unique, self._all(works, f"measure {what or _names(analyzers)}"), strict=True))
        return [made[_named(spec), path] for spec, path in files]

    def together(self, runs: Sequence[Run], analyzers: Sequence[Analyzer]) -> Comparison:
        """Return what analyzers of several subjects say of these runs, in this order.

        Raises: LoadError for a run that diverged.
        """
        work = functools.partial(_comparison, files_of(runs), self.folder, tuple(analyzers), self.device)
        made: Comparison = self._all([work], f"measure {_names(analyzers)} of {len(runs)} runs together")[0]
        return made

    def compute(self, works: Sequence[functools.partial[Array]], what: str) -> list[Array]:
        """Return what functions of plain arguments return; of one function and arguments it is computed once."""
        return self._all([functools.partial(_computed, work, self.folder) for work in works], what)

    def _all(self, works: Sequence[Callable[[], Any]], what: str) -> list[Any]:
        """Do the works, in processes where there are several, and say how far they are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started, results = time.monotonic(), dict[int, Any]()
        total = len(works)
        self.tell(f"{what}: 0 of {total}, time left unknown")
        several = self.jobs > 1 and total > 1
        alone = device_named(self.device).type == "cpu" and not several
        with one_thread() if alone else contextlib.nullcontext():
            for position, result in self._processes.each(works) if several else _one_by_one(works):
                results[position] = result
                taken, done = time.monotonic() - started, len(results)
                left = f", about {taken / done * (total - done):.0f} s left" if done < total else ""
                self.tell(f"{what}: {done} of {total}, {taken:.0f} s{left}")
        return [results[position] for position in range(total)]

    @functools.cached_property
    def _processes(self) -> Processes:
        return Processes(self.jobs)

    def __enter__(self) -> "Lab":
        loaded.cache_clear()  # files may have changed since another lab
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._processes.finish()
        else:
            self._processes.end()


def jobs(asked: int | None, device: str) -> int:
    """Return how many processes to work in: as asked, else one per core, or one where a GPU does the work.

    Raises: UsageError for less than one, and for a device that is not there.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"There are {asked} processes. Expected 1 or more. Mend `--jobs`.")
    on_cpu = device_named(device).type == "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or (cores if on_cpu else 1)


def files_of(runs: Sequence[Run]) -> list[tuple[Spec, Path]]:
    for run in runs:
        if run.diverged:
            raise LoadError(
                f"{run.path.name} was not made: {run.stopped}. Expected weights to measure. Leave the run out, or "
                "lower its rate in the plan."
            )
    return [(run.spec, run.path) for run in runs]


def _one_by_one(works: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
    return enumerate(work() for work in works)


def _names(analyzers: Sequence[Analyzer]) -> str:
    return ", ".join(analyzer.name for analyzer in analyzers)


# In the processes


def _report(spec: Spec, path: Path, analyzers: Sequence[Analyzer], split: str, device: str) -> Report:
    """Measure, or read the report that is there."""
    asked = short([[_settings(analyzer) for analyzer in analyzers], split, _named(spec)])
    place = path.with_name(f"{path.stem}-{asked}.report.h5")
    old = _found(place)
    if isinstance(old, Report) and old.identity.get("sha256") == digest(path) and _of_these_data(old, spec):
        return old
    report = _session(spec, path, split, device).measure(analyzers)
    write(report, place)
    return report


def _comparison(
    files: Sequence[tuple[Spec, Path]], folder: Path, analyzers: Sequence[Analyzer], device: str
) -> Comparison:
    """Measure together, or read the comparison that is there."""
    asked = [[_settings(analyzer) for analyzer in analyzers], [(_named(spec), path.name) for spec, path in files]]
    place = folder / f"together-{short(asked)}.comparison.h5"
    old, digests = _found(place), sorted(digest(path) for _, path in files)
    if (
        isinstance(old, Comparison)
        and sorted(str(subject.identity.get("sha256")) for subject in old.subjects) == digests
        and all(_of_these_data(subject, files[0][0]) for subject in old.subjects)
    ):
        return old
    sessions = [_session(spec, path, "train", device) for spec, path in files]
    made = measure_together(sessions, analyzers, labels=[f"run {i}" for i in range(1, len(files) + 1)])
    write(made, place)
    return made


def _computed(work: functools.partial[Array], folder: Path) -> Array:
    """Compute, or read the numbers that are there."""
    asked = [gapscope.__version__, work.func.__module__, work.func.__qualname__, work.args, work.keywords]
    place = folder / f"computed-{short(asked)}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # there are none, or they are damaged
        old: Array = np.load(place, allow_pickle=False)
        return old
    made, content = work(), io.BytesIO()
    np.save(content, made)
    replace(place, content.getvalue())
    return made


def _found(path: Path) -> Report | Comparison | None:
    try:
        return read(path) if path.is_file() else None
    except ReportError:  # damaged: to be made anew
        return None


def _of_these_data(old: Report | Subject, spec: Spec) -> bool:
    test = loaded(spec.data, "test")
    known = {
        "data_fingerprint": training_data(spec.data).fingerprint,
        "test_data_fingerprint": test and test.fingerprint,
    }
    return all(old.conditions.get(key) == value for key, value in known.items())


def _session(spec: Spec, path: Path, split: str, device: str) -> Session:
    request = Request(
        checkpoint=path, model=spec.model, model_args=dict(spec.model_args), data=spec.data, loss=spec.loss
    )
    return open_session(request, Execution(split=split, device=device))


def _settings(analyzer: Analyzer) -> dict[str, Any]:
    expected = skipped(analyzer, 0, "")
    return {"name": analyzer.name, "version": expected.version, **expected.settings}


def _named(spec: Spec) -> str:
    """Return what a measurement takes of a spec."""
    return json.dumps([spec.model, dict(spec.model_args), spec.data, spec.loss], sort_keys=True, default=str)
