"""Made-up measurements of a network, for what is computed from them."""

from pathlib import Path

import numpy as np

from gapscope.training.studies.lab import Run
from gapscope.training.studies.oyedotun.ranks import Found, Measure
from gapscope.training.studies.oyedotun.runs import Network, Trained

SIZES = (16, 64, 256)


def found(own, same=None, control=None, accuracy=None, *, name="MLP", sizes=SIZES, steps=0.0):
    """Return a network of which only what is given was measured: (seeds, sizes, layers), accuracy (seeds, sizes)."""
    own = np.asarray(own, dtype=float)
    same = own if same is None else np.asarray(same, dtype=float)
    control = np.full(own.shape, 100.0) if control is None else np.asarray(control, dtype=float)
    seeds, _, layers = own.shape
    network = Network(name=name, model="mlp", data="digits", lr=0.1, until_loss=0.1, sizes=sizes)

    def run(seed, size):
        spec = network.spec(size, seed, momentum=0.0, max_epochs=9)
        return Run(spec=spec, path=Path(f"{name}-{size}-{seed}.pt"), epochs=size, steps=9, train_loss=0.1, stopped="")

    grid = tuple(tuple(run(seed, size) for size in sizes) for seed in range(seeds))

    def measure(title, values):
        return Measure(name=title, layers=values, steps=np.full(values.shape[1:], steps))

    return Found(
        trained=Trained(network=network, loss=grid, epochs=grid),
        layers=tuple(f"fc{i + 1}" for i in range(layers)),
        own=(measure("own, abs:1e-1", own),),
        same=(measure("same, rel:1e-2", same),),
        control=(measure("control, abs:1e-1", control),),
        at_epochs=(measure("own, equal epochs", own), measure("same, equal epochs", same)),
        without_cut=(measure("stable rank", same),),
        loss=np.full((seeds, len(sizes)), 0.1),
        accuracy=np.full((seeds, len(sizes)), 90.0) if accuracy is None else np.asarray(accuracy, dtype=float),
    )


def falling(slopes, *, start=100.0, sizes=SIZES):
    """Return shares that change by so much per doubling of the batch size: slopes (seeds, layers)."""
    doublings = np.log2(sizes) - np.log2(sizes[0])
    return start + doublings[None, :, None] * np.asarray(slopes, dtype=float)[:, None, :]
