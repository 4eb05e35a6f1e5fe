"""The edge of stability is where torch's own SGD begins to diverge on a quadratic."""

import numpy as np
import pytest
import torch

from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.edge import formula, sgd_edge
from tests.problems import bowl, measure

RECIPES = [
    {},
    {"dampening": 0.5},  # of no momentum: torch ignores it
    {"momentum": 0.9},
    {"momentum": 0.5, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.3, "nesterov": True},
]


def end_of(share, recipe):
    """Return |theta| after many steps of torch's SGD on theta^2 / 2, from 1, at this share of the edge."""
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=share * sgd_edge(recipe), **recipe)
    for _ in range(3000):
        optimizer.zero_grad()
        (theta.square().sum() / 2).backward()
        optimizer.step()
    return abs(float(theta.detach()))


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_sgd_diverges_above_the_edge_and_not_below(recipe):
    assert end_of(0.99, recipe) < 0.1
    assert end_of(1.01, recipe) > 10


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_eigenvalues_and_noise_are_held_against_it(recipe):
    # samples on either side of the minimum: gradients that differ
    shifts = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]], dtype=torch.float64)
    given = bowl(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), shifts=shifts)
    training = {"optimizer": "sgd", "lr": 0.1, "batch_size": 2, **recipe}
    stability = measure(Eigenvalues(), given, training=training).stability
    assert stability.value == pytest.approx(0.1 / sgd_edge(recipe))
    assert formula(recipe) in stability.doc
    noise = measure(Noise(nonuniformity="no"), given, training=training)
    assert noise.sharpness_limit.value == pytest.approx(sgd_edge(recipe) / 0.1)
    # the steps of a constant gradient add up to rate x (1 - dampening) / (1 - momentum) of it
    theta = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([theta], lr=0.1, **recipe)
    before = 0.0
    for _ in range(400):
        before = float(theta.detach())
        theta.grad = torch.ones(1)
        optimizer.step()
    assert noise.rate_over_batch.value == pytest.approx((before - float(theta.detach())) / 2, rel=1e-3)


@pytest.mark.parametrize(
    "nonsense",
    [
        *({"momentum": value} for value in ("0.9", -1.0, 1.0, float("nan"))),
        *({"momentum": 0.9, "dampening": value} for value in ([], -0.5, 1.0)),
    ],
)
def test_nonsense_has_no_edge(nonsense):
    assert sgd_edge(nonsense) is None
    given = bowl(torch.ones(2), torch.zeros(2), theta=torch.ones(2))
    training = {"optimizer": "sgd", "lr": 0.1, "batch_size": 2, **nonsense}
    assert measure(Eigenvalues(), given, training=training).stability is None
    assert measure(Noise(nonuniformity="no"), given, training=training).sharpness_limit is None


def test_the_edge_is_a_root_of_the_matrix_of_a_step():
    for recipe in RECIPES:
        m, s = recipe.get("momentum", 0.0), sgd_edge(recipe)
        kept = 1 - recipe.get("dampening", 0.0) if m else 1.0
        # rows: theta and the buffer, of theta - eta b' and, with Nesterov, of theta - eta (g + m b')
        ahead = m if recipe.get("nesterov") else 0.0
        along = np.array([[1.0, 0.0], [kept, m]])
        step = np.array([[1 - s * (ahead * kept + 1), -s * ahead * m], along[1]]) if ahead else None
        step = step if ahead else np.array([[1 - s * kept, -s * m], along[1]])
        assert np.abs(np.linalg.eigvals(step)).max() == pytest.approx(1, abs=1e-9)
