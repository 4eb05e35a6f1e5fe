"""What holds for every optimizer of ours, over one table."""

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode

import gapscope
from gapscope.errors import UsageError
from gapscope.training import LAMB, SAM, SNGM, LayerwiseSGD
from gapscope.training.optimizers.stepping import never_zero, norms, total_norm


def curved(rate):
    def build(params, **more):
        optimizer = LayerwiseSGD(params, 0.05, rate=rate, weight_decay=0.01, **more)
        every = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.set_curvature({p: (p.detach().float().abs() + 0.1).to(p) for p in every})
        return optimizer

    return build


OURS = {
    "sngm": lambda params, **more: SNGM(params, 0.01, weight_decay=0.01, **more),
    "sngm, no momentum": lambda params, **more: SNGM(params, 0.05, momentum=0, **more),
    "lars": lambda params, **more: LayerwiseSGD(params, 0.05, weight_decay=0.01, **more),
    "mclr": curved("mclr"),
    "cblr": curved("cblr"),
    "lamb": lambda params, **more: LAMB(params, 0.05, weight_decay=0.01, **more),
    "sam": lambda params, **more: SAM(params, torch.optim.SGD, lr=0.05, momentum=0.9, **more),
}
ONE_NORM = ("sngm", "sngm, no momentum", "sam")
each = pytest.mark.parametrize("kind", OURS)


def net(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batch(dtype=torch.float64):
    rng = torch.Generator().manual_seed(3)
    return torch.randn(20, 5, generator=rng).to(dtype), torch.randint(0, 3, (20,), generator=rng)


def closure_of(model, optimizer, scale=1.0):
    x, y = batch(next(model.parameters()).dtype)

    def closure():
        optimizer.zero_grad()
        loss = scale * nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def run(model, optimizer, steps, scheduler=None):
    closure = closure_of(model, optimizer)
    losses = []
    for _ in range(steps):
        losses.append(float(optimizer.step(closure).detach()))
        if scheduler:
            scheduler.step()
    return losses


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@each
def test_the_loss_falls_and_the_closure_s_loss_is_returned(kind):
    model = net()
    x, y = batch()
    before = float(nn.functional.cross_entropy(model(x), y).detach())
    losses = run(model, OURS[kind](model.parameters()), 30)
    assert losses[0] == before
    assert losses[-1] < losses[0]


@each
def test_a_resumed_training_is_the_same_to_the_bit(kind):
    def both(model):
        parts = list(model.parameters())
        optimizer = OURS[kind]([{"params": parts[:2]}, {"params": parts[2:], "lr": 0.02}])
        return optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + step))

    straight = net(dtype=torch.float32)
    optimizer, scheduler = both(straight)
    run(straight, optimizer, 4, scheduler)
    file = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict(), scheduler.state_dict()], file)
    run(straight, optimizer, 4, scheduler)

    resumed = net(seed=1, dtype=torch.float32)
    optimizer, scheduler = both(resumed)
    file.seek(0)
    weights, state, rates = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    scheduler.load_state_dict(rates)
    run(resumed, optimizer, 4, scheduler)
    assert torch.equal(flat(straight), flat(resumed))
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.02 / 9)


class NoReading(TorchDispatchMode):
    """Raise where a number is read off a tensor: on an accelerator that waits for all work before it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a number was read"
        return function(*args, **(kwargs or {}))


@each
def test_a_step_reads_no_number(kind):
    model = net()
    optimizer = OURS[kind](model.parameters())
    closure = closure_of(model, optimizer)
    optimizer.step(closure)
    with NoReading():
        optimizer.step(closure)
        with pytest.raises(AssertionError, match="a number was read"):
            float(torch.ones(()))


@each
def test_a_parameter_without_a_gradient_stays_and_nothing_happens_without_any(kind):
    model = net()
    alone = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = OURS[kind]([*model.parameters(), alone])
    before = flat(model).clone()
    if kind != "sam":
        optimizer.step()
        assert torch.equal(flat(model), before)
    run(model, optimizer, 2)
    assert not torch.equal(flat(model), before)
    assert alone.tolist() == [1.0, 1.0]


@each
def test_parameters_of_several_types_move_as_they_would_in_one_wide_type(kind):
    rng = torch.Generator().manual_seed(0)
    kinds = (torch.bfloat16, torch.float32, torch.float64, torch.bfloat16)
    mixed = [nn.Parameter(torch.randn(6, generator=rng, dtype=torch.float64).to(one)) for one in kinds]
    wide = [nn.Parameter(p.detach().double().clone()) for p in mixed]
    for params in (mixed, wide):
        optimizer = OURS[kind](params)

        def closure(optimizer=optimizer, params=params):
            optimizer.zero_grad()
            loss = sum((k * p.double().square()).sum() for k, p in zip((1, 2, 4, 8), params, strict=True))  # exact
            loss.backward()
            return loss

        optimizer.step(closure)
    for one, other in zip(mixed, wide, strict=True):
        assert torch.isfinite(one).all()
        # a handful of roundings of numbers no longer than these; one norm over all is in float32 for those in it
        eps = torch.finfo(one.dtype).eps
        eps = max(eps, torch.finfo(torch.float32).eps) if kind in ONE_NORM else eps
        room = 8 * eps * (1 + float(other.detach().abs().max()))
        assert (one.detach().double() - other.detach()).abs().max() <= room


@each
def test_a_group_added_later_is_trained_with_its_own_rate(kind):
    early, late = net(), net()
    before = flat(late).clone()
    optimizer = OURS[kind](early.parameters())
    optimizer.add_param_group({"params": late.parameters(), "lr": 0.001})
    assert optimizer.param_groups[1]["lr"] == 0.001
    if kind in ("mclr", "cblr"):
        optimizer.set_curvature(torch.ones(2 * len(before), dtype=torch.float64))

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for model in (early, late) for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    moved, other = (float((flat(model) - before).norm()) for model in (late, early))
    assert 0 < moved < other


@each
def test_a_scaler_skips_what_overflowed_and_otherwise_changes_nothing(kind):
    plain, scaled = net(dtype=torch.float32), net(dtype=torch.float32)
    run(plain, OURS[kind](plain.parameters()), 3)
    optimizer = OURS[kind](scaled.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = batch(torch.float32)

    def backward(factor):
        optimizer.zero_grad()
        scaler.scale(factor * nn.functional.cross_entropy(scaled(x), y)).backward()

    for factor in (1.0, math.inf, 1.0, 1.0):
        before = flat(scaled).clone()
        backward(factor)
        if kind == "sam":
            optimizer.ascend()
            backward(factor)
        scaler.step(optimizer)
        if kind == "sam":
            optimizer.restore()
        scaler.update()
        assert torch.equal(flat(scaled), before) == math.isinf(factor)
    # powers of two scale without rounding
    assert (flat(scaled) - flat(plain)).abs().max() <= 4 * torch.finfo(torch.float32).eps


@each
def test_sparse_gradients_are_refused(kind):
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = OURS[kind](table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match=r"shape \(5, 3\) is sparse\. Expected dense: .* Build .* `sparse=False`"):
        optimizer.ascend() if kind == "sam" else optimizer.step()


@each
def test_parameters_that_are_not_real_numbers_are_refused(kind):
    with pytest.raises(UsageError, match=r"shape \(2,\) is torch\.complex64\. Expected real .* Leave it out .* \w+\."):
        OURS[kind]([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        (lambda p: SNGM(p, -0.1), "lr", "-0.1"),
        (lambda p: SNGM(p, math.nan), "lr", "nan"),
        (lambda p: SNGM(p, torch.tensor(0.1)), "lr", r"tensor\(0.1000\)"),
        (lambda p: SNGM(p, 0.1, weight_decay=math.inf), "weight_decay", "inf"),
        (lambda p: LayerwiseSGD(p, 0.1, trust=-1), "trust", "-1"),
        (lambda p: LayerwiseSGD(p, 0.1, damping="no"), "damping", "'no'"),
        (lambda p: LAMB(p, 0.1, eps=-1e-8), "eps", "-1e-08"),
        (lambda p: SAM(p, torch.optim.SGD, lr=0.1, rho=-0.05), "rho", "-0.05"),
        (lambda p: SNGM([{"params": p, "lr": -2.0}], 0.1), "lr", "-2.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, name, value):
    wanted = rf"\w+ got {name}={value}\. Expected a number of 0 or more, and finite\. Mend `{name}`\."
    with pytest.raises(UsageError, match=wanted):
        build([nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda p: SNGM(p, 0.1, momentum=1.0), "momentum"),
        (lambda p: LayerwiseSGD(p, 0.1, momentum=1.0), "momentum"),
        (lambda p: LAMB(p, 0.1, betas=(0.9, 1.0)), "beta2"),
    ],
)
def test_what_decays_is_below_one(build, name):
    with pytest.raises(UsageError, match=rf"\w+ got {name}=1\.0\. Expected a number of 0 or more and below 1\. Mend"):
        build([nn.Parameter(torch.ones(1))])


def test_norms_of_half_precision_do_not_overflow():
    found = norms([torch.full((4,), 3e4, dtype=torch.float16)])
    assert found.tolist() == [pytest.approx(6e4, rel=1e-3)]  # half precision holds 3e4 to 5e-4
    assert float(total_norm([[torch.tensor([3.0])], [torch.tensor([4.0], dtype=torch.float64)]])) == 5.0


def test_a_zero_norm_divides_to_zero():
    assert (torch.zeros(3) / never_zero(torch.zeros(()))).tolist() == [0, 0, 0]
    assert float(never_zero(torch.tensor(2.0))) == 2.0


def test_they_are_public():
    assert (gapscope.SNGM, gapscope.LayerwiseSGD, gapscope.LAMB, gapscope.SAM) == (SNGM, LayerwiseSGD, LAMB, SAM)


@each
def test_a_copy_trains_on_alike_and_alone(kind):
    model = net()
    optimizer = OURS[kind](model.parameters())
    run(model, optimizer, 2)
    twin, other = copy.deepcopy((model, optimizer))
    run(model, optimizer, 2)
    assert not torch.equal(flat(model), flat(twin))
    run(twin, other, 2)
    assert torch.equal(flat(model), flat(twin))
