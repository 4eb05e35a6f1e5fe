import pytest
import torch
from torch import nn

import gapscope
from gapscope.errors import ProblemError
from gapscope.measure.operators import from_dense
from gapscope.measure.referee import pyhessian_top, scipy_top
from tests.problems import ZOO, bowl, problem, softmax_regression
from tests.spectra import SPECTRA, matrix


@pytest.mark.parametrize("name", SPECTRA)
def test_scipy_finds_the_top_of_every_spectrum(name):
    assert scipy_top(from_dense(matrix(SPECTRA[name]))) == pytest.approx(float(SPECTRA[name].max()), rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_scipy_works_on_tiny_matrices(size):
    assert scipy_top(from_dense(torch.diag(torch.arange(1.0, size + 1)))) == pytest.approx(size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pyhessian_finds_the_largest_magnitude_of_a_bowl(dtype):
    given = bowl(torch.tensor([-5.0, 3.0, 1.0]), torch.ones(3, dtype=dtype))
    assert pyhessian_top(given) == pytest.approx(-5, rel=1e-3)


def test_pyhessian_leaves_the_model_as_it_was():
    given = ZOO["conv batchnorm"].problem()
    given.model.train()
    kept = torch.ones_like(given.model[0].weight)
    given.model[0].weight.grad = kept
    state = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    generator = torch.get_rng_state()
    pyhessian_top(given, steps=3)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(state[name], tensor) for name, tensor in given.model.state_dict().items())
    assert all(module.training for module in given.model.modules())
    assert given.model[0].weight.grad is kept
    assert given.model[5].weight.grad is None
    assert torch.equal(kept, torch.ones_like(kept))


def test_pyhessian_measures_the_problem_and_not_what_its_model_became():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    given = gapscope.problem(model, (torch.randn(30, 4).double(), torch.arange(30) % 3))
    before = pyhessian_top(given)
    model.train()(torch.randn(30, 4).double())  # training goes on
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model[0].requires_grad_(False)
    assert pyhessian_top(given) == before
    assert before == pytest.approx(scipy_top(given.hessian()), rel=1e-2)


def test_pyhessian_measures_half_precision_in_the_problems_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).bfloat16()
    given = gapscope.problem(model, (torch.randn(30, 4), torch.arange(30) % 3))
    assert pyhessian_top(given) == pytest.approx(scipy_top(given.hessian()), rel=1e-2)
    assert model[0].weight.dtype == torch.bfloat16


def test_pyhessian_copes_with_parameters_that_the_loss_does_not_use():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(4, 3), nn.Linear(9, 9), nn.Linear(4, 4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.used(self.frozen(x))

    torch.manual_seed(0)
    given = problem(Partly(), torch.randn(20, 4), torch.randint(3, (20,)))
    assert pyhessian_top(given) == pytest.approx(scipy_top(given.hessian()), rel=1e-2)


def test_pyhessian_reads_logits():
    class Wrapped(nn.Linear):
        def forward(self, x):
            return type("Output", (), {"logits": super().forward(x)})()

    given = softmax_regression().problem
    wrapped = Wrapped(5, 3, bias=False).double()
    wrapped.load_state_dict(given.model.state_dict())
    other = problem(wrapped, given.data.inputs, given.data.targets)
    assert pyhessian_top(other) == pytest.approx(pyhessian_top(given), rel=1e-9)


def test_pyhessian_refuses_batch_statistics():
    with pytest.raises(ProblemError, match=r"PyHessian measures in eval mode only"):
        pyhessian_top(ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=10))
