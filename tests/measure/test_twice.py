from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.autograd import grad

from gapscope.measure import products
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.twice import Twice, _runs
from tests.problems import problem

EPS = torch.finfo(torch.float64).eps
MEAN, VARIANCE = torch.arange(4.0, dtype=torch.float64), torch.arange(1.0, 5, dtype=torch.float64)
OPERATIONS = {
    "conv1d": (lambda x, w, b: F.conv1d(x, w, b, 2, 1), [(3, 4, 9), (6, 4, 3), (6,)]),
    "conv2d": (lambda x, w, b: F.conv2d(x, w, b, 2, (1, 2), 2, groups=2), [(3, 4, 9, 8), (6, 2, 3, 2), (6,)]),
    "conv2d, named": (lambda x, w: F.conv2d(input=x, weight=w, padding=1), [(2, 3, 5, 4), (2, 3, 3, 3)]),
    "conv3d": (lambda x, w: F.conv3d(x, w, padding=1), [(2, 2, 4, 5, 4), (3, 2, 3, 2, 3)]),
    "batch norm": (lambda x, w, b: F.batch_norm(x, MEAN, VARIANCE, w, b), [(3, 4, 3, 2), (4,), (4,)]),
    "batch norm of vectors": (lambda x, w: F.batch_norm(x, MEAN, VARIANCE, w), [(3, 4), (4,)]),
    "batch norm, not affine": (lambda x: F.batch_norm(x, MEAN, VARIANCE), [(3, 4, 5)]),
}
LEFT = {
    "one sample": lambda x: F.conv1d(x[0], x.new_ones(6, 4, 3)),
    "padding by name": lambda x: F.conv1d(x, x.new_ones(6, 4, 3), padding="same"),
    "two types": lambda x: F.batch_norm(x, MEAN.float(), VARIANCE.float(), torch.ones(4), torch.zeros(4)),
    "statistics of the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "complex": lambda x: F.conv1d(x.to(torch.complex128), torch.ones(6, 4, 3, dtype=torch.complex128)),
}


def derivatives(operation, given, orders=3):
    """Return the value and the derivatives by all arguments of a scalar of it, of a scalar of these, and so on."""
    found = [operation(*given)]
    scalar = found[0].sin().sum()
    for _ in range(orders):
        slopes = grad(scalar, given, create_graph=True)
        found += slopes
        scalar = sum((i * part.sin()).sum() for i, part in enumerate(slopes, 1))
    return found


def node(operation, x):
    with Twice():
        return type(operation(x).grad_fn).__name__


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_of_any_order_are_those_of_autograd(name):
    operation, shapes = OPERATIONS[name]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    plain = derivatives(operation, given)
    with Twice():
        own = derivatives(operation, given)
    assert own[0].grad_fn.name() in ("_ConvolutionBackward", "_NormalizedBackward")
    for a, b in zip(own, plain, strict=True):
        assert (a - b).norm() <= 1e3 * EPS * b.norm()


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_of_the_plain_kind_is_left_to_autograd(name):
    x = torch.randn(2, 4, 5, requires_grad=True, dtype=torch.bfloat16 if name == "two types" else torch.float64)
    assert not node(LEFT[name], x).startswith("_")


def test_under_autocast_the_types_are_those_of_autocast():
    x, w = torch.randn(2, 4, 5, requires_grad=True), torch.randn(6, 4, 3)
    with torch.autocast("cpu", torch.bfloat16), Twice():
        assert F.conv1d(x, w).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
def test_a_kept_graph_is_passed_through_in_bfloat16_to_its_rounding(name):
    operation, shapes = OPERATIONS[name]
    given = [torch.randn(shape, requires_grad=True) for shape in shapes]
    with Twice():
        slopes = grad(operation(*given).sin().sum(), given, create_graph=True)
    scalar = sum(part.sin().sum() for part in slopes)
    exact = grad(scalar, given, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = grad(scalar, given, retain_graph=True)
    again = grad(scalar, given)
    for a, b, c in zip(exact, rounded, again, strict=True):
        assert b.dtype == torch.float32
        assert 0 < (a - b).norm() <= 2**-6 * a.norm()
        assert torch.equal(a, c)


def test_outside_nothing_is_replaced():
    assert node(lambda x: F.conv1d(x, x.new_ones(6, 4, 3)), torch.randn(2, 4, 5, requires_grad=True)).startswith("_")
    assert not type(
        F.conv1d(torch.randn(2, 4, 5, requires_grad=True), torch.ones(6, 4, 3)).grad_fn
    ).__name__.startswith("_")


def resnet(**more):
    torch.manual_seed(0)
    model = NETWORKS["resnet20"]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return problem(model, torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 4, 9]), **more)


def test_products_of_a_residual_network_are_those_of_autograd_whole_and_by_layer():
    given = resnet()
    micro, parameters = given._micro(given._batch(0, 3)), given.parameters.split(given.theta)
    v = [torch.randn_like(part) for part in parameters]
    with given.measuring():
        own = products.hessian(micro, parameters)
        leaves = products.leaves_of(parameters)
        slopes = grad(micro.losses(micro.outputs(leaves)).sum(), leaves, create_graph=True)
        plain = products.Graph(slopes, leaves)
        whole = zip(own(v), plain(v), strict=True)
        parts = (
            pair
            for which in given.hessian_blocks()._which.values()
            for pair in zip(own.block(which, v[which]), plain.block(which, v[which]), strict=True)
        )
        scale = max(float(part.norm()) for part in plain(v))
        for a, b in (*whole, *parts):
            assert (a - b).norm() <= 1e5 * EPS * scale


def test_a_product_of_the_last_layers_passes_through_no_others(monkeypatch):
    given, convolved = resnet(), []
    micro, parameters = given._micro(given._batch(0, 3)), given.parameters.split(given.theta)
    with given.measuring():
        graph = products.hessian(micro, parameters)
    aten = torch.ops.aten
    counted = SimpleNamespace(
        convolution=lambda *a: convolved.append("C") or aten.convolution(*a),
        convolution_backward=lambda *a: convolved.append("T" if a[-1][0] else "W") or aten.convolution_backward(*a),
        native_batch_norm=aten.native_batch_norm,
        native_batch_norm_backward=aten.native_batch_norm_backward,
    )
    monkeypatch.setattr(torch, "ops", SimpleNamespace(aten=counted))
    blocks = given.hessian_blocks()._which
    last = [name for name in blocks if "conv" in name][-1]
    graph.block(blocks[last], [torch.randn_like(part) for part in parameters[blocks[last]]])
    assert sorted(convolved) == ["C", "W"]  # up to the loss and back again
    convolved.clear()
    graph([torch.randn_like(part) for part in parameters])
    layers = sum(isinstance(module, nn.Conv2d) for module in given.model.modules())
    # two of each for every layer, the limit; the first has no input to go back to, and needs no T(g, w)
    assert {kind: convolved.count(kind) for kind in "CTW"} == {
        "C": 2 * layers - 1, "T": 2 * (layers - 1), "W": 2 * layers - 1,
    }  # fmt: skip


def test_a_torch_that_does_not_tell_is_asked_for_everything(monkeypatch):
    monkeypatch.delattr(torch._C, "_will_engine_execute_node")
    assert _runs(None)
