"""The Python interface, in the command line's words: load a problem, measure it."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from gapscope.errors import GapscopeError, RankError, UsageError
from gapscope.measure.analyzers import analyzer_class
from gapscope.measure.context import Analyzer, Context
from gapscope.measure.loading import (
    Data,
    Loss,
    Reading,
    Request,
    Trust,
    as_classes,
    build_loss,
    check_fit,
    data_of,
    infer_loss,
    same_classes,
)
from gapscope.measure.loading.sources import completed, taken_out
from gapscope.measure.problem import DEFAULT_MEMORY_BUDGET, BatchNorm, Hvp, Origin, Problem
from gapscope.measure.resume import Parts
from gapscope.measure.session import Execution, Session, open_session, record, together
from gapscope.measure.surroundings import apart, interrupts_wait
from gapscope.report.comparison import arranged
from gapscope.report.records import Comparison, Report


def load(
    checkpoint: str | os.PathLike[str],
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    test_data: str | None = None,
    loss: str | None = None,
    setup: str | None = None,
    weights: str | None = None,
    parameters: Sequence[str] = (),
    x_key: str | None = None,
    y_key: str | None = None,
    reshape: str | None = None,
    normalize: str | None = None,
    split: str = "train",
    limit: int | None = None,
    data_seed: int = 0,
    batchnorm: BatchNorm = "eval",
    dtype: str = "float32",
    hvp: Hvp = "auto",
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    trusted: Sequence[str] = (),
    trust_embedded: bool = False,
    allow_global: Sequence[str] = (),
    trust_file: bool = False,
) -> Problem:
    """Load a checkpoint and its data as a problem, as the command line does; options mean what they mean there.

    Raises: LoadError where the file, model or data cannot be read or do not fit; UsageError, ProblemError.
    """
    request = Request(
        checkpoint=Path(checkpoint),
        model=model,
        model_args=dict(model_args or {}),
        data=data,
        test_data=test_data,
        loss=loss,
        setup=setup,
        weights=weights,
        parameters=_listed("parameters", parameters),
        reading=Reading(x_key=x_key, y_key=y_key, reshape=reshape, normalize=normalize),
        limit=limit,
        data_seed=data_seed,
        trust=Trust(_listed("trusted", trusted), trust_embedded, _listed("allow_global", allow_global), trust_file),
    )
    execution = Execution(
        split=split,
        batchnorm=batchnorm,
        hvp=hvp,
        dtype=dtype,
        device=device,
        threads=threads,
        batch_size=batch_size,
        memory_budget=memory_budget,
    )
    before = torch.get_num_threads()
    with apart():
        loaded, chosen = open_session(request, execution).problem, torch.get_num_threads()
    return loaded if chosen == before else dataclasses.replace(loaded, threads=chosen)


def problem(
    model: nn.Module,
    data: Any,
    *,
    test_data: Any = None,
    loss: str | Loss | None = None,
    training: Mapping[str, Any] | None = None,
    name: str = "model",
    parameters: Sequence[str] = (),
    batchnorm: BatchNorm = "eval",
    hvp: Hvp = "auto",
    batch_size: int | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
) -> Problem:
    """Return the problem of a model at hand, for a training script or a notebook; it is measured as it is now.

    `data` and `test_data`: a Dataset, a DataLoader, an iterable of (x, y), or two arrays; they are read once.  `loss`:
    a built-in name (default: from the targets), `pkg.mod:attr`, or a `Loss`.  `training` holds batch_size, lr,
    momentum, weight_decay, optimizer, as far as known.  `parameters`: patterns of the names that make up theta
    (default: all that require a gradient).  The model keeps its device, and is not changed; nor are random states.

    Raises: LoadError where model, data and loss do not fit; ProblemError where there is nothing to differentiate.
    """
    with apart():
        return _problem(
            model, data, test_data, loss, Origin(identity={"checkpoint": name}, training=dict(training or {})),
            chosen=_listed("parameters", parameters), batchnorm=batchnorm, hvp_method=hvp, batch_size=batch_size,
            memory_budget=memory_budget,
        )  # fmt: skip


def _listed(name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return patterns or names; a text alone is refused: its letters would be taken, and `*` among them is all."""
    if isinstance(given, str):
        raise UsageError(f"`{name}` is the text {given!r}. Expected a list of them. Write `{name}=[{given!r}]`.")
    return tuple(given)


def _problem(
    model: nn.Module, data: Any, test_data: Any, loss: str | Loss | None, origin: Origin, **settings: Any
) -> Problem:
    name = str(origin.identity["checkpoint"])
    model = taken_out(model)[0]
    splits: dict[str, Data] = {} if test_data is None else {"test": data_of(test_data, f"test data of {name}")}
    splits["train"] = data_of(data, f"data of {name}")
    if "test" in splits:
        same_classes(splits["train"], splits["test"])
    splits = {split: completed(model, part) for split, part in splits.items()}
    with interrupts_wait():  # the model is run on a few samples
        found = loss
        if found is None:
            found = infer_loss(splits["train"].targets, model, splits["train"].inputs)
        elif isinstance(found, str):
            found = build_loss(found, recorded=False, trust=Trust())
        if found.ignored is not None:
            splits = {split: as_classes(part, model) for split, part in splits.items()}
        built: Problem | None = None
        for split, part in splits.items():
            check_fit(model, name, part, found)
            built = Problem(
                model=model,
                data=part,
                loss_function=found,
                origin=dataclasses.replace(
                    origin, split=split, other=built, train=None if split == "train" else splits["train"]
                ),
                **settings,
            )
            # copies, so that training may go on
            _ = built.theta, built.constants
    assert built is not None
    return built


@overload
def measure(problem: Problem, analyzers: Sequence[Analyzer], *, seed: int = 0) -> Report: ...
@overload
def measure(problem: Sequence[Problem], analyzers: Sequence[Analyzer], *, seed: int = 0) -> Comparison: ...
def measure(
    problem: Problem | Sequence[Problem], analyzers: Sequence[Analyzer], *, seed: int = 0
) -> Report | Comparison:
    """Measure a problem, or what analyzers of several subjects (`Path`, `Plane`, `Escape`) say of several.

    Gradients are on meanwhile, and autocast off; models, random states and the number of threads are as before, also
    after an exception.  Ctrl-C waits for the end of the micro-batch; a second one does not, and may leave the model in
    the mode that it is measured in.

    Raises: UsageError where an analyzer takes another number of problems, or two have one name; ProblemError, if L is
    not finite, repeatable and twice differentiable.
    """
    if isinstance(problem, Problem):
        _refuse(analyzers, 1)
        with interrupts_wait(), apart(problem.threads):
            return Session(problem, seed).measure(analyzers)
    if len(problem) < 2:
        raise UsageError(f"There are {len(problem)} problems in the list. Expected two or more, or one without a list.")
    problems = list(problem)
    _refuse(analyzers, len(problems))
    with interrupts_wait(), apart(problems[0].threads):
        return measure_together([Session(one, seed) for one in problems], analyzers)


def measure_together(
    sessions: Sequence[Session],
    analyzers: Sequence[Analyzer],
    *,
    labels: Sequence[str] | None = None,
    contexts: Sequence[Context] | None = None,
    parts: Parts | None = None,
    failed: Callable[[Analyzer, GapscopeError], None] | None = None,
) -> Comparison:
    """Run analyzers of several subjects; those with a smaller recorded batch size come first.

    `failed` is told of an analyzer that cannot measure these subjects, and the others go on; without it, that raises,
    as does a rank that is gone.
    """
    if contexts is None:
        given = {analyzer.name for analyzer in analyzers}
        wanted = dict.fromkeys(name for one in analyzers for name in getattr(one, "needs", ()) if name not in given)
        needed = [analyzer_class(name)() for name in wanted]
        contexts = [session.context([*analyzers, *needed]) for session in sessions]
    bare = [session.report({}) for session in sessions]
    ordered, subjects = arranged(bare, labels)
    order = [next(i for i, report in enumerate(bare) if report is one) for one in ordered]
    context = together([contexts[i] for i in order], analyzers, parts)
    records = {}
    for analyzer in analyzers:
        try:
            records[analyzer.name] = record(analyzer, context.run(analyzer.name), context.seed)
        except GapscopeError as error:
            if failed is None or isinstance(error, RankError):  # then nothing can be measured together any more
                raise
            failed(analyzer, error)
    return Comparison(
        subjects=subjects,
        rows=(),
        reading=(),
        results=records,
        environment=sessions[0].environment(),
    )


def _refuse(analyzers: Sequence[Analyzer], given: int) -> None:
    given_list: Any = analyzers
    if isinstance(given_list, str) or not isinstance(given_list, Sequence) or not given_list:
        raise UsageError(
            f"The analyzers are {analyzers!r}. Expected a list of one or more: "
            "`gapscope.measure(problem, [gapscope.Eigenvalues()])`."
        )
    for analyzer in analyzers:
        if isinstance(analyzer, type) or not hasattr(analyzer, "arity"):
            raise UsageError(f"{analyzer!r} is no analyzer. Expected an instance, such as `gapscope.Eigenvalues()`.")
        least = getattr(analyzer, "least", analyzer.arity)
        if not least <= given <= analyzer.arity:
            wanted = f"{least}" if least == analyzer.arity else f"{least} to {analyzer.arity}"
            how = "measure(problem, ...)" if analyzer.arity == 1 else "measure([a, b], ...)"
            raise UsageError(
                f"`{analyzer.name}` measures {wanted} at a time, and got {given}. Expected `gapscope.{how}`."
            )
    listed = [analyzer.name for analyzer in analyzers]
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"`{twice}` is in the list {listed.count(twice)} times. Expected each analyzer once: a report holds one "
            "result of each name. Call `gapscope.measure` for each of its settings."
        )
