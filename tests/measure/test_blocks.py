import pytest
import torch

from gapscope.measure import products
from gapscope.measure.blocks import Kept
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem
from tests.problems import ZOO, dense_hessian

EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("budget", [4_000_000_000, 400_000, 1])
@pytest.mark.parametrize("name", ZOO)
def test_blocks_are_those_of_the_dense_hessian_kept_or_not(name, budget):
    given = ZOO[name].problem(samples=20, batch_size=7, memory_budget=budget)
    dense, hessian = torch.from_numpy(dense_hessian(given)), given.hessian_blocks()
    v = torch.randn(given.size, dtype=torch.float64)
    close = 1e4 * EPS * float(dense.norm() * v.norm())
    apart = torch.zeros_like(v)
    for layer, where in given.parameters.blocks().items():
        apart[where] = dense[where, where] @ v[where]
        for _ in range(2):
            block = hessian.layer(layer)
            assert block.size == where.stop - where.start
            assert (block.matvec(v[where]) - apart[where]).norm() <= close
    assert (hessian.apart().matvec(v) - apart).norm() <= close
    assert (hessian.whole().matvec(v) - dense @ v).norm() <= close


def test_graphs_are_kept_once_for_all_of_them(monkeypatch):
    given, built = ZOO["relu mlp"].problem(samples=20, batch_size=7), []
    hessian = products.hessian
    monkeypatch.setattr(products, "hessian", lambda *a: built.append(1) or hessian(*a))
    assert given.graph_bytes_per_sample > 0
    assert given.derivatives.method == "exact"
    del built[:]
    blocks, v = given.hessian_blocks(), torch.ones(given.size, dtype=torch.float64)
    for _ in range(2):
        blocks.whole().matvec(v)
        blocks.apart().matvec(v)
        for layer, where in given.parameters.blocks().items():
            blocks.layer(layer).matvec(v[where])
    assert len(built) == 3  # micro-batches


def test_without_room_nothing_is_kept():
    given = ZOO["relu mlp"].problem(samples=20, batch_size=7, memory_budget=1)
    kept = Kept(given, products.hessian)
    kept.operator().matvec(given.theta)
    assert kept.room == 0
    assert not kept.held


def part(given, where, v):
    """Return the part of the whole product that a block's is: v padded with zeros, and H v cut."""
    padded = given.theta.new_zeros(given.size)
    padded[where] = v.to(padded)
    return given.hessian().matvec(padded)[where]


def test_a_block_in_float32_is_the_part_of_the_whole():
    given = ZOO["fused attention"].problem(dtype=torch.float32)
    hessian = given.hessian_blocks()
    for layer, where in given.parameters.blocks().items():
        v = torch.randn(where.stop - where.start, dtype=torch.float64)
        torch.testing.assert_close(hessian.layer(layer).matvec(v), part(given, where, v), rtol=1e-4, atol=1e-6)


def test_frozen_layers_have_no_block():
    free = ZOO["conv batchnorm"].problem()
    free.model[0].requires_grad_(False)
    given = Problem(model=free.model, data=free.data, loss_function=free.loss_function)
    hessian, v = given.hessian_blocks(), torch.randn(given.size, dtype=torch.float64)
    with pytest.raises(KeyError):
        hessian.layer("0")
    where = given.parameters.blocks()["1"]
    torch.testing.assert_close(hessian.layer("1").matvec(v[where]), part(given, where, v[where]))


@pytest.mark.parametrize("budget", [4_000_000_000, 1])
def test_vectors_of_a_block_are_those_of_single_products_to_the_last_bit(budget):
    given = ZOO["conv batchnorm"].problem(samples=20, batch_size=7, memory_budget=budget)
    hessian = given.hessian_blocks()
    layer = next(iter(given.parameters.blocks()))
    for operator in (hessian.whole(), hessian.layer(layer), hessian.apart(), given.gauss_newton(), given.residual()):
        rows = torch.randn(3, operator.size, dtype=torch.float64)
        assert torch.equal(operator.block(rows), torch.stack([operator.matvec(row) for row in rows]))


def test_what_is_not_kept_is_built_once_for_a_block():
    given, built = ZOO["relu mlp"].problem(samples=20, batch_size=7, memory_budget=1), []
    operator = Kept(given, lambda *a: built.append(1) or products.hessian(*a)).operator()
    operator.block(torch.ones(4, given.size, dtype=torch.float64))
    assert len(built) == 3  # micro-batches, whatever the vectors


def test_a_block_ticks_as_many_passes_as_it_has_vectors():
    class Counting(Monitor):
        passes = 0.0

        def tick(self, fraction):
            self.passes += fraction

    given = ZOO["relu mlp"].problem(samples=20, batch_size=7, monitor=Counting())
    operator = given.hessian()
    before = given.monitor.passes
    operator.block(torch.ones(4, given.size, dtype=torch.float64))
    assert given.monitor.passes - before == pytest.approx(4)
