import math

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.training import LayerCurvature
from gapscope.training.optimizers.layerwise import LayerwiseSGD, cblr, lars
from gapscope.training.optimizers.sngm import SNGM

EPS = torch.finfo(torch.float64).eps


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def stepped(optimizer, w, *gradient):
    w.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step()


def start(seed=0, shapes=((3, 4), (2, 5), (4, 2, 2))):
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in shapes]


def gradients(params, seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in params]


def test_three_steps_of_lars_by_hand():
    w = parameter(3.0, 4.0)
    optimizer = LayerwiseSGD([w], 0.1, momentum=0.5, weight_decay=1.0, trust=2.0)
    stepped(optimizer, w, 0.0, 5.0)  # m = 2 * 5 / (5 + 5) = 1, v = .1 (3, 9)
    assert w.tolist() == pytest.approx([2.7, 3.1], rel=4 * EPS)
    stepped(optimizer, w, -2.7, -3.1)  # g + w = 0: v = (.15, .45)
    assert w.tolist() == pytest.approx([2.55, 2.65], rel=4 * EPS)
    length = math.hypot(2.55, 2.65)
    m = 2 * length / (1 + length)
    stepped(optimizer, w, 1.0, 0.0)
    expected = [2.55 - 0.075 - 0.1 * m * 3.55, 2.65 - 0.225 - 0.1 * m * 2.65]
    assert w.tolist() == pytest.approx(expected, rel=8 * EPS)


def test_three_steps_of_cblr_and_mclr_by_hand():
    w, h = parameter(1.0, 1.0, 1.0), [1.5, 0.0, -3.5]
    optimizer = LayerwiseSGD([w], 0.1, rate="cblr", momentum=0.5, damping=0.5)
    optimizer.set_curvature(torch.tensor(h, dtype=torch.float64))  # m = 1/2, 2, 1/4
    stepped(optimizer, w, 1.0, 1.0, 1.0)  # v = .05, .2, .025
    assert w.tolist() == pytest.approx([0.95, 0.8, 0.975], rel=4 * EPS)
    stepped(optimizer, w, 0.0, 0.0, 0.0)  # v = .025, .1, .0125
    stepped(optimizer, w, 2.0, -1.0, 0.0)  # v = .1125, -.15, .00625
    assert w.tolist() == pytest.approx([0.95 - 0.1375, 0.8 - 0.1 + 0.15, 0.975 - 0.01875], rel=8 * EPS)

    w = parameter(1.0, 1.0, 1.0)
    optimizer = LayerwiseSGD([w], 0.1, rate="mclr", momentum=0.5, damping=0.5)
    optimizer.set_curvature(torch.tensor(h, dtype=torch.float64))  # median of 1.5 and 3.5: m = 1/3
    stepped(optimizer, w, 3.0, 3.0, 0.0)  # v = .1, .1, 0
    assert w.tolist() == pytest.approx([0.9, 0.9, 1.0], rel=4 * EPS)
    stepped(optimizer, w, 0.0, 0.0, 0.0)
    stepped(optimizer, w, 0.0, 3.0, -3.0)  # v = .025, .125, -.1
    assert w.tolist() == pytest.approx([0.825, 0.725, 1.1], rel=8 * EPS)


def test_lars_is_the_special_case_of_cblr():
    one, other = start(), start()
    settings = {"momentum": 0.9, "weight_decay": 0.03}
    first = LayerwiseSGD(one, 0.02, rate="lars", **settings)
    second = LayerwiseSGD(other, 0.02, rate="cblr", damping=0.03, **settings)
    for step in range(30):
        for a, b, g in zip(one, other, gradients(one, step), strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        second.set_curvature({b: torch.full_like(b, float(b.grad.norm() / b.detach().norm())) for b in other})
        first.step()
        second.step()
    for a, b in zip(one, other, strict=True):
        assert (a - b).abs().max() <= 1000 * EPS


def test_fused_steps_are_those_of_a_plain_loop():
    fused = start(seed=4)
    plain = [p.detach().clone() for p in fused]
    v = [torch.zeros_like(p) for p in plain]
    optimizer = LayerwiseSGD(fused, 0.05, momentum=0.8, weight_decay=0.02, damping=0.4, trust=0.7)
    for step in range(20):
        for i, g in enumerate(gradients(fused, step)):
            fused[i].grad = g.clone()
            w = plain[i]
            m = 0.7 * w.norm() / (g.norm() + 0.4 * w.norm())
            v[i] = 0.8 * v[i] + 0.05 * m * (g + 0.02 * w)
            plain[i] = w - v[i]
        optimizer.step()
    for a, b in zip(fused, plain, strict=True):
        assert (a.detach() - b).abs().max() <= 100 * EPS


def test_it_takes_the_steps_of_another_lars():
    other = pytest.importorskip("pytorch_optimizer")
    one, two = start(seed=2), start(seed=2)  # matrices: vectors are plain SGD there
    ours = LayerwiseSGD(one, 0.8, momentum=0.9, weight_decay=0.01, trust=0.02)
    theirs = other.LARS(two, lr=0.8, momentum=0.9, weight_decay=0.01, trust_coefficient=0.02)
    for step in range(20):
        for a, b, g in zip(one, two, gradients(one, step), strict=True):
            a.grad, b.grad = g.clone(), g.clone()
        ours.step()
        theirs.step()
    assert max(float((a - b).detach().abs().max()) for a, b in zip(one, two, strict=True)) <= 1e-12


def test_where_lars_says_nothing_the_multiplier_is_one():
    zero, some = torch.zeros(2), torch.tensor([3.0, 4.0])
    found = lars([zero, some, zero, some], [some, zero, zero, some], trust=0.5, damping=0.0)
    assert [float(m) for m in found] == [1.0, 1.0, 1.0, 0.5]
    assert [float(m) for m in lars([some], [zero], trust=0.5, damping=0.1)] == [5.0]


def test_entries_without_curvature_get_the_largest_multiplier():
    found = cblr([torch.tensor([0.0, 0.5])], trust=1.0, damping=0.5)
    assert found[0].tolist() == [2.0, 1.0]
    w = parameter(1.0, 1.0)
    optimizer = LayerwiseSGD([w], 0.1, rate="mclr", momentum=0.0, damping=0.5)
    optimizer.set_curvature(torch.zeros(2, dtype=torch.float64))
    stepped(optimizer, w, 1.0, 0.0)
    assert w.tolist() == pytest.approx([0.8, 1.0], rel=4 * EPS)


@pytest.mark.parametrize("rate", ["mclr", "cblr"])
def test_the_curvature_itself_makes_newton_s_step_on_a_quadratic_of_one_curvature(rate):
    w = parameter(1.0, -2.0, 3.0)
    optimizer = LayerwiseSGD([w], 1.0, rate=rate, momentum=0.0, damping=1e-12)
    optimizer.set_curvature(torch.full((3,), 7.0, dtype=torch.float64))
    stepped(optimizer, w, 7.0, -14.0, 21.0)
    assert w.detach().abs().max() <= 3 * (1e-12 + EPS)


class Skewed(nn.Sequential):
    """A network whose first layer is 30 times too large and whose second is 30 times too small."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
        with torch.no_grad():
            self[0].weight *= 30
            self[2].weight /= 30


@pytest.mark.parametrize("kind", ["sgd", "sngm", "lars", "mclr", "cblr"])
def test_on_a_badly_scaled_network_only_plain_sgd_diverges(kind):
    model, lr = Skewed(), 0.01
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].clone()
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr)
    elif kind == "sngm":
        optimizer = SNGM(model.parameters(), lr, momentum=0.0)
    else:
        optimizer = LayerwiseSGD(model.parameters(), lr, rate=kind, momentum=0.0)
    curvature, losses = LayerCurvature(model, "mse", every=5), []
    for _ in range(60):
        if kind in ("mclr", "cblr"):
            curvature.refresh(optimizer, x, y)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    if kind == "sgd":
        assert not losses[-1] < 1e6 * losses[0]
    else:
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("rate", ["mclr", "cblr"])
def test_without_curvature_there_is_no_step(rate):
    w = parameter(1.0)
    optimizer = LayerwiseSGD([w], 0.1, rate=rate)
    with pytest.raises(UsageError, match=rf"`{rate}` has no curvature for 1 of 1 parameters\. Expected it .* Call"):
        stepped(optimizer, w, 1.0)


def test_curvature_that_does_not_fit_is_refused():
    v, w = parameter(1.0, 2.0), parameter(3.0)
    optimizer = LayerwiseSGD([v, w], 0.1, rate="mclr")
    with pytest.raises(UsageError, match=r"has the shape \(2,\) for 3 parameters\. Expected \(3,\)\. Give one number"):
        optimizer.set_curvature(torch.ones(2))
    with pytest.raises(UsageError, match=r"shape \(1,\) there is none in the curvature\. Expected one .* Give it"):
        optimizer.set_curvature({v: torch.ones(2)})
    with pytest.raises(UsageError, match=r"shape \(2,\) there is one of shape \(1,\) in the curvature\. Expected"):
        optimizer.set_curvature({v: torch.ones(1), w: torch.ones(1)})
    with pytest.raises(UsageError, match=r"shape \(1,\) is not finite\. Expected numbers\. Lower the rate"):
        optimizer.set_curvature(torch.tensor([1.0, 1.0, math.nan]))


def test_unknown_rates_and_no_damping_are_refused():
    with pytest.raises(UsageError, match=r"no rate `larz`\. Did you mean `lars`\? Expected one of lars, mclr, cblr\."):
        LayerwiseSGD([parameter(1.0)], 0.1, rate="larz")
    with pytest.raises(UsageError, match=r"The damping of `cblr` is 0\. Expected more: .* Give `damping=0\.1`"):
        LayerwiseSGD([parameter(1.0)], 0.1, rate="cblr", damping=0)


def test_a_group_s_own_weight_decay_is_its_damping():
    def stepped(build):
        weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        weight.grad = torch.tensor([0.5, -1.0], dtype=torch.float64)
        build(weight).step()
        return weight.detach()

    whole = stepped(lambda w: LayerwiseSGD([w], lr=0.1, momentum=0.0, weight_decay=0.5))
    group = stepped(lambda w: LayerwiseSGD([{"params": [w], "weight_decay": 0.5}], lr=0.1, momentum=0.0))
    assert torch.equal(whole, group)
