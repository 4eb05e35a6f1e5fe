import io

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.curvature import Curvature
from gapscope.training import LayerCurvature, LayerwiseSGD
from tests.problems import dense_hessian, measure, problem

EPS = torch.finfo(torch.float64).eps


def small(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).to(dtype)


def batch(count=40, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=rng).to(dtype), torch.randint(0, 3, (count,), generator=rng)


def optimizer_of(model, rate="cblr", **more):
    return LayerwiseSGD(model.parameters(), 0.01, rate=rate, **more)


def held(optimizer):
    return [optimizer.state[p]["curvature"] for group in optimizer.param_groups for p in group["params"]]


def test_it_is_the_diagonal_that_the_analyzer_finds():
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(4, 2, bias=False).double(), batch()
    y = y.clamp(max=1)
    optimizer, curvature = optimizer_of(model), LayerCurvature(model, probes=8)
    assert curvature.refresh(optimizer, x, y)
    where = problem(model, x, y)
    found = held(optimizer)[0].flatten().numpy()  # 8 entries: one by one
    assert found == pytest.approx(np.abs(np.diag(dense_hessian(where))), rel=1e3 * EPS)
    result = measure(Curvature("hutchinson", top_matvecs=0), where)
    assert float(np.median(found)) == pytest.approx(float(result.median.value[0]), rel=8 * EPS)
    assert curvature.noise_share == {"weight": 0.0}


def test_few_probes_are_right_within_their_noise():
    model, (x, y) = small(), batch()
    hessian = dense_hessian(problem(model, x, y))
    diagonal, found = np.diag(hessian), []
    for seed in range(200):
        optimizer = optimizer_of(model)
        LayerCurvature(model, probes=1, seed=seed).refresh(optimizer, x, y)
        found.append(torch.cat([part.flatten() for part in held(optimizer)]).numpy())
    # |one probe|: its mean square is the entry's square and the variance, the sum of the rest of its row
    square, rest = np.square(found).mean(0), np.square(hessian).sum(1)
    spread = np.square(found).std(0) / np.sqrt(200)
    assert (np.abs(square - rest) <= 5 * spread + 1e-12).all()
    assert (square >= diagonal**2 - 5 * spread).all()


def test_mclr_keeps_the_medians_of_every_tensor():
    model, (x, y) = small(), batch()
    every, medians = optimizer_of(model), optimizer_of(model, "mclr")
    LayerCurvature(model, probes=4, seed=3).refresh(every, x, y)
    LayerCurvature(model, probes=4, seed=3).refresh(medians, x, y)
    for entries, median in zip(held(every), held(medians), strict=True):
        assert median.item() == pytest.approx(np.median(entries[entries != 0]), rel=8 * EPS)


def test_it_is_due_every_so_many_steps_and_its_cost_is_counted():
    model, (x, y) = small(), batch(64)
    optimizer, curvature = optimizer_of(model), LayerCurvature(model, every=10, probes=2)
    assert curvature.share == 0.0
    due = [curvature.refresh(optimizer, x, y) for _ in range(25)]
    assert [step for step, was in enumerate(due) if was] == [0, 10, 20]
    # each time a graph and 2 products of 3 gradients
    assert curvature.share == 3 * (1 + 2 * 3) / (3 * (1 + 2 * 3) + 25)


def test_the_model_and_its_random_numbers_are_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).train()
    x, y = batch(dtype=torch.float32)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    LayerCurvature(model, "cross-entropy", probes=2).refresh(optimizer_of(model), x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())


def test_batchnorm_counts_as_it_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
    model[0].running_var.fill_(50.0)
    x, y = batch()
    x, y = x[:, :2] * 3, x[:, 2:3]
    found = {}
    for training in (True, False):
        optimizer = optimizer_of(model.train(training))
        LayerCurvature(model, probes=8).refresh(optimizer, x, y)
        found[training] = torch.cat([part.flatten() for part in held(optimizer)]).numpy()
    for training, more in ((True, {"batchnorm": "batch", "batch_size": len(y)}), (False, {})):
        operator = problem(model, x, y, "mse", **more).hessian()
        exact = [abs(float(axis @ operator.matvec(axis))) for axis in torch.eye(7, dtype=torch.float64)]
        assert list(found[training]) == pytest.approx(exact, rel=1e3 * EPS)
    assert not np.allclose(found[True], found[False], rtol=0.1)


@pytest.mark.parametrize("rate", ["mclr", "cblr"])
def test_a_resumed_training_is_the_same_to_the_bit(rate):
    x, y = batch(dtype=torch.float32)

    def train(model, optimizer, curvature, steps):
        for _ in range(steps):
            curvature.refresh(optimizer, x, y)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    def made(seed):
        torch.manual_seed(seed)
        model = nn.Linear(4, 3)
        return model, optimizer_of(model, rate), LayerCurvature(model, every=4, probes=2)

    straight = made(0)
    train(*straight, 6)  # between two measurements
    file = io.BytesIO()
    torch.save([part.state_dict() for part in straight], file)
    train(*straight, 6)
    resumed = made(1)
    file.seek(0)
    for part, state in zip(resumed, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*resumed, 6)
    assert torch.equal(straight[0].weight, resumed[0].weight)
    assert straight[2].share == resumed[2].share


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UsageError, match=r"LayerCurvature got every=0, probes=8\. Expected 1 or more\. Mend the first"):
        LayerCurvature(small(), every=0)
    model, (x, y) = small(), batch()
    with pytest.raises(ProblemError, match="no trainable parameter"):
        LayerCurvature(model.requires_grad_(False)).refresh(optimizer_of(model), x, y)


class Counted(nn.Linear):
    """A layer that counts how often it is called."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x)


def test_the_second_derivatives_are_tried_once():
    Counted.calls = 0
    model, (x, y) = Counted(4, 3).double(), batch()
    optimizer, curvature, calls = optimizer_of(model), LayerCurvature(model, every=1, probes=1), []
    for _ in range(3):
        before = Counted.calls
        curvature.refresh(optimizer, x, y)
        calls.append(Counted.calls - before)
    # two passes that count bytes and one of the graph
    assert calls[0] > 3
    assert calls[1:] == [3, 3]
