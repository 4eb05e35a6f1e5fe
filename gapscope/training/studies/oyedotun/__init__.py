"""Oyedotun et al. 2022: near-rank of layer activations falls with the training batch size.

Every network trains from the same weights with each batch size: to the training loss that the smallest batch comes to,
and, beside it, for as many epochs.  The paper measures each run on as many samples as its own batch had; here all runs
are measured on the same samples too, and a control shows one network, which does not change, to those many samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gapscope.errors import UsageError
from gapscope.report.figures import number
from gapscope.report.folders import without_folders
from gapscope.report.outcome import Outcome
from gapscope.training.recipe import counted
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.oyedotun.parts import claims, parts, slug
from gapscope.training.studies.oyedotun.ranks import measure
from gapscope.training.studies.oyedotun.runs import Network, network, train
from gapscope.training.studies.plan import Plan as Base
from gapscope.training.studies.plan import Size


@dataclass(frozen=True, kw_only=True)
class Plan(Base):
    """Batch sizes, stops and cuts; a claim is judged at the first cut of each kind.

    `networks` are tables of model, model_args, data, lr and until_loss, where they are not as in the plan; a `model`
    takes the place of all of them, and is its own name.  `wide` and `narrow` name two that differ in width alone.
    """

    model: str = ""
    networks: Mapping[str, Any] = field(default_factory=dict)
    wide: str = ""
    narrow: str = ""
    batches: tuple[Size, ...]
    lr: float
    momentum: float
    until_loss: float
    max_epochs: int
    samples: int
    own_cuts: tuple[str, ...]
    same_cuts: tuple[str, ...]


def study(lab: Lab, plan: Plan) -> Outcome:
    """Train every network with every batch size, measure them in both modes, and judge the claims."""
    networks = _networks(lab, plan)
    trained = train(lab, networks, seeds=plan.seeds, momentum=plan.momentum, max_epochs=plan.max_epochs)
    found = measure(lab, trained, samples=plan.samples, own_cuts=plan.own_cuts, same_cuts=plan.same_cuts)
    left_out = [reason for one in trained for reason in one.left_out]
    missing = [one.network.name for one in trained if not one.loss]
    return Outcome(
        study="oyedotun",
        title="Oyedotun et al. 2022: near-rank of activations and the batch size",
        source="Oyedotun et al. 2022",
        about=(
            *(_said(one, plan) for one in networks),
            "own: each run on as many samples as its batch had, the paper's way. control: the networks of the smallest "
            "batch on those many samples; where near-rank falls, the number of samples alone has made it fall, and "
            "where they outnumber the units it turns. same: all runs on the same samples.",
            f"Full rank is the smaller of units and samples. {counted(plan.seeds, 'seed')}; of one seed all batch "
            "sizes start from the same weights, so slopes are taken within a seed. Their 95 % intervals are over seeds "
            "and, for slopes of near-rank in points of one network, no narrower than counting whole singular values "
            "makes them. A claim shows where it does in every network. Nothing is corrected for the number of claims.",
            *(f"Left out: {'; '.join(left_out)}." for _ in left_out[:1]),
        ),
        claims=claims(found, wide=without_folders(plan.wide), narrow=without_folders(plan.narrow), missing=missing),
        parts=parts(found),
        analyzers=("near-rank", "gap"),
        conditions=lab.conditions(plan.data),
        environment=lab.environment(),
    )


def _networks(lab: Lab, plan: Plan) -> list[Network]:
    if not (plan.model or plan.networks):
        raise UsageError("The plan names no network. Expected a `model`, or tables under `networks`. Give `--model`.")
    given = {plan.model: {"model": plan.model, "model_args": plan.model_args}} if plan.model else plan.networks
    usual = {"data": plan.data, "lr": plan.lr, "until_loss": plan.until_loss}
    names = [without_folders(name) for name in given]  # they stand in the report, which may be published
    _refuse_alike(names)
    return [network(name, one, usual, plan.batches, lab) for name, one in zip(names, given.values(), strict=True)]


def _refuse_alike(names: Sequence[str]) -> None:
    """Refuse names of networks whose parts of the report would have the name of another."""
    taken = dict.fromkeys(("training", "networks"), "another part of the study")
    for name in names:
        if holder := taken.get(slug(name)):
            raise UsageError(
                f"The network `{name}` is called `oyedotun-{slug(name)}` in the report, as {holder} is. Expected a "
                "name of its own. Rename it under `networks` in the plan."
            )
        taken[slug(name)] = f"the network `{name}`"


def _said(one: Network, plan: Plan) -> str:
    arguments = " ".join(f"{key}={value}" for key, value in one.model_args.items())
    return (
        f"{one.name}: {' '.join(filter(None, (one.model, arguments)))} · {one.data} · SGD, rate {number(one.lr)}, "
        f"momentum {number(plan.momentum)} · batches of {', '.join(map(str, one.sizes))} · to a training loss of "
        f"{number(one.until_loss)}"
    )
