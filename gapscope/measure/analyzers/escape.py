"""Dai & Zhu 2018: what gradient noise says about leaving either of two basins."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from gapscope.results import Array, Quantity, Result, Status, scalar

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.problem import Problem

SUBJECTS: dict[str, Any] = {"dims": ("subject",), "labels": {"subject": ("first", "second")}}
NOT_A_TIME = "not an escape time: the noise of real networks is anisotropic and of low rank"


@dataclass(frozen=True, kw_only=True)
class EscapeResult(Result):
    """What `escape` measures; arrays are by subject, the first (small-batch) one first."""

    exponent: Quantity | None
    rise: Quantity
    rate_over_batch: Quantity | None
    diffusion: Quantity | None
    log10_odds: Quantity
    directions: Quantity


@dataclass(frozen=True)
class Escape:
    """Odds of two basins and of leaving them: diffusion, barrier and their ratio (Dai & Zhu 2018).

    D = eta tr(Sigma) / (2 (1 - m) B n) from `noise`, the rise of the loss on the straight line from `path`, and the
    exponent rise / D of each.  The exponent is not an escape time: that would need isotropic noise and a saddle with
    one direction down.  Odds: sqrt(det H_1 / det H_0) over the k largest eigenvalues of both, for equal losses,
    quadratic basins and isotropic noise; independent of rate and batch size.
    """

    name: ClassVar[str] = "escape"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 2
    incidental: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("noise", "eigenvalues", "path")

    k: Annotated[int, "eigenvalues that the odds are over; 0 takes as many as `eigenvalues` finds"] = 0

    def passes(self, problem: "Problem") -> dict[str, float]:
        """Return about how many passes over the data the results take that this is made of."""
        from collections import Counter

        from gapscope.measure.analyzers.eigenvalues import Eigenvalues
        from gapscope.measure.analyzers.noise import Noise
        from gapscope.measure.analyzers.path import Path

        found: Counter[str] = Counter()
        for one in (Noise(), Noise(), Eigenvalues(), Eigenvalues(), Path()):
            found.update(one.passes(problem))
        return dict(found)

    def __call__(self, context: "Context") -> EscapeResult:
        """Take noise and eigenvalues of both and the path between them, measuring what is not there yet."""
        from gapscope.errors import UsageError

        if self.k < 0:
            raise UsageError(f"escape got k={self.k}. Expected 0 or more eigenvalues. Mend `--k`.")
        path: Any = context.run("path")
        noise: list[Any] = [context.result("noise", which) for which in (0, 1)]
        spectra = [self._eigenvalues(context, which) for which in (0, 1)]
        known = all(one.diffusion is not None and float(one.diffusion.value) > 0 for one in noise)
        statuses = [path.status, *(one.status for one in (*noise, *spectra))]
        return EscapeResult(
            status=_worst(statuses),
            matvecs=sum(
                one.matvecs for one in spectra if one not in (context.finished("eigenvalues", w) for w in (0, 1))
            ),
            notes=self._notes(noise, known),
            exponent=_exponent(path.rise, [one.diffusion for one in noise]) if known else None,
            rise=replace(path.rise, drawn="numbers"),
            rate_over_batch=_both([one.rate_over_batch for one in noise]) if known else None,
            diffusion=_both([one.diffusion for one in noise]) if known else None,
            **_odds(spectra, self.k),
        )

    def _eigenvalues(self, context: "Context", which: int) -> Any:
        """Return the result of the run, or one with as many eigenvalues as were asked for."""
        single = context.singles[which]
        analyzer: Any = single.analyzers["eigenvalues"]
        plain = replace(analyzer, gauss_newton=False, preconditioned=False, k=max(self.k, analyzer.k))
        if plain == analyzer:
            return context.result("eigenvalues", which)
        return plain(single)  # of the Hessian itself: its determinants are asked for

    def _notes(self, noise: list[Any], known: bool) -> tuple[str, ...]:
        if known:
            return (
                f"exponent = rise / D: {NOT_A_TIME}, and the Hessian has zero and negative eigenvalues; on a real "
                "network it was 4e5, and leaving takes other ways than over this line",
                "odds: at equal losses, over the stated directions alone, with quadratic basins; no probability that "
                "training ends in either",
            )
        which = " and ".join(
            f"the {('first', 'second')[i]} checkpoint" for i, one in enumerate(noise) if one.diffusion is None
        )
        reasons = [note for one in noise for note in one.notes if "diffusion" in note]
        return (f"no exponent: {which or 'a checkpoint'} has no diffusion constant", *dict.fromkeys(reasons))


def _worst(statuses: list[Status]) -> Status:
    for status in (Status.NONFINITE, Status.BUDGET_SPENT):
        if status in statuses:
            return status
    return Status.CONVERGED


def _both(each: list[Quantity]) -> Quantity:
    """Gather a number of both subjects; an error that one lacks is unknown for both."""

    def gathered(errors: list[Array | None]) -> Any:
        known = [float(error) for error in errors if error is not None]
        return np.array(known) if len(known) == len(errors) else None

    return replace(
        each[0],
        value=np.array([float(one.value) for one in each]),
        numerical_error=gathered([one.numerical_error for one in each]),
        sampling_error=gathered([one.sampling_error for one in each]),
        chunks=None,
        contrast="difference",
        **SUBJECTS,
    )


def _exponent(rise: Quantity, diffusion: list[Quantity]) -> Quantity:
    """Return rise / D by subject; their errors add up: samples that make D large may make the rise small."""
    d = np.array([float(one.value) for one in diffusion])
    value = rise.value / d

    def spread(kind: str) -> Any:
        own = getattr(rise, kind)
        others = [getattr(one, kind) for one in diffusion]
        if own is None and all(other is None for other in others):
            return None
        parts = np.array([0.0 if other is None else float(other) for other in others])
        return (0.0 if own is None else own) / d + np.abs(value) * parts / d

    return Quantity(
        value=value,
        numerical_error=spread("numerical_error"),
        sampling_error=spread("sampling_error"),
        bound="lower",
        contrast="difference",
        doc=f"rise of the loss on the way to the other checkpoint over D of its own training; {NOT_A_TIME}; a lower "
        "bound as the rise is one over a grid, an upper one as other ways may be lower",
        **SUBJECTS,
    )


def _odds(spectra: list[Any], k: int) -> dict[str, Any]:
    """Return log10 sqrt(det H_1 / det H_0) over the largest eigenvalues that both have, if they are positive."""
    most = min(len(one.values.value) for one in spectra)
    most = min(k or most, most)
    values = [one.values.value[:most] for one in spectra]
    errors = [
        np.zeros(most) if one.values.numerical_error is None else one.values.numerical_error[:most] for one in spectra
    ]
    usable = int(min((v > 0).cumprod().sum() for v in values))
    logs = [0.5 * float(np.log10(v[:usable]).sum()) for v in values]
    slopes = [0.5 / np.log(10) * float((e[:usable] / v[:usable]).sum()) for v, e in zip(values, errors, strict=True)]
    return {
        "log10_odds": Quantity(
            value=scalar(logs[1] - logs[0] if usable else float("nan")),
            numerical_error=np.asarray(sum(slopes)) if usable else None,
            contrast="difference",
            doc="log10 of P_0 / P_1 = sqrt(det H_1 / det H_0), above 0 where the first basin is the flatter; over the "
            "stated directions, at equal losses",
        ),
        "directions": Quantity(value=scalar(usable), doc="largest eigenvalues that the odds are over: both positive"),
    }
