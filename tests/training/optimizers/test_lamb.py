import math

import pytest
import torch
from torch import nn

from gapscope.training.optimizers.lamb import LAMB

EPS = torch.finfo(torch.float64).eps


def start(seed=0, shapes=((3, 4), (5,), (2, 2, 3))):
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in shapes]


def gradients(params, seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in params]


def test_three_steps_by_hand():
    w = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LAMB([w], 0.1, betas=(0.5, 0.75), eps=0.0)
    w.grad = torch.tensor([2.0, -8.0], dtype=torch.float64)
    optimizer.step()  # r = (1, -1), |w| / |r| = 5 / sqrt 2
    a, b = 3 - 0.5 / math.sqrt(2), 4 + 0.5 / math.sqrt(2)
    assert w.tolist() == pytest.approx([a, b], rel=8 * EPS)
    w.grad = torch.tensor([0.0, -8.0], dtype=torch.float64)
    optimizer.step()  # m = (.5, -6) / .75, v = (.75, 28) / .4375
    r = [0.5 / 0.75 / math.sqrt(0.75 / 0.4375), -6 / 0.75 / math.sqrt(28 / 0.4375)]
    share = 0.1 * math.hypot(a, b) / math.hypot(*r)
    a, b = a - share * r[0], b - share * r[1]
    assert w.tolist() == pytest.approx([a, b], rel=8 * EPS)
    w.grad = torch.tensor([4.0, 0.0], dtype=torch.float64)
    optimizer.step()  # m = (2.25, -3) / .875, v = (.5625 + 4, 21) / .578125
    r = [2.25 / 0.875 / math.sqrt(4.5625 / 0.578125), -3 / 0.875 / math.sqrt(21 / 0.578125)]
    share = 0.1 * math.hypot(a, b) / math.hypot(*r)
    assert w.tolist() == pytest.approx([a - share * r[0], b - share * r[1]], rel=8 * EPS)


def test_fused_steps_are_those_of_a_plain_loop():
    fused = start()
    plain = [p.detach().clone() for p in fused]
    m, v = ([torch.zeros_like(p) for p in plain] for _ in range(2))
    optimizer = LAMB(fused, 0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for t in range(1, 21):
        for i, g in enumerate(gradients(fused, t)):
            fused[i].grad = g.clone()
            m[i], v[i] = 0.8 * m[i] + 0.2 * g, 0.95 * v[i] + 0.05 * g * g
            r = m[i] / (1 - 0.8**t) / ((v[i] / (1 - 0.95**t)).sqrt() + 1e-6) + 0.1 * plain[i]
            plain[i] = plain[i] - 0.05 * plain[i].norm() / r.norm() * r
        optimizer.step()
    for a, b in zip(fused, plain, strict=True):
        assert (a.detach() - b).abs().max() <= 1000 * EPS


def test_every_layer_moves_by_the_rate_times_its_length_and_a_fresh_one_by_plain_adam():
    fused = [*start(), nn.Parameter(torch.zeros(4, dtype=torch.float64))]
    before = [p.detach().clone() for p in fused]
    for p, g in zip(fused, gradients(fused, 1), strict=True):
        p.grad = g
    LAMB(fused, 0.05, eps=0.0).step()
    for p, old in zip(fused[:-1], before[:-1], strict=True):
        assert float((p.detach() - old).norm()) == pytest.approx(0.05 * float(old.norm()), rel=1e3 * EPS)
    assert fused[-1].detach().abs().tolist() == pytest.approx([0.05] * 4, rel=8 * EPS)


def test_it_takes_the_steps_of_another_lamb():
    other = pytest.importorskip("pytorch_optimizer")
    # without eps and decay bias corrections cancel in r / |r|; it cuts |w| at 10, and has another one in the rate
    one, two = start(seed=2), start(seed=2)
    ours, theirs = LAMB(one, 0.05, eps=0.0), other.Lamb(two, lr=0.05, eps=0.0, adam_debias=True)
    for step in range(20):
        for a, b, g in zip(one, two, gradients(one, step), strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        ours.step()
        theirs.step()
    assert max(float((a - b).detach().abs().max()) for a, b in zip(one, two, strict=True)) <= 1e-12
