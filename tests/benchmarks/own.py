"""What gapscope is asked, by its Python interface, checks and set-up included."""

from typing import Any

import torch

from tests.benchmarks.cases import Case
from tests.benchmarks.peers import TOP, Ask, Found


def problem(case: Case, batch: int | None) -> Any:
    """Return the problem; batches None: those that it chooses itself."""
    import gapscope

    return gapscope.problem(case.model, (case.inputs, case.targets), batch_size=batch)


def measured(case: Case, batch: int | None, seed: int, analyzer: Any) -> tuple[Any, Any]:
    """Return the record of an analyzer and its quantities."""
    import gapscope

    record = gapscope.measure(problem(case, batch), [analyzer], seed=seed).results[analyzer.name]
    return record, record.quantities


def _found(record: Any, value: Any) -> Found:
    return Found(value, record.status.name in ("CONVERGED", "EXACT"), record.matvecs)


def top(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the top eigenvalue."""
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.Eigenvalues(tolerance=setting))
    return _found(record, float(quantities["top"].value))


def top_in_bfloat16(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the top eigenvalue, searched with products in bfloat16."""
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.Eigenvalues(tolerance=setting, precision="bf16"))
    return _found(record, float(quantities["top"].value))


def top5(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the five largest."""
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.Eigenvalues(k=TOP, tolerance=setting))
    return _found(record, quantities["values"].value.tolist())


def trace(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the trace, alone as the others do."""
    return _trace(case, batch, seed, setting, frobenius=False)


def trace_and_norm(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the trace, measured together with the Frobenius norm: as by default."""
    return _trace(case, batch, seed, setting, frobenius=True)


def _trace(case: Case, batch: int | None, seed: int, setting: float, *, frobenius: bool) -> Found:
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.Trace(tolerance=setting, frobenius=frobenius))
    return _found(record, float(quantities["trace"].value))


def density(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the quadratures under the density, whose grid is broadened; of 2 probes, after the run taken out."""
    from gapscope.measure.checks import check
    from gapscope.measure.solvers.quadrature import spectral_density

    where = problem(case, batch)
    check(where, second_order=True)
    rng = torch.Generator().manual_seed(seed)
    found = spectral_density(where.hessian(), rng, probes=2, steps=int(setting))
    return Found((found.nodes.tolist(), found.weights.tolist()), None, found.matvecs)


def largest(case: Case, batch: int | None, seed: int, setting: float) -> Found:
    """Return the k-th largest eigenvalue of k = `setting`."""
    import gapscope

    record, quantities = measured(case, batch, seed, gapscope.Eigenvalues(k=int(setting)))
    return _found(record, float(quantities["values"].value[-1]))


GROWTH = {"gapscope": Ask(largest, (1.0,), "k")}
OWN: dict[str, dict[str, Ask]] = {
    "top": {
        "gapscope": Ask(top, (1e-3,), "tolerance"),
        "gapscope, loosest": Ask(top, (1e-1, 3e-2, 1e-2, 3e-3, 1e-3), "tolerance"),
        "gapscope, bfloat16": Ask(top_in_bfloat16, (1e-1, 3e-2, 1e-2), "tolerance"),
    },
    "top5": {
        "gapscope": Ask(top5, (1e-3,), "tolerance"),
        "gapscope, loosest": Ask(top5, (1e-1, 3e-2, 1e-2, 3e-3, 1e-3), "tolerance"),
    },
    "trace": {
        "gapscope": Ask(trace, (5e-2,), "tolerance"),
        "gapscope, and Frobenius norm": Ask(trace_and_norm, (5e-2,), "tolerance"),
    },
    # the MLP over 5 seeds: 0.26 to 0.41, of 12 steps 0.65 to 1.15; plain 4 probes of 20 steps, as peers': 0.51 to 0.55
    "density": {"gapscope": Ask(density, (15.0,), "steps", rule=False)},
}
