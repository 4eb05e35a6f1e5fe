import math

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.training.optimizers.sam import SAM

EPS = torch.finfo(torch.float64).eps


def bowl(*weights, h=(1.0, 4.0), rho=0.5, **more):
    """Return w, SAM over SGD for L = sum_i h_i w_i^2 / 2, and its closure."""
    w, curvature = nn.Parameter(torch.tensor(weights, dtype=torch.float64)), torch.tensor(h, dtype=torch.float64)
    optimizer = SAM([w], torch.optim.SGD, rho=rho, **{"lr": 0.1, **more})

    def closure():
        optimizer.zero_grad()
        loss = (curvature * w.square()).sum() / 2
        loss.backward()
        return loss

    return w, optimizer, closure


def test_three_steps_by_hand():
    w, optimizer, closure = bowl(3.0, 1.0)
    a, b = 3.0, 1.0
    for _ in range(3):
        assert float(optimizer.step(closure).detach()) == pytest.approx((a * a + 4 * b * b) / 2, rel=16 * EPS)
        length = math.hypot(a, 4 * b)
        up = (a + 0.5 * a / length, b + 0.5 * 4 * b / length)
        a, b = a - 0.1 * up[0], b - 0.1 * 4 * up[1]
        assert w.tolist() == pytest.approx([a, b], rel=16 * EPS)


def test_in_two_halves_it_takes_the_same_step():
    w, optimizer, closure = bowl(3.0, 1.0, momentum=0.9)
    v, other, again = bowl(3.0, 1.0, momentum=0.9)
    for _ in range(3):
        optimizer.step(closure)
        again()
        other.ascend()
        again()
        other.step()
    assert torch.equal(w, v)


def test_without_a_radius_it_is_the_base_optimizer():
    w, optimizer, closure = bowl(3.0, 1.0, rho=0.0, momentum=0.9)
    v = nn.Parameter(torch.tensor([3.0, 1.0], dtype=torch.float64))
    base = torch.optim.SGD([v], lr=0.1, momentum=0.9)
    for _ in range(5):
        optimizer.step(closure)
        v.grad = torch.tensor([1.0, 4.0]) * v.detach()
        base.step()
    assert (w - v).abs().max() <= 32 * EPS


def test_the_norm_is_one_over_all_groups_each_with_its_radius():
    v, w = (nn.Parameter(torch.tensor([x], dtype=torch.float64)) for x in (1.0, 2.0))
    optimizer = SAM([{"params": [v]}, {"params": [w], "rho": 1.0}], torch.optim.SGD, rho=0.5, lr=0.1)
    v.grad, w.grad = (torch.tensor([x], dtype=torch.float64) for x in (3.0, 4.0))
    optimizer.ascend()
    assert [v.item(), w.item()] == pytest.approx([1 + 0.5 * 3 / 5, 2 + 4 / 5], rel=4 * EPS)
    optimizer.restore()
    assert [v.item(), w.item()] == [1.0, 2.0]
    optimizer.restore()
    assert [v.item(), w.item()] == [1.0, 2.0]


def test_a_second_ascent_starts_where_the_first_did():
    w, optimizer, _ = bowl(3.0, 1.0)
    v, once, _ = bowl(3.0, 1.0)
    w.grad = v.grad = torch.tensor([2.0, -1.0], dtype=torch.float64)
    optimizer.ascend()
    optimizer.ascend()
    once.ascend()
    assert torch.equal(w, v)
    optimizer.restore()
    assert w.tolist() == [3.0, 1.0]


def test_a_zero_gradient_moves_nothing():
    w, optimizer, closure = bowl(0.0, 0.0)
    optimizer.step(closure)
    assert w.tolist() == [0.0, 0.0]


def test_the_weights_come_back_if_the_second_gradient_fails():
    w, optimizer, closure = bowl(3.0, 1.0)
    calls = []

    def failing():
        calls.append(w.detach().clone())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(failing)
    assert not torch.equal(calls[0], calls[1])
    assert w.tolist() == [3.0, 1.0]


def test_the_running_statistics_see_only_the_pass_at_the_weights_themselves():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))

    def trained(give_model):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        known = {"model": model} if give_model else {}
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.0, **known)

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return model

    with_model, without = trained(True), trained(False)
    plain = trained(False)[:1]
    expected = nn.BatchNorm1d(4)
    expected(plain(x))
    for name, tensor in expected.named_buffers():
        assert torch.equal(getattr(with_model[1], name), tensor)
        assert not torch.equal(getattr(without[1], name), tensor)
    assert with_model[1].track_running_stats


def test_one_gradient_is_not_enough():
    w, optimizer, closure = bowl(3.0, 1.0)
    closure()
    with pytest.raises(
        UsageError, match=r"got no closure, and .* Expected two gradients a step\. Give .* `ascend\(\)`"
    ):
        optimizer.step()
    assert w.tolist() == [3.0, 1.0]
