"""From a request to a finished report: load, check, measure.  What the command line and the Python interface share."""

import dataclasses
import datetime
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gapscope
from gapscope.errors import LoadError, UsageError
from gapscope.measure.checks import check
from gapscope.measure.context import Analyzer, Context, Subject
from gapscope.measure.loading import Loaded, Request, load
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import CHUNK_SEED, DEFAULT_MEMORY_BUDGET, BatchNorm, Problem
from gapscope.report.file import Record, Report
from gapscope.results import CHUNKS

# parameters x samples below which threads only wait for each other: on a busy machine two of them were 30 times slower
SMALL_WORK = 30_000_000


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to measure: none of it changes what is measured, but `split`, `batchnorm` and `dtype` (conditions)."""

    split: str = "train"
    batchnorm: BatchNorm = "eval"
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    batch_size: int | None = None
    memory_budget: int = DEFAULT_MEMORY_BUDGET


@dataclass(frozen=True, eq=False)
class Session:
    """A loaded checkpoint, ready to be measured: what it is and under which conditions is known before any work."""

    loaded: Loaded
    execution: Execution
    problems: Mapping[str, Problem]
    data_seed: int
    monitor: Monitor

    def identity(self) -> dict[str, Any]:
        """Return who is measured; two subjects of a comparison differ here."""
        checkpoint, problem = self.loaded.checkpoint, self.problems[self.execution.split]
        arguments = " ".join(f"{k}={json.dumps(v)}" for k, v in sorted(self.loaded.model_args.items()))
        return {
            "checkpoint": checkpoint.name,
            "sha256": checkpoint.sha256,
            "weights": self.loaded.weights_key,
            "model": self.loaded.model_name,
            "model_args": arguments,
            "parameters": problem.size,
            "data": problem.data.name,
        }

    def training(self) -> dict[str, Any]:
        """Return the scalars that the checkpoint recorded of its training."""
        return {k: v for k, v in self.loaded.checkpoint.training.items() if isinstance(v, str | int | float | bool)}

    def conditions(self) -> dict[str, Any]:
        """Return what must agree before two reports are compared."""
        execution, problem = self.execution, self.problems[self.execution.split]
        found: dict[str, Any] = {
            "split": execution.split,
            "samples": problem.samples,
            "samples_available": problem.data.total,
        }
        names = {"train": "data_fingerprint", "test": "test_data_fingerprint"}
        found |= {names[split]: p.data.fingerprint for split, p in self.problems.items()}
        if problem.samples < problem.data.total:
            found |= {"limit": problem.samples, "limit_seed": self.data_seed}
        found |= {
            "loss": self.loaded.loss.name,
            "batchnorm": execution.batchnorm,
            "dtype": execution.dtype,
            "chunks": f"{CHUNKS} by permutation, seed {CHUNK_SEED}",
            "parameter_filter": "requires_grad",
        }
        if problem.depends_on_batches:
            found["batch_size"] = problem.micro_batch
        return found

    def environment(self) -> dict[str, Any]:
        """Return what is never compared."""
        problem = self.problems[self.execution.split]
        name = torch.cuda.get_device_name(problem.device) if problem.device.type == "cuda" else platform.machine()
        return {
            "gapscope": gapscope.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": f"{problem.device.type} ({name})",
            "threads": torch.get_num_threads(),
            "world_size": 1,
            "micro_batch": problem.micro_batch,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }

    def measure(self, analyzers: Sequence[Analyzer]) -> Report:
        """Check the problem, run the analyzers in order, and return their report."""
        check(self.problems[self.execution.split])
        context = Context(
            subjects=(Subject(problems=self.problems, training=self.loaded.checkpoint.training),),
            split=self.execution.split,
            seed=self.execution.seed,
            analyzers={analyzer.name: analyzer for analyzer in analyzers},
            monitor=self.monitor,
        )
        records = {a.name: self._record(a, context) for a in analyzers}
        return Report(
            identity=self.identity(),
            training=self.training(),
            conditions=self.conditions(),
            environment=self.environment(),
            results=records,
        )

    def _record(self, analyzer: Analyzer, context: Context) -> Record:
        result = context.result(analyzer.name)
        fields = dataclasses.fields(analyzer)  # type: ignore[arg-type]
        settings = {f.name: getattr(analyzer, f.name) for f in fields if f.name not in analyzer.incidental}
        return Record(
            analyzer=analyzer.name,
            version=analyzer.version,
            status=result.status,
            matvecs=result.matvecs,
            seconds=result.seconds,
            notes=result.notes,
            settings={"seed": self.execution.seed}
            | {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()},
            quantities=result.quantities(),
        )


def open_session(request: Request, execution: Execution, monitor: Monitor | None = None) -> Session:
    """Load a checkpoint and its data and place them; raises LoadError, UsageError or ProblemError."""
    monitor = monitor or Monitor()
    if execution.threads is not None:
        if execution.threads < 1:
            raise UsageError(f"There are {execution.threads} threads. Expected 1 or more. Mend `--threads`.")
        torch.set_num_threads(execution.threads)
    device = _device(execution.device)
    if device.type == "mps" and execution.dtype == "float64":
        raise UsageError("The device mps has no float64. Expected `--dtype float32` there, or `--device cpu`.")
    loaded = load(request)
    data = {split: d for split, d in (("train", loaded.train), ("test", loaded.test)) if d is not None}
    if execution.split not in data:
        raise LoadError(
            f"There are no {execution.split} data for {Path(request.checkpoint).name}. Expected some, because `--split "
            f"{execution.split}` measures them. Name them with `--{'test-' * (execution.split == 'test')}data`."
        )
    model = loaded.model.to(device, getattr(torch, execution.dtype))
    problems = {
        split: Problem(
            model=model,
            data=part,
            loss_function=loaded.loss,
            batch_size=execution.batch_size,
            memory_budget=execution.memory_budget,
            batchnorm=execution.batchnorm,
            monitor=monitor,
        )
        for split, part in data.items()
    }
    measured = problems[execution.split]
    if execution.threads is None and device.type == "cpu" and measured.size * measured.samples < SMALL_WORK:
        torch.set_num_threads(1)
    return Session(loaded, execution, problems, request.data_seed, monitor)


def _device(name: str) -> torch.device:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    kind, _, index = name.partition(":")
    if kind not in available or (index and not index.isdecimal()):
        raise UsageError(f"The device is `{name}`. Expected auto, cpu, cuda, cuda:N or mps. Mend `--device`.")
    if not available[kind] or (kind == "cuda" and index and int(index) >= torch.cuda.device_count()):
        ready = ", ".join(kind for kind, here in available.items() if here)
        raise UsageError(
            f"The device `{name}` is not available to torch here. Expected one of {ready}. Mend `--device`."
        )
    return torch.device(name)
