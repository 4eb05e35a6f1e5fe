import pytest
import torch

from gapscope.measure import products
from gapscope.measure.differences import Differences, moved, norm
from gapscope.measure.products import Micro
from tests.problems import ZOO, softmax_regression

WIDE = Differences(1e-5, torch.float64)
BOUND = 1e-8  # h^2 and eps / h, each about 1e-10, times what the networks make of them


def micro_of(given):
    return given._micro(given._batch(0, given.samples)), given.parameters.split(given.theta)


def vector(given, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return given.parameters.split(torch.randn(given.size, generator=rng, dtype=torch.float64).to(given.dtype))


def error(found, true):
    return norm([a - b for a, b in zip(found, true, strict=True)]) / norm(true)


@pytest.mark.parametrize("name", ["tanh mlp", "regression", "conv groupnorm", "fused attention", "tied embedding"])
def test_differences_are_the_products_of_autograd(name):
    given = ZOO[name].problem(samples=12)
    (micro, theta), v = micro_of(given), vector(given)
    with given.measuring():
        for build in ("hessian", "gauss_newton", "residual"):
            assert error(getattr(WIDE, build)(micro, theta)(v), getattr(products, build)(micro, theta)(v)) < 10 * BOUND
        along, true = WIDE.slopes_along(micro, theta, v), products.slopes_along(micro, theta, v)
        assert (along - true).norm() <= BOUND * true.norm()
        (product, bends), (_, expected) = (w.hessian(micro, theta).curvature_along(v) for w in (WIDE, products))
        assert error(product, products.hessian(micro, theta)(v)) < BOUND
        assert (bends - expected).norm() <= 1e-5 * expected.norm()


def test_blocks_are_those_of_the_whole():
    given = ZOO["tanh mlp"].problem(samples=12)
    (micro, theta), which = micro_of(given), slice(2, 4)
    v = vector(given)[which]
    true = products.hessian(micro, theta, which)(v)
    assert error(WIDE.hessian(micro, theta, which)(v), true) < BOUND
    assert error(WIDE.hessian(micro, theta).block(which, v), true) < BOUND


def test_float32_parameters_are_evaluated_in_the_dtype_given():
    given = softmax_regression(dtype=torch.float32).problem
    (micro, theta), v = micro_of(given), vector(given)
    true = softmax_regression().problem
    exact = products.hessian(*micro_of(true))([part.double() for part in v])
    wide, narrow = (Differences(1e-3, dtype).hessian(micro, theta)(v) for dtype in (torch.float64, torch.float32))
    assert wide[0].dtype == torch.float64
    assert narrow[0].dtype == torch.float32
    assert error(wide, exact) < 1e-6  # data and weights are float32 numbers
    assert 1e-6 < error([part.double() for part in narrow], exact) < 1e-2


def test_the_zero_vector_has_a_zero_product():
    given = ZOO["tanh mlp"].problem(samples=3)
    micro, theta = micro_of(given)
    zero = [torch.zeros_like(part) for part in theta]
    for build in (WIDE.hessian, WIDE.gauss_newton, WIDE.residual):
        assert norm(build(micro, theta)(zero)) == 0
    assert not WIDE.slopes_along(micro, theta, zero).any()
    assert not WIDE.hessian(micro, theta).curvature_along(zero)[1].any()


def test_outputs_that_do_not_move_have_no_gauss_newton():
    micro = Micro(
        lambda leaves: torch.ones(5, 1, dtype=torch.float64) + 0 * leaves[0].sum(), lambda f: f.square()[:, 0]
    )
    point = [torch.ones(3, dtype=torch.float64)]
    assert norm(WIDE.gauss_newton(micro, point)(point)) == 0


def test_only_the_parts_asked_for_move():
    point = [torch.zeros(2), torch.zeros(3)]
    there = moved(point, [torch.ones(3)], slice(1, 2), 0.5)
    assert torch.equal(torch.cat(there), torch.tensor([0, 0, 0.5, 0.5, 0.5]))
