import numpy as np
import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.analyzers.near_rank import NearRank
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.datasets.data import load_data
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.trust import Trust
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.oyedotun.ranks import AsBatch, measure
from gapscope.training.studies.oyedotun.runs import network, train

USUAL = {"data": "digits", "lr": 0.1, "until_loss": 1.0}
OWN, SAME = ("abs:1e-1", "abs:1"), ("rel:1e-2", "rel:1e-3")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("ranks") / "runs", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def trained(lab):
    one = network("mlp", {"model": "mlp", "model_args": {"hidden": [12, 9]}}, USUAL, (65, 325), lab)
    return train(lab, [one], seeds=2, momentum=0.5, max_epochs=200)


@pytest.fixture(scope="module")
def found(lab, trained):
    return measure(lab, trained, samples=64, own_cuts=OWN, same_cuts=SAME)[0]


def hidden(run, samples=None):
    """Return the activation matrices of a checkpoint, units x columns in float64, computed without the analyzer."""
    model = build_model(run.spec.model, dict(run.spec.model_args), recorded=False, trust=Trust())[0]
    model.load_state_dict(read_checkpoint(run.path, Trust()).tensors["model"])
    x = load_data("digits", "train", recorded=False, trust=Trust()).inputs
    if samples is not None:
        x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:samples].sort().values]
    with torch.no_grad():
        first = model.relu1(model.fc1(x))
        second = model.relu2(model.fc2(first))
    return [matrix.T.double().numpy() for matrix in (first, second)]


def share(matrix, cut):
    values = np.linalg.svd(matrix, compute_uv=False)
    kind, _, number = cut.partition(":")
    threshold = float(number) * (values[0] if kind == "rel" else 1)
    return 100 * np.sum(values > threshold) / min(matrix.shape)


def test_shares_are_those_of_the_checkpoints_activations(found, trained):
    assert found.layers == ("fc1", "fc2")
    for seed, row in enumerate(trained[0].loss):
        for size, run in enumerate(row):
            batch = run.spec.recipe.batch_size
            for cut, name in enumerate(OWN):
                expected = [share(matrix, name) for matrix in hidden(run, batch)]
                np.testing.assert_allclose(found.own[cut].layers[seed, size], expected, rtol=1e-12)
            for cut, name in enumerate(SAME):
                expected = [share(matrix, name) for matrix in hidden(run)]
                np.testing.assert_allclose(found.same[cut].layers[seed, size], expected, rtol=1e-12)


def test_the_control_is_the_smallest_batchs_network_on_other_numbers_of_samples(found, trained):
    for seed, row in enumerate(trained[0].loss):
        for size, batch in enumerate((65, 325)):
            expected = [share(matrix, OWN[0]) for matrix in hidden(row[0], batch)]
            np.testing.assert_allclose(found.control[0].layers[seed, size], expected, rtol=1e-12)
    np.testing.assert_array_equal(found.control[0].layers[:, 0], found.own[0].layers[:, 0])


def test_one_singular_value_more_is_one_step(found):
    most = np.array([[12.0, 9.0]] * 2)
    np.testing.assert_allclose(found.own[0].steps, 100 / most, rtol=1e-12)
    counts = found.own[0].layers / found.own[0].steps
    np.testing.assert_allclose(counts, counts.round(), rtol=0, atol=1e-9)


def test_equal_epochs_are_other_runs_than_equal_loss(found, trained):
    for seed, row in enumerate(trained[0].epochs):
        expected = [share(matrix, SAME[0]) for matrix in hidden(row[1])]
        np.testing.assert_allclose(found.at_epochs[1].layers[seed, 1], expected, rtol=1e-12)
    np.testing.assert_allclose(found.loss[:, 0], [row[0].train_loss for row in trained[0].loss], rtol=1e-6)


def test_as_its_own_batch_it_is_the_own_batch_mode(lab, trained):
    run = trained[0].loss[0][1]
    own, as_batch = (
        lab.measure([run], (one,))[0].results["near-rank"].quantities["near_rank"].value
        for one in (NearRank(cuts=OWN, own_batch=True), AsBatch(cuts=OWN, own_batch=True, as_batch=325))
    )
    np.testing.assert_array_equal(own, as_batch)


def test_a_network_without_hidden_layers_is_refused(lab):
    one = network("flat", {"model": "mlp", "model_args": {"hidden": []}}, USUAL, (65, 325), lab)
    trained = train(lab, [one], seeds=1, momentum=0.5, max_epochs=200)
    with pytest.raises(
        UsageError, match=r"The network `flat` has one layer, its output\. Expected hidden layers, for "
    ):
        measure(lab, trained, samples=64, own_cuts=OWN, same_cuts=SAME)
