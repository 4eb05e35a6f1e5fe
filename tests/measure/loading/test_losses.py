"""One loss per sample, equal to torch's own where torch has it."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.func import jacrev, vmap

from gapscope.errors import LoadError
from gapscope.measure.loading.losses import LOSSES, build_loss, classes_last, infer_loss
from gapscope.measure.loading.trust import Trust

CE, MSE = LOSSES["cross-entropy"], LOSSES["mse"]


def build(spec, recorded=False, trusted=()):
    return build_loss(spec, recorded=recorded, trust=Trust(trusted))


OPTIONS = [
    ("cross-entropy", {}),
    ("cross-entropy:label_smoothing=0.1", {"label_smoothing": 0.1}),
    ("cross-entropy:weight=[1,2.5,0.5,0]", {"weight": [1, 2.5, 0.5, 0.0]}),
    (
        "cross-entropy:ignore_index=2,label_smoothing=0.2,weight=[1,2,4,0.3]",
        {"ignore_index": 2, "label_smoothing": 0.2, "weight": [1, 2, 4, 0.3]},
    ),
]
LAYOUTS = {"classes": ((40, 4), (40,)), "tokens": ((6, 7, 4), (6, 7)), "pixels": ((3, 4, 5, 6), (3, 5, 6))}


def hessian(loss):
    return jacrev(jacrev(loss))


def derivatives(loss, outputs):
    """Return the value, gradient and Hessian of a loss of the outputs, flat."""
    flat = outputs.flatten()
    call = lambda z: loss(z.view_as(outputs))  # noqa: E731
    return call(flat), torch.func.grad(call)(flat), hessian(call)(flat)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("spec", "options"), OPTIONS)
def test_the_bound_cross_entropy_is_torchs_over_the_whole_data(spec, options, layout):
    rng = torch.Generator().manual_seed(0)
    scores, labels = LAYOUTS[layout]
    outputs = 3 * torch.randn(scores, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, 4, labels, generator=rng)
    targets[targets.shape[0] // 2 :].flatten()[::3] = options.get("ignore_index", -100)
    targets[0] = options.get("ignore_index", -100)  # a sample with nothing to judge
    weight = torch.tensor(options["weight"], dtype=torch.float64) if "weight" in options else None
    theirs = partial(F.cross_entropy, **{**options, "weight": weight})
    loss = build(spec).bound(targets)
    ours = derivatives(lambda z: loss.per_sample(z, targets).mean(), outputs)
    wanted = derivatives(
        lambda z: theirs(z.transpose(1, 2) if layout == "tokens" else z, targets),
        outputs,
    )
    for own, reference in zip(ours, wanted, strict=True):
        assert torch.allclose(own, reference, rtol=1e-12, atol=1e-14)
    right = classes_last(outputs, targets).argmax(-1) == targets
    counted = targets != options.get("ignore_index", -100)
    assert loss.correct(outputs, targets).mean() == pytest.approx(float(right[counted].double().mean()), rel=1e-12)
    alone = vmap(lambda o, t: loss.per_sample(o.unsqueeze(0), t.unsqueeze(0))[0])(outputs, targets)
    assert torch.allclose(alone, loss.per_sample(outputs, targets), rtol=1e-13)
    assert float(alone[0]) == 0


def test_a_loss_with_equal_weights_is_bound_to_itself():
    targets = torch.randint(0, 4, (5, 3))
    assert CE.bound(targets).per_sample is CE.per_sample
    assert MSE.bound(targets) == MSE
    again = CE.bound(torch.tensor([[1, -100], [1, 1]]))
    for ragged in ([[1, 1]], [[1, -100], [1, 1]]):
        assert again.bound(torch.tensor(ragged)) == again  # of the data it was bound to first
    assert replace(CE, correct=None).bound(torch.tensor([[1, -100], [1, 1]])).correct is None
    none = torch.full((3,), -100)
    with pytest.raises(LoadError, match=r"`cross-entropy` leaves out every target. Expected some with a weight"):
        CE.bound(none)
    assert CE.bound(none, whole=False).per_sample(torch.randn(3, 4), none).tolist() == [0, 0, 0]  # a batch may


def test_a_batch_with_nothing_to_judge_has_a_loss_of_0():
    nothing = torch.full((3,), -100)
    bound = CE.bound(nothing, whole=False)
    assert bound.per_sample(torch.ones(3, 4), nothing).tolist() == [0, 0, 0]
    assert bound.correct(torch.ones(3, 4), nothing).tolist() == [0, 0, 0]


def test_smoothing_keeps_its_digits_where_the_network_is_sure():
    outputs, targets = torch.tensor([[30.0, 0.0, 1.0]]), torch.tensor([0])
    loss = build("cross-entropy:label_smoothing=0.1").per_sample
    narrow = hessian(lambda z: loss(z, targets).sum())(outputs).double()
    wide = hessian(lambda z: loss(z, targets).sum())(outputs.double())
    assert torch.allclose(narrow, wide, rtol=1e-5, atol=1e-24)
    assert 0 < wide[0, 0, 0, 0] < 1e-10


def test_one_class_is_always_right_and_flat():
    outputs, targets = torch.tensor([[300.0], [-2.0]]), torch.tensor([0, 0])
    for found in derivatives(lambda z: CE.per_sample(z, targets).mean(), outputs):
        assert torch.equal(found, torch.zeros_like(found))
    assert CE.per_sample(outputs, targets).shape == (2,)


def test_a_class_that_is_ruled_out_by_a_score_of_minus_infinity_adds_nothing():
    outputs, targets = torch.tensor([[1.0, -torch.inf, 2.0]]), torch.tensor([0])
    torch.testing.assert_close(CE.per_sample(outputs, targets), F.cross_entropy(outputs, targets, reduction="none"))


def test_every_loss_is_listed_under_its_name():
    assert all(loss.name == name for name, loss in LOSSES.items())


def test_a_causal_language_model_is_judged_by_the_next_token():
    rng = torch.Generator().manual_seed(0)
    outputs, ids = torch.randn(4, 6, 9, generator=rng), torch.randint(0, 9, (4, 6), generator=rng)
    ids[1, 3:] = -100
    causal, masked = LOSSES["causal-lm"].bound(ids), LOSSES["masked-lm"].bound(ids)
    next_token = F.cross_entropy(outputs[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(causal.per_sample(outputs, ids).mean(), next_token)
    assert torch.allclose(masked.per_sample(outputs, ids).mean(), F.cross_entropy(outputs.flatten(0, 1), ids.flatten()))
    right = (outputs[:, :-1].argmax(-1) == ids[:, 1:])[ids[:, 1:] != -100]
    assert causal.correct(outputs, ids).mean() == pytest.approx(float(right.double().mean()))


@pytest.mark.parametrize("options", ["", ":pos_weight=3", ":pos_weight=[1, 2, 0.5]"])
def test_binary_cross_entropy_is_torchs(options):
    rng = torch.Generator().manual_seed(0)
    outputs = 3 * torch.randn(5, 3, generator=rng, dtype=torch.float64)
    targets = torch.randint(0, 2, (5, 3), generator=rng)
    weight = (
        {"": None, ":pos_weight=3": torch.tensor(3.0)}.get(options, torch.tensor([1.0, 2.0, 0.5])) if options else None
    )
    loss = build(f"bce-with-logits{options}")
    theirs = partial(F.binary_cross_entropy_with_logits, target=targets.double(), pos_weight=weight)
    ours = derivatives(lambda z: loss.per_sample(z, targets).mean(), outputs)
    for own, reference in zip(ours, derivatives(theirs, outputs), strict=True):
        assert torch.allclose(own, reference, rtol=1e-12, atol=1e-15)
    assert torch.allclose(loss.correct(outputs, targets), ((outputs > 0) == targets.bool()).double().mean(1))


def test_weights_of_ones_belong_to_the_last_dimension_of_outputs():
    outputs, targets = torch.randn(4, 5, 3, dtype=torch.float64), torch.randint(0, 2, (4, 5, 3))
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    losses = build("bce-with-logits:pos_weight=[1, 2, 0.5]").per_sample(outputs, targets)
    assert torch.allclose(
        losses.mean(), F.binary_cross_entropy_with_logits(outputs, targets.double(), pos_weight=weight)
    )
    with pytest.raises(LoadError, match=r"has 5 weights for outputs \(4, 5, 3\)"):
        build("bce-with-logits:pos_weight=[1, 1, 1, 1, 1]").per_sample(outputs, targets)


def test_a_column_of_outputs_takes_a_row_of_zeros_and_ones():
    outputs = torch.tensor([[2.0], [-1.0]])
    loss = LOSSES["bce-with-logits"]
    each = F.binary_cross_entropy_with_logits(outputs[:, 0], torch.tensor([1.0, 1.0]), reduction="none")
    assert torch.allclose(loss.per_sample(outputs, torch.tensor([1, 1])), each)
    assert loss.correct(outputs, torch.tensor([1, 1])).tolist() == [1, 0]
    assert loss.correct(0 * outputs, torch.tensor([1, 0])).tolist() == [0, 1]  # one half is no yes
    with pytest.raises(
        LoadError,
        match=r"returns \(2, 1\) for targets \(2, 3\). Binary cross-entropy expects equal .*`--loss cross-entropy`",
    ):
        loss.per_sample(outputs, torch.zeros(2, 3))


def test_the_name_says_the_options_in_one_way():
    assert build("cross-entropy:weight=[1.0, 2], label_smoothing=0.10").name == (
        "cross-entropy:label_smoothing=0.1,weight=[1,2]"
    )
    assert build("cross-entropy:label_smoothing=0,ignore_index=-100") is CE
    assert build("cross-entropy:ignore_index=255", recorded=True).name == "cross-entropy:ignore_index=255"
    assert build("bce-with-logits:pos_weight=[2]").name == "bce-with-logits:pos_weight=[2]"
    assert build("bce-with-logits:pos_weight=1") is LOSSES["bce-with-logits"]
    assert build("cross-entropy:label_smoothing=1").name == "cross-entropy:label_smoothing=1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross-entropy:wieght=[1]", "`cross-entropy` has no option `wieght`. Did you mean `weight`? Expected `label_"),
        ("cross-entropy:0.1", "`cross-entropy` has no option `0.1`."),
        ("mse:x=1", "`mse` has no option `x`. Expected none"),
        ("cross-entropy:weight=2", "`weight` is 2. Expected numbers, 0 or more, as [1, 2.5]. Mend `--loss`."),
        ("cross-entropy:weight=[]", "`weight` is []. Expected numbers, 0 or more, as [1, 2.5]. Mend `--loss`."),
        ("cross-entropy:label_smoothing=-0.1", "`label_smoothing` is -0.1. Expected a number from 0 to 1."),
        ("cross-entropy:label_smoothing=true", "`label_smoothing` is True. Expected a number from 0 to 1."),
        ("cross-entropy:label_smoothing=2", "`label_smoothing` is 2. Expected a number from 0 to 1."),
        ("cross-entropy:label_smoothing=[0.1]", "`label_smoothing` is [0.1]. Expected a number from 0 to 1."),
        ("cross-entropy:ignore_index=1.5", "`ignore_index` is 1.5. Expected a label."),
        ("bce-with-logits:pos_weight=[nan]", "`pos_weight` is [nan]. Expected numbers, 0 or more"),
        ("bce-with-logits:pos_weight=inf", "`pos_weight` is inf. Expected numbers, 0 or more"),
        ("cross-entropy:weight=[0,1],label_smoothing=0.1", "a class of weight 0 and label smoothing leave no mean."),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(spec, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec)


def test_as_many_weights_as_classes_are_expected():
    outputs = torch.zeros(2, 4)
    with pytest.raises(LoadError, match=r"has 2 weights for 4 classes. Expected one for each class."):
        build("cross-entropy:weight=[1,2]").per_sample(outputs, torch.tensor([0, 1]))
    with pytest.raises(LoadError, match=r"has 3 weights for outputs \(2, 4\). Expected one, or one for each"):
        build("bce-with-logits:pos_weight=[1,2,3]").per_sample(outputs, torch.zeros(2, 4))


def test_the_mean_over_samples_is_torchs_mean():
    outputs, targets = torch.randn(5, 4), torch.randint(0, 4, (5,))
    assert torch.allclose(CE.per_sample(outputs, targets).mean(), F.cross_entropy(outputs, targets))
    assert CE.correct(outputs, targets).dtype == torch.bool
    real = torch.randn(5, 4)
    assert torch.allclose(MSE.per_sample(outputs, real).mean(), F.mse_loss(outputs, real))


def test_tokens_and_pixels_are_averaged_within_a_sample():
    tokens, targets = torch.randn(3, 7, 4), torch.randint(0, 4, (3, 7))
    pixels, mask = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    for outputs, scores, wanted in ((tokens, tokens.transpose(1, 2), targets), (pixels, pixels, mask)):
        each = CE.per_sample(outputs, wanted)
        assert torch.allclose(each, F.cross_entropy(scores, wanted, reduction="none").flatten(1).mean(1))
        assert torch.allclose(CE.correct(outputs, wanted), (scores.argmax(1) == wanted).double().flatten(1).mean(1))
    alone = torch.tensor([[-100, 2, -100]])
    assert CE.correct(torch.eye(3)[None, [0, 2, 1]], alone).tolist() == [1]  # of a single token


def test_a_column_of_outputs_is_not_broadcast_against_a_row_of_targets():
    assert MSE.per_sample(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])).tolist() == [0, 4]


def test_the_loss_follows_the_kind_of_target():
    assert infer_loss(torch.tensor([1])) is CE
    assert infer_loss(torch.tensor([1.0])) is MSE
    assert infer_loss(torch.tensor([1.0]), inputs=torch.ones(1, 3)) is MSE


class NetForCausalLM(torch.nn.Module):
    """Tokens (B, T) to scores (B, T, 9)."""

    def forward(self, tokens):
        return F.one_hot(tokens, 9).double()


class NetForMaskedLM(NetForCausalLM):
    pass


def test_a_language_model_tells_its_loss_by_its_name_and_targets():
    ids = torch.arange(10).reshape(2, 5) % 9
    following, left_out = ids.roll(-1, 1), ids.clone()
    following[:, -1], left_out[:, 1] = 7, -100
    assert infer_loss(ids, NetForMaskedLM(), ids) is LOSSES["masked-lm"]
    for targets in (ids, left_out, ids.flip(1)):
        assert infer_loss(targets, NetForCausalLM(), ids) is LOSSES["causal-lm"]
        assert infer_loss(targets, NetForCausalLM(), {"input_ids": ids}) is LOSSES["causal-lm"]
        assert infer_loss(targets, NetForCausalLM(), (ids, torch.ones_like(ids))) is LOSSES["causal-lm"]
    assert infer_loss(ids, NetForCausalLM()) is CE  # nothing tells of which tokens
    assert infer_loss(following, NetForCausalLM(), ids) is CE  # the next tokens already
    assert infer_loss(following, NetForCausalLM(), (ids, torch.ones_like(ids))) is CE
    with pytest.raises(LoadError, match=r"one row of 11 tokens, each .* Save the row .*`-d tokens\.npy:block=128`"):
        infer_loss(torch.arange(1, 12), NetForCausalLM(), torch.arange(11))
    same = torch.ones_like(ids)  # as rows of padding are: each token is the next one, too
    assert infer_loss(same, NetForCausalLM(), same) is LOSSES["causal-lm"]
    following[0, 1] = -100
    assert infer_loss(following, NetForCausalLM(), ids) is CE


@pytest.mark.parametrize("spec", ["cross-entropy", "mse", "bce-with-logits", "torch.nn:L1Loss"])
def test_outputs_that_lost_the_batch_axis_are_said_to_have(spec):
    """As of a model that ends in `squeeze()`, on a micro-batch of one sample."""
    with pytest.raises(
        LoadError, match=r"The model returns \(\) for targets \(1,\)\. Expected .* Keep the batch axis in `"
    ):
        build(spec).per_sample(torch.ones(()), torch.ones(1))


def test_a_users_loss_is_used_as_it_is(folder):
    outputs, targets = torch.randn(3, 2), torch.tensor([0, 1, 1])
    assert build("zoo:l1").per_sample(outputs, targets).shape == (3,)
    assert build("zoo:l1").correct is None
    each = build("torch.nn:CrossEntropyLoss").per_sample(outputs, targets)
    assert torch.allclose(each, CE.per_sample(outputs, targets))
    assert build("zoo:l1", recorded=True, trusted=("zoo:*",)).name == "zoo:l1"
    with (folder / "zoo.py").open("a") as file:
        file.write("\nclass L1:\n    def __call__(self, outputs, targets): return l1(outputs, targets)\n")
        file.write("\nfrom gapscope.measure.loading.losses import LOSSES\nown = LOSSES['mse']\n")
        file.write("\nclass Unknown(L1):\n    __signature__ = '()'\n")  # which Python refuses to read
    for spec in ("zoo.py:L1", "zoo.py:Unknown"):
        assert torch.equal(build(spec).per_sample(outputs, targets), build("zoo:l1").per_sample(outputs, targets))
    assert build("zoo.py:own") is MSE
    assert build("mse", recorded=True) is MSE


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cross_entropy", "There is no built-in loss `cross_entropy`. Did you mean `cross-entropy`? Expected one of"),
        ("math:pi", "`math:pi` is an object of class float. Expected a function of (outputs, targets)."),
        ("zoo:Needy", "`zoo:Needy` without arguments raised TypeError"),
    ],
)
def test_what_is_no_loss_says_why(folder, spec, message):
    with (folder / "zoo.py").open("a") as file:
        file.write("\nclass Needy:\n    def __init__(self, x): pass\n")
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec)


@pytest.mark.parametrize("spec", ["zoo:scalar", "torch.nn.functional:cross_entropy"])
def test_a_loss_that_returns_one_number_is_refused(folder, spec):
    with pytest.raises(
        LoadError, match=r'returned a scalar for 3 samples. Return one loss per sample.*reduction="none"'
    ):
        build(spec).per_sample(torch.randn(3, 2), torch.tensor([0, 1, 1]))


def test_a_users_loss_gives_a_tensor_of_one_number_per_sample(folder):
    with (folder / "zoo.py").open("a") as file:
        file.write("\ndef listed(outputs, targets):\n    return [0.0] * len(targets)\n")
        file.write("\ndef whole(outputs, targets):\n    return (outputs - targets).square().mean((1, 2))\n")
    with pytest.raises(LoadError, match="returned list for 3 samples"):
        build("zoo:listed").per_sample(torch.randn(3, 2), torch.tensor([0, 1, 1]))
    assert build("zoo:whole").per_sample(torch.ones(3, 2, 2), torch.zeros(3, 2, 2)).tolist() == [1, 1, 1]


def test_outputs_of_another_shape_are_shown_beside_the_targets():
    with pytest.raises(
        LoadError, match=r"returns \(3, 2, 2\) for targets \(3,\). Cross-entropy expects one score per class"
    ):
        CE.per_sample(torch.zeros(3, 2, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(
        LoadError, match=r"returns \(3, 2\) for targets \(3,\). Mean squared error expects equal shapes"
    ):
        MSE.per_sample(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(
        LoadError, match=r"returns \(2, 1\) for targets \(3,\). Mean squared error expects .* `--loss cross-entropy`"
    ):
        MSE.per_sample(torch.zeros(2, 1), torch.zeros(3))


def test_a_recorded_loss_that_is_not_trusted_is_not_imported(folder):
    for spec in ("os:system", "canary:build", "zoo:run"):
        with pytest.raises(LoadError, match=f"records the loss `{spec}`"):
            build(spec, recorded=True)
    assert not (folder / "sang").exists()


def test_scores_for_one_place_alone_are_led_on():
    with pytest.raises(LoadError, match=r"\(2, 1, 9\) for targets \(2, 5\): scores for one place of 5. Expected"):
        classes_last(torch.rand(2, 1, 9), torch.ones(2, 5).long())
    for scores, labels in (((2,), (2, 5)), ((2, 3, 9), (2, 5)), ((2, 1, 9), (2,)), ((2,), (2,))):
        said = re.escape(f"{scores} for targets {labels}. Cross-entropy expects one score per class")
        with pytest.raises(LoadError, match=said):
            classes_last(torch.rand(scores), torch.ones(labels).long())


def test_numbers_in_another_order_never_fit():
    with pytest.raises(LoadError, match=r"\(2, 3, 4, 5\) for targets \(2, 4, 5, 3\). Mean squared error expects"):
        MSE.per_sample(torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5, 3))
    assert MSE.per_sample(torch.ones(2, 1, 4), torch.ones(2, 4, 1)).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["L1Loss", "SmoothL1Loss", "HuberLoss", "BCELoss"])
def test_torchs_losses_of_equal_shapes_are_averaged_over_the_outputs(name):
    outputs, targets = torch.rand(7, 3), torch.rand(7, 3)
    loss, theirs = build(f"torch.nn:{name}"), getattr(torch.nn, name)()
    assert loss.per_sample(outputs, targets).shape == (7,)
    assert torch.allclose(loss.per_sample(outputs, targets).mean(), theirs(outputs, targets))
    flat = loss.per_sample(outputs[:, :1], targets[:, 0])  # which torch would broadcast
    assert torch.allclose(flat.mean(), theirs(outputs[:, 0], targets[:, 0]))
    with pytest.raises(LoadError, match=rf"`torch.nn:{name}` expects equal shapes.*`--loss cross-entropy`"):
        loss.per_sample(outputs, targets[:, :2])
