import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import gapscope
from gapscope.errors import ProblemError, UsageError
from gapscope.measure import resume
from gapscope.measure.analyzers.path import Path
from gapscope.measure.loading import Loss
from gapscope.measure.problem import Origin
from gapscope.measure.resume import Parts
from gapscope.results import Status
from tests.problems import ZOO, Well, both, double_well, problem, train


def measured(first, last, **options):
    return Path(**options)(both(first, last))


def test_the_barrier_of_a_double_well_is_its_saddle():
    result = measured(double_well([-1.0, 0.0]), double_well([1.0, 0.0]))
    assert result.barrier.value == pytest.approx(0.25, abs=1e-12)  # a = 0.5 is on the grid
    assert result.rise.value == pytest.approx([0.25, 0.25])
    a = np.linspace(-1, 2, 25)
    assert result.loss.value[0, 0] == pytest.approx(0.25 * ((2 * a - 1) ** 2 - 1) ** 2, abs=1e-12)
    assert result.status is Status.CONVERGED
    assert result.barrier.sampling_error == 0  # all samples are alike


@pytest.mark.parametrize("points", [5, 18, 26])
def test_the_top_is_climbed_whatever_the_grid(points):
    result = measured(double_well([-1.0]), double_well([1.3]), points=points)
    # on the line x = -1 + 2.3 a: the excess over the line between L(-1) = 0 and L(1.3)
    a = np.linspace(0, 1, 200_001)
    line = 0.25 * ((2.3 * a - 1) ** 2 - 1) ** 2
    true = (line - a * line[-1]).max()
    assert result.barrier.value == pytest.approx(true, rel=1e-5)
    assert abs(result.barrier.value - true) <= result.barrier.numerical_error + 1e-12
    assert result.barrier.bound == "lower"


def test_points_between_models_in_half_precision_are_not_rounded_to_it():
    torch.manual_seed(0)
    models = [nn.Linear(5, 3).bfloat16() for _ in range(2)]
    data = torch.randn(40, 5), torch.arange(40) % 3
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        each = [gapscope.problem(copy.deepcopy(model).to(dtype), data) for model in models]
        found.append(gapscope.measure(each, [Path(points=9)]).results["path"].quantities)
    half, whole = found
    assert half["barrier"].value == 0
    assert np.array_equal(half["loss"].value, whole["loss"].value)


def test_no_barrier_where_the_loss_is_convex():
    result = measured(ZOO["tanh mlp"].problem(), ZOO["tanh mlp"].problem())
    assert result.barrier.value == 0
    assert result.distance.value == 0
    line = measured(double_well([0.0, 1.0]), double_well([0.0, 3.0]))
    assert line.barrier.value == 0
    assert line.rise.value == pytest.approx([8.0, 0.0])


@pytest.mark.parametrize("beyond", [np.inf, np.nan, 1e13])
def test_what_lies_beyond_the_checkpoints_changes_no_barrier(beyond):
    def per_sample(outputs, targets):
        x = outputs[:, 0]
        return 0.25 * (x.square() - 1).square() + torch.where(x.abs() > 2, beyond, 0.0)

    zeros = torch.zeros(4, 1, dtype=torch.float64)
    first, last = (
        problem(Well(torch.tensor([x], dtype=torch.float64)), zeros, zeros, Loss("walls", per_sample))
        for x in (-1.0, 1.0)
    )
    result = measured(first, last)
    assert abs(result.barrier.value - 0.25) <= result.barrier.numerical_error < 1e-5
    assert np.all(abs(result.rise.value - 0.25) <= result.rise.numerical_error)


def test_the_error_of_the_rise_knows_the_samples_weights():
    weights = torch.tensor([[1.0], [1.0], [1.0], [97.0]], dtype=torch.float64)
    loss = Loss("double well", lambda o, t: 0.25 * (o[:, 0].square() - 1).square(), weights=lambda t: t[:, 0])
    first, last = (
        problem(Well(torch.tensor([x], dtype=torch.float64)), torch.zeros_like(weights), weights, loss)
        for x in (-1.0, 1.0)
    )
    result = measured(first, last)
    assert result.rise.value == pytest.approx([0.25, 0.25])
    assert np.all(result.rise.sampling_error < 1e-12)  # every sample has the same loss everywhere


def test_weights_that_old_hooks_compute_are_computed_anew_in_the_copy():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def made(weight_norm, seed):
        torch.manual_seed(seed)
        model = nn.Sequential(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
        model(x)  # leaves a weight with a graph, which torch does not copy
        return problem(model, x, torch.arange(30) % 3)

    with pytest.warns(FutureWarning, match="deprecated"):
        old = measured(*(made(nn.utils.weight_norm, seed) for seed in (0, 1)))
    new = measured(*(made(nn.utils.parametrizations.weight_norm, seed) for seed in (0, 1)))
    assert new.loss.value.std() > 0.01
    np.testing.assert_allclose(old.loss.value, new.loss.value, rtol=1e-12)


def test_a_model_that_cannot_be_copied_is_refused():
    first, last = (ZOO["tanh mlp"].problem() for _ in range(2))
    first.model.lock = threading.Lock()
    with pytest.raises(ProblemError, match=r"cannot be copied: TypeError: .*lock.* Expected what .* leave out `path`"):
        measured(first, last)


@pytest.mark.parametrize("at", [0.02, 0.98])
def test_a_hump_between_an_end_and_the_grid_is_found(at):
    def per_sample(outputs, targets):
        x = outputs[:, 0]
        return x.square() - x + 2 * (0.02 - (x - at).abs()).relu()  # below 0 at all points of the grid

    zeros = torch.zeros(4, 1, dtype=torch.float64)
    first, last = (
        problem(Well(torch.tensor([x], dtype=torch.float64)), zeros, zeros, Loss("hump", per_sample))
        for x in (0.0, 1.0)
    )
    found = measured(first, last).barrier
    assert abs(found.value - (0.04 - 0.02 * 0.98)) <= found.numerical_error


def test_where_there_is_no_barrier_rounding_is_stated():
    found = measured(double_well([0.0, 1.0]), double_well([0.0, 3.0]))
    assert 0 < found.barrier.numerical_error < 1e-12
    assert (found.rise.numerical_error > 0).all()


def trained_pair(kind="tanh mlp", **more):
    torch.manual_seed(1)
    first, last = ZOO[kind].problem(samples=40, **more), ZOO[kind].problem(samples=40, **more)
    with torch.no_grad():
        for parameter in last.model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return first, train(replace(last), 20)


def test_every_point_is_the_loss_of_that_mixture():
    first, last = trained_pair()
    result = measured(first, last)
    for shape, mix in (
        (0, lambda a: (1 - a, a)),
        (1, lambda a: (np.cos(a * np.pi / 2), np.sin(a * np.pi / 2))),
    ):
        for index, a in enumerate(np.linspace(-1, 2, 25)):
            model, (one, other) = copy.deepcopy(first.model), mix(a)
            with torch.no_grad():
                for p, q in zip(model.parameters(), last.model.parameters(), strict=True):
                    p.mul_(one).add_(other * q)
                outputs = model(first.data.inputs.double())
                loss = F.cross_entropy(outputs, first.data.targets)
                right = 100 * (outputs.argmax(1) == first.data.targets).double().mean()
            assert result.loss.value[shape, 0, index] == pytest.approx(float(loss), rel=1e-9)
            assert result.accuracy.value[shape, 0, index] == pytest.approx(float(right))


def test_the_samples_give_the_barrier_its_error():
    first, last = trained_pair()
    result = measured(first, last, curved=False)
    assert result.barrier_curved is None
    assert result.barrier.value > 0
    a = float(result.barrier.doc.partition("a = ")[2].partition(";")[0])
    middle = first.losses((1 - a) * first.theta + a * last.theta)
    excess = middle - (1 - a) * first.losses() - a * last.losses()
    assert result.barrier.value == pytest.approx(excess.mean(), rel=1e-4)
    assert result.barrier.sampling_error == pytest.approx(excess.std(ddof=1) / np.sqrt(40), rel=1e-3)


def test_the_subjects_are_left_as_they_were():
    first, last = trained_pair("conv batchnorm")
    before = [copy.deepcopy(one.model.state_dict()) for one in (first, last)]
    measured(first, last, points=7)
    for one, state in zip((first, last), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.model.state_dict().items())


def moved_statistics():
    """Return two copies of a network with BatchNorm, of other weights and other running statistics."""
    first, last = trained_pair("conv batchnorm")
    last = replace(last)
    with torch.no_grad():
        for name, buffer in last.model.named_buffers():
            if buffer.is_floating_point():
                buffer.mul_(2.0).add_(0.5)
            elif "tracked" in name:
                buffer.add_(7)
    return first, replace(last)


@pytest.mark.parametrize("statistics", ["frozen", "interpolated", "re-estimated"])
def test_batchnorm_uses_the_statistics_that_are_said(statistics):
    first, last = moved_statistics()
    result = measured(first, last, statistics=statistics, curved=False)
    a = 0.5
    model = copy.deepcopy(first.model).eval()
    with torch.no_grad():
        for p, q in zip(model.parameters(), last.model.parameters(), strict=True):
            p.mul_(1 - a).add_(a * q)
        if statistics == "interpolated":
            for b, c in zip(model.buffers(), last.model.buffers(), strict=True):
                if b.is_floating_point():
                    b.mul_(1 - a).add_(a * c)
        if statistics == "re-estimated":
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # all samples are one batch here
            model(first.data.inputs.double())
            model.eval()
        loss = F.cross_entropy(model(first.data.inputs.double()), first.data.targets)
    assert result.loss.value[0, 0, 12] == pytest.approx(float(loss), rel=1e-9)
    assert any("BatchNorm" in note for note in result.notes)
    if statistics == "interpolated":
        assert result.loss.value[0, 0, 8] == pytest.approx(first.loss(), rel=1e-12)
        assert result.loss.value[0, 0, 16] == pytest.approx(last.loss(), rel=1e-12)


def test_the_distance_ratio_is_from_each_ones_own_start():
    start = {"point": torch.tensor([0.0, 0.0], dtype=torch.float64)}
    first = double_well([-1.0, 0.0], origin=Origin(initial=start))
    last = double_well([3.0, 4.0], origin=Origin(initial=start))
    assert measured(first, last).distance_ratio.value == pytest.approx(0.2)
    assert measured(first, double_well([3.0, 4.0])).distance_ratio is None
    unfit = double_well([3.0, 4.0], origin=Origin(initial={"point": torch.zeros(5)}))
    assert measured(first, unfit).distance_ratio is None


def test_an_interrupted_path_goes_on_where_it_stopped(tmp_path, monkeypatch):
    first, last = trained_pair()
    whole = measured(first, last)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    parts, calls = Parts(), []
    from gapscope.measure.landscape import Landscape

    evaluate = Landscape.evaluate

    def counted(self, theta, weights):
        calls.append(weights)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return evaluate(self, theta, weights)

    monkeypatch.setattr(Landscape, "evaluate", counted)
    parts.begin(tmp_path / "pair.h5", {}, resume=False)
    with pytest.raises(KeyboardInterrupt):
        Path()(both(first, last, parts=parts))
    parts.begin(tmp_path / "pair.h5", {}, resume=True)
    resumed = Path()(both(first, last, parts=parts))
    assert len(calls) == 10 + 2 * 27 - 8  # one of the 9 is measured again, as a proof
    assert np.array_equal(resumed.loss.value, whole.loss.value)
    assert resumed.notes == whole.notes
    calls.clear()
    calls.extend([None] * 10)
    Path(points=13)(both(first, last, parts=parts))
    assert len(calls) == 10 + 2 * 15  # other settings start anew
    parts.forget()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_said():
    result = measured(double_well([float("inf")]), double_well([1.0]))
    assert result.status is Status.NONFINITE


def test_checkpoints_of_other_models_have_no_path():
    with pytest.raises(
        UsageError, match=r"have 1 and 2 parameters under other names or shapes. Expected checkpoints of one"
    ):
        measured(double_well([1.0]), double_well([1.0, 2.0]))


@pytest.mark.parametrize("options", [{"points": 4}, {"start": 0.5}, {"stop": 0.5}])
def test_a_path_that_misses_its_ends_is_refused(options):
    with pytest.raises(UsageError, match=r"path got .*Expected 5 points or more from start <= 0 to stop >= 1"):
        measured(double_well([1.0]), double_well([1.0]), **options)


def test_regression_has_no_accuracy():
    x = torch.randn(10, 3, dtype=torch.float64)
    nets = [problem(nn.Linear(3, 1).double(), x, x[:, :1], "mse") for _ in range(2)]
    assert measured(*nets).accuracy is None


def test_the_split_that_is_measured_is_judged_on_its_own_data():
    first, last = trained_pair()
    other = ZOO["tanh mlp"].problem(seed=5, samples=30).data
    sides = []
    for one in (first, last):
        train_split = replace(one, origin=Origin(split="train"))
        sides.append(replace(one, data=other, origin=Origin(split="test", other=train_split)))
    context = replace(both(*sides), split="test")
    result = Path(curved=False)(context)
    assert result.loss.labels["split"] == ("test", "train")
    assert result.loss.value[0, 0, 8] == pytest.approx(sides[0].losses().mean())
    line = result.loss.value[0, 0, 8:17]
    assert result.rise.value == pytest.approx(line.max() - line[[0, -1]])
    assert result.rise.value.max() > 0


def landscape_of(function, start=0.0, stop=1.0, samples=8):
    """Return two points of a landscape of one dimension, with per-sample slopes that differ."""
    slopes = torch.linspace(-1, 1, samples, dtype=torch.float64)[:, None]

    def per_sample(outputs, targets):
        return function(outputs[:, 0]) + targets[:, 0] * outputs[:, 0]

    def at(place):
        return problem(
            Well(torch.tensor([place], dtype=torch.float64)), slopes.clone(), slopes, Loss("1-D", per_sample)
        )

    return at(start), at(stop)


def test_a_hole_in_the_loss_is_no_barrier_of_zero():
    def infinite(u):
        return torch.where((u - 0.5).abs() < 0.2, torch.inf, u.square() + 1)

    result = measured(*landscape_of(infinite), curved=False)
    assert result.status is Status.NONFINITE
    assert np.isnan(result.barrier.value)
    assert np.isnan(result.rise.value).all()


def test_the_error_of_a_rise_is_that_of_the_samples_at_its_top():
    first, last = landscape_of(lambda u: u.square() + 0.1 * torch.sin(6 * u))
    result = measured(first, last, curved=False)
    assert result.rise.value[1] == 0  # the second end is the highest point
    assert result.rise.sampling_error[1] == 0
    spread = (last.losses() - first.losses()).std(ddof=1) / np.sqrt(8)
    assert result.rise.sampling_error[0] == pytest.approx(spread)


def test_another_model_with_the_same_weights_does_not_resume(tmp_path):
    def scape(activation):
        model = nn.Sequential(nn.Linear(6, 4), activation, nn.Linear(4, 3)).double()
        given = ZOO["tanh mlp"].problem(samples=30)
        return problem(model, given.data.inputs, given.data.targets)

    from gapscope.measure.landscape import Landscape

    torch.manual_seed(0)
    one = scape(nn.Tanh())
    other = scape(nn.ReLU())
    other.model.load_state_dict(one.model.state_dict())
    digests = {Landscape.of(both(where), "re-estimated").digest() for where in (one, other)}
    assert len(digests) == 2


def test_a_path_that_would_not_end_in_the_second_checkpoint_is_refused():
    def net(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))

    data = (torch.randn(30, 4), torch.arange(30) % 3)
    parts = [gapscope.problem(net(seed), data, parameters=["2.*"]) for seed in (0, 1)]
    with pytest.raises(UsageError, match=r"The checkpoints differ in `0.weight`, which is not among the parameters"):
        gapscope.measure(parts, [gapscope.Path()])
    whole = [gapscope.problem(net(seed), data) for seed in (0, 1)]
    assert gapscope.measure(whole, [gapscope.Path()]).results["path"].quantities["barrier"].value >= 0
