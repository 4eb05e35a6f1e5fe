import pytest
import torch
from torch import nn
from torch.autograd import Function

from gapscope.errors import ProblemError
from gapscope.measure import probe
from gapscope.measure.loading import Loss
from tests.awkward import Cube, SilentCube
from tests.problems import ZOO, problem

DTYPES = [torch.float32, torch.float64]
CUBES = Loss("cubes", lambda outputs, targets: SilentCube.apply(outputs - targets).mean(1))


class SilentInFloat32(Function):
    """x^3, whose second derivative is lost in float32 alone, as kernels of one type lose it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        x = ctx.saved_tensors[0]
        return 3 * (x.detach() if x.dtype == torch.float32 else x) ** 2 * slope


class Sided(nn.Module):
    """A network with a small cubic branch."""

    def __init__(self, function, share):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 5))
        self.side, self.back, self.function, self.share = nn.Linear(20, 3), nn.Linear(3, 5), function, share

    def forward(self, x):
        return self.body(x) + self.share * self.back(self.function.apply(self.side(x)))


def relu(*, norm=False):
    torch.manual_seed(0)
    extra = [nn.BatchNorm1d(12)] if norm else []
    return nn.Sequential(nn.Linear(6, 12), *extra, nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))


def pruned():
    model = relu()
    model[0].weight.data[:5] = 0
    model[0].bias.data[:5] = 0
    return model


def unscaled():
    model = relu(norm=True)
    model[1].weight.data[2] = 0
    return model


def unbiased():
    model = relu()
    for module in model:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model


def on(model, dtype, empty=0, loss="cross-entropy"):
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 6, generator=rng), torch.randint(3, (40,), generator=rng)
    x[:empty] = 0
    targets = y if loss == "cross-entropy" else torch.randn(40, 3, generator=rng)
    return problem(model.to(dtype), x, targets, loss)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("model", "empty"), [(pruned, 0), (unscaled, 0), (unbiased, 6)])
def test_a_network_on_a_kink_is_differentiated_twice(model, empty, dtype):
    given = on(model(), dtype, empty)
    assert given.derivatives.method == "exact"


def test_on_a_kink_a_lost_second_derivative_is_still_found():
    with pytest.raises(
        ProblemError, match=r"differs from a central difference of the gradient by .* Central differences"
    ):
        _ = on(pruned(), torch.float64, loss=CUBES).derivatives


@pytest.mark.parametrize("body", [False, True])
def test_weights_that_are_all_zero_hide_no_fault(body):
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    for module in model if body else model[2:]:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    assert on(model, torch.float32).derivatives.method == "exact"
    found = on(model, torch.float32, loss=CUBES).derivatives
    assert found.method == "differences"
    assert "differs from a central difference of the gradient by" in found.note


@pytest.mark.parametrize("share", [1.0, 1e-3])
def test_a_wrong_part_of_a_large_network_is_found(share):
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 20, generator=rng), torch.randint(5, (40,), generator=rng)
    model = Sided(SilentCube, share)
    found = problem(model, x, y)
    assert found.derivatives.method == "differences"
    assert "SilentCube" in found.derivatives.note
    given = found.hessian_blocks().layer("side")
    v = torch.randn(given.size, generator=rng)
    image = given.matvec(v).double()
    model.function = Cube
    assert problem(model, x, y).derivatives.method == "exact"
    true = problem(model.double(), x, y).hessian_blocks().layer("side").matvec(v)
    assert (image - true).norm() <= 1e-3 * true.norm()


def test_a_kernel_that_is_wrong_in_float32_alone_is_found():
    torch.manual_seed(0)
    x, y = torch.randn(40, 20), torch.randint(5, (40,))
    model = Sided(SilentInFloat32, 1.0)
    found = problem(model, x, y).derivatives
    assert found.method == "differences"
    assert "The Hessian-vector product in float32 differs from that in float64 by" in found.note
    assert problem(model.double(), x, y).derivatives.method == "exact"


def test_what_overflows_in_float32_alone_is_no_fault_of_its_kernels():
    given = problem(nn.Linear(3, 1), torch.full((4, 3), 1e30), torch.zeros(4), "mse")
    assert given.derivatives.method == "exact"


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("samples", "count"), [(1, 1), (2, 1), (3, 3), (40, 32), (1000, 32), (2**31 + 7, 32)])
def test_the_probed_samples_go_from_the_first_to_the_last_whatever_the_default_dtype(samples, count, default):
    torch.set_default_dtype(default)
    found = probe.spread(samples, count).tolist()
    assert found == [i * (samples - 1) // max(1, count - 1) for i in range(count)]
    assert len(set(found)) == count
    assert found[-1] == (samples - 1 if count > 1 else 0)


def test_fewer_samples_of_large_graphs_are_probed(monkeypatch):
    given = ZOO["tanh mlp"].problem(samples=50)
    each = probe.bytes_of(given, 1)
    assert probe.samples_of(given) == 32
    monkeypatch.setattr(probe, "BYTES", 10 * each)
    assert probe.samples_of(given) == len(probe.micro_batch(given).targets) == 10
    monkeypatch.setattr(probe, "BYTES", each)
    assert [probe.samples_of(one) for one in (given, ZOO["tanh mlp"].problem(samples=3))] == [4, 3]
