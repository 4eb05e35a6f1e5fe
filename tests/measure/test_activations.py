import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import gapscope
from gapscope.errors import ProblemError
from gapscope.measure import activations
from gapscope.measure.activations import Plan, chosen_samples
from gapscope.measure.loading import NETWORKS
from tests.problems import ZOO, problem


def found(model, x, view="flat", **more):
    return activations.layers(problem(model, x, torch.zeros(len(x), dtype=torch.long), **more), view)


def named(layers):
    return {layer.name: layer for layer in layers}


def images(samples=5, channels=1, size=6):
    return torch.randn(samples, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("kind", "names", "activated"),
    [
        ("tanh mlp", ["0", "2", "4"], ["0", "2"]),
        ("conv batchnorm", ["0", "5"], ["0"]),
        ("conv groupnorm", ["0", "5"], ["0"]),
        ("fused attention", ["qkv", "head"], []),
        ("multihead", ["attention", "head"], []),
        ("lstm", ["lstm", "head"], []),
        ("tied embedding", ["embed", "mix", "decoder"], ["mix"]),
    ],
)
def test_the_layers_of_a_zoo(kind, names, activated):
    layers, unseen = activations.layers(ZOO[kind].problem(dtype=torch.float32))
    assert [layer.name for layer in layers] == names
    assert [layer.name for layer in layers if layer.activated] == activated
    assert unseen == ()


def test_a_lone_layer_is_the_model():
    layers, _ = found(nn.Linear(3, 2), torch.randn(4, 3))
    assert [layer.name for layer in layers] == ["model"]


class Shared(nn.Module):
    """One ReLU, written in place, after two layers; a third layer's ReLU is a function; a fourth is never called."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.unused = (nn.Linear(4, 4) for _ in range(4))
        self.relu, self.soft = nn.ReLU(inplace=True), nn.Softmax(dim=1)

    def forward(self, x):
        return self.soft(F.relu(self.three(self.relu(self.two(self.relu(self.one(x)))))))


def test_calls_not_names_tell_which_activation_follows_a_layer():
    model = Shared()
    layers, unseen = found(model, torch.randn(4, 4))
    points = {layer.name: layer.points for layer in layers}
    assert points == {"one": ((model.relu, 0),), "two": ((model.relu, 1),), "three": ((activations.FUNCTION, 2),)}
    assert unseen == ("unused",)


def test_the_built_in_resnet_is_measured_behind_its_functional_relus():
    layers, unseen = found(NETWORKS["resnet20"](), images(channels=3, size=8))
    bare = [layer.name for layer in layers if not layer.activated]
    assert bare == [*(f"stage{i}.{j}.conv2" for i in (1, 2, 3) for j in (0, 1, 2)), "fc"]  # a shortcut is added first
    assert unseen == ()


@pytest.mark.parametrize("way", [F.relu, torch.relu, torch.Tensor.relu, F.gelu, torch.tanh, F.relu_])
def test_an_activation_that_is_a_function_gives_the_matrix_of_its_module(way):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(way(self.one(x)))

    model, x = Net().double(), torch.randn(40, 4, dtype=torch.float64)
    where = problem(model, x, torch.zeros(40, dtype=torch.long))
    layers, _ = activations.layers(where)
    plan = Plan.of(where, layers, "flat", torch.arange(40))
    values = {one.layer.name: one.spectra.plain.values for one in plan.run()}
    expected = torch.linalg.svdvals(way(model.one(x))).detach().numpy()
    assert np.allclose(values["one"], expected, atol=1e-7 * expected[0])


class GatedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.act = nn.Linear(4, 6), nn.Linear(6, 4), nn.SiLU()

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class PlainMLP(GatedMLP):
    def forward(self, x):
        return self.down(self.act(self.up(x)))


def test_a_block_is_a_row_unless_it_returns_what_its_last_layer_did():
    model = nn.Sequential(GatedMLP(), PlainMLP(), nn.Linear(4, 3))
    layers, unseen = found(model, torch.randn(5, 4))
    assert [layer.name for layer in layers] == ["0.up", "0.down", "0", "1.up", "1.down", "2"]
    assert unseen == ()


class HalfOutput(dict):
    pass


class Strange(nn.Module):
    """A leaf of its own with a matrix, returning a dictionary whose first entry is no tensor."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4, 3))

    def forward(self, x):
        return HalfOutput(count=1, out=x @ self.matrix)


class Wrapping(nn.Module):
    def __init__(self):
        super().__init__()
        self.strange = Strange()

    def forward(self, x):
        return self.strange(x)["out"]


def test_a_leaf_that_owns_a_matrix_is_a_layer():
    layers, _ = found(Wrapping(), torch.randn(5, 4))
    assert [(layer.name, layer.units) for layer in layers] == [("strange", 3)]


def test_views_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    flat, channels = (named(found(model, images(), view)[0])["0"] for view in ("flat", "channels"))
    assert (flat.units, flat.per_sample, flat.flat) == (48, 1, True)
    assert (channels.units, channels.per_sample, channels.flat) == (3, 16, False)


class Pyramid(nn.Module):
    """One convolution on two sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)) + self.conv(x[..., ::2, ::2]).mean((2, 3)))


def test_a_convolution_on_several_sizes_has_only_a_view_by_channels():
    with pytest.raises(ProblemError, match=r"`conv` is called on several sizes: \(2, 2, 6, 6\), \(2, 2, 3, 3\)\. Exp"):
        found(Pyramid(), images())
    assert named(found(Pyramid(), images(), "channels")[0])["conv"].per_sample == 45


class Uneven(nn.Module):
    """Folds rows into samples, and drops one."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    def forward(self, x):
        pairs = x.repeat(2, 1, 1, 1)
        return self.head(self.conv(pairs[1:])[: len(x)].mean((2, 3)))


def test_maps_that_do_not_belong_to_samples_are_refused():
    given = problem(Uneven(), images(), torch.zeros(5, dtype=torch.long))
    layers, _ = activations.layers(given)
    with pytest.raises(ProblemError, match=r"`conv` returned 9 maps of 5 samples\. Expected a multiple"):
        list(Plan.of(given, layers, "flat", torch.arange(5)).run())


def test_smaller_sets_lie_in_larger_ones_and_a_seed_fixes_them():
    small, large = chosen_samples(100, 10, 0), chosen_samples(100, 40, 0)
    assert set(small.tolist()) <= set(large.tolist())
    assert small.tolist() == sorted(small.tolist()) == chosen_samples(100, 10, 0).tolist()
    assert small.tolist() != chosen_samples(100, 10, 1).tolist()
    assert chosen_samples(5, 1024, 0).tolist() == [0, 1, 2, 3, 4]


def test_layers_beyond_the_memory_budget_take_more_passes_with_the_same_numbers():
    given = ZOO["tanh mlp"].problem(samples=40)
    layers, _ = activations.layers(given)
    small = problem(given.model, given.data.inputs, given.data.targets, memory_budget=4_900)
    one, several = (Plan.of(p, layers, "flat", torch.arange(40)) for p in (given, small))
    assert (len(one.passes), len(several.passes)) == (1, 2)
    for group in several.passes:
        assert sum(x.kept_bytes for x in group) + max(x.work_bytes for x in group) <= 4_900
    for a, b in zip(one.run(), several.run(), strict=True):
        assert a.layer.name == b.layer.name
        assert a.spectra.plain.values == pytest.approx(b.spectra.plain.values, rel=1e-9)
    assert one.multiply_adds == sum(k**2 * 40 + 2 * k**3 // 3 for k in (8, 6, 3))


@pytest.mark.parametrize(
    ("units", "columns", "dtype", "streamed", "multiply_adds"),
    [
        (300, 1000, torch.float64, True, (128 * (300 + 172) + 44 * 44) * 1000 + 2 * 300**3 // 3),
        (1000, 300, torch.float32, False, (128 * (300 + 172) + 44 * 44) * 1000 + 2 * 300**3 // 3),
        (1000, 100, torch.float64, False, (1100 * 100**2) - 2 * 100**3 // 3 + 8 * 100**3 // 3),
    ],
)
def test_the_smaller_side_decides_what_a_spectrum_costs(units, columns, dtype, streamed, multiply_adds):
    layer = activations.Layer("one", False, (), True, units, 1, dtype, flat=False, columns=columns)
    assert (layer.streamed, layer.multiply_adds) == (streamed, multiply_adds)
    assert layer.kept_bytes == (8 * 301**2 if streamed else torch.finfo(dtype).bits // 8 * units * columns)


@pytest.mark.parametrize(("kind", "what"), [("tanh mlp", "Gram matrix of 8 units"), ("conv batchnorm", "40 columns")])
def test_a_layer_beyond_the_memory_budget_is_refused_in_bytes(kind, what):
    given = ZOO[kind].problem(memory_budget=2_000)
    layers, _ = activations.layers(given)
    need = layers[0]
    with pytest.raises(
        ProblemError, match=rf"`{need.name}` of {need.units} units needs [\d,]+ bytes for its {what}\. E"
    ):
        Plan.of(given, layers, "flat", torch.arange(40))


# --- the model is given back as it was


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    return hooks, modes, flags, torch.backends.mha.get_fastpath_enabled(), tensors


def unchanged(before, after):
    return before[:-1] == after[:-1] and all(torch.equal(v, after[-1][k]) for k, v in before[-1].items())


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("batchnorm", ["eval", "batch", "re-estimated"])
def test_the_model_is_untouched_by_success(kind, batchnorm):
    given = ZOO[kind].problem(batchnorm=batchnorm, batch_size=25)
    given.model.train()
    before = state(given.model)
    layers, _ = activations.layers(given)
    assert all(one.spectra.plain.finite for one in Plan.of(given, layers, "flat", torch.arange(20)).run())
    assert sum(before[0]) == 0
    assert unchanged(before, state(given.model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [1, 2])
def test_the_model_is_untouched_by_failure(error, when, monkeypatch):
    given = ZOO["conv batchnorm"].problem()
    given.model.train()
    before, calls = state(given.model), []

    def interrupted(x):
        calls.append(x)
        if len(calls) == when:
            raise error("stop")
        return F.linear(x, given.model[5].weight, given.model[5].bias)

    monkeypatch.setattr(given.model[5], "forward", interrupted)

    def both_halves():
        layers, _ = activations.layers(given)
        list(Plan.of(given, layers, "flat", torch.arange(20)).run())

    with pytest.raises(error, match="stop"):
        both_halves()
    assert len(calls) == when
    assert unchanged(before, state(given.model))


def test_the_fast_path_of_a_transformer_does_not_hide_its_layers():
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(12, 3, dtype=torch.float64))
    layers, unseen = found(model, torch.randn(6, 3, 4, dtype=torch.float64))
    assert [layer.name for layer in layers] == ["0.self_attn", "0.linear1", "0.linear2", "2"]
    assert unseen == ()


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        return self.head(self.embed(input_ids) * attention_mask.unsqueeze(-1)).mean(1)


def test_padding_is_no_column():
    rng = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(9, (6, 5), generator=rng), torch.tensor([5, 3, 1, 5, 2, 4])
    mask = (torch.arange(5) < lengths[:, None]).long()
    data = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(6) % 3}
    torch.manual_seed(0)
    model = Tagger()
    here = gapscope.problem(model, data)
    layers, _ = activations.layers(here)
    plan = Plan.of(here, layers, "flat", chosen_samples(6, 6, 0))
    found = {one.layer.name: one.spectra for one in plan.run()}
    real = model.embed(ids)[mask.bool()].detach().double().numpy()
    assert found["embed"].columns == len(real) == 20
    np.testing.assert_allclose(found["embed"].plain.values, np.linalg.svd(real, compute_uv=False), rtol=1e-5)
