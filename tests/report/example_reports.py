"""Reports to test with: plausible numbers, prescribed where a test needs them."""

import hashlib
from dataclasses import replace

import numpy as np

from gapscope.report.comparison import compare
from gapscope.report.records import Record, Report
from gapscope.results import CHUNKS, Quantity, Status


def chunked(value, *, seed=0, spread=0.1, common=0.5):
    """Per-chunk values with mean `value`; the same seed shares the luck of the data."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(CHUNKS, *np.shape(value)))
    own = np.random.default_rng(abs(hash(float(np.sum(value)))) % 2**32).normal(size=noise.shape)
    noise = common * (noise - noise.mean(axis=0)) + (1 - common) * (own - own.mean(axis=0))
    return np.asarray(value) * (1 + spread * noise)


def eigenvalues(top=0.154, *, status=Status.CONVERGED, gradient_norm=1e-4, bottom=-1e-4, chunks=True, **settings):
    rank = {"rank": ("1", "2")}
    return Record(
        analyzer="eigenvalues",
        version="1",
        status=status,
        matvecs=17,
        seconds=1.5,
        notes=("two notes", "with ± signs"),
        settings={"k": 1, "seed": 0, "tolerance": 1e-3, **settings},
        quantities={
            "top": Quantity(
                value=top,
                doc="largest eigenvalue of the Hessian",
                numerical_error=1e-6,
                sampling_error=0.07 * top,
                bound="lower",
                better="lower",
                higher_is="sharper",
                chunks=chunked(top) if chunks else None,
            ),
            "bottom": Quantity(value=bottom, doc="smallest eigenvalue", contrast="difference"),
            "values": Quantity(value=[top, top / 2], doc="largest eigenvalues", dims=("rank",), labels=rank),
            "residuals": Quantity(value=[1e-7, np.nan], doc="recomputed residuals", dims=("rank",), labels=rank),
            "gradient_norm": Quantity(value=gradient_norm, doc="norm of the gradient"),
        },
    )


def epsilon_sharpness(scale=1.0, *, status=Status.CONVERGED):
    dims = ("solver", "epsilon")
    labels = {"solver": ("keskar", "ascent"), "epsilon": ("1e-3", "5e-4")}
    value = scale * np.array([[0.81, 0.21], [0.82, 0.22]])
    common = {"dims": dims, "labels": labels, "unit": "%", "better": "lower", "higher_is": "sharper", "bound": "lower"}
    return Record(
        analyzer="epsilon-sharpness",
        version="1",
        status=status,
        matvecs=0,
        seconds=2.25,
        settings={"epsilon": [1e-3, 5e-4]},
        quantities={
            "full": Quantity(
                value=value, sampling_error=value * 0.06, chunks=chunked(value), doc="metric 2.1, A = I", **common
            ),
            "manifold": Quantity(value=value / 10, sampling_error=value * 0.01, doc="metric 2.1, p = 100", **common),
        },
    )


def adaptive_sharpness(scale=1.0, *, average=None):
    labels = {"rho": ("0.1", "0.5")}
    average = scale if average is None else average
    common = {"dims": ("rho",), "labels": labels, "better": "lower", "higher_is": "sharper"}

    def quantity(value, doc):
        return Quantity(value=value, sampling_error=np.abs(value) * 0.03, doc=doc, **common)

    value = np.array([0.02, 0.3])
    return Record(
        analyzer="adaptive-sharpness",
        version="1",
        status=Status.CONVERGED,
        matvecs=20,
        seconds=1.1,
        settings={"rho": [0.1, 0.5]},
        quantities={
            "worst_l2": quantity(scale * value, "worst case in the l2 ball"),
            "worst_linf": quantity(scale * value * 3, "worst case in the cube"),
            "average": quantity(average * value / 9, "mean over Gaussian noise"),
            "sam": quantity(scale * value * 2, "worst case in an unscaled ball"),
        },
    )


def curvature(scale=1.0, *, layers=7, status=Status.CONVERGED):
    """Per-layer medians: drawn as a strip, named as in real networks, one layer far above the others."""
    names = tuple(f"transformer.h.{i // 2}.{('attn.c_attn', 'mlp.c_fc')[i % 2]}" for i in range(layers))
    value = (1 + np.arange(layers) % 4) * 0.01
    value[layers // 2] *= 40
    ratio = np.array([1 + (scale - 1) * i / max(layers - 1, 1) for i in range(layers)])
    common = {"dims": ("layer",), "labels": {"layer": names}}
    return Record(
        analyzer="curvature",
        version="1",
        status=status,
        matvecs=30,
        seconds=0.9,
        settings={"probes": 10},
        quantities={
            "median": Quantity(
                value=value * ratio,
                numerical_error=value * 0.1,
                doc="median of the curvature of a layer's parameters",
                better="lower",
                higher_is="sharper",
                drawn="strip",
                **common,
            ),
            "zeros": Quantity(value=np.arange(layers) / 100, doc="exact zeros", contrast="difference", **common),
            "probes": Quantity(value=10, doc="probes"),
        },
    )


def near_rank(loss=0, *, layers=("fc1", "fc2", "fc3")):
    count, index = len(layers), tuple(map(str, range(1, 11)))
    by_layer = {"layer": layers}
    counts = np.array([[47, 55], [9, 10], [30, 31]])[:count] - np.array([[loss, 0], [0, 0], [1, loss // 2]])[:count]
    each = {"dims": ("layer",), "labels": by_layer, "doc": "of each layer"}
    values = 10.0 ** (2 - np.arange(10) / 3) * (1 + np.arange(count)[:, None])
    return Record(
        analyzer="near-rank",
        version="1",
        status=Status.EXACT,
        seconds=0.2,
        settings={"cuts": ["rel:1e-2", "rel:1e-3"]},
        quantities={
            "near_rank": Quantity(
                value=counts,
                doc="singular values above the cut",
                contrast="difference",
                dims=("layer", "cut"),
                labels={**by_layer, "cut": ("rel:1e-2", "rel:1e-3")},
            ),
            "effective_rank": Quantity(value=[19.45, 7.297, 12.1][:count], **each),
            "condition": Quantity(value=[np.inf, 187.5, 31.02][:count], **each),
            "participation_ratio": Quantity(value=[2.828, 3.763, 3.1][:count], **each),
            "numerical_rank": Quantity(value=[60.0, 10, 31][:count], contrast="difference", **each),
            "dead_units": Quantity(value=[0.04688, 0, 0.1][:count], contrast="difference", **each),
            "units": Quantity(value=[64.0, 10, 32][:count], contrast="difference", **each),
            "columns": Quantity(value=[1300.0, 1300, 1300][:count], contrast="difference", **each),
            "singular_values": Quantity(
                value=values, doc="largest first", dims=("layer", "index"), labels={**by_layer, "index": index}
            ),
        },
    )


def density(points=201):
    grid = np.linspace(-0.05, 0.95, points)
    value = 40 * np.exp(-((grid / 0.02) ** 2)) + 0.01 * np.exp(-(((grid - 0.85) / 0.02) ** 2))
    labels = {"grid": tuple(f"{t:.6g}" for t in grid)}
    return Record(
        analyzer="density",
        version="1",
        status=Status.CONVERGED,
        matvecs=240,
        seconds=0.7,
        settings={"points": points},
        quantities={
            "density": Quantity(
                value=value, numerical_error=value / 50, doc="density", dims=("grid",), labels=labels, drawn="bars"
            ),
            "mass_near_zero": Quantity(value=0.984, numerical_error=0.008, doc="share near zero"),
        },
    )


def gap(train_loss=0.0121, *, wrong=range(35), samples=497):
    correct = np.ones(samples, np.uint8)
    correct[list(wrong)] = 0
    rate = 100 * correct.mean()
    loss = {"better": "lower", "contrast": "ratio"}
    accuracy = {"better": "higher", "contrast": "difference", "unit": "%"}
    return Record(
        analyzer="gap",
        version="1",
        status=Status.EXACT,
        seconds=0.4,
        settings={},
        quantities={
            "train_loss": Quantity(value=train_loss, sampling_error=0.05 * train_loss, doc="mean loss", **loss),
            "test_loss": Quantity(value=0.31, sampling_error=0.03, doc="mean loss on the test data", **loss),
            "train_accuracy": Quantity(value=100.0, sampling_error=0.0, doc="correct on train", **accuracy),
            "test_accuracy": Quantity(
                value=rate, sampling_error=1.1, doc="correct on test", samples=correct, **accuracy
            ),
            "accuracy_gap": Quantity(
                value=100 - rate,
                sampling_error=1.1,
                doc="train minus test accuracy",
                better="lower",
                contrast="difference",
                unit="points",
            ),
        },
    )


def path(barrier=0.4, *, error=0.02, points=11):
    steps = np.linspace(0, 1, points)
    axis = {"dims": ("t",), "labels": {"t": tuple(f"{t:.3g}" for t in steps)}, "drawn": "line"}
    return Record(
        analyzer="path",
        version="1",
        status=Status.EXACT,
        seconds=0.7,
        settings={"points": points},
        quantities={
            "barrier": Quantity(value=barrier, sampling_error=error, doc="rise above both ends", contrast="difference"),
            "loss": Quantity(
                value=0.02 + 4 * barrier * steps * (1 - steps), doc="training loss along the line", **axis
            ),
        },
    )


def plane(points=9):
    steps = np.linspace(-1, 1, points)
    labels = {axis: tuple(f"{t:.3g}" for t in steps) for axis in ("y", "x")}
    loss = np.exp(4 * (steps[:, None] ** 2 + steps[None] ** 2)) / 100
    loss[0, 0] = np.nan
    return Record(
        analyzer="plane",
        version="1",
        status=Status.EXACT,
        seconds=1.7,
        settings={"points": points},
        quantities={
            "loss": Quantity(value=loss, doc="training loss on the plane", drawn="map", dims=("y", "x"), labels=labels)
        },
    )


def report(*records, batch_size=32, checkpoint="small.pt", **conditions):
    records = records or (eigenvalues(), epsilon_sharpness(), gap())
    return Report(
        identity={
            "checkpoint": checkpoint,
            "sha256": hashlib.sha256(repr(checkpoint).encode()).hexdigest(),
            "model": "mlp 64-32-10",
            "parameters": 2410,
        },
        training={"batch_size": batch_size, "lr": 0.1, "optimizer": "sgd", "nesterov": False} if batch_size else {},
        conditions={
            "data": "digits",
            "data_fingerprint": "cd" * 32,
            "split": "train",
            "samples": 1300,
            "loss": "cross-entropy",
            "batchnorm": "eval",
            "dtype": "float32",
            **conditions,
        },
        environment={"gapscope": "0.1.0", "device": "cpu", "threads": 1, "created": "2026-01-01T00:00:00+00:00"},
        results={record.analyzer: record for record in records},
    )


def large(*records, **given):
    records = records or (eigenvalues(0.246), epsilon_sharpness(0.93), gap(0.0124, wrong=range(5, 46)))
    return report(*records, **{"batch_size": 650, "checkpoint": "large.pt", **given})


def with_quantity(record, **quantities):
    return replace(record, quantities=quantities)


def together(*records, **changes):
    """A comparison with results of its subjects together."""
    results = {record.analyzer: record for record in records or (path(), plane())}
    return replace(compare([report(), large()]), results=results, environment={"device": "cpu"}, **changes)
