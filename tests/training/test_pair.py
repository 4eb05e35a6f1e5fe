import hashlib
from pathlib import Path

import pytest

from gapscope.measure.loading import Trust, infer_loss, load_data, read_checkpoint
from gapscope.measure.loading.networks import NETWORKS
from gapscope.training.looking import mean_loss
from gapscope.training.pair import LARGE, MODEL, MODEL_ARGS, REGIMES, equal_epochs, make

FIXTURES = Path(__file__).parents[2] / "fixtures"


def loss_of(path):
    data = load_data("digits", "train", recorded=False, trust=Trust())
    model = NETWORKS[MODEL](**MODEL_ARGS)
    model.load_state_dict(read_checkpoint(path, Trust()).tensors["model"])
    return mean_loss(model, data, infer_loss(data.targets))


def test_the_fixtures_are_the_files_of_the_digests():
    listed = [line.split() for line in (FIXTURES / "digests.txt").read_text().splitlines()]
    assert [name for _, name in listed] == [f"{regime.name}.pt" for regime in REGIMES]
    for digest, name in listed:
        content = (FIXTURES / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert len(content) < 200_000


def test_the_fixtures_stand_at_the_same_training_loss_from_one_start():
    paths = [FIXTURES / f"{regime.name}.pt" for regime in REGIMES]
    losses = [loss_of(path) for path in paths]
    assert max(losses) <= 0.02
    assert max(losses) / min(losses) < 1.05
    small, large = (read_checkpoint(path, Trust()) for path in paths)
    assert all((small.initial[name] == large.initial[name]).all() for name in small.initial)
    assert {key for key in small.training if small.training[key] != large.training.get(key)} == {
        "batch_size",
        "epochs",
        "steps",
        "train_loss",
    }


def test_a_fixture_made_again_ends_at_the_same_loss(tmp_path):
    regime = REGIMES[0]
    trained = make(regime.recipe, tmp_path / "again.pt")
    recorded = read_checkpoint(FIXTURES / f"{regime.name}.pt", Trust()).training
    assert trained.train_loss == pytest.approx(loss_of(tmp_path / "again.pt"), rel=1e-5)
    assert trained.train_loss == pytest.approx(recorded["train_loss"], rel=0.05)  # another processor rounds differently


def test_equal_epochs_stop_by_epochs_alone():
    recipe = equal_epochs(3)
    assert (recipe.epochs, recipe.until_loss, recipe.batch_size) == (3, None, LARGE.batch_size)
    assert equal_epochs(0).epochs == 1
