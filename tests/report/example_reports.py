"""Reports to test with: plausible numbers, prescribed where a test needs them."""

from dataclasses import replace

import numpy as np

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


def report(*records, batch_size=32, checkpoint="small.pt", **conditions):
    records = records or (eigenvalues(), epsilon_sharpness(), gap())
    return Report(
        identity={"checkpoint": checkpoint, "sha256": "ab" * 32, "model": "mlp 64-32-10", "parameters": 2410},
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
