import math

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.training import SAM
from gapscope.training.remedies import Proximal, adversarial, augmented, discarded_mean

EPS = torch.finfo(torch.float64).eps


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("share", "mean"),
    [(0.0, 3.0), (0.19, 3.0), (0.2, 3.5), (0.5, 4.0), (0.6, 4.5), (0.99, 5.0), (1 - 1e-17 - EPS, 5.0)],
)
def test_the_smallest_losses_are_dropped_and_never_all(share, mean):
    losses = torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0], dtype=torch.float64)
    assert float(discarded_mean(losses, share)) == pytest.approx(mean, rel=4 * EPS)
    assert float(discarded_mean(losses[:1], share)) == 3.0


def test_a_share_that_rounds_below_a_whole_number_drops_it():
    losses = torch.arange(100.0)
    assert 0.29 * 100 < 29
    assert float(discarded_mean(losses, 0.29)) == (29 + 99) / 2


def test_dropped_samples_have_no_gradient_and_the_others_equal_shares():
    losses = torch.tensor([3.0, 1.0, 5.0, 2.0], requires_grad=True)
    discarded_mean(losses, 0.5).backward()
    assert losses.grad.tolist() == [0.5, 0.0, 0.5, 0.0]


def test_nothing_dropped_is_the_mean_to_the_bit_and_nan_is_not_hidden():
    losses = torch.rand(33, generator=rng())
    assert torch.equal(discarded_mean(losses, 0), losses.mean())
    assert math.isnan(discarded_mean(torch.tensor([1.0, math.nan, 2.0]), 0.6))


def test_shares_and_losses_that_make_no_sense_are_refused():
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match=rf"share to discard is {share}\. Expected 0 or more, below 1\. Give"):
            discarded_mean(torch.ones(3), share)
    with pytest.raises(UsageError, match=r"have the shape \(\)\. Expected one for each sample, \(B,\)\. Take .*none"):
        discarded_mean(torch.tensor(1.0), 0.1)
    with pytest.raises(UsageError, match=r"have the shape \(0,\)"):
        discarded_mean(torch.ones(0), 0.1)


def dot(at=(4, 4), size=9, count=500):
    images = torch.zeros(count, 2, size, size)
    images[:, 0, *at] = 1.0
    images[:, 1, *at] = 2.0
    return images


def test_images_move_as_a_whole_in_all_directions_alike():
    moved = augmented(dot(), rng(), shift=2)
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    assert moved.shape == dot().shape
    places = moved[:, 0].nonzero()
    assert len(places) == 500
    counts = torch.bincount((places[:, 1] - 2) * 5 + places[:, 2] - 2, minlength=25)
    # 500 draws over 25 places: 20 each, within five standard errors
    assert len(counts) == 25
    assert (counts - 20).abs().max() <= 5 * math.sqrt(20)


def test_what_moves_out_is_lost_and_zeros_move_in():
    moved = augmented(dot(at=(0, 0)), rng(), shift=1)
    kept = moved[:, 0].sum((1, 2))
    assert set(kept.tolist()) == {0.0, 1.0}
    assert abs(float(kept.mean()) - 4 / 9) <= 5 * math.sqrt(4 / 9 * 5 / 9 / 500)


def test_half_are_mirrored_where_that_is_asked():
    images = torch.arange(4.0).expand(400, 1, 3, 4)
    assert torch.equal(augmented(images, rng(), shift=0), images)
    mirrored = augmented(images, rng(), shift=0, flip=True)
    turned = (mirrored == images.flip(-1)).all(3).all(2).all(1)
    assert torch.equal(mirrored[~turned], images[~turned])
    assert abs(int(turned.sum()) - 200) <= 5 * math.sqrt(100)


@pytest.mark.parametrize(("size", "reach"), [(8, 1), (28, 3), (32, 4), (5, 1)])
def test_the_reach_is_an_eighth_of_the_side_unless_given(size, reach):
    middle = size // 2
    places = augmented(dot((middle, middle), size), rng())[:, 0].nonzero()[:, 1:] - middle
    assert (int(places.min()), int(places.max())) == (-reach, reach)


def test_the_generator_decides():
    images = torch.rand(20, 3, 16, 16, generator=rng())
    assert torch.equal(augmented(images, rng(1), flip=True), augmented(images, rng(1), flip=True))
    assert not torch.equal(augmented(images, rng(1)), augmented(images, rng(2)))


def test_what_is_no_image_is_refused():
    with pytest.raises(UsageError, match=r"have the shape \(5, 64\)\. Expected images, \(B, C, H, W\)\. Leave"):
        augmented(torch.ones(5, 64), rng())
    with pytest.raises(
        UsageError, match=r"Images of 4 x 6 are to move by 4\. Expected 0 or more, less .* Mend `shift`"
    ):
        augmented(torch.ones(1, 1, 4, 6), rng(), shift=4)


def test_adversarial_inputs_rise_by_the_radius_along_the_sign_of_the_slope():
    w = torch.tensor([1.0, -2.0, 0.0], requires_grad=True)
    x = torch.tensor([[0.5, 0.5, 0.5]])
    found = adversarial(lambda inputs: (inputs * w).sum(), x, 0.1)
    assert found.tolist() == [pytest.approx([0.6, 0.4, 0.5])]
    assert w.grad is None
    assert not found.requires_grad


def bowl(build, **more):
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = build([w])

    def closure():
        optimizer.zero_grad()
        loss = 3 * w.square().sum() / 2
        loss.backward()
        return loss

    return w, Proximal(optimizer, **more), closure


def test_inner_steps_by_hand():
    w, proximal, closure = bowl(lambda p: torch.optim.SGD(p, lr=0.1), strength=0.5, steps=3)
    expected = start = 2.0
    for _ in range(3):
        expected -= 0.1 * (3 * expected + 0.5 * (expected - start))
    assert float(proximal.step(closure).detach()) == 6.0
    assert w.item() == pytest.approx(expected, rel=8 * EPS)
    start = expected
    for _ in range(3):
        expected -= 0.1 * (3 * expected + 0.5 * (expected - start))
    proximal.step(closure)
    assert w.item() == pytest.approx(expected, rel=8 * EPS)


def test_many_inner_steps_solve_the_proximal_problem():
    w, proximal, closure = bowl(lambda p: torch.optim.SGD(p, lr=0.1), strength=1.5, steps=200)
    proximal.step(closure)
    assert w.item() == pytest.approx(2 * 1.5 / (3 + 1.5), rel=16 * EPS)


def test_without_strength_it_is_the_optimizer_and_others_than_sgd_fit_in():
    w, proximal, closure = bowl(lambda p: torch.optim.Adam(p, lr=0.1), strength=0.0, steps=3)
    v, other, again = bowl(lambda p: torch.optim.Adam(p, lr=0.1))
    proximal.step(closure)
    for _ in range(3):
        other.optimizer.step(again)
    assert torch.equal(w, v)
    w, proximal, closure = bowl(lambda p: SAM(p, torch.optim.SGD, rho=0.0, lr=0.1), strength=0.5)
    plain, reference, again = bowl(lambda p: torch.optim.SGD(p, lr=0.1), strength=0.5)
    proximal.step(closure)
    reference.step(again)
    assert torch.equal(w, plain)


@pytest.mark.parametrize("more", [{"strength": -1.0}, {"strength": math.inf}, {"steps": 0}])
def test_a_proximal_step_that_makes_no_sense_is_refused(more):
    with pytest.raises(
        UsageError, match=r"Proximal got strength=.*, steps=.*\. Expected a strength of 0 or more .* Mend"
    ):
        bowl(lambda p: torch.optim.SGD(p, lr=0.1), **more)
