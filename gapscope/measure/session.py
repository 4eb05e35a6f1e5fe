"""From a request to a finished report: load, check, measure.  What the command line and the Python interface share."""

import dataclasses
import datetime
import json
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

import gapscope
from gapscope.errors import LoadError, UsageError, one_of
from gapscope.measure import differentiable
from gapscope.measure.allocation import hold_freed_memory
from gapscope.measure.checks import check, is_mixed
from gapscope.measure.context import Analyzer, Context, Subject, second_order
from gapscope.measure.distributed import local_device, ranks
from gapscope.measure.loading import Loaded, Request, load
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import CHUNK_SEED, DEFAULT_MEMORY_BUDGET, BatchNorm, Hvp, Origin, Problem
from gapscope.measure.resume import Parts
from gapscope.measure.setup import setup_problem
from gapscope.measure.sharded import Sharded
from gapscope.report.file import Record, Report
from gapscope.report.folders import plain, without_folders
from gapscope.report.hdf5 import storable
from gapscope.results import CHUNKS, Result, Status

# parameters x samples below which threads only wait for each other: on a busy machine two of them were 30 times slower
SMALL_WORK = 30_000_000


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to place and measure: none of it changes what is measured, but `split`, `batchnorm` and `dtype`."""

    split: str = "train"
    batchnorm: BatchNorm = "eval"
    hvp: Hvp = "auto"
    dtype: str = "float32"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    batch_size: int | None = None
    memory_budget: int = DEFAULT_MEMORY_BUDGET
    shard_parameters: bool = False

    def __post_init__(self) -> None:  # from Python anything may come: said before a checkpoint is read
        one_of("batchnorm", self.batchnorm, get_args(BatchNorm))
        one_of("hvp", self.hvp, get_args(Hvp))
        one_of("dtype", self.dtype, ("float32", "float64"))


@dataclass(frozen=True, eq=False)
class Session:
    """A problem, ready to be measured: what it is and under which conditions is known before any work."""

    problem: Problem
    seed: int = 0
    monitor: Monitor = field(default_factory=Monitor)
    notes: tuple[str, ...] = ()  # what was inferred while loading

    def identity(self) -> dict[str, Any]:
        """Return who is measured; two subjects of a comparison differ here."""
        problem = self.problem
        known = dict(problem.origin.identity)
        known.setdefault("checkpoint", "model")
        known.setdefault("model", type(problem.model).__name__)
        known |= {"parameters": problem.size, "data": problem.data.name}
        known |= {name: str(known[name]) for name in ("checkpoint", "model", "data")}
        return _published(known)

    def training(self) -> dict[str, Any]:
        """Return the scalars that the checkpoint recorded of its training."""
        recorded = self.problem.origin.training.items()
        return _published({k: v for k, v in recorded if isinstance(k, str) and isinstance(v, str | int | float | bool)})

    def conditions(self) -> dict[str, Any]:
        """Return what must agree before two reports are compared."""
        problem, origin = self.problem, self.problem.origin
        found: dict[str, Any] = {
            "split": origin.split,
            "samples": problem.samples,
            "samples_available": problem.data.total,
        }
        names = {"train": "data_fingerprint", "test": "test_data_fingerprint"}
        found |= {names[split]: p.data.fingerprint for split, p in Subject.of(problem).problems.items()}
        if problem.samples < problem.data.total:
            found |= {"limit": problem.samples, "limit_seed": origin.limit_seed}
        found |= {
            "loss": without_folders(problem.loss_function.name),
            "batchnorm": problem.batchnorm,
            "dtype": str(problem.dtype).removeprefix("torch."),
            "chunks": f"{CHUNKS} by permutation, seed {CHUNK_SEED}",
            "parameter_filter": " ".join(problem.chosen) or "requires_grad",
        }
        if self.mixed:
            found["batch_size"] = problem.micro_batch
        return storable(found)

    @cached_property
    def mixed(self) -> bool:
        """Return whether L depends on the micro-batches."""
        return is_mixed(self.problem)

    def environment(self) -> dict[str, Any]:
        """Return what is never compared."""
        problem = self.problem
        name = torch.cuda.get_device_name(problem.device) if problem.device.type == "cuda" else platform.machine()
        found = {
            "gapscope": gapscope.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": f"{problem.device.type} ({name})",
            "threads": torch.get_num_threads(),
            "world_size": ranks().count,
            "micro_batch": problem.micro_batch,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        found |= {"sharded_parameters": True} if problem.share is not None else {}
        found |= {"notes": "; ".join(map(without_folders, self.notes))} if self.notes else {}
        return found | ({"written_out": " ".join(sorted(problem.repaired))} if problem.repaired else {})

    def repairs(self) -> tuple[str, ...]:
        """Return what was written out so far for the second derivatives, in sentences."""
        return tuple(said for name, said in differentiable.NOTES.items() if name in self.problem.repaired)

    def context(self, analyzers: Sequence[Analyzer]) -> Context:
        """Check the problem, and return where these analyzers will keep their results."""
        refuse_whole(self.problem, analyzers)
        check(self.problem, second_order=any(second_order(analyzer) for analyzer in analyzers))
        return Context(
            subjects=(Subject.of(self.problem),),
            split=self.problem.origin.split,
            seed=self.seed,
            analyzers={analyzer.name: analyzer for analyzer in analyzers},
            monitor=self.monitor,
        )

    def report(self, records: Mapping[str, Record]) -> Report:
        """Return the report of what was measured."""
        return Report(
            identity=self.identity(),
            training=self.training(),
            conditions=self.conditions(),
            environment=self.environment(),
            results=records,
        )

    def measure(self, analyzers: Sequence[Analyzer]) -> Report:
        """Check the problem, run the analyzers in order, and return their report."""
        context = self.context(analyzers)
        return self.report({a.name: record(a, context.run(a.name), context.seed) for a in analyzers})


def _published(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as the report has them; of the model's arguments `arguments_text` has cleaned each."""
    texts = {key: without_folders(value) for key, value in facts.items() if isinstance(value, str)}
    return storable({**facts, **texts, **{key: facts[key] for key in ("model_args",) if key in facts}})


def arguments_text(arguments: Mapping[str, Any]) -> str:
    """Return a model's arguments as the report has them."""
    return " ".join(f"{key}={json.dumps(plain(value))}" for key, value in sorted(arguments.items()))


def together(contexts: Sequence[Context], analyzers: Sequence[Analyzer], parts: Parts | None = None) -> Context:
    """Return the context of several subjects, whose single results are found in, or added to, their own contexts."""
    first = contexts[0]
    refuse_whole(first.problem(), analyzers)
    known: dict[str, Analyzer] = {}
    for context in reversed(contexts):
        known |= context.analyzers
    return Context(
        subjects=tuple(context.subjects[0] for context in contexts),
        split=first.split,
        seed=first.seed,
        analyzers=known | {analyzer.name: analyzer for analyzer in analyzers},
        monitor=first.monitor,
        parts=parts or Parts(),
        singles=tuple(contexts),
    )


def refuse_whole(problem: Problem, analyzers: Sequence[Analyzer]) -> None:
    """Raise UsageError for analyzers that need whole vectors, where the parameters are sharded."""
    whole = [analyzer.name for analyzer in analyzers if not getattr(analyzer, "sharded", False)]
    if problem.share is not None and whole:
        raise UsageError(
            f"{' and '.join(whole)} need{'s' * (len(whole) == 1)} whole vectors of all {problem.size:,} parameters on "
            "one device. Expected what does with shares: `gapscope gap`, or `gapscope eigenvalues` without "
            "`--gauss-newton`, `--preconditioned` and `--referee`. Leave out `--shard-parameters`."
        )


def record(analyzer: Analyzer, result: Result, seed: int) -> Record:
    """Return a result as it is stored."""
    return Record(
        analyzer=analyzer.name,
        version=analyzer.version,
        status=result.status,
        matvecs=result.matvecs,
        seconds=result.seconds,
        notes=result.notes,
        settings=_settings(analyzer, seed) | ({} if result.hvp == "exact" else {"hvp": result.hvp}),
        quantities=result.quantities(),
    )


def skipped(analyzer: Analyzer, seed: int, why: str) -> Record:
    """Return the record of an analyzer that did not run."""
    return Record(
        analyzer=analyzer.name,
        version=analyzer.version,
        status=Status.SKIPPED,
        notes=(without_folders(why),),
        settings=_settings(analyzer, seed),
    )


def _settings(analyzer: Analyzer, seed: int) -> dict[str, Any]:
    fields = dataclasses.fields(analyzer)  # type: ignore[arg-type]
    settings = {f.name: getattr(analyzer, f.name) for f in fields if f.name not in analyzer.incidental}
    return {"seed": seed} | {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}


def open_session(request: Request, execution: Execution, monitor: Monitor | None = None) -> Session:
    """Load a checkpoint and its data and place them; raises LoadError, UsageError or ProblemError."""
    session = _alike(ranks().agreed(lambda: _opened(request, execution, monitor or Monitor())))
    if execution.shard_parameters:
        device = device_named(local_device(execution.device)) if request.setup is None else session.problem.device
        session = dataclasses.replace(session, problem=Sharded.of(session.problem, device))
    _ = session.mixed  # while all ranks are here: one alone may ask for the conditions
    return session


def _opened(request: Request, execution: Execution, monitor: Monitor) -> Session:
    hold_freed_memory()
    if execution.threads is not None:
        if execution.threads < 1:
            raise UsageError(f"There are {execution.threads} threads. Expected 1 or more. Mend `--threads`.")
        torch.set_num_threads(execution.threads)
    if request.setup is not None:
        return Session(_set_up(request, execution, monitor), execution.seed, monitor)
    device = device_named(local_device(execution.device))
    if device.type == "mps" and execution.dtype == "float64":
        raise UsageError("The device mps has no float64. Expected `--dtype float32` there, or `--device cpu`.")
    loaded = load(request)
    data = {split: d for split, d in (("train", loaded.train), ("test", loaded.test)) if d is not None}
    if execution.split not in data:
        raise LoadError(
            f"There are no {execution.split} data for {Path(request.checkpoint).name}. Expected some, because `--split "
            f"{execution.split}` measures them. Name them with `--{'test-' * (execution.split == 'test')}data`."
        )
    home = torch.device("cpu") if execution.shard_parameters else device
    model = placed(loaded.model, home, getattr(torch, execution.dtype))
    measured: Problem | None = None
    for split in sorted(data, key=lambda split: split == execution.split):  # the measured one last: it knows the other
        measured = Problem(
            model=model,
            data=data[split],
            loss_function=loaded.loss,
            batch_size=execution.batch_size,
            memory_budget=execution.memory_budget,
            batchnorm=execution.batchnorm,
            chosen=request.parameters,
            hvp_method=execution.hvp,
            monitor=monitor,
            origin=_origin(request, loaded, split, measured),
        )
    assert measured is not None  # there are train data, or loading had failed
    if execution.threads is None and device.type == "cpu" and measured.size * measured.samples < SMALL_WORK:
        torch.set_num_threads(1)
    return Session(measured, execution.seed, monitor, loaded.notes)


def _alike(session: Session) -> Session:
    """Raise LoadError where processes that measure together have read different things: a factory may draw its own."""
    group, problem = ranks(), session.problem
    if group.count == 1:
        return session
    digest = 0
    for tensor in problem.model.state_dict().values():
        digest = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy(), digest)
    split = [one.data.fingerprint for one in Subject.of(problem).problems.values()]
    facts = group.gathered({"data": split, "weights or buffers": digest})
    for rank, other in enumerate(facts):
        for what, value in other.items():
            if value != facts[0][what]:
                raise LoadError(
                    f"Rank {rank} has other {what} than rank 0. Expected the same in each. Give every rank the same "
                    "files, and a seed of its own to whatever draws random numbers in a factory."
                )
    return session


def _set_up(request: Request, execution: Execution, monitor: Monitor) -> Problem:
    """Return the problem that the user's function makes, in which everything is decided."""
    unset = Execution()
    for name in ("split", "batchnorm", "hvp", "dtype", "device", "batch_size", "memory_budget"):
        if getattr(execution, name) != getattr(unset, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"`--setup {request.setup}` was given together with `{flag}`. Expected one of them: the function "
                f"decides it. Leave out `{flag}`, or set it in that function."
            )
    made = setup_problem(request)
    return dataclasses.replace(made, monitor=monitor)


def placed(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Bring a model to a device and its real numbers to one type; complex ones stay complex, of twice the width."""
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64

    def place(tensor: Tensor) -> Tensor:
        kind = wide if tensor.is_complex() else dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device, kind)

    placed: nn.Module = model._apply(place)  # type: ignore[no-untyped-call]
    return placed


def _origin(request: Request, loaded: Loaded, split: str, other: Problem | None) -> Origin:
    checkpoint = loaded.checkpoint
    return Origin(
        split=split,
        identity={
            "checkpoint": checkpoint.name,
            "sha256": checkpoint.sha256,
            "weights": loaded.weights_key,
            "format": checkpoint.format,
            "trust": checkpoint.trust,
            "model": loaded.model_name,
            "model_args": arguments_text(loaded.model_args),
        },
        training=checkpoint.training,
        initial=checkpoint.initial,
        optimizer=checkpoint.optimizer,
        limit_seed=request.data_seed,
        train=None if split == "train" else loaded.train,
        other=other,
    )


def device_named(name: str) -> torch.device:
    """Return the device of a name, of `auto` the best there is; raises UsageError for what is not there."""
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
