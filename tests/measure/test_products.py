import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.measure import products
from gapscope.measure.products import Micro
from tests.problems import ZOO, dense_hessian, softmax_regression

EPS = torch.finfo(torch.float64).eps


def micro_of(problem):
    return problem._micro(problem._batch(0, problem.samples)), problem.parameters.split(problem.theta)


@pytest.mark.parametrize("name", ZOO)
def test_the_hessian_product_is_the_dense_hessian_times_v(name):
    problem = ZOO[name].problem(samples=12)
    dense = torch.from_numpy(dense_hessian(problem))
    micro, parameters = micro_of(problem)
    v = torch.randn(problem.size, dtype=torch.float64)
    with problem.measuring():
        product = products.hessian(micro, parameters)
    for _ in range(2):  # the graph is kept, and a second product is the same
        found = problem.parameters.flatten(product(problem.parameters.split(v)))
        assert (found / 12 - dense @ v).norm() <= 1e3 * EPS * np.linalg.norm(dense) * v.norm()


@pytest.mark.parametrize("name", ZOO)
def test_the_gauss_newton_product_is_symmetric_and_never_negative(name):
    problem = ZOO[name].problem(samples=12)
    micro, parameters = micro_of(problem)
    u, v = torch.randn(2, problem.size, dtype=torch.float64)
    with problem.measuring():
        product = products.gauss_newton(micro, parameters)
    gu, gv = (problem.parameters.flatten(product(problem.parameters.split(w))) for w in (u, v))
    scale = gu.norm() * v.norm()
    assert abs(u @ gv - v @ gu) <= 1e3 * EPS * scale
    assert u @ gu >= -1e3 * EPS * scale


def test_gauss_newton_equals_the_hessian_where_outputs_are_linear_in_theta():
    closed = softmax_regression()
    micro, parameters = micro_of(closed.problem)
    v = torch.randn(closed.problem.size, dtype=torch.float64)
    found = closed.problem.parameters.flatten(
        products.gauss_newton(micro, parameters)(closed.problem.parameters.split(v))
    )
    dense = torch.from_numpy(closed.hessian)
    assert (found / closed.problem.samples - dense @ v).norm() <= 1e3 * EPS * dense.norm() * v.norm()


def test_gauss_newton_of_a_network_is_jacobian_loss_hessian_jacobian():
    problem = ZOO["tanh mlp"].problem(samples=7)
    layout, x = problem.parameters, problem.data.inputs.double()

    def scores(theta):
        return torch.func.functional_call(problem.model, layout.unflatten(theta), (x,))

    jacobian = torch.func.jacrev(scores)(problem.theta)  # (7, 3, n)
    p = scores(problem.theta).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    dense = torch.einsum("icn,icd,idm->nm", jacobian, inner, jacobian).detach()
    micro, parameters = micro_of(problem)
    v = torch.randn(problem.size, dtype=torch.float64)
    found = layout.flatten(products.gauss_newton(micro, parameters)(layout.split(v)))
    assert (found - dense @ v).norm() <= 1e3 * EPS * dense.norm() * v.norm()


@pytest.mark.parametrize("name", ZOO)
def test_the_residual_is_the_hessian_less_gauss_newton(name):
    problem = ZOO[name].problem(samples=12)
    micro, parameters = micro_of(problem)
    v = problem.parameters.split(torch.randn(problem.size, dtype=torch.float64))
    with problem.measuring():
        whole, part, rest = (
            problem.parameters.flatten(build(micro, parameters)(v))
            for build in (products.hessian, products.gauss_newton, products.residual)
        )
    assert (whole - part - rest).norm() <= 1e3 * EPS * (whole.norm() + part.norm())


@pytest.mark.parametrize("name", ZOO)
def test_a_block_of_the_graph_is_the_block_of_the_matrix(name):
    problem = ZOO[name].problem(samples=12)
    layout = problem.parameters
    dense = 12 * torch.from_numpy(dense_hessian(problem))
    micro, parameters = micro_of(problem)
    with problem.measuring():
        graph = products.hessian(micro, parameters)
        for i, (start, size) in enumerate(zip(np.cumsum([0, *layout.sizes]), layout.sizes, strict=False)):
            v, one = torch.randn(size, dtype=torch.float64), slice(i, i + 1)
            true = dense[start : start + size, start : start + size] @ v
            cut = [v.view(layout.shapes[i])]
            for found in (graph.block(one, cut), products.hessian(micro, parameters, one)(cut)):
                assert (found[0].flatten() - true).norm() <= 1e4 * EPS * dense.norm() * v.norm()


def linear_micro():
    x = torch.randn(5, 3, dtype=torch.float64)
    return Micro(lambda leaves: x @ leaves[0], lambda outputs: outputs), [torch.randn(3, dtype=torch.float64)]


def test_a_loss_linear_in_theta_has_zero_curvature_every_way():
    micro, parameters = linear_micro()
    v = [torch.randn(3, dtype=torch.float64)]
    for build in (products.hessian, products.gauss_newton, products.residual):
        assert torch.equal(build(micro, parameters)(v)[0], torch.zeros(3, dtype=torch.float64))
    product, along = products.hessian(micro, parameters).curvature_along(v)
    assert not product[0].any()
    assert torch.equal(along, torch.zeros(5, dtype=torch.float64))


def test_a_loss_that_does_not_know_theta_has_zero_derivatives():
    micro = Micro(lambda leaves: torch.ones(5, 1), lambda outputs: outputs.sum(1))
    theta, v = [torch.ones(3)], [torch.ones(3)]
    slopes, losses = products.gradient(micro, theta)
    assert not slopes[0].any()
    assert losses.sum() == 5
    assert not products.hessian(micro, theta)(v)[0].any()
    assert not products.gauss_newton(micro, theta)(v)[0].any()
    assert not products.residual(micro, theta)(v)[0].any()
    product, along = products.hessian(micro, theta).curvature_along(v)
    assert not product[0].any()
    assert not along.any()


def test_the_parameters_given_are_left_alone():
    problem = ZOO["relu mlp"].problem(samples=5)
    micro, parameters = micro_of(problem)
    before = [p.clone() for p in parameters]
    products.gradient(micro, parameters)
    products.hessian(micro, parameters)(parameters)
    assert all(
        torch.equal(a, b) and not a.requires_grad and a.grad is None for a, b in zip(parameters, before, strict=True)
    )


def test_graph_bytes_are_the_saved_tensors_each_storage_once():
    x, w = torch.randn(10, 4), torch.randn(4, 4, requires_grad=True)
    # x @ w saves x alone (w needs it, x asks for no gradient), and tanh its output: (40 + 40) float32
    assert products.graph_bytes(lambda: torch.tanh(x @ w)) == 4 * (40 + 40)
    assert products.graph_bytes(lambda: (w * w).sum()) == 4 * 16


def test_products_import_no_sympy():
    work = "import sys, torch; from gapscope.measure.products import Micro, hessian; "
    work += "micro = Micro(lambda leaves: leaves[0] ** 3, lambda outputs: outputs); "
    work += "print(hessian(micro, [torch.ones(2)])([torch.ones(2)]), 'sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=True)
    assert done.stdout == "[tensor([6., 6.])] False\n"


def test_attention_has_its_second_derivative_outside_of_any_context():
    q = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    micro = Micro(
        lambda leaves: nn.functional.scaled_dot_product_attention(leaves[0] * q, q, q).sum((1, 2, 3)),
        lambda outputs: outputs.square(),
    )
    u, v = ([torch.randn(1, dtype=torch.float64)] for _ in range(2))
    product = products.hessian(micro, [torch.ones(1, dtype=torch.float64)])
    assert torch.isfinite(product(v)[0])
    assert torch.allclose(u[0] * product(v)[0], v[0] * product(u)[0])
