import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gapscope.errors import ProblemError
from gapscope.measure.checks import check, is_mixed
from gapscope.measure.loading import Loss
from tests.problems import ZOO, problem, softmax_regression, train

DTYPES = [torch.float32, torch.float64]


def classified(model, dtype=torch.float32, samples=40, width=4, **more):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, width, generator=rng), torch.randint(3, (samples,), generator=rng)
    return problem(model.to(dtype), x, y, **more)


# --- honest models pass


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ZOO)
def test_honest_models_pass_and_their_loss_is_returned(name, dtype):
    for seed in range(20):
        given = ZOO[name].problem(seed, dtype)
        assert check(given) == given.loss()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["batch", "re-estimated"])
def test_honest_models_pass_in_every_batchnorm_mode(mode, dtype):
    for seed in range(5):
        check(ZOO["conv batchnorm"].problem(seed, dtype, batchnorm=mode, batch_size=25))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["relu mlp", "conv batchnorm"])
def test_relu_networks_at_tiny_loss_pass(name, dtype):
    for seed in range(3):
        given = train(ZOO[name].problem(seed, dtype, samples=6), 600, 0.05)
        assert check(given) < 1e-3
        with torch.no_grad():  # the same decisions at a loss that all but underflows
            given.model[-1].weight.mul_(6)
            given.model[-1].bias.mul_(6)
        check(problem(given.model, given.data.inputs, given.data.targets))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_minimum_of_large_residuals_passes(dtype):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=rng), 100 * torch.randn(60, 1, generator=rng)
    model = nn.Linear(5, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x.double(), y.double()).solution.T)
    check(problem(model, x, y, "mse"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_and_linear_losses_pass(dtype):
    linear = Loss("linear", lambda outputs, targets: outputs.sum(1))
    assert check(problem(nn.Linear(3, 2).to(dtype), torch.randn(9, 3), torch.zeros(9), linear)) != 0
    flat = Loss("flat", lambda outputs, targets: 0.0 * outputs.sum(1))
    assert check(problem(nn.Linear(3, 2).to(dtype), torch.randn(9, 3), torch.zeros(9), flat)) == 0


def test_one_sample_and_one_parameter_pass():
    check(problem(nn.Linear(1, 1, bias=False), torch.ones(1, 1), torch.ones(1), "mse"))


class OwnConstants(nn.Module):
    """Starts from float32 zeros of its own: float64 is out of reach, so the probe must do without."""

    def __init__(self, activation):
        super().__init__()
        self.cell, self.head, self.activation = nn.RNNCell(4, 8), nn.Linear(8, 3), activation

    def forward(self, x):
        return self.head(self.activation(self.cell(x, torch.zeros(len(x), 8, dtype=torch.float32))))


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu])
def test_models_that_are_float32_only_are_probed_in_float32(activation):
    for seed in range(20):
        torch.manual_seed(seed)
        check(classified(OwnConstants(activation)))


def test_a_nan_in_an_unused_buffer_does_no_harm():
    model = nn.Linear(4, 3)
    model.register_buffer("unused", torch.tensor(float("nan")))
    check(classified(model))


def test_the_model_is_left_as_it_was():
    given = ZOO["conv batchnorm"].problem()
    given.model.train()
    state = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    check(given)
    assert all(torch.equal(state[name], tensor) for name, tensor in given.model.state_dict().items())
    assert all(module.training for module in given.model.modules())


# --- what is refused


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_counted(bad):
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, :2] = bad
    with pytest.raises(ProblemError, match=r"2 of 15 weights are NaN or infinite"):
        check(classified(model))


def test_losses_that_are_not_finite_are_named_by_sample():
    given = classified(nn.Linear(4, 3))
    given.data.inputs[5, 0] = float("nan")
    given.data.inputs[9, 0] = float("nan")
    with pytest.raises(ProblemError, match=r"NaN or infinite on 2 of 40 samples \(first: sample 5\)"):
        check(given)


def test_dropout_that_ignores_eval_mode_is_found():
    class Dropping(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.3)

    with pytest.raises(ProblemError, match=r"Two passes over the same samples gave losses that differ"):
        check(classified(Dropping(4, 3)))


def test_a_forward_pass_that_moves_what_it_reads_is_found():
    class Drifting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            y = super().forward(x)
            self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
            return y - self.mean * torch.arange(3.0)

    with pytest.raises(ProblemError, match=r"Two passes over the same samples"):
        check(classified(Drifting()))


def test_a_forward_pass_that_changes_a_buffer_is_found():
    class Counting(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.register_buffer("calls", torch.tensor(0))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    with pytest.raises(ProblemError, match=r"changed the buffer `calls`. Expected a function without memory"):
        check(classified(Counting()))


def test_what_is_not_repeatable_is_named():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + 1e-2 * torch.randn_like(x)

    model = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.Tanh(), Noisy()), nn.Linear(5, 3))
    with pytest.raises(ProblemError, match=r"module `1.1` \(Noisy\) returns something else for the same inputs"):
        check(classified(model))


def test_samples_that_change_each_other_are_found_unless_the_micro_batches_are_fixed():
    class Centered(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y - y.mean(0)

    torch.manual_seed(0)
    model = Centered(4, 3)
    with pytest.raises(ProblemError, match=r"changes by up to .* with the company of other samples"):
        check(classified(model))
    given = classified(model, batch_size=20)
    assert check(given) == given.loss()
    assert is_mixed(given)


@pytest.mark.parametrize("size", [1, 2, 20, 100])
def test_what_statistics_over_the_batch_make_of_a_loss_is_told_from_rounding(size):
    class Largest(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y / y.abs().max()

    torch.manual_seed(0)
    assert is_mixed(classified(Largest(4, 3), batch_size=size))
    for name in ZOO:
        for dtype in DTYPES:
            assert not is_mixed(ZOO[name].problem(0, dtype, batch_size=size))
    assert is_mixed(ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=20))
    assert not is_mixed(classified(Largest(4, 3)))  # refused before anything is measured


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_depend_on_no_company(bad):
    given = classified(nn.Linear(4, 3), batch_size=20)
    given.data.inputs[:] = bad
    assert not is_mixed(given)


def test_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)  # since torch 2.15
        scripted = torch.jit.script(nn.Linear(4, 3))
    with pytest.raises(ProblemError, match=r"The model is TorchScript, .* Build the model from its code"):
        check(classified(scripted))


def test_a_gradient_that_is_not_finite_is_refused():
    class Root(nn.Linear):
        def forward(self, x):
            return (0.0 * super().forward(x)).abs().sqrt()  # 0, with a slope of 0 times infinity

    with pytest.raises(ProblemError, match=r"The gradient is NaN or infinite although the losses are finite"):
        check(classified(Root(4, 3)))


def test_what_is_found_of_the_second_derivatives_is_kept():
    given = classified(nn.Linear(4, 3))
    check(given)
    assert given.derivatives is given.derivatives
    assert given.derivatives.method == "exact"


def test_the_closed_form_passes():
    assert check(softmax_regression().problem) > 0
