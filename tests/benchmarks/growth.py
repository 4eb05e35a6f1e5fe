"""How the top eigenvalue's cost grows from the MLP with 2,000 samples, when one thing doubles at a time."""

import dataclasses
from typing import Any

from tests.benchmarks.one import Job
from tests.benchmarks.side_by_side import run

# the width at which the MLP has twice its 669,706 parameters
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "samples x 2": {"sizes": {"samples": 4000}},
    "parameters x 2": {"sizes": {"width": 826}},
    "layers x 2": {"sizes": {"depth": 4}},
    "k = 2": {"setting": 2.0},
    "k = 4": {"setting": 4.0},
    "batches of 32": {"batch": 32},
    "batches of 128": {"batch": 128},
    "batches of 512": {"batch": 512},
}


def growth_table(base: Job, python: str, at_once: int) -> list[dict[str, Any]]:
    """Return the figures of each variant, and what they are of the first's."""
    start = dataclasses.replace(base, task="growth", tool="gapscope", case="mlp", batch=None)
    rows = run([dataclasses.replace(start, **changes) for changes in VARIANTS.values()], python, at_once)
    first, table = rows[0], []
    for name, row in zip(VARIANTS, rows, strict=True):
        if row["failed"] or first["failed"]:
            table.append({"variant": name, "products": row["failed"]})
            continue
        table.append(
            {
                "variant": name,
                "products": f"{row['products']:.1f}",
                "gradient ms": f"{1000 * row['gradient seconds']:.0f}",
                "gradients": f"{row['gradients']:.1f}",
                "seconds": f"{row['seconds']:.2f}",
                "seconds over the first's": f"{row['seconds'] / first['seconds']:.2f}",
                "peak MB": f"{row['peak'] / 1e6:.0f}",
                "peak over the first's": f"{row['peak'] / max(first['peak'], 1):.2f}",
            }
        )
    return table
