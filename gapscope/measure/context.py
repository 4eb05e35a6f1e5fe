"""What an analyzer may ask for: problems by split, the recorded training, seeded generators, finished results."""

import dataclasses
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gapscope.errors import UsageError
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem
from gapscope.measure.resume import Parts
from gapscope.results import Result, Status


class Analyzer(Protocol):
    """A frozen dataclass whose fields are its options; calling it measures.

    `version` changes when the numbers change their meaning.  `arity` is the largest number of subjects (1: a report's
    result; more: a comparison's).  `incidental` names fields that do not change the numbers (a second opinion, say):
    they are not stored as settings.  An analyzer may also have, for the plan, `passes(problem)`, about how many passes
    over the data it makes, by kind (see `pace`), and `memory(problem) -> int`, the bytes that it holds above the loaded
    model; `least`, the smallest number of subjects where that is not `arity`; `needs`, the analyzers whose results it
    asks for; `second_order = False`, if it asks for no second derivative; and `sharded = True`, if it does with this
    rank's part of every vector (see `sharded`).
    """

    name: ClassVar[str]
    version: ClassVar[str]
    arity: ClassVar[int]
    incidental: ClassVar[tuple[str, ...]]

    def __call__(self, context: "Context") -> Result:
        """Measure."""
        ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One loaded checkpoint: its problems by split, and what its file holds of its training."""

    problems: Mapping[str, Problem]
    training: Mapping[str, Any]
    initial: Mapping[str, Tensor] | None = None
    optimizer: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, problem: Problem) -> "Subject":
        """Return the subject of a problem and its other split."""
        origin = problem.origin
        problems = {origin.split: problem}
        if origin.other is not None:
            problems[origin.other.origin.split] = origin.other
        return cls(problems=problems, training=origin.training, initial=origin.initial, optimizer=origin.optimizer)


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """The subjects of one run and what has been measured of them so far.

    With several subjects, `singles` are the contexts of each: results of one subject are measured and kept there.
    """

    subjects: tuple[Subject, ...]
    split: str = "train"
    seed: int = 0
    analyzers: Mapping[str, Analyzer] = field(default_factory=dict)
    monitor: Monitor = field(default_factory=Monitor)
    parts: Parts = field(default_factory=Parts)
    singles: "tuple[Context, ...]" = ()
    _finished: dict[str, Result] = field(default_factory=dict)

    def problem(self, split: str | None = None, which: int = 0) -> Problem:
        """Return the problem of a split (default: the one that is measured); raises UsageError where there is none."""
        problems = self.subjects[which].problems
        split = split or self.split
        if split not in problems:
            raise UsageError(
                f"There are no {split} data. Expected some. Name them with `--{'test-' * (split == 'test')}data`."
            )
        return problems[split]

    def has(self, split: str, which: int = 0) -> bool:
        """Return whether there are data of this split."""
        return split in self.subjects[which].problems

    def training(self, which: int = 0) -> Mapping[str, Any]:
        """Return the recorded hyper-parameters: batch_size, lr, momentum, weight_decay, optimizer ...

        Under a schedule `lr` is the rate of the last step, which these weights are stable under or not.
        """
        found = self.subjects[which].training
        rate = found.get("last_lr", found.get("lr", found.get("learning_rate")))
        return found if rate is None else {**found, "lr": rate}

    def optimizer(self, which: int = 0) -> Mapping[str, Any] | None:
        """Return the optimizer's state_dict, or None where the checkpoint holds none."""
        return self.subjects[which].optimizer

    def initial(self, which: int = 0) -> Tensor | None:
        """Return theta before training (n,), or None where the checkpoint recorded none that fits."""
        state, problem = self.subjects[which].initial, self.problem(which=which)
        layout = problem.parameters
        if state is None or any(
            name not in state or state[name].shape != shape
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        ):
            return None
        return layout.flatten(state).to(problem.device, problem.dtype)

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator of its own for each purpose, so that no analyzer changes another's numbers."""
        # torch's CPU generator heeds 32 bits of its seed: both must go into them
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{purpose}".encode()))

    def finished(self, name: str, which: int = 0) -> Result | None:
        """Return a result that this run already has, or None."""
        return self.singles[which].finished(name) if self.singles else self._finished.get(name)

    def result(self, name: str, which: int = 0) -> Result:
        """Return an analyzer's result on one subject, measuring it at most once."""
        if self.singles:
            return self.singles[which].result(name)
        return self.run(name)

    @property
    def results(self) -> tuple[Result, ...]:
        """Return what has been measured here so far."""
        return tuple(self._finished.values())

    def run(self, name: str) -> Result:
        """Run an analyzer on these subjects together, at most once."""
        if name not in self._finished:
            started = time.perf_counter()
            try:
                measured = self.analyzers[name](self)
            finally:
                self.monitor.end()
            measured = dataclasses.replace(measured, seconds=time.perf_counter() - started)
            self._finished[name] = self._told(measured) if second_order(self.analyzers[name]) else measured
        return self._finished[name]

    def _told(self, result: Result) -> Result:
        """Return a result with how its second derivatives were taken."""
        if self.singles:  # what was taken of each is told there
            return result
        how = self.problem().derivatives
        notes = (*result.notes, how.note) if how.note else result.notes
        inexact = result.status is Status.EXACT and how.method == "differences"  # they round and bend
        status = Status.CONVERGED if inexact else result.status
        return dataclasses.replace(result, hvp=how.method, notes=notes, status=status)


def second_order(analyzer: Analyzer) -> bool:
    """Return whether an analyzer asks for second derivatives."""
    return getattr(analyzer, "second_order", True)
