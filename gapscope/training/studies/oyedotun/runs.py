"""The networks of a plan, and their runs: every batch size to the smallest one's loss, and for as many epochs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gapscope.errors import UsageError, did_you_mean
from gapscope.training.recipe import Recipe
from gapscope.training.regimes import Equal, matched
from gapscope.training.studies.lab import Lab, Run, Spec
from gapscope.training.studies.plan import Size, batch

KINDS: tuple[Equal, ...] = ("loss", "samples")
Grid = tuple[tuple[Run, ...], ...]  # (seeds, batch sizes)


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """What is trained, on what, at which rate and how far; `sizes` are the batch sizes, smallest first."""

    name: str
    model: str
    data: str
    lr: float
    until_loss: float
    sizes: tuple[int, ...]
    model_args: Mapping[str, Any] = field(default_factory=dict)

    def spec(self, size: int, seed: int, momentum: float, max_epochs: int) -> Spec:
        """Return the run of one batch size and seed, by its own stops."""
        stops = {"until_loss": self.until_loss, "epochs": max_epochs}
        recipe = Recipe(lr=self.lr, momentum=momentum, batch_size=size, seed=seed, **stops)  # type: ignore[arg-type]  # ints, floats
        return Spec(recipe=recipe, model=self.model, model_args=self.model_args, data=self.data)


OWN = tuple(one.name for one in fields(Network) if one.name not in ("name", "sizes"))


def network(name: str, given: Any, usual: Mapping[str, Any], batches: Sequence[Size], lab: Lab) -> Network:
    """Return a network of the plan's table; what it does not say is as `usual`.

    Raises: UsageError for a key that is not there, a network without a model, other samples, or less than two batch
    sizes.
    """
    own = given if isinstance(given, Mapping) else {"model": given}
    for key in own:
        if key not in OWN:
            raise UsageError(
                f"The network `{name}` of the plan has no `{key}`.{did_you_mean(key, OWN)} "
                f"Expected one of {', '.join(OWN)}. Mend the plan."
            )
    if not isinstance(own.get("model"), str):
        raise UsageError(
            f"The network `{name}` of the plan has the model {own.get('model')!r}. Expected a name. For example "
            '`model = "mlp"`.'
        )
    whole = {**usual, **own}
    samples, there = lab.samples(usual["data"]), lab.samples(whole["data"])
    if there != samples:
        raise UsageError(
            f"The data `{whole['data']}` of the network `{name}` have {there:,} training samples, and those of the "
            f"plan {samples:,}. Expected the same samples in another shape, such as `digits:size=28`. Mend `data`."
        )
    sizes = sorted({batch(size, samples) for size in batches})
    if len(sizes) < 2:
        raise UsageError(
            f"The batch sizes are {', '.join(map(str, sizes)) or 'none'}. Expected two or more. Mend `batches` in the "
            "plan."
        )
    return Network(name=name, sizes=tuple(sizes), **whole)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The runs of a network from which numbers are taken, and in words why the others are not among them.

    `loss` and `epochs` share their first column, the smallest batch: the others came to its loss, or had its epochs.
    """

    network: Network
    loss: Grid
    epochs: Grid
    left_out: tuple[str, ...] = ()


def train(
    lab: Lab, networks: Sequence[Network], *, seeds: int, momentum: float, max_epochs: int
) -> tuple[Trained, ...]:
    """Train every network with every batch size and seed; a seed starts every batch size from the same weights."""

    def spec(one: Network, size: int, seed: int) -> Spec:
        return one.spec(size, seed, momentum, max_epochs)

    pairs = [(one, seed) for one in networks for seed in range(seeds)]
    made = lab.train([spec(one, one.sizes[0], seed) for one, seed in pairs], "the smallest batches")
    first = {(one.name, seed): run for (one, seed), run in zip(pairs, made, strict=True)}
    further = [
        (one, seed, size, equal)
        for equal in KINDS
        for one, seed in pairs
        if not first[one.name, seed].diverged
        for size in one.sizes[1:]
    ]
    specs = []
    for one, seed, size, equal in further:
        whole = spec(one, size, seed)
        recipe = matched(whole.recipe, first[one.name, seed], equal, max_epochs)
        specs.append(Spec(recipe=recipe, model=whole.model, model_args=whole.model_args, data=whole.data))
    runs = dict(zip(((n.name, s, b, e) for n, s, b, e in further), lab.train(specs, "larger batches"), strict=True))

    def row(one: Network, seed: int, equal: Equal) -> tuple[Run, ...]:
        rest = (runs.get((one.name, seed, size, equal)) for size in one.sizes[1:])
        return (first[one.name, seed], *(run for run in rest if run is not None))

    rows = {
        one.name: [(row(one, seed, "loss"), row(one, seed, "samples")) for seed in range(seeds)] for one in networks
    }
    return tuple(_kept(one, rows[one.name]) for one in networks)


def _kept(one: Network, rows: Sequence[tuple[tuple[Run, ...], tuple[Run, ...]]]) -> Trained:
    """Keep the seeds whose every run came as far as it should."""
    reasons = [_why_not(*row) for row in rows]
    kept = [row for row, reason in zip(rows, reasons, strict=True) if not reason]
    left = tuple(f"seed {seed} of {one.name}: {reason}" for seed, reason in enumerate(reasons) if reason)
    return Trained(network=one, loss=tuple(row[0] for row in kept), epochs=tuple(row[1] for row in kept), left_out=left)


def _why_not(loss: Sequence[Run], epochs: Sequence[Run]) -> str:
    """Return why a seed is left out, or an empty string."""
    for run in (*loss, *epochs):
        if run.diverged:
            return f"batch {run.spec.recipe.batch_size} diverged"
    for run in loss[1:]:
        if run.train_loss > loss[0].train_loss:
            return (
                f"batch {run.spec.recipe.batch_size} did not come to the loss {loss[0].train_loss:.3g} in "
                f"{run.epochs} epochs"
            )
    return ""
