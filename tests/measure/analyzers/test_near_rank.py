import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.near_rank import NearRank
from gapscope.measure.context import Context
from gapscope.measure.monitor import Monitor
from gapscope.report.file import read_report, write
from gapscope.report.records import Record, Report
from gapscope.results import Status
from tests.problems import ZOO, context, measure, problem

CUTS = (1e-2, 1e-3, 1e-4)


def dense(a):
    """Return everything by hand from a matrix units x columns, in float64 (closed forms of definitions.md)."""
    a = np.asarray(a, dtype=np.float64)
    s = np.linalg.svd(a, compute_uv=False)
    p = s[s > 0] / s.sum()
    return {
        "near_rank": [(s > cut * s[0]).sum() for cut in CUTS],
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
        "dead_units": np.mean(np.ptp(a, axis=1) == 0),
        "units": a.shape[0],
        "columns": a.shape[1],
        "singular_values": s,
        "centred_singular_values": np.linalg.svd(a - a.mean(1, keepdims=True), compute_uv=False),
    }


def agrees(result, layer, a, **tolerance):
    row = result.units.labels["layer"].index(layer)
    floor = 1e-6 * np.linalg.norm(np.asarray(a), 2)
    for name, true in dense(a).items():
        got = getattr(result, name).value[row]
        if "singular" in name:
            assert np.isnan(got[len(true) :]).all()
            assert got[: len(true)] == pytest.approx(true, abs=tolerance.get("abs", floor))
        else:
            assert got == pytest.approx(np.asarray(true), rel=tolerance.get("rel", 1e-6)), name


def by_hand(model, x):
    """Return the output after every step of a Sequential."""
    steps = [x]
    with torch.no_grad():
        for module in model.eval():
            steps.append(module(steps[-1]))
    return steps[1:]


def test_a_dense_network_agrees_with_dense_svds_after_its_activations():
    given = ZOO["relu mlp"].problem(samples=70)
    result = measure(NearRank(), given)
    steps = by_hand(given.model, given.data.inputs.double())
    for layer, step in (("0", 1), ("2", 3), ("4", 4)):
        agrees(result, layer, steps[step].T)
    assert result.status is Status.EXACT
    assert result.near_rank.labels == {"layer": ("0", "2", "4"), "cut": ("rel:1e-2", "rel:1e-3", "rel:1e-4")}
    assert result.notes == ("no activation follows, so the layer's own output is measured: 4",)


@pytest.mark.parametrize("kind", ["conv batchnorm", "conv groupnorm"])
@pytest.mark.parametrize("samples", [20, 130])
def test_flat_and_channel_views_of_a_convolution(kind, samples):
    given = ZOO[kind].problem(samples=samples)
    maps = by_hand(given.model, given.data.inputs.double())[2]
    agrees(measure(NearRank(), given), "0", maps.flatten(1).T)
    agrees(measure(NearRank(view="channels"), given), "0", maps.movedim(1, 0).flatten(1))


def test_flat_convolutions_are_measured_on_the_recorded_set_alone():
    given = ZOO["conv batchnorm"].problem(samples=200)
    result = measure(NearRank(samples=30, sample_seed=5), given)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))[:30]
    steps = by_hand(given.model, given.data.inputs.double())
    agrees(result, "0", steps[2][order].flatten(1).T)
    agrees(result, "5", steps[5].T)
    assert result.columns.value.tolist() == [30, 200]
    assert "flat convolutions on 30 of 200 samples (seed 5): 0; all others on all 200" in result.notes
    alone = measure(NearRank(samples=30, sample_seed=5, layers="0"), given)
    assert alone.singular_values.value[0] == pytest.approx(result.singular_values.value[0][:30], rel=1e-9)


def test_the_set_does_not_depend_on_the_seed_of_the_estimators():
    given = ZOO["conv batchnorm"].problem(samples=200)
    first, second = (measure(NearRank(samples=30), given, seed=seed) for seed in (0, 1))
    assert np.array_equal(first.singular_values.value, second.singular_values.value, equal_nan=True)


def test_tied_tokens_columns_are_all_positions():
    given = ZOO["tied embedding"].problem(samples=20)
    result = measure(NearRank(), given)
    with torch.no_grad():
        tokens = given.model.embed(given.data.inputs)
        mixed = torch.tanh(given.model.mix(tokens))
        scores = given.model.decoder(mixed)
    for layer, output in (("embed", tokens), ("mix", mixed), ("decoder", scores)):
        agrees(result, layer, output.flatten(0, 1).T)
    assert result.columns.value.tolist() == [80, 80, 80]


@pytest.mark.parametrize(("kind", "layer"), [("multihead", "attention"), ("fused attention", "qkv"), ("lstm", "lstm")])
def test_attention_and_recurrent_layers_by_their_first_output(kind, layer):
    given = ZOO[kind].problem(samples=20)
    x = given.data.inputs.double()
    with torch.no_grad():
        module = getattr(given.model, layer)
        output = module(x, x, x, need_weights=False)[0] if kind == "multihead" else module(x)
        output = output[0] if kind == "lstm" else output
    agrees(measure(NearRank(), given), layer, output.flatten(0, 1).T)


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.parametrize("size", [1, 7, 50])
def test_micro_batches_do_not_change_a_number(kind, size):
    whole = measure(NearRank(samples=20), ZOO[kind].problem())
    parts = measure(NearRank(samples=20), ZOO[kind].problem(batch_size=size))
    for name, quantity in whole.quantities().items():
        if name != "condition":  # of a square singular matrix: its rounding
            scale = np.nanmax(np.where(np.isfinite(quantity.value), quantity.value, np.nan))
            assert parts.quantities()[name].value == pytest.approx(
                quantity.value, rel=1e-9, abs=1e-7 * scale, nan_ok=True
            )


def test_batch_statistics_are_those_of_the_micro_batch():
    given = ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=25)
    x = given.data.inputs.double()
    with torch.no_grad():
        conv, norm = given.model[0](x), given.model[1]
        parts = [F.batch_norm(p, None, None, norm.weight, norm.bias, True, 0, norm.eps) for p in conv.split(25)]
    chosen = torch.randperm(50, generator=torch.Generator().manual_seed(0))[:12]
    a = torch.cat(parts).relu()[chosen].flatten(1).T
    agrees(measure(NearRank(samples=12, layers="0"), given), "0", a)


def test_ranks_are_centred_on_request_and_both_spectra_are_stored():
    given = ZOO["relu mlp"].problem(samples=70)
    plain, centred = measure(NearRank(), given), measure(NearRank(centred=True), given)
    assert np.array_equal(plain.singular_values.value, centred.singular_values.value, equal_nan=True)
    s = centred.centred_singular_values.value[0]
    assert centred.stable_rank.value[0] == pytest.approx((s**2).sum() / s[0] ** 2)
    assert "; centred activations" in centred.stable_rank.doc
    assert "uncentred" in plain.near_rank.doc


def linear(weight, x, **more):
    model = nn.Linear(weight.shape[1], weight.shape[0], dtype=x.dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.fill_(more.pop("bias", 0.0))
    return problem(model, x, torch.zeros(len(x), dtype=torch.long), **more)


def test_dead_units_a_condition_and_a_numerical_rank():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=rng, dtype=torch.float64)
    x = torch.linalg.qr(x)[0]
    weight = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    result = measure(NearRank(), linear(weight, x))
    assert result.condition.value[0] == pytest.approx(4)
    weight[1, 1] = 0
    result = measure(NearRank(), linear(weight, x))
    assert result.condition.value[0] == np.inf
    assert result.numerical_rank.value[0] == 2
    assert result.dead_units.value[0] == pytest.approx(1 / 3)


def test_numerical_rank_knows_the_type_of_the_activations():
    x = torch.linalg.qr(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))[0]
    weight = torch.diag(torch.tensor([1.0, 3e-6]))
    assert measure(NearRank(), linear(weight, x)).numerical_rank.value[0] == 1  # 50 eps = 6e-6
    assert measure(NearRank(), linear(weight.double(), x.double())).numerical_rank.value[0] == 2


def test_a_centred_cut_under_the_noise_of_the_uncentred_gram_matrix_has_no_count():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = linear(torch.eye(3, dtype=torch.float64), x, bias=1e6)
    result = measure(NearRank(centred=True, cuts=("rel:1e-1", "rel:1e-4")), given)
    assert result.near_rank.value[0, 0] == 3
    assert np.isnan(result.near_rank.value[0, 1])
    assert any("under the noise floor of the uncentred Gram matrix, so has no count: model" in n for n in result.notes)


def test_nonfinite_activations_are_a_status():
    x = torch.tensor([[1.0, 2.0], [float("inf"), 1.0], [0.5, 1.0]])
    result = measure(NearRank(), linear(torch.eye(2), x))
    assert result.status is Status.NONFINITE
    assert np.isnan(result.near_rank.value).all()


def test_many_singular_values_are_stored_in_part(monkeypatch):
    monkeypatch.setattr("gapscope.measure.analyzers.near_rank.STORED", 4)
    result = measure(NearRank(), ZOO["tanh mlp"].problem())
    assert result.singular_values.value.shape == (3, 4)
    assert np.isnan(result.singular_values.value[2, 3])
    assert "the largest 4 of up to 8 singular values are stored; the ranks use all" in result.notes
    assert result.near_rank.value[0, 2] == 8


# --- the confound


def gaussian(columns, units=60):
    """An identity layer on random samples: activations are a Gaussian matrix, the same whatever was trained."""
    x = torch.randn(columns, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return linear(torch.eye(units, dtype=torch.float64), x)


def test_own_batches_of_one_and_the_same_model_show_near_rank_loss_and_the_default_does_not():
    given, cuts = gaussian(60), ("rel:1e-1", "abs:1")
    smallest, counts = [], []
    for size in (8, 32, 56):
        result = measure(NearRank(own_batch=True, cuts=cuts), given, training={"batch_size": size})
        values = result.singular_values.value[0]
        assert len(values) == result.columns.value[0] == size
        chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:size]
        s = np.linalg.svd(given.data.inputs[chosen].numpy(), compute_uv=False)
        assert values == pytest.approx(s)
        assert result.near_rank.value[0] == pytest.approx([(s > 0.1 * s[0]).sum() / size, (s > 1).sum() / size])
        assert any("Confounded with the batch size" in note for note in result.notes)
        smallest.append(values[-1])
        counts.append(result.near_rank.value[0])
    assert smallest[0] > smallest[1] > smallest[2]  # Cauchy interlacing: adding columns lowers sigma_min
    assert (counts[0] >= counts[1]).all()
    assert (counts[1] > counts[2]).all()
    fixed = [measure(NearRank(), given, training={"batch_size": size}) for size in (8, 32, 56)]
    for one in fixed[1:]:
        assert all(
            np.array_equal(q.value, one.quantities()[name].value, equal_nan=True)
            for name, q in fixed[0].quantities().items()
        )
        assert one.notes == fixed[0].notes


def test_beyond_as_many_columns_as_units_more_of_them_raise_the_smallest_singular_value():
    given = gaussian(400, units=10)
    found = [
        measure(NearRank(own_batch=True), given, training={"batch_size": size}).singular_values.value[0, -1]
        for size in (10, 40, 400)
    ]
    assert found[0] < found[1] < found[2]


def test_own_batch_of_a_convolution():
    given = ZOO["conv batchnorm"].problem(samples=60, batch_size=13)
    result = measure(NearRank(own_batch=True), given, training={"batch_size": 9})
    chosen = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:9]
    steps = by_hand(given.model, given.data.inputs.double()[chosen])
    for row, a in enumerate((steps[2].flatten(1).T, steps[5].T)):
        true = np.linalg.svd(a.numpy(), compute_uv=False)
        assert result.singular_values.value[row][: len(true)] == pytest.approx(true, abs=1e-6 * true[0])
        assert result.near_rank.value[row, 0] == pytest.approx((true > 1e-2 * true[0]).sum() / len(true))


# --- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cuts": ()}, r"The cuts are none\. Expected one or more, each once"),
        ({"cuts": ("rel:1e-2", "rel:0.01")}, r"The cuts are rel:1e-2, rel:0\.01\. Expected one or more, each once"),
        ({"cuts": ("abs:1e-1",)}, r"The cut `abs:1e-1` is absolute, and singular values grow with the number"),
        (
            {"cuts": ("rel:1e-9",)},
            r"`rel:1e-9` lies under the noise floor of float64 Gram matrices, 6\.4e-08 of .* `0`",
        ),
        ({"cuts": ("2",)}, r"The cut is `2`\. Expected `rel:X`"),
        ({"samples": 0}, r"There are 0 samples\. Expected 1 or more\. Mend `--samples`"),
        ({"layers": "fc*"}, r"No layer is named `fc\*`\..*Expected a glob that matches one of 0, 2, 4"),
        ({"own_batch": True}, r"recorded the batch size None\. Expected a whole number from 1 to the 50 samples"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        measure(NearRank(**options), ZOO["tanh mlp"].problem())


@pytest.mark.parametrize("size", [0, 51, "32", 3.0, True])
def test_an_own_batch_needs_a_recorded_size_that_the_data_hold(size):
    with pytest.raises(UsageError, match=f"The checkpoint recorded the batch size {size}"):
        measure(NearRank(own_batch=True), ZOO["tanh mlp"].problem(), training={"batch_size": size})


def test_a_cut_under_the_gram_floor_is_refused_even_without_a_gram_matrix():
    with pytest.raises(UsageError, match=r"`rel:1e-9` lies under the noise floor of float64 Gram matrices, 3\.4e-08"):
        measure(NearRank(layers="0", cuts=("rel:1e-9",)), ZOO["conv batchnorm"].problem())


def test_an_own_batch_has_no_batch_statistics():
    given = ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=25)
    with pytest.raises(UsageError, match="BatchNorm takes its statistics from micro-batches, which cut the own batch"):
        measure(NearRank(own_batch=True), given, training={"batch_size": 25})


class Vector(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.theta


def test_a_model_without_layers_is_refused():
    with pytest.raises(ProblemError, match="The model calls no layer that gapscope knows"):
        measure(NearRank(), problem(Vector(), torch.randn(5, 3), torch.zeros(5, dtype=torch.long)))


def test_layers_are_chosen_by_a_glob():
    assert measure(NearRank(layers="[24]"), ZOO["tanh mlp"].problem()).units.labels["layer"] == ("2", "4")


# --- what is told and stored


class Heard(Monitor):
    def __init__(self):
        self.heard = []

    def plan(self, text):
        self.heard.append(text)


def test_long_work_is_announced_in_multiply_adds(monkeypatch):
    monkeypatch.setattr("gapscope.measure.analyzers.near_rank.LONG_WORK", 0)
    base = context(NearRank(), train=ZOO["tanh mlp"].problem())
    told: Context = dataclasses.replace(base, monitor=Heard())
    told.result("near-rank")
    # k^2 x 50 samples + 2/3 k^3 of k = 8, 6, 3: 5450 + 341 + 144 + 18
    assert told.monitor.heard == [
        "near-rank: 6e+03 multiply-adds for the spectra of 3 layers, beside 1 forward pass over the data"
    ]


def test_a_report_holds_every_quantity(tmp_path):
    result = measure(NearRank(), ZOO["conv batchnorm"].problem())
    record = Record(
        analyzer="near-rank", version="1", status=result.status, notes=result.notes, quantities=result.quantities()
    )
    report = Report(identity={}, training={}, conditions={}, environment={}, results={"near-rank": record})
    write(report, tmp_path / "r.h5")
    stored = read_report(tmp_path / "r.h5").results["near-rank"].quantities
    assert next(iter(stored)) == "near_rank"
    for name, quantity in result.quantities().items():
        assert np.array_equal(stored[name].value, quantity.value, equal_nan=True)


def test_the_memory_stated_is_that_of_the_plan_and_grows_with_units_and_columns():
    def stated(units, samples):
        x, y = torch.randn(samples, 4), torch.zeros(samples, units)
        return NearRank().memory(problem(nn.Linear(4, units), x, y, "mse"))

    assert stated(10, 50) < 4 * 1000 * 50 < stated(1000, 50) < 8 * 1000**2  # the columns in float32 are fewer
    assert stated(1000, 1000) > 8 * 1000**2  # a Gram matrix in float64


def test_the_passes_stated_are_a_forward_pass_and_the_multiply_adds_of_the_spectra():
    spectra = sum(k**2 * 50 + 2 * k**3 // 3 for k in (8, 6, 3))
    assert NearRank().passes(ZOO["tanh mlp"].problem()) == {"outcomes": 1, "multiply_adds": spectra}
