"""How long SNGM's steps are, beside the bound that its definition gives, from the weights saved on the way."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.trust import Trust
from gapscope.report.document import Column, Line, Series, Table
from gapscope.report.figures import count, number
from gapscope.report.outcome import Answer, Claim, Part
from gapscope.report.records import Record
from gapscope.results import Array, Quantity, Status
from gapscope.training.schedules import parse_schedule
from gapscope.training.studies.lab import Run
from gapscope.training.studies.sngm.runs import Bench, Group

TITLE = "Step lengths of SNGM"
Made = tuple[Part, tuple[Claim, ...]]


def steps(bench: Bench, group: Group) -> Made:
    """Return how far the weights went between saved epochs, over what the bound eta / (1 - beta) of each step allows.

    Where the batch is the whole data an epoch is one step; else the bounds of its steps add up.
    """
    runs = [run for run in group.runs if run.saved]
    if not runs:
        because = "no run of SNGM at the largest batch was saved on its way"
        record = Record(analyzer="sngm-steps", version="1", status=Status.SKIPPED, notes=(because,))
        return Part(record=record, title=TITLE), (claim(np.empty((0, 0)), np.empty((0, 0)), missing=because),)
    found = [_moves(bench, run) for run in runs]
    ratios, errors = (np.array([one[place] for one in found]) for place in (0, 1))
    size, names = bench.sizes[-1], tuple(str(run.spec.recipe.seed) for run in runs)
    epochs = tuple(str(epoch + 1) for epoch in range(ratios.shape[1]))
    each = math.ceil(bench.samples / size)
    what = "one step" if each == 1 else f"{each} steps together, their bounds added up"
    record = Record(
        analyzer="sngm-steps",
        version="1",
        status=Status.EXACT,
        quantities={
            "step_length_over_bound": Quantity(
                value=ratios,
                numerical_error=errors,
                doc="distance between the weights of consecutive epochs over the sum of eta / (1 - beta) of its steps",
                drawn="line",
                dims=("seed", "epoch"),
                labels={"seed": names, "epoch": epochs},
            )
        },
    )
    curve = Series(
        title="step length over bound, mean over seeds",
        style="line",
        axis="epoch",
        labels=epochs,
        curves=(tuple(ratios.mean(axis=0).tolist()),),
    )
    note = (
        f"Each move is {what}, measured between weights saved in single precision. The bound follows from the "
        "definition, so this checks the computation and not the paper's idea; near 1 one gradient points where the "
        "last ones did."
    )
    part = Part(record=record, title=TITLE, tables=(_table(ratios, names, size),), drawn=(curve,), notes=(note,))
    return part, (claim(ratios, errors, each),)


def claim(ratios: Array, errors: Array, each: int = 1, *, missing: str = "") -> Claim:
    """Judge the bound: the longest move of `each` steps over it, less what rounding may have added, is at most 1."""
    verdict: Answer = "cannot tell"
    because = missing
    if ratios.size:
        verdict = "shows" if bool((ratios - errors <= 1).all()) else "does not show"
        length = f"{each} step{'s' * (each > 1)} each"
        because = f"longest {number(float(ratios.max()))} of its bound, of {count(ratios.size)} moves of {length}"
    text = "no step is longer than eta / (1 - beta)"
    if each > 1:  # single steps are not seen
        text = f"{each} steps together go no farther than their eta / (1 - beta) added up"
    return Claim(text=text, source="its definition", verdict=verdict, because=because, own=True)


def _table(ratios: Array, names: Sequence[str], size: int) -> Table:
    heads = ("seed", "longest / bound", "at epoch", "mean / bound")
    lines = tuple(
        Line(cells=(name, number(float(row.max())), str(int(row.argmax()) + 1), number(float(row.mean()), 3)))
        for name, row in zip(names, ratios, strict=True)
    )
    return Table(
        columns=tuple(Column(header=head, numeric=place > 0) for place, head in enumerate(heads)),
        lines=lines,
        caption=f"distance between the weights of consecutive epochs at batch {count(size)}",
    )


def _moves(bench: Bench, run: Run) -> tuple[Array, Array]:
    """Return each epoch's move over its bound (epochs,), and what rounding may have changed of that.

    A step rounds every weight by half a unit in its last place at most, and u, which sums 1 / (1 - beta) unit vectors,
    by about that many.
    """
    recipe = run.spec.recipe
    model, *_ = build_model(run.spec.model, dict(run.spec.model_args), recorded=False, trust=Trust())
    names = [name for name, _ in model.named_parameters()]
    states = [read_checkpoint(path, Trust()) for _, path in run.saved]
    assert states[0].initial is not None
    weights = [_flat(state, names) for state in (states[0].initial, *(one.tensors["model"] for one in states))]
    schedule, total, each = parse_schedule(recipe.schedule), bench.steps(recipe.batch_size), run.steps // run.epochs
    longest = 1 / (1 - recipe.momentum)
    rates = np.array([recipe.lr * schedule(step, total) for step in range(total)]).reshape(-1, each)
    bounds = rates.sum(axis=1) * longest
    moves = np.array([float((after - before).norm()) for before, after in itertools.pairwise(weights)])
    sizes = np.array([float(after.norm()) for after in weights[1:]])
    eps = torch.finfo(torch.float32).eps
    return moves / bounds, eps * (each * sizes / bounds + longest)


def _flat(state: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([state[name].double().flatten() for name in names])
