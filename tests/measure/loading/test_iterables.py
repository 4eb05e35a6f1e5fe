"""Datasets, loaders and iterables are read once, in order, and must read the same twice."""

import itertools
import re

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from gapscope.errors import LoadError
from gapscope.measure.loading import iterables
from gapscope.measure.loading.iterables import read_object

X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10)
SET = TensorDataset(X, Y)


def read(factory):
    return read_object("mine:data", factory)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Augmented(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return X[i] * torch.randint(0, 2, ()), Y[i]


@pytest.mark.parametrize(
    "factory",
    [
        lambda: SET,
        lambda: (X, Y),
        lambda: {"images": X, "labels": Y},
        lambda: DataLoader(SET, batch_size=3),
        lambda: DataLoader(SET, batch_size=3, shuffle=True, drop_last=True),
        lambda: DataLoader(Subset(SET, range(10)), batch_size=4),
        lambda: DataLoader(SET, batch_sampler=[[0, 1], [2]]),
        lambda: DataLoader(SET, batch_size=None),
        lambda: DataLoader(TensorDataset(X.view(2, 5, 2), Y.view(2, 5)), batch_size=None),
        lambda: DataLoader(Stream(), batch_size=4),
        lambda: Stream(),
        lambda: list(zip(X.tolist(), Y.tolist(), strict=True)),
        lambda: [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],
        lambda: zip(X, Y, strict=True),
        lambda: ((X[i : i + 3], Y[i : i + 3]) for i in range(0, 10, 3)),
        lambda: (x for x in zip(X.numpy(), Y.numpy(), strict=True)),
        SET,
    ],
)
def test_every_source_gives_the_same_samples_in_order(factory):
    pair = read(factory)
    assert torch.equal(pair.inputs, X)
    assert torch.equal(pair.targets, Y)


def test_what_was_inferred_is_noted():
    assert read(lambda: DataLoader(SET, shuffle=True)).notes == (
        "data: the loader shuffles; its dataset was read in order",
    )
    assert read(lambda: zip(X, Y, strict=True)).notes == ("data: `mine:data` was read as single samples",)
    assert read(lambda: iter([(X, Y)])).notes == ("data: `mine:data` was read as batches",)
    assert read(lambda: SET).notes == ()


def test_a_loaders_subset_and_collation_are_kept():
    loader = DataLoader(SET, sampler=torch.utils.data.SubsetRandomSampler([7, 2, 5]))
    assert read(lambda: loader).targets.tolist() == [2, 5, 7]

    def doubled(items):
        return torch.stack([x for x, _ in items]) * 2, torch.stack([y for _, y in items])

    assert torch.equal(read(lambda: DataLoader(SET, batch_size=4, collate_fn=doubled)).inputs, 2 * X)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: DataLoader(s, batch_size=2), lambda s: ((s[i]) for i in range(10))]
)
def test_random_augmentation_is_refused(wrap):
    torch.manual_seed(0)
    with pytest.raises(
        LoadError, match=r"reading item \d twice gave two different answers.*Turn off shuffling and random"
    ):
        read(lambda: wrap(Augmented()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            DataLoader(SET, sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "with a WeightedRandomSampler, which weights or repeats",
        ),
        (3, "`mine:data` gave int. Expected a Dataset"),
        ([], "has no samples. Expected at least one pair (x, y)."),
        ([(1, 2, 3)], "gives 3 values per item. Expected pairs (x, y)."),
        ([5], "gives int per item"),
        ([("text", 1)], "x is builtins.str, not numbers"),
        ([(torch.ones(2), 1), (torch.ones(3), 1)], "samples differ in shape ((2,), (3,))"),
        ([(torch.ones(2), [1]), (torch.ones(2), [1, 2])], "samples differ in shape ((1,), (2,))"),
        ({"x": X, "z": Y}, "has the arrays `x`, `z`"),
    ],
)
def test_what_gives_no_pairs_says_why(source, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read(lambda: source)


def test_an_endless_iterable_is_stopped(monkeypatch):
    monkeypatch.setattr(iterables, "MEMORY_BYTES", 2**20)
    with pytest.raises(LoadError, match=r"gave more than 0.000977 GiB and had not ended. Expected a finite data set"):
        read(lambda: zip(itertools.repeat(torch.ones(100)), itertools.repeat(1)))


def test_a_factory_that_fails_is_named_with_its_error():
    def broken():
        raise FileNotFoundError("no images")

    with pytest.raises(
        LoadError, match=r"Reading the data `mine:data` raised FileNotFoundError: no images. Expected a factory"
    ):
        read(broken)


def test_a_named_factory_is_imported(folder):
    assert len(read_object("zoo:pairs").inputs) == 6
