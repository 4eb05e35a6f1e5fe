"""Synthetic data: the stated formulas, streams of their own, and noise in the training labels alone."""

import math
import re

import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.teacher import read_teacher


def read(options="", split="train"):
    return read_teacher(options, split, f"teacher:{options}")


def rng(seed):
    return torch.Generator().manual_seed(seed)


def test_labels_are_those_of_the_formula():
    pair = read("samples=300,inputs=20,outputs=7,seed=4")
    first, last = (torch.randn(*shape, generator=g) for g in [rng(12)] for shape in ((64, 20), (7, 64)))
    x = torch.randn(300, 20, generator=rng(13))
    scores = torch.tanh(3 * x.double() @ first.double().T / math.sqrt(20)) @ last.double().T
    assert torch.equal(pair.inputs, x)
    assert torch.equal(pair.targets, scores.argmax(1))
    test = read("samples=300,inputs=20,outputs=7,seed=4", "test")
    assert torch.equal(test.inputs, torch.randn(60, 20, generator=rng(14)))  # 15 is the teacher of the next seed


def test_the_splits_are_other_samples_of_one_teacher():
    train, test = read("samples=12"), read("samples=12", "test")
    assert (len(train.targets), len(test.targets)) == (12, 3)
    assert not torch.equal(train.inputs[:3], test.inputs)
    kind = "Gaussian samples labelled by a random network"
    assert [*train.notes, *test.notes] == [f"data: teacher:samples=12: {n} {kind}" for n in (12, 3)]
    whole = read("samples=20000,outputs=3"), read("samples=20000,outputs=3", "test")
    # least squares on the training data tells the test labels well above chance only if one teacher labelled both
    found = torch.linalg.lstsq(whole[0].inputs, torch.nn.functional.one_hot(whole[0].targets).float()).solution
    right = ((whole[1].inputs @ found).argmax(1) == whole[1].targets).float().mean()
    assert right > 1 / 3 + 10 * math.sqrt(2 / 9 / 4000)


def test_the_same_options_give_the_same_data_and_another_seed_others():
    one, two, other = read("seed=1"), read("seed=1"), read("seed=2")
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.targets, two.targets)
    assert not torch.equal(one.inputs, other.inputs)
    assert one.inputs.shape == (1000, 64)
    assert torch.equal(read().inputs, read("seed=0").inputs)


def test_no_class_has_a_head_start():
    counts = torch.stack(
        [torch.bincount(read(f"samples=5000,inputs=100,seed={s}").targets, minlength=10) for s in range(12)]
    )
    share = counts.double() / 5000
    # over teachers the mean share of each class is a tenth, up to the standard error over twelve
    assert ((share.mean(0) - 0.1).abs() < 5 * share.std(0) / math.sqrt(12)).all()
    assert (share > 0.01).all()


def test_images_are_the_same_numbers_in_another_shape():
    flat, images = read("samples=30,inputs=48,seed=2"), read("samples=30,image=3x4x4,seed=2")
    assert images.inputs.shape == (30, 3, 4, 4)
    assert torch.equal(images.inputs.flatten(1), flat.inputs)
    assert torch.equal(images.targets, flat.targets)


@pytest.mark.parametrize("kind", ["inputs=64", "tokens=10"])
def test_noise_is_a_share_of_the_training_labels(kind):
    clean, noisy = (read(f"samples=5000,outputs=5,{kind}{noise}") for noise in ("", ",noise=0.3"))
    labels = clean.targets.numel()
    assert torch.equal(clean.inputs, noisy.inputs)
    assert f"{round(0.3 * labels):,} labels drawn anew at random" in noisy.notes[0]
    # a fifth of the replaced ones are what they were
    share = float((clean.targets != noisy.targets).double().mean())
    assert abs(share - 0.3 * 0.8) < 5 * math.sqrt(0.3 * 0.8 * 0.2 / labels)
    tests = [read(f"samples=5000,outputs=5,{kind}{noise}", "test").targets for noise in ("", ",noise=0.3")]
    assert torch.equal(*tests)


def test_all_labels_may_be_noise():
    counts = torch.bincount(read("samples=5000,noise=1").targets)
    expected = 5000 / 10
    assert len(counts) == 10
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_a_share_of_0_leaves_all_labels_as_they_are():
    clean, same = read("samples=50"), read("samples=50,noise=0")
    assert torch.equal(clean.targets, same.targets)
    assert same.notes == ("data: teacher:samples=50,noise=0: 50 Gaussian samples labelled by a random network",)


def test_targets_of_tokens_are_the_next_ones_and_follow_the_table():
    pair = read("samples=4000,outputs=4,tokens=25,seed=3")
    assert pair.inputs.shape == pair.targets.shape == (4000, 25)
    assert torch.equal(pair.inputs[:, 1:], pair.targets[:, :-1])
    assert pair.notes[0].endswith(": 4,000 rows of a random Markov chain")
    table = (2 * torch.randn(4, 4, generator=rng(9)).double()).softmax(1)
    for state in range(4):
        following = pair.targets[pair.inputs == state]
        share = torch.bincount(following, minlength=4) / len(following)
        error = (table[state] * (1 - table[state]) / len(following)).sqrt()
        assert ((share - table[state]).abs() < 5 * error).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sampels=5", "`teacher` has no option `sampels`. Did you mean `samples`? Expected some of samples, inputs, "),
        ("x", "`teacher` has no option `x`. Expected some of samples"),
        ("samples=0", "`samples` is `0`. Expected a number of training samples, 1 or more. Mend `samples=...`"),
        ("outputs=1", "`outputs` is `1`. Expected a number of classes, 2 or more"),
        ("seed=-1", "`seed` is `-1`. Expected a whole number, 0 or more"),
        ("noise=1.5", "`noise` is `1.5`. Expected a share of labels from 0 to 1"),
        ("image=32x32", "`image` is `32x32`. Expected channels, height and width as 3x32x32"),
        ("tokens=many", "`tokens` is `many`. Expected a number of tokens in a row"),
        ("inputs=\u0663", "`inputs` is `\u0663`. Expected a number of inputs"),
        ("image=3x8x8,inputs=9", "gives `inputs` and `image`. Expected one, since each says what a sample is. Leave"),
        ("tokens=9,image=3x8x8", "gives `image` and `tokens`. Expected one"),
        ("samples=999999999,inputs=99999", "takes 3.73e+05 GiB. Expected at most 16 GiB, which fits into mem"),
        ("samples=9999999999,tokens=9", "takes 745 GiB. Expected at most"),  # each 10 tokens of 8 bytes
        ("tokens=5,outputs=999999", "takes 7.45e+03 GiB. Expected at most"),  # a table of 999999^2
    ],
)
def test_options_that_make_no_data_are_named(options, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read(options)
