"""What an analyzer returns: the contract between the measuring half and the reporting half (numpy only).

A `Result` is a frozen dataclass whose fields of type `Quantity` are what was measured, in order of importance:
the first is the headline.  Nothing here knows what any particular quantity means, and neither does the file
format, the comparison or any renderer: all they need stands in the `Quantity`.
"""

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CHUNKS = 32
"""Samples are dealt into this many chunks; per-chunk values give paired comparisons their standard error."""

Bound = Literal["none", "lower", "upper"]
Contrast = Literal["ratio", "difference"]
Better = Literal["lower", "higher", "none"]
Drawn = Literal["numbers", "detail", "line", "bars", "strip", "map"]
Array = NDArray[np.float64]


def scalar(value: float) -> Array:
    """Return a number as an array of shape ()."""
    return np.asarray(value, dtype=np.float64)


ROUNDING = 1e-5  # relative, of an iteration in float32: a bound is one up to this


class Status(enum.Enum):
    """How a measurement ended.  The name goes into files, the value is the sentence that people read."""

    EXACT = "computed in full: no iteration, only rounding error"
    CONVERGED = "converged to the requested tolerance"
    BUDGET_SPENT = "stopped at the budget before it reached the tolerance: only the stated errors and bounds hold"
    NOISE_DOMINATED = "the probes' noise is larger than what they measure: more probes will lower the values"
    BREAKDOWN = "the Krylov space closed early: the values are exact, multiplicities are not resolved"
    NONFINITE = "a value became NaN or infinite: nothing can be concluded"
    NO_TEST_DATA = "no test data were given: train values only (name some with --test-data)"
    SKIPPED = "not measured, for the reason noted"


@dataclass(frozen=True, kw_only=True, repr=False)
class Quantity:
    """One named number or array, with everything needed to show, compare and judge it.

    Arrays have the shape of `dims`; `labels[dim]` names the entries along a dimension.
    `numerical_error` shrinks with more work on the same data, `sampling_error` (a standard error) with more data only.
    `chunks` (CHUNKS, *shape) are values on disjoint parts of the data, for paired comparisons; their mean, weighted
    by chunk size, estimates `value`.  `samples` (N,) are 0/1 outcomes per sample, for paired tests of a rate.
    `higher_is` is the word for the subject with the larger value, for example "sharper".
    `drawn` is how it is best seen: as numbers, as a detail (numbers that only a thorough reader asks for), an array
    as a line or bars along its last dimension, a strip with one cell per entry, or a map of its last two dimensions.
    """

    value: Array
    doc: str
    numerical_error: Array | None = None
    sampling_error: Array | None = None
    bound: Bound = "none"
    contrast: Contrast = "ratio"
    better: Better = "none"
    higher_is: str = ""
    unit: str = ""
    drawn: Drawn = "numbers"
    dims: tuple[str, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    chunks: Array | None = None
    samples: NDArray[np.uint8] | None = None

    def __repr__(self) -> str:
        if self.dims:
            return f"Quantity({' x '.join(f'{len(self.labels[dim])} {dim}' for dim in self.dims)})"
        errors = [
            f"{word} error {float(error):.2g}"
            for word, error in (("sampling", self.sampling_error), ("numerical", self.numerical_error))
            if error is not None
        ]
        value = f"{float(self.value):.6g} {self.unit}".rstrip()
        return f"Quantity({', '.join([value, *errors])})"

    def __post_init__(self) -> None:
        for name in ("value", "numerical_error", "sampling_error", "chunks"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, np.asarray(given, dtype=np.float64))
        shape = tuple(len(self.labels[dim]) for dim in self.dims)
        if self.value.shape != shape:
            raise ValueError(f"value has shape {self.value.shape}; its dims {self.dims} and labels say {shape}")
        for name, expected in (("numerical_error", shape), ("sampling_error", shape), ("chunks", (CHUNKS, *shape))):
            given = getattr(self, name)
            if given is not None and given.shape != expected:
                raise ValueError(f"{name} has shape {given.shape}; expected {expected}")


def one_sided(side: Bound, values: Any, inexact: float) -> Bound:
    """Return the bound of values that a Krylov space gives from one side, of an operator that is off by `inexact`.

    That goes to both sides: where it is more than `ROUNDING` of a value, the values are no bounds.
    """
    return side if np.all(inexact <= ROUNDING * np.abs(values)) else "none"


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of every analyzer's result; subclasses declare fields of type `Quantity` (or `Quantity | None`).

    `hvp`: how second derivatives were taken, where any were.
    """

    status: Status
    matvecs: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    hvp: Literal["exact", "differences"] = "exact"

    def quantities(self) -> dict[str, Quantity]:
        """Return the declared quantities by name, in order of declaration; absent ones are left out."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Quantity)}
