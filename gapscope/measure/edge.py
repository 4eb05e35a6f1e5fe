"""Where full-batch SGD with momentum becomes unstable on a quadratic: the edge that eigenvalues are held against."""

from collections.abc import Mapping
from typing import Any


def sgd_edge(training: Mapping[str, Any]) -> float | None:
    """Return eta lambda at the edge of stability of torch's SGD, None where what is recorded is nonsense.

    Its step is b <- m b + (1 - d) g, theta <- theta - eta b, or with Nesterov theta - eta (g + m b).  On a quadratic of
    curvature lambda, with s = eta lambda, the matrix of a step has the determinant m and the trace 1 + m - (1 - d) s,
    with Nesterov m (1 - s) and 1 + m - (1 + m) s; an eigenvalue passes -1 where 1 + trace + determinant = 0:

        s = (2 + 2 m) / (1 - d),    with Nesterov s = (2 + 2 m) / (1 + 2 m),    without momentum s = 2.
    """
    momentum, dampening = (0.0 if training.get(key) is None else training[key] for key in ("momentum", "dampening"))
    if not isinstance(momentum, int | float) or not isinstance(dampening, int | float):
        return None
    if not 0 <= momentum < 1 or not 0 <= dampening < 1:
        return None
    if not momentum:
        return 2.0  # torch keeps no buffer then
    if training.get("nesterov") in (True, 1):
        return (2 + 2 * momentum) / (1 + 2 * momentum)
    return (2 + 2 * momentum) / (1 - dampening)


def formula(training: Mapping[str, Any]) -> str:
    """Return how that is written; (2 + 2 momentum) without momentum, too."""
    if training.get("momentum") and training.get("nesterov") in (True, 1):
        return "(2 + 2 momentum) / (1 + 2 momentum)"
    damped = training.get("momentum") and training.get("dampening")
    return "(2 + 2 momentum) / (1 - dampening)" if damped else "(2 + 2 momentum)"
