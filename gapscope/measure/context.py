"""What an analyzer may ask for: problems by split, the recorded training, seeded generators, finished results."""

import dataclasses
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch

from gapscope.errors import UsageError
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem
from gapscope.results import Result


class Analyzer(Protocol):
    """A frozen dataclass whose fields are its options; calling it measures.

    `version` changes when the numbers change their meaning.  `incidental` names fields that do not change the numbers
    (a second opinion, say): they are not stored as settings.
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
    """One loaded checkpoint: its problems by split, and what its training recorded."""

    problems: Mapping[str, Problem]
    training: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """The subjects of one run and what has been measured of them so far."""

    subjects: tuple[Subject, ...]
    split: str = "train"
    seed: int = 0
    analyzers: Mapping[str, Analyzer] = field(default_factory=dict)
    monitor: Monitor = field(default_factory=Monitor)
    _finished: dict[tuple[str, int], Result] = field(default_factory=dict)

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
        """Return the recorded hyper-parameters: batch_size, lr, momentum, weight_decay, optimizer ..."""
        return self.subjects[which].training

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator of its own for each purpose, so that no analyzer changes another's numbers."""
        # torch's CPU generator heeds 32 bits of its seed: both must go into them
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{purpose}".encode()))

    def finished(self, name: str, which: int = 0) -> Result | None:
        """Return a result that this run already has, or None."""
        return self._finished.get((name, which))

    def result(self, name: str, which: int = 0) -> Result:
        """Return the result of an analyzer of this run, measuring it at most once."""
        if (name, which) not in self._finished:
            started = time.perf_counter()
            try:
                measured = self.analyzers[name](self)
            finally:
                self.monitor.end()
            self._finished[name, which] = dataclasses.replace(measured, seconds=time.perf_counter() - started)
        return self._finished[name, which]
