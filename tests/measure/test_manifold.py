import numpy as np
import pytest
import torch

from gapscope.measure.manifold import RandomManifold

CPU = torch.device("cpu")


def dense(matrix):
    return torch.stack([matrix.lift(e) for e in torch.eye(matrix.dimension, dtype=matrix.dtype)], dim=1)


@pytest.mark.parametrize("keep", [0, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_project_is_the_transpose_of_lift(dtype, keep):
    matrix = RandomManifold(200, 7, 3, CPU, dtype, keep)
    g = torch.randn(200, dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert torch.allclose(matrix.project(g), dense(matrix).T @ g, rtol=100 * eps, atol=100 * eps)


def test_coordinates_are_the_pseudo_inverse_times_x():
    matrix = RandomManifold(50, 6, 0, CPU, torch.float64)
    x = torch.randn(50, dtype=torch.float64)
    expected = np.linalg.pinv(dense(matrix).numpy()) @ x.numpy()
    assert np.allclose(matrix.coordinates(x).numpy(), expected, rtol=1e-10, atol=1e-12)


def test_coordinates_invert_lift():
    matrix = RandomManifold(50, 6, 0, CPU, torch.float64)
    y = torch.randn(6, dtype=torch.float64)
    assert torch.allclose(matrix.coordinates(matrix.lift(y)), y, rtol=1e-10)


def test_kept_drawn_again_and_every_precision_are_one_matrix():
    size = 65_536 + 100  # two blocks of rows
    a, b = (RandomManifold(size, 3, 5, CPU, torch.float32, keep) for keep in (0, 10**9))
    assert torch.equal(dense(a), dense(b))
    assert torch.equal(dense(a), dense(a))
    assert torch.equal(dense(a).double(), dense(RandomManifold(size, 3, 5, CPU, torch.float64)))
    assert a._kept is None
    assert b._kept is not None
    assert dense(a).shape == (size, 3)
    g = torch.randn(size)
    assert torch.allclose(a.project(g), dense(a).T @ g, rtol=1e-4, atol=1e-2)


def test_entries_are_standard_normal_and_seeds_are_independent():
    entries, others = (dense(RandomManifold(4000, 10, seed, CPU, torch.float64)).flatten() for seed in (0, 1))
    count = len(entries)
    assert abs(float(entries.mean())) < 5 / count**0.5
    assert abs(float(entries.square().mean()) - 1) < 5 * (2 / count) ** 0.5
    assert abs(float((entries * others).mean())) < 5 / count**0.5
