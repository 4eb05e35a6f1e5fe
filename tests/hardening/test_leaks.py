"""Many calls in one process leave nothing behind: see `leaks`, whose long form takes a thousand."""

import gc
import weakref

import pytest
import torch
from torch import nn

import gapscope
from gapscope.measure import products
from tests.hardening.leaks import X, Y, after, network

CALLS = 8


def test_calls_leave_no_tensor_file_module_or_hook_behind():
    """Each problem left the graphs of six samples, in a cycle that the collector does not see: 63 tensors of a MLP."""
    first, last = after(CALLS)
    assert last.tensors <= first.tensors
    assert last.files == first.files
    assert last.modules == first.modules
    assert last.objects - first.objects < 10 * CALLS  # a leaked problem has some 150


@pytest.mark.parametrize("analyzer", [gapscope.Gap(), gapscope.Eigenvalues(), gapscope.Trace(), gapscope.NearRank()])
def test_a_problem_is_freed_without_waiting_for_the_collector(analyzer):
    gc.collect()
    gc.disable()
    try:
        problem = gapscope.problem(network(), (X, Y))
        gapscope.measure(problem, [analyzer])
        left = [weakref.ref(one) for one in (problem, problem.theta, problem.data)]
        del problem
        assert [one() for one in left] == [None] * 3
    finally:
        gc.enable()


def test_counting_the_bytes_of_a_graph_keeps_no_graph():
    weight = torch.ones(3, requires_grad=True)
    gc.collect()
    before = sum(type(one) is torch.Tensor for one in gc.get_objects())
    assert products.graph_bytes(lambda: torch.tanh(weight).exp().sum()) == 2 * 12  # both keep their own outputs
    gc.collect()
    assert sum(type(one) is torch.Tensor for one in gc.get_objects()) == before


def test_a_graph_that_was_counted_is_differentiated_as_any_other():
    weight = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    slopes = []

    def build():
        slopes.append(torch.autograd.grad(torch.tanh(weight).square().sum(), weight, create_graph=True)[0])

    products.graph_bytes(build)
    found = torch.autograd.grad(slopes[0].sum(), weight)[0]
    t = torch.tanh(weight)
    wanted = 2 * (1 - t**2) * (1 - 3 * t**2)
    assert torch.allclose(found, wanted, rtol=16 * torch.finfo(torch.float64).eps)
