import math

import pytest
import torch
from torch import nn

from gapscope.training.optimizers.sngm import SNGM

EPS = torch.finfo(torch.float64).eps


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimizer, gradients):
    for one, values in gradients.items():
        one.grad = torch.tensor(values, dtype=torch.float64)
    optimizer.step()


def test_three_steps_by_hand():
    w = parameter(1.0, 2.0)
    optimizer = SNGM([w], 0.5, momentum=0.5)
    stepped(optimizer, {w: [3.0, 4.0]})  # u = (.6, .8)
    assert w.tolist() == pytest.approx([0.7, 1.6], rel=4 * EPS)
    stepped(optimizer, {w: [0.0, -7.0]})  # u = (.3, .4) + (0, -1) = (.3, -.6)
    assert w.tolist() == pytest.approx([0.55, 1.9], rel=4 * EPS)
    stepped(optimizer, {w: [-1e-3, 0.0]})  # u = (.15, -.3) + (-1, 0) = (-.85, -.3)
    assert w.tolist() == pytest.approx([0.975, 2.05], rel=4 * EPS)


def test_the_norm_is_one_over_all_groups_and_holds_the_weight_decay():
    v, w = parameter(2.0), parameter(1.0)
    optimizer = SNGM([{"params": [v]}, {"params": [w], "lr": 1.0, "weight_decay": 3.0}], 0.1, momentum=0.0)
    stepped(optimizer, {v: [3.0], w: [1.0]})  # g = (3, 1 + 3 * 1), |g| = 5
    assert v.tolist() == pytest.approx([2 - 0.1 * 3 / 5], rel=4 * EPS)
    assert w.tolist() == pytest.approx([1 - 4 / 5], rel=4 * EPS)
    assert v.grad.tolist() == [3.0]


def test_fused_steps_are_those_of_a_plain_loop():
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((3, 4), (4,), (), (2, 2, 2))]
    fused, plain = [nn.Parameter(one.clone()) for one in start], [one.clone() for one in start]
    optimizer, u = SNGM(fused, 0.1, momentum=0.8, weight_decay=0.05), [torch.zeros_like(one) for one in start]
    for _ in range(20):
        gradients = [torch.randn(one.shape, generator=rng, dtype=torch.float64) for one in start]
        for one, gradient in zip(fused, gradients, strict=True):
            one.grad = gradient.clone()
        optimizer.step()
        slopes = [g + 0.05 * w for g, w in zip(gradients, plain, strict=True)]
        length = math.sqrt(sum(float(g.square().sum()) for g in slopes))
        u = [0.8 * one + g / length for one, g in zip(u, slopes, strict=True)]
        plain = [w - 0.1 * one for w, one in zip(plain, u, strict=True)]
    for one, other in zip(fused, plain, strict=True):
        assert (one.detach() - other).abs().max() <= 100 * EPS


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_no_step_is_longer_than_its_bound_and_the_bound_is_reached(momentum):
    rng = torch.Generator().manual_seed(1)
    w, lr = nn.Parameter(torch.zeros(50, dtype=torch.float64)), 0.3
    optimizer, lengths = SNGM([w], lr, momentum=momentum), []
    same = torch.randn(50, generator=rng, dtype=torch.float64)
    for step in range(400):
        before = w.detach().clone()
        # wild lengths at random, then one direction
        w.grad = 10.0 ** (step % 13 - 6) * (torch.randn(50, generator=rng, dtype=torch.float64) if step < 100 else same)
        optimizer.step()
        lengths.append(float((w.detach() - before).norm()))
    bound = lr / (1 - momentum)
    assert max(lengths) <= bound * (1 + 100 * EPS)
    assert lengths[-1] == pytest.approx(bound, rel=1e-12)  # 0.9^300 is 2e-14


def test_a_zero_gradient_leaves_the_momentum_alone_and_nothing_without():
    w = parameter(1.0, 1.0)
    optimizer = SNGM([w], 0.1, momentum=0.5)
    stepped(optimizer, {w: [0.0, 0.0]})
    assert w.tolist() == [1.0, 1.0]
    stepped(optimizer, {w: [1.0, 0.0]})
    stepped(optimizer, {w: [0.0, 0.0]})
    assert w.tolist() == pytest.approx([1 - 0.1 - 0.05, 1.0], rel=4 * EPS)


def test_it_comes_as_near_to_a_minimum_as_its_steps_are_long():
    h = torch.logspace(0, 3, 20, dtype=torch.float64)
    for lr in (1e-2, 1e-3):
        w = nn.Parameter(torch.ones(20, dtype=torch.float64))
        optimizer = SNGM([w], lr, momentum=0.9)
        for _ in range(int(20 / lr)):
            w.grad = h * w.detach()
            optimizer.step()
        assert float(w.detach().norm()) <= 2 * lr / (1 - 0.9)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_gradients_whose_squares_leave_float32_give_the_same_step(size):
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0]) * size
    SNGM([weight], lr=1.0, momentum=0.0).step()
    assert weight.detach() == pytest.approx(torch.tensor([-0.6, -0.8]), rel=1e-6)
