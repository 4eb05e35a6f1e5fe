"""What the callbacks of all frameworks share: measure every k steps, write a report, return its numbers."""

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import gapscope
from gapscope.errors import GapscopeError, ProblemError, UsageError
from gapscope.measure.loading import (
    Data,
    Loss,
    Trust,
    as_classes,
    build_loss,
    check_fit,
    data_of,
    infer_loss,
    same_classes,
)
from gapscope.measure.loading.sources import completed, taken_out
from gapscope.measure.loading.trust import one_line
from gapscope.measure.problem import Origin, Problem
from gapscope.measure.surroundings import apart
from gapscope.report.terminal import harmless


class Recorder:
    """Measures a model at some steps of its training, and leaves model, gradients and random numbers as they were.

    `data`, `test_data`: what `gapscope.problem` takes, read once, so that all steps see the same samples.  `analyzers`:
    by default the top eigenvalues and the losses.  `loss`: a name, by default from the targets.  Every measured step
    writes `folder/step-000100.report.h5`.
    """

    def __init__(
        self,
        data: Any,
        *,
        test_data: Any = None,
        every: int = 100,
        analyzers: Sequence[Any] | None = None,
        folder: str | PathLike[str] = "gapscope",
        loss: str | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"`every` is {every}. Expected 1 step or more. Give for example `every=100`.")
        self.every = every
        self.folder = Path(folder)
        self._sources = {"train": data} if test_data is None else {"test": test_data, "train": data}
        self._analyzers = [gapscope.Eigenvalues(), gapscope.Gap()] if analyzers is None else list(analyzers)
        self._named = loss
        self._data: dict[str, Data] = {}  # the measured one last: it knows the other
        self._loss: Loss | None = None
        self._last = 0

    def due(self, step: int) -> bool:
        """Return whether this step is to be measured; the same step is not twice."""
        return step % self.every == 0 and step != self._last

    def measure(self, model: nn.Module, step: int) -> dict[str, float]:
        """Write the report of this step, and return its single numbers as `gapscope/ANALYZER/QUANTITY`.

        What cannot be measured (for want of memory, say) is a warning: a training run is worth more than its reports.
        """
        if step == self._last:
            return {}
        self._last = step
        try:
            _refuse_spread(model)
            with apart():
                report = gapscope.measure(self._problem(taken_out(model)[0], step), self._analyzers)
            self.folder.mkdir(parents=True, exist_ok=True)
            gapscope.write(report, self.folder / f"step-{step:06d}.report.h5")
        except Exception as error:  # a model's forward can raise anything
            said = str(error) if isinstance(error, GapscopeError) else one_line(error)
            warnings.warn(harmless(f"gapscope: step {step} was not measured. {said}"), stacklevel=2)
            return {}
        return {
            f"gapscope/{name}/{quantity}": float(found.value)
            for name, record in report.results.items()
            for quantity, found in record.quantities.items()
            if not found.dims and np.isfinite(found.value)
        }

    def _problem(self, model: nn.Module, step: int) -> Problem:
        if self._loss is None:
            self._data = {split: data_of(data, f"the callback's {split} data") for split, data in self._sources.items()}
            if "test" in self._data:
                same_classes(self._data["train"], self._data["test"])
            self._data = {split: completed(model, data) for split, data in self._data.items()}
            train = self._data["train"]
            named = self._named and build_loss(self._named, recorded=False, trust=Trust())
            self._loss = named or infer_loss(train.targets, model, train.inputs)
            if self._loss.ignored is not None:
                self._data = {split: as_classes(data, model) for split, data in self._data.items()}
            for data in self._data.values():
                check_fit(model, type(model).__name__, data, self._loss)
        made: Problem | None = None
        for split, data in self._data.items():
            origin = Origin(
                split=split, identity={"checkpoint": f"step-{step:06d}"}, training={"step": step}, other=made
            )
            made = Problem(model=model, data=data, loss_function=self._loss, origin=origin)
        assert made is not None
        return made


def _refuse_spread(model: nn.Module) -> None:
    """Raise ProblemError where no process holds the whole model: running it alone would wait for the others for ever.

    Told by names, so that nothing of FSDP or DeepSpeed is imported.
    """
    kinds = {kind.__name__ for part in (*model.modules(), *model.parameters()) for kind in type(part).__mro__}
    marked = any(hasattr(p, name) for p in model.parameters() for name in ("ds_id", "_fsdp_flattened"))
    if marked or kinds & {"FullyShardedDataParallel", "FSDPModule", "DTensor"}:
        raise ProblemError(
            "The model is spread over the processes (FSDP, DeepSpeed ZeRO-3), and one alone cannot run it. Expected "
            "the whole model in every process, as under DDP. Measure its saved checkpoints: `gapscope track RUN_DIR`."
        )
