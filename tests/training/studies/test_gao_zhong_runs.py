"""What is left out and why, and slopes over doublings."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from gapscope.training.studies.gao_zhong.runs import Bench, over_seeds, per_doubling, told
from gapscope.training.studies.lab import Lab

EPS = np.finfo(np.float64).eps


def test_a_power_law_has_its_exponent_as_a_factor_per_doubling():
    sizes = (8, 32, 512)
    middle, (low, high) = per_doubling(sizes, np.array([[3 * b**-0.5 for b in sizes], [b**-0.25 for b in sizes]]))
    assert middle == pytest.approx(2**-0.375, rel=10 * EPS)
    assert low < middle < high


def test_one_size_or_a_value_that_is_not_positive_has_no_factor():
    for sizes, values in (((8,), [[1.0], [2.0]]), ((8, 16), [[1.0, 2.0], [1.0, -1.0]])):
        found = per_doubling(sizes, np.array(values))
        assert all(math.isnan(one) for one in (found[0], *found[1]))
        assert told(found) == "–"


def test_an_interval_stands_beside_its_number():
    assert told((538.1, (4.14e-5, 6.99e9))) == "538 (4.14e-5 to 6.99e9)"
    assert told((0.71, (0.69, 0.73))) == "0.71 (0.69 to 0.73)"


def test_one_seed_has_no_error():
    quantity = over_seeds(np.ones((1, 2)), "ones", {"batch size": ("1", "2")})
    assert np.isnan(quantity.sampling_error).all()
    several = over_seeds(np.array([[1.0, 2.0], [3.0, 2.0]]), "some", {"batch size": ("1", "2")})
    assert several.value.tolist() == [2.0, 2.0]
    assert several.sampling_error.tolist() == [1.0, 0.0]


def test_a_group_stands_with_all_of_its_seeds_or_not_at_all(tmp_path):
    plan = SimpleNamespace(model="mlp", model_args={"hidden": [4]}, data="digits")
    with Lab(tmp_path, device="cpu") as lab:
        bench = Bench(lab, plan, 1300, (130, 650))
        short = {"epochs": 1, "until_loss": 0.01}
        groups = {
            "sound": [bench.spec(0, 650, epochs=1)],
            "wild": [bench.spec(0, 130, epochs=2, lr=1e30), bench.spec(0, 650, epochs=1)],
            "slow": [bench.spec(0, 650, **short)],
        }
        kept, notes = bench.train(groups, "runs")
        assert set(kept) == {"sound", "slow"}
        assert notes == ("Left out: wild: 1 of 2 runs diverged.",)
        _, notes = bench.train(groups, "runs", until=0.01)
        assert notes[-1] == "Left out: slow: 1 of 1 runs did not come to the loss 0.01 in 1 epochs."
        assert bench.train({}, "nothing") == ({}, ())
