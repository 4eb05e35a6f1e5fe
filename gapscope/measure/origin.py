"""Where a problem comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from gapscope.measure.loading.datasets.data import Data
    from gapscope.measure.problem import Problem


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where a problem comes from: what its checkpoint is called and recorded, and the problem on its other split."""

    split: str = "train"
    identity: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)  # untrusted: whatever the checkpoint recorded
    initial: Mapping[str, Tensor] | None = None  # the state_dict before training
    optimizer: Mapping[str, Any] | None = None  # the optimizer's state_dict
    limit_seed: int = 0
    other: "Problem | None" = None
    train: "Data | None" = None  # the training data, where these are others
