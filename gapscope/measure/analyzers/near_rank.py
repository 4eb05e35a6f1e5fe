"""Near-rank of the activations of every layer (Oyedotun et al.), with the ranks that need no cut beside it."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from gapscope.results import Array, Quantity, Result, Status

if TYPE_CHECKING:
    from gapscope.measure.activations import Layer, Measured, Plan
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem
    from gapscope.measure.ranks import Cut, Spectrum

STORED = 1_024
NAMED = 6
LONG_WORK = 30_000_000_000  # multiply-adds: seconds on one core


@dataclass(frozen=True, kw_only=True)
class NearRankResult(Result):
    """What `near-rank` measures."""

    near_rank: Quantity
    effective_rank: Quantity
    stable_rank: Quantity
    dead_units: Quantity
    participation_ratio: Quantity
    numerical_rank: Quantity
    condition: Quantity
    units: Quantity
    columns: Quantity
    singular_values: Quantity
    centred_singular_values: Quantity


@dataclass(frozen=True)
class NearRank:
    """Near-rank of every layer's activations: how many singular values lie above a cut, on the same samples for every
    checkpoint.

    An activation matrix is units x columns, after the activation that directly follows the layer, if one does.
    Convolutions are (c H W) x samples, on a fixed set of samples, or c x (samples H W) with `--view channels`.
    `--own-batch` is the papers' mode: each checkpoint on as many samples as its training batch had. It is confounded:
    while there are fewer columns than units, more columns alone lower the smallest singular value.
    """

    # Cost: one forward pass, and half of k^2 m + 4/3 k^3 multiply-adds a layer whose sides are k <= m.
    # Source: Oyedotun et al.; cuts, centring, views and the choice of outputs are gapscope's own (definitions.md, 4).

    name: ClassVar[str] = "near-rank"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    second_order: ClassVar[bool] = False

    layers: Annotated[str, "glob of the names of the layers to measure"] = "*"
    cuts: Annotated[tuple[str, ...], "rel:X of the largest singular value; abs:X with --own-batch"] = (
        "rel:1e-2",
        "rel:1e-3",
        "rel:1e-4",
    )
    centred: Annotated[bool, "ranks of the spectrum after each unit's mean is subtracted"] = False
    view: Annotated[Literal["flat", "channels"], "convolutions as (c H W) x samples or c x (samples H W)"] = "flat"
    own_batch: Annotated[bool, "as many samples as the recorded training batch (confounded with batch size)"] = False
    samples: Annotated[int, "samples of the fixed set for flat convolutions"] = 1_024
    sample_seed: Annotated[int, "seed of that set, and of the own batch"] = 0

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return how many forward passes over the data this takes, and the multiply-adds of the spectra."""
        plan = self._plan(problem)
        return {"outcomes": len(plan.passes), "multiply_adds": plan.multiply_adds}

    def memory(self, problem: "Problem") -> int:
        """Return about how many bytes this takes above the loaded model, the graph of a micro-batch included.

        With `--own-batch` that of `--samples`: what the checkpoint recorded is not known here.
        """
        from gapscope.measure import activations

        plan = self._plan(problem)
        return max(map(activations.peak, plan.passes)) + problem.micro_batch * problem.graph_bytes_per_sample

    def _plan(self, problem: "Problem") -> "Plan":
        from gapscope.measure import activations

        wanted = self._wanted(activations.layers(problem, self.view)[0])
        chosen = activations.chosen_samples(problem.samples, self.samples, self.sample_seed)
        return activations.Plan.of(problem, wanted, self.view, chosen, only_chosen=self.own_batch)

    def __call__(self, context: "Context") -> NearRankResult:
        """Measure the layers of the model on the measured split."""
        from gapscope.measure import activations, ranks

        cuts = self._cuts()
        problem = context.problem()
        size = self._own_batch_size(context, problem) if self.own_batch else self.samples
        found, unseen = activations.layers(problem, self.view)
        wanted = self._wanted(found)
        chosen = activations.chosen_samples(problem.samples, size, self.sample_seed)
        plan = activations.Plan.of(problem, wanted, self.view, chosen, only_chosen=self.own_batch)
        sized = [layer for group in plan.passes for layer in group if not layer.flat]
        self._refuse_under_the_floor(cuts, {x.name: ranks.gram_floor(*sorted((x.units, x.columns))) for x in sized})
        context.monitor.begin("near-rank", len(plan.passes))
        if plan.multiply_adds > LONG_WORK:
            context.monitor.plan(
                f"near-rank: {plan.multiply_adds:.2g} multiply-adds for the spectra of {len(wanted)} layers, beside "
                f"{len(plan.passes)} forward pass{'es' * (len(plan.passes) > 1)} over the data"
            )
        measured = []
        for one in plan.run():
            measured.append(one)
            context.monitor.say(f"{one.layer.name}  {len(measured)} of {len(wanted)}")
        return self._result(measured, cuts, self._notes(plan, unseen, measured, cuts))

    # --- what was asked for

    def _cuts(self) -> tuple["Cut", ...]:
        from gapscope.errors import UsageError
        from gapscope.measure.ranks import Cut

        cuts = tuple(Cut.parse(text) for text in self.cuts)
        if not cuts or len(set(cuts)) < len(cuts):
            raise UsageError(
                f"The cuts are {', '.join(self.cuts) or 'none'}. Expected one or more, each once. "
                "For example `--cuts rel:1e-2 --cuts rel:1e-3`."
            )
        absolute = [text for text, cut in zip(self.cuts, cuts, strict=True) if cut.kind == "abs"]
        if absolute and not self.own_batch:
            raise UsageError(
                f"The cut `{absolute[0]}` is absolute, and singular values grow with the number of samples. Expected "
                "relative cuts. Take `--cuts rel:1e-2`, or add `--own-batch`."
            )
        if self.samples < 1:
            raise UsageError(f"There are {self.samples} samples. Expected 1 or more. Mend `--samples`.")
        return cuts

    def _own_batch_size(self, context: "Context", problem: "Problem") -> int:
        from gapscope.errors import UsageError
        from gapscope.measure.activations import by_batch

        size = context.training().get("batch_size")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= problem.samples:
            raise UsageError(
                f"The checkpoint recorded the batch size {size}. Expected a whole number from 1 to the "
                f"{problem.samples:,} samples. Leave `--own-batch` out to measure all checkpoints on the same samples."
            )
        if by_batch(problem):
            raise UsageError(
                "BatchNorm takes its statistics from micro-batches, which cut the own batch in parts. Expected fixed "
                "statistics. Give `--batchnorm eval` or `re-estimated`, or leave `--own-batch` out."
            )
        return size

    def _wanted(self, found: Sequence["Layer"]) -> list["Layer"]:
        from gapscope.errors import ProblemError, UsageError, did_you_mean

        if not found:
            raise ProblemError(
                "The model calls no layer that gapscope knows. Expected Linear, convolution, embedding or attention "
                "modules, or leaves that own a matrix. A compiled model hides them: measure the original."
            )
        wanted = [layer for layer in found if fnmatch.fnmatchcase(layer.name, self.layers)]
        if not wanted:
            names = [layer.name for layer in found]
            raise UsageError(
                f"No layer is named `{self.layers}`.{did_you_mean(self.layers, names)} "
                f"Expected a glob that matches one of {_few(names)}: `--layers '*'`."
            )
        return wanted

    def _refuse_under_the_floor(self, cuts: Sequence["Cut"], floors: dict[str, float]) -> None:
        from gapscope.errors import UsageError
        from gapscope.measure.ranks import gram_floor

        widest = max(floors, key=lambda name: floors[name], default="")
        floor = floors.get(widest, gram_floor(1, 1))
        for text, cut in zip(self.cuts, cuts, strict=True):
            if cut.kind == "rel" and cut.value < floor:
                of = f" of `{widest}`" if widest else ""
                raise UsageError(
                    f"The cut `{text}` lies under the noise floor of float64 Gram matrices, {floor:.1e} of the largest "
                    f"singular value{of}. Expected a larger cut. For example `--cuts rel:1e-4`."
                )

    # --- what was found

    def _result(self, measured: Sequence["Measured"], cuts: Sequence["Cut"], notes: tuple[str, ...]) -> NearRankResult:
        from gapscope.measure import ranks

        names = {"layer": tuple(one.layer.name for one in measured)}
        spectra = [one.spectra.centred if self.centred else one.spectra.plain for one in measured]
        which = "centred" if self.centred else "uncentred"
        most = [min(one.layer.units, one.spectra.columns) if self.own_batch else 1 for one in measured]
        counts = np.array(
            [[ranks.near_rank(s, cut) / m for cut in cuts] for s, m in zip(spectra, most, strict=True)], dtype=float
        )

        def each(numbers: Sequence[float], doc: str, **more: Any) -> Quantity:
            return Quantity(value=np.array(numbers, dtype=float), dims=("layer",), labels=names, doc=doc, **more)

        def rank(function: Callable[["Spectrum"], float], doc: str, **more: Any) -> Quantity:
            return each([function(spectrum) for spectrum in spectra], f"{doc}; {which} activations", **more)

        longest = min(STORED, max(len(spectrum.values) for spectrum in spectra))
        index = {**names, "index": tuple(str(i + 1) for i in range(longest))}

        def values(kind: Sequence["Spectrum"], doc: str) -> Quantity:
            padded = np.stack([_padded(spectrum.values, longest) for spectrum in kind])
            return Quantity(value=padded, dims=("layer", "index"), labels=index, doc=doc)

        finite = all(one.spectra.plain.finite and one.spectra.centred.finite for one in measured)
        return NearRankResult(
            status=Status.EXACT if finite else Status.NONFINITE,
            notes=notes,
            near_rank=Quantity(
                value=counts,
                dims=("layer", "cut"),
                labels={**names, "cut": self.cuts},
                contrast="difference",
                unit="share" if self.own_batch else "",
                higher_is="nearer to full rank",
                doc=f"singular values above the cut, {which} activations"
                + (", as a fraction of min(units, columns)" if self.own_batch else "")
                + "; which is better is not known: the papers find less of it after large-batch training",
            ),
            effective_rank=rank(ranks.effective_rank, "exp of the entropy of sigma / sum sigma"),
            stable_rank=rank(ranks.stable_rank, "sum sigma^2 / sigma_1^2"),
            dead_units=each(
                [one.spectra.dead for one in measured],
                "fraction of units with one and the same value (0, say) in every column",
                contrast="difference",
            ),
            participation_ratio=rank(ranks.participation_ratio, "(sum sigma^2)^2 / sum sigma^4"),
            numerical_rank=each(
                [
                    ranks.numerical_rank(s, (one.layer.units, one.spectra.columns), _eps(one.layer))
                    for s, one in zip(spectra, measured, strict=True)
                ],
                f"singular values above sigma_1 max(units, columns) eps, eps of the activations' type, and above the "
                f"noise floor; {which} activations",
                contrast="difference",
            ),
            condition=rank(ranks.condition, "sigma_1 / sigma_min: infinite where sigma_min is under the noise floor"),
            units=each([one.layer.units for one in measured], "rows of the matrix", contrast="difference"),
            columns=each([one.spectra.columns for one in measured], "columns of the matrix", contrast="difference"),
            singular_values=values(
                [one.spectra.plain for one in measured],
                "singular values, largest first, uncentred; 0 under the noise floor, NaN beyond the last",
            ),
            centred_singular_values=values(
                [one.spectra.centred for one in measured], "the same after each unit's mean is subtracted"
            ),
        )

    def _notes(
        self, plan: "Plan", unseen: Sequence[str], measured: Sequence["Measured"], cuts: Sequence["Cut"]
    ) -> tuple[str, ...]:
        from gapscope.measure import ranks

        notes = []
        total, size = plan.problem.samples, len(plan.chosen)
        kept = [one.layer.name for one in measured if one.layer.flat]
        if self.own_batch:
            notes.append(
                f"own batch: {size:,} of {total:,} samples (seed {self.sample_seed}), counts divided by "
                "min(units, columns). Confounded with the batch size: while there are fewer columns than units, more "
                "columns alone lower the smallest singular value"
            )
        elif kept:
            notes.append(
                f"flat convolutions on {size:,} of {total:,} samples (seed {self.sample_seed}): {_few(kept)}"
                + (f"; all others on all {total:,}" if len(kept) < len(measured) else "")
            )
        bare = [one.layer.name for one in measured if not one.layer.activated]
        if bare:
            notes.append(f"no activation follows, so the layer's own output is measured: {_few(bare)}")
        inputs = plan.problem.data.inputs
        if isinstance(inputs, dict) and "attention_mask" in inputs:
            notes.append("positions that `attention_mask` calls padding are left out")
        if unseen:
            notes.append(f"never called as modules, so not measured: {_few(unseen)}")
        noisy = [
            one.layer.name
            for one in measured
            for spectrum in (one.spectra.centred if self.centred else one.spectra.plain,)
            if spectrum.finite and any(np.isnan(ranks.near_rank(spectrum, cut)) for cut in cuts)
        ]
        if noisy:
            notes.append(
                f"a cut lies under the noise floor of the uncentred Gram matrix, so has no count: {_few(noisy)}"
            )
        most = max(len(one.spectra.plain.values) for one in measured)
        if most > STORED:
            notes.append(f"the largest {STORED:,} of up to {most:,} singular values are stored; the ranks use all")
        return tuple(notes)


def _few(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _eps(layer: "Layer") -> float:
    import torch

    return torch.finfo(layer.dtype).eps


def _padded(values: Array, length: int) -> Array:
    return np.concatenate([values[:length], np.full(max(0, length - len(values)), np.nan)])
