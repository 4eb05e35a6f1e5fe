"""Structured inputs and outputs are tried on two samples, and what does not fit is named."""

import inspect
import re
import types
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading import Data, Trust, build_loss
from gapscope.measure.loading.losses import Loss, infer_loss
from gapscope.measure.loading.targets import as_classes
from gapscope.measure.loading.trial import check_fit, compare_loss


def data(inputs, targets):
    return Data(inputs, targets, "the data", "-", len(targets))


def loss(spec):
    return build_loss(spec, recorded=False, trust=Trust())


class Two(nn.Linear):
    """Takes two inputs by name, and returns a pair."""

    def __init__(self):
        super().__init__(3, 2)

    def forward(self, x, mask, scale=None):
        return super().forward(x * mask), x


FIRST = ("outputs: the first of 2",)
X, Y = torch.randn(6, 3), torch.tensor([0, 1] * 3)


def test_of_several_outputs_the_first_is_used_and_said():
    assert check_fit(Two(), "two", data((X, torch.ones(6, 1)), Y), loss("cross-entropy")) == FIRST
    named = {"x": X, "mask": torch.ones(6, 1)}
    assert check_fit(Two().double(), "two", data(named, Y), loss("cross-entropy")) == FIRST
    assert check_fit(nn.Linear(3, 2), "one", data(X, Y), loss("cross-entropy")) == ()


def test_of_outputs_with_names_the_logits_are_used():
    outputs = namedtuple("outputs", ["hidden", "logits"])

    class Named(nn.Linear):
        def forward(self, x):
            return outputs(x, super().forward(x))

    assert check_fit(Named(3, 2), "named", data(X, Y), loss("cross-entropy")) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("x", "mask", "maks"), "`two` takes no input `maks`. Did you mean `mask`? It takes x, mask, scale."),
        (("x", "mask", "idx"), "Name those of the data to use: `--x-key x,mask`."),
        (("x", "scale"), "`two` needs the input `mask`, which the data lack. They hold x, scale. Add it"),
    ],
)
def test_names_that_forward_does_not_take_or_lacks_are_said(names, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        check_fit(Two(), "two", data(dict.fromkeys(names, X), Y), loss("cross-entropy"))


def test_a_model_whose_signature_python_does_not_know_is_given_what_there_is():
    class Unknown(Two):
        def forward(self, x, mask):
            return super().forward(x, mask)

        forward.__signature__ = "(x, mask)"  # which Python refuses to read

    named = {"x": X, "mask": torch.ones(6, 1)}
    assert check_fit(Unknown(), "unknown", data(named, Y), loss("cross-entropy")) == FIRST


class Open(nn.Linear):
    def forward(self, x, **rest):
        return super().forward(x + sum(rest.values()))


class Swallowing(nn.Linear):
    """As in transformers: labels, and any other word without effect."""

    def forward(self, x, labels=None, **rest):
        scores = super().forward(x)
        own = None if labels is None else 2 * nn.functional.cross_entropy(scores, labels)
        return types.SimpleNamespace(logits=scores, loss=own)


def test_a_model_that_would_swallow_an_input_is_told_from_one_that_uses_it():
    both = data({"x": X, "other": X}, Y)
    assert check_fit(Open(3, 2), "open", both, loss("cross-entropy")) == ()
    with pytest.raises(LoadError, match="`s` takes no input `other`"):
        check_fit(Swallowing(3, 2), "s", both, loss("cross-entropy"))


@pytest.mark.parametrize(
    ("targets", "spec", "message"),
    [
        (torch.tensor([0, 1, -1] * 2), "cross-entropy", "has the label -1. Expected classes 0, 1, 2, ...; -100 alone"),
        (
            torch.tensor([0, 1, -1] * 2),
            "cross-entropy",
            "ignore_index=-1`; or for a regression: `--loss mse`.",
        ),
        (torch.tensor([0, 1, 7] * 2), "cross-entropy:label_smoothing=0.1", "has labels up to 7, `m` has 2 outputs."),
        (torch.tensor([1, 2, 2] * 2), "cross-entropy", "Expected classes 0 to 1; these start at 1. Subtract 1 where"),
        (
            torch.tensor([0, 1, 9] * 2),
            "cross-entropy",
            "If 9 means no label: `--loss cross-entropy:ignore_index=9`;",
        ),
        (torch.tensor([7, 1, 9] * 2), "cross-entropy", "Expected one output per class: `-a outputs=10` if that is its"),
        (torch.tensor([2, 1, 9] * 2), "cross-entropy", "Expected one output per class: `-a outputs=10` if that is its"),
        (torch.tensor([0, 1, 2] * 2), "cross-entropy", "If 2 means no label: `--loss cross-entropy:ignore_index=2`;"),
        (torch.full((6,), 9), "cross-entropy", "Expected one output per class: `-a outputs=10` if that is its"),
        (
            torch.ones(6, 2).long(),
            "cross-entropy",
            "`m` returns (6, 2) for targets (6, 2). Cross-entropy expects",
        ),
        (torch.full((6,), 0.5), "cross-entropy", "a loss of yours: `--loss path/file.py:function`."),
        (torch.full((6, 2), 3.0), "bce-with-logits", "has targets from 3 to 3. Binary cross-entropy expects 0 to 1."),
        (
            torch.full((6, 2), 1.5),
            "bce-with-logits",
            "has targets from 1.5 to 1.5. Binary cross-entropy expects 0 to 1.",
        ),
        (torch.full((6, 2), -1.0), "bce-with-logits:pos_weight=2", "has targets from -1 to -1. Binary cross-entropy"),
    ],
)
def test_targets_that_the_loss_cannot_judge_are_shown(targets, spec, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        check_fit(nn.Linear(3, 2), "m", data(X, targets), loss(spec))


def test_labels_to_be_left_out_are_accepted():
    check = partial(check_fit, nn.Linear(3, 2), "m")
    (note,) = check(data(X, torch.tensor([0, -100, 1] * 2)), loss("cross-entropy"))
    assert note == "data: the data: 2 of 6 labels are -100, left out of the loss"
    (note,) = check(data(X, torch.tensor([0, -1, 1] * 2)), loss("cross-entropy:ignore_index=-1"))
    assert note == "data: the data: 2 of 6 labels are -1, left out of the loss"
    (note,) = check(data(X, torch.full((6,), -100)), loss("cross-entropy"))
    assert note == "data: the data: 6 of 6 labels are -100, left out of the loss"


class Centred(nn.Module):
    """Scores that add up to 1, and are no probabilities."""

    def forward(self, x):
        return 9 * (x[:, :2] - x[:, :2].mean(1, keepdim=True)) + 0.5


@pytest.mark.parametrize("net", [nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), Centred()])
def test_outputs_beyond_0_to_1_or_that_add_up_to_something_else_are_no_softmax(net):
    assert check_fit(net, "m", data(X, Y), loss("cross-entropy")) == ()
    assert check_fit(net, "m", data(X, torch.rand(6, 2)), loss("mse")) == ()  # where they are due
    above = nn.Sequential(net, nn.Hardtanh(1.25, 1.5))
    assert check_fit(above, "m", data(X, torch.ones(6, 2)), loss("bce-with-logits")) == ()


def tokens(classes, places):
    """Return a model with scores for each class at each of several places."""
    return nn.Sequential(nn.Linear(3, places * classes), nn.Unflatten(1, (places, classes)))


def test_labels_of_tokens_go_up_to_the_classes_and_not_to_the_places():
    with pytest.raises(LoadError, match=r"has labels up to 3, `m` has 2 outputs\."):
        check_fit(tokens(2, 5), "m", data(X, torch.full((6, 5), 3)), loss("cross-entropy"))


def test_a_loss_with_more_than_one_number_for_a_sample_is_refused():
    own = Loss("own", lambda outputs, targets: outputs.square())
    with pytest.raises(LoadError, match=r"The loss `own` returned .*\. Expected real numbers, one per sample\."):
        check_fit(nn.Linear(3, 2), "m", data(X, Y), own)


def test_one_output_for_labels_is_led_to_the_binary_loss():
    for labels in (Y, 0 * Y):
        with pytest.raises(
            LoadError, match=r"has 1 output. Expected one output per class. .*`--loss bce-with-logits`."
        ):
            check_fit(nn.Linear(3, 1), "m", data(X, labels), loss("cross-entropy"))


class Sure(nn.Module):
    """A softmax whose probabilities are 0 and 1."""

    def forward(self, scores):
        return (1e6 * scores).softmax(-1)


@pytest.mark.parametrize(
    ("last", "targets", "spec", "word"),
    [
        (nn.Softmax(-1), Y, "cross-entropy", "a softmax's; cross-entropy is of the scores before it"),
        (nn.Softmax(-1), Y, "cross-entropy:label_smoothing=0.1", "cross-entropy is of the scores before it"),
        (Sure(), Y, "cross-entropy", "a softmax's; cross-entropy is of the scores before it"),
        (
            nn.Sigmoid(),
            torch.tensor([[0.0, 1.0]] * 6),
            "bce-with-logits",
            "it: `--loss torch.nn:BCELoss` is of these",
        ),
    ],
)
def test_probabilities_where_scores_are_due_are_noted(last, targets, spec, word):
    torch.manual_seed(0)
    many = data(torch.cat([X, X]), torch.cat([targets, targets]))  # more than are tried
    (note,) = check_fit(nn.Sequential(nn.Linear(3, 2), last), "m", many, loss(spec))
    assert note.startswith("outputs: ")
    assert note.endswith(word)
    assert check_fit(nn.Sequential(nn.Linear(3, 2), nn.LogSoftmax(-1)), "m", many, loss(spec)) == ()
    several = data(X, torch.stack([targets[: len(X)]] * 5, 1))
    assert check_fit(nn.Sequential(tokens(2, 5), last), "m", several, loss(spec)) == (note,)


@pytest.mark.parametrize(
    ("x", "hint"),
    [
        (torch.ones(6, 8, 9, 3), "Channels last? `--reshape 3,8,9` moves them first. (data: read so.)"),
        (torch.ones(6, 8, 9), "Gray pictures without a channel? `--reshape 1,8,9`."),
        (
            (torch.ones(6, 3), torch.ones(6, 3)),
            "Each sample gives 2 inputs, called in their order, and the",
        ),
        ({"input": torch.ones(6, 8, 9, 3)}, "Check the model's arguments (`-a`) and the data (`-d`). (data: read so.)"),
    ],
)
def test_inputs_that_a_model_cannot_take_are_led_on(x, hint):
    noted = Data(x, Y, "the data", "-", 6, ("data: read so",))
    with pytest.raises(LoadError, match=re.escape(hint)):
        check_fit(nn.Conv2d(3, 2, 3), "m", noted, loss("cross-entropy"))


def test_pictures_that_have_a_channel_are_not_asked_for_one():
    with pytest.raises(LoadError, match="to have 3 channels") as error:
        check_fit(nn.Conv2d(3, 2, 3), "m", data(torch.ones(6, 1, 8, 9), Y), loss("cross-entropy"))
    assert "--reshape" not in str(error.value)
    assert "token numbers" not in str(error.value)  # they are real


def test_rows_of_numbers_for_a_model_without_channels_are_not_taken_for_pictures():
    with pytest.raises(LoadError, match="do not fit: RuntimeError") as error:
        check_fit(nn.Linear(3, 2), "m", data(torch.ones(6, 8, 9), Y), loss("cross-entropy"))
    assert "--reshape" not in str(error.value)


def test_a_model_that_computes_another_loss_itself_is_noted():
    torch.manual_seed(0)
    (note,) = compare_loss(Swallowing(3, 2), data(X, Y), loss("cross-entropy"))
    found = re.fullmatch(r"loss: cross-entropy is (\S+) on 4 samples, the model's own .loss (\S+): not the same", note)
    ours, theirs = map(float, found.groups())
    assert theirs == pytest.approx(2 * ours, rel=1e-2)
    assert compare_loss(nn.Linear(3, 2), data(X, Y), loss("cross-entropy")) == ()


class Own(nn.Linear):
    """Computes its loss from labels, as those of transformers do: NaN where all are left out."""

    def forward(self, x, labels=None):
        scores = super().forward(x)
        found = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return types.SimpleNamespace(logits=scores, loss=found)


class Zero(nn.Linear):
    """Has a loss of 0 where all labels are left out."""

    def forward(self, x, labels=None):
        return types.SimpleNamespace(logits=super().forward(x), loss=torch.zeros(()))


def test_first_samples_without_any_label_that_counts_tell_nothing_of_the_models_own_loss():
    labels = torch.tensor([-100] * 4 + [0, 1])
    assert compare_loss(Own(3, 2), data(X, labels), loss("cross-entropy")) == ()
    assert compare_loss(Zero(3, 2), data(X, labels), loss("cross-entropy")) == ()
    assert compare_loss(Own(3, 2), data(X, Y), loss("cross-entropy")) == ()


def test_two_losses_of_0_are_the_same():
    model = Own(3, 2)
    torch.nn.init.constant_(model.bias, 0)
    with torch.no_grad():
        model.weight *= 1e6
        right = data(X, model(X).logits.argmax(1))
    assert compare_loss(model, right, loss("cross-entropy")) == ()


def ids(seed=0):
    return torch.randint(0, 9, (4, 6), generator=torch.Generator().manual_seed(seed))


class TinyForCausalLM(nn.Module):
    pass


class TinyLMHeadModel(nn.Module):
    pass


class TinyForMaskedLM(nn.Module):
    pass


def test_a_language_models_loss_follows_its_class_and_targets():
    tokens, padded = ids(), ids().where(torch.arange(6) < 4, -100)
    shifted = torch.cat([tokens[:, 1:], torch.full((4, 1), -100)], 1)
    causal = partial(infer_loss, model=TinyForCausalLM())
    assert causal(tokens, inputs=tokens).name == "causal-lm"
    assert causal(padded, inputs={"input_ids": tokens}).name == "causal-lm"
    assert causal(shifted, inputs=tokens).name == "cross-entropy"
    assert causal(tokens[:, 0], inputs=tokens).name == "cross-entropy"
    assert infer_loss(tokens, TinyLMHeadModel(), tokens).name == "causal-lm"
    assert infer_loss(tokens, TinyForMaskedLM(), tokens).name == "masked-lm"
    assert infer_loss(tokens.float(), TinyForCausalLM(), tokens).name == "mse"
    assert infer_loss(tokens, nn.Linear(3, 2), tokens).name == "cross-entropy"


def test_classes_that_could_stand_in_two_places_are_not_guessed():
    square = nn.Sequential(nn.Linear(3, 25), nn.Unflatten(1, (5, 5)))
    for x in (X, X.repeat(2, 1)):
        labels = torch.zeros(len(x), 5, dtype=torch.long)
        with pytest.raises(LoadError, match="the classes could be the second or the last dimension"):
            check_fit(square, "square", data(x, labels), loss("cross-entropy"))
        check_fit(square, "square", data(x, labels), loss("masked-lm"))


def test_classes_of_pixels_are_the_second_dimension_and_those_of_tokens_the_last():
    pixels = data(torch.rand(6, 1, 4, 5), torch.zeros(6, 4, 5).long())
    assert check_fit(nn.Conv2d(1, 2, 1), "pixels", pixels, loss("cross-entropy")) == ()
    tokens = data(torch.rand(6, 4, 3), torch.zeros(6, 4).long())
    assert check_fit(nn.Linear(3, 2), "tokens", tokens, loss("cross-entropy")) == ()


WAVES = torch.complex(X[:, :2], X[:, 1:])


def misfit(outputs, targets):
    return (torch.view_as_complex(outputs.unflatten(1, (2, 2))) - targets).abs().square().sum(1)


def test_complex_targets_take_a_loss_of_their_own(folder):
    Path("own.py").write_text("import torch\n\n" + inspect.getsource(misfit))
    model, held = nn.Linear(3, 4), data(X, WAVES)
    assert check_fit(model, "net", held, loss("own.py:misfit")) == ()
    for spec in ("mse", "cross-entropy", "bce-with-logits", "causal-lm", "torch.nn:L1Loss"):
        with pytest.raises(LoadError, match=r"The targets are complex numbers\. .* takes real ones\. Name a loss of y"):
            check_fit(nn.Linear(3, 2), "net", held, loss(spec))
    with pytest.raises(
        LoadError, match=r"The targets are complex numbers. The usual loss takes real ones. Name a loss"
    ):
        infer_loss(WAVES, model, X)
    flags = data(X, torch.eye(2, dtype=torch.complex64)[Y])
    assert as_classes(flags, nn.Linear(3, 2)) is flags


def test_complex_outputs_are_refused_in_words():
    class Wave(nn.Linear):
        def forward(self, x):
            return torch.view_as_complex(super().forward(x).unflatten(1, (2, 2)))

    for held in (data(X, WAVES), data(X, X[:, :2])):
        with pytest.raises(
            LoadError, match=r"`wave` returns complex numbers. Expected real ones, as second derivatives"
        ):
            check_fit(Wave(3, 4), "wave", held, loss("torch.nn:L1Loss"))
