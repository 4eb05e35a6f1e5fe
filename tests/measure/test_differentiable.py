import copy
import functools
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

import gapscope
from gapscope.measure.differentiable import NOTES, plain, unwrapped, without_autocast

TOKENS = torch.tensor([[0, 1, 2, 6], [3, 3, 5, 0], [6, 6, 6, 6]])
WEIGHT = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
EPS = torch.finfo(torch.float32).eps


def swapped():
    old = sys.modules["torch.nn.utils.weight_norm"]
    return (
        F.embedding_bag,
        torch._weight_norm,
        old._weight_norm,
        torch.utils.checkpoint.CheckpointFunction,
        torch.utils.checkpoint._checkpoint_without_reentrant_generator,
        vars(torch.utils.checkpoint).get("_checkpoint_without_reentrant_generator_impl"),  # since torch 2.15
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
    )


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize(
    "bags",
    [
        {"input": TOKENS},
        {"input": TOKENS.flatten(), "offsets": torch.tensor([0, 3, 3, 10])},
        {"input": TOKENS.flatten(), "offsets": torch.tensor([0, 3, 3, 10, 12]), "include_last_offset": True},
    ],
    ids=["rows", "offsets", "last offset"],
)
def test_bags_written_out_are_the_fused_ones(mode, padding, bags):
    fused = F.embedding_bag(**bags, weight=WEIGHT, mode=mode, padding_idx=padding)
    with plain(nn.Identity(), set()):
        written = F.embedding_bag(**bags, weight=WEIGHT, mode=mode, padding_idx=padding)
    assert torch.allclose(written, fused, rtol=10 * EPS, atol=10 * EPS)


def test_weighted_bags_are_the_fused_ones_and_those_that_change_weights_stay_fused():
    shares = torch.rand(3, 4)
    fused = F.embedding_bag(TOKENS, WEIGHT, mode="sum", per_sample_weights=shares)
    flat = {"offsets": torch.tensor([0, 4, 8]), "mode": "sum", "per_sample_weights": shares.flatten()}
    with plain(nn.Identity(), set()):
        written = F.embedding_bag(TOKENS, WEIGHT, mode="sum", per_sample_weights=shares)
        assert torch.allclose(F.embedding_bag(TOKENS.flatten(), WEIGHT, **flat), fused, rtol=10 * EPS, atol=10 * EPS)
        cut = WEIGHT.clone()
        F.embedding_bag(TOKENS, cut, max_norm=0.5)
    assert torch.allclose(written, fused, rtol=10 * EPS, atol=10 * EPS)
    assert (cut[TOKENS].norm(dim=-1) <= 0.5 + 10 * EPS).all()


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_weight_norm_written_out_is_the_fused_one_and_differentiable_twice(dim):
    v = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    g = torch.norm_except_dim(v, 2, dim).detach().clone().requires_grad_()
    fused = torch._weight_norm(v, g, dim)
    repaired = set()
    with plain(nn.Identity(), repaired):
        assert torch.allclose(torch._weight_norm(v, g, dim), fused, rtol=1e-14)
        assert torch.autograd.gradgradcheck(lambda v, g: torch._weight_norm(v, g, dim).square().sum(), (v, g))
    assert repaired == {"weight_norm"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_only_call_and_give_back_what_they_are_given(reentrant):
    repaired, x = set(), torch.randn(3, requires_grad=True)
    with plain(nn.Identity(), repaired):
        y = checkpoint(lambda x: x.sin(), x, use_reentrant=reentrant)
        assert torch.equal(y, x.sin())
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        assert torch.allclose(torch.autograd.grad(slope.sum(), x)[0], -x.sin())
    assert repaired == {"checkpoint"}
    assert repaired <= NOTES.keys()


def test_modules_that_torch_checkpoints_by_hooks_run_without_them():
    composable = pytest.importorskip("torch.distributed._composable.checkpoint_activation")
    layer, own = nn.Linear(3, 3), composable._checkpoint_without_reentrant_generator
    composable.checkpoint(layer)
    repaired, x = set(), torch.randn(4, 3)
    with plain(layer, repaired):
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight, create_graph=True)
        for _ in range(2):  # a graph that is kept, which a checkpoint recomputes once
            (twice,) = torch.autograd.grad(slope.sum(), layer.weight, retain_graph=True)
    with torch.no_grad():
        value = x @ layer.weight.T + layer.bias
    assert torch.allclose(slope.detach(), 3 * value.square().T @ x, rtol=1e-4)
    assert torch.allclose(twice, 6 * (value * x.sum(1, keepdim=True)).T @ x, rtol=1e-4, atol=1e-5)
    assert repaired == {"checkpoint"}
    assert composable._checkpoint_without_reentrant_generator is own


def test_embeddings_give_the_gradient_of_the_loss_and_no_other():
    layer = nn.Embedding(7, 2, padding_idx=0, sparse=True, scale_grad_by_freq=True)
    with plain(layer, set()):
        (slope,) = torch.autograd.grad(layer(torch.tensor([0, 0, 3])).sum(), layer.weight)
    assert torch.equal(slope[:, 0], torch.tensor([2.0, 0, 0, 1, 0, 0, 0]))
    assert (layer.padding_idx, layer.sparse, layer.scale_grad_by_freq) == (0, True, True)


def test_everything_is_given_back_after_an_exception_too():
    torch.compile(nn.Identity(), backend="eager")  # as it imports the compiler
    before = swapped()
    model = nn.Sequential(nn.GRU(2, 2), nn.EmbeddingBag(3, 2, sparse=True))

    def fail():
        with plain(model, set()), plain(model, set()):
            assert not torch.backends.mha.get_fastpath_enabled()
            assert not torch.backends.cudnn.enabled
            assert not model[1].sparse
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert swapped() == before
    assert model[1].sparse


def test_a_weight_that_an_old_hook_computes_is_given_back():
    with pytest.warns(FutureWarning, match="deprecated"):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    own = layer.weight
    with plain(layer, set()):
        torch.func.functional_call(layer, {"weight_g": torch.ones(2, 1)}, (torch.ones(1, 3),))
        assert layer.weight is not own
    assert layer.weight is own


def test_compiled_models_run_uncompiled_inside():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    inner, repaired = nn.Linear(2, 2), set()
    model = nn.Sequential(torch.compile(inner, backend=backend), nn.Tanh())
    with plain(model, repaired):
        assert torch.equal(model(torch.ones(1, 2)), inner(torch.ones(1, 2)).tanh())
    assert repaired == {"compile"}
    assert compiled == []


def test_wrappers_are_taken_off():
    inner = nn.Linear(2, 2)
    assert unwrapped(inner) == (inner, False)
    assert unwrapped(nn.DataParallel(inner)) == (inner, False)
    assert unwrapped(torch.compile(nn.DataParallel(inner), backend="eager")) == (inner, True)


class ConvertOutputsToFp32:
    def __init__(self, forward):
        self.forward = forward
        functools.update_wrapper(self, forward)

    def __call__(self, *args):
        return self.forward(*args).float()


def stand_in(model):
    """Do to a model what accelerate does under mixed precision."""
    model._original_forward = model.forward
    converted = ConvertOutputsToFp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward.__func__))

    def forward(*args):
        return converted(*args)

    forward.__wrapped__ = converted
    model.forward = types.MethodType(forward, model)


def twice(model):
    """As where it is prepared for each of several calls."""
    stand_in(model)
    stand_in(model)


def accelerated(model):
    accelerate = pytest.importorskip("accelerate")
    state = accelerate.state.AcceleratorState
    state._reset_state(reset_partial_state=True)  # one a process, of whoever came first
    try:
        assert accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model) is model
    finally:
        state._reset_state(reset_partial_state=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("prepare", [stand_in, twice, accelerated])
def test_autocast_that_was_put_into_a_model_is_taken_out_while_it_is_measured(prepare):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    data = torch.randn(40, 5), torch.arange(40) % 3
    plain_losses = gapscope.problem(copy.deepcopy(model), data).losses()
    prepare(model)
    ours, own = model.forward, model(data[0])
    problem = gapscope.problem(model, data)
    assert np.array_equal(problem.losses(), plain_losses)
    assert problem.repaired == {"autocast"}
    assert vars(model)["forward"] is ours
    assert torch.equal(model(data[0]), own)
    assert not torch.equal(own, without_autocast(model)(data[0]))  # so there was something to take out
    assert np.array_equal(gapscope.problem(copy.deepcopy(model), data).losses(), plain_losses)
    report = gapscope.measure(problem, [gapscope.Eigenvalues(referee="pyhessian")])
    found = report.results["eigenvalues"].quantities
    assert float(found["referee"].value) == pytest.approx(float(found["top"].value), rel=1e-3)


def test_a_forward_that_the_user_put_into_a_model_is_the_models_own():
    model = nn.Linear(3, 2)
    data = torch.randn(8, 3), torch.arange(8) % 2
    model._original_forward = model.forward
    model.forward = types.MethodType(lambda self, x: 2 * self._original_forward(x), model)
    problem = gapscope.problem(model, data)
    losses = nn.functional.cross_entropy(model(data[0]), data[1], reduction="none").detach().double()
    assert problem.losses() == pytest.approx(losses.numpy(), abs=1e-6)
    assert problem.repaired == set()


def precisions():
    known = torch.backends
    if hasattr(known.cudnn, "conv"):
        return [known.cudnn.conv.fp32_precision, known.cuda.matmul.fp32_precision, known.mkldnn.matmul.fp32_precision]
    return [known.cudnn.allow_tf32, known.cuda.matmul.allow_tf32]


@pytest.mark.parametrize("asked", ["highest", "high", "medium"])
def test_measuring_takes_no_tf32_and_gives_back_what_was_asked(asked):
    torch.set_float32_matmul_precision(asked)
    try:
        before = precisions()
        with plain(nn.LSTM(2, 2), set()):
            assert set(precisions()) <= {"ieee", False}
            assert not torch.backends.cudnn.enabled
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == asked
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_wait_for_each_other_and_leave_nothing_behind():
    before, model, inside = swapped(), nn.Linear(2, 2), []

    def hold():
        for _ in range(20):
            with plain(model, set()):
                inside.append(threading.get_ident())
                time.sleep(1e-4)  # others would come in here
                inside.append(threading.get_ident())

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside[::2] == inside[1::2]
    assert swapped() == before


ALONE = """
import sys, torch
from torch import nn
from torch.func import grad
from gapscope.measure.differentiable import without_autocast, plain

with plain(nn.Identity(), set()), plain(nn.Identity(), set()):
    assert grad(lambda x: x.sin())(torch.zeros(())) == 1
    assert "torch._dynamo" not in sys.modules
assert "_dynamo" not in vars(torch)
with plain(nn.Identity(), set()):
    assert torch._dynamo.config.cache_size_limit > 0  # the compiler's own, imported for it
    torch._dynamo.compiled_autograd.reset()
    assert grad(lambda x: x.sin())(torch.zeros(())) == 1
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch.compile(nn.Identity(), backend="eager")(torch.ones(1)) == 1
"""


def test_the_compiler_is_imported_by_those_who_use_it_alone():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
