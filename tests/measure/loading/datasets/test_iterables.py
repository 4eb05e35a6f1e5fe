"""Datasets, loaders and iterables are read once, in order, and must read the same twice."""

import enum
import itertools
import os
import re
from decimal import Decimal

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets import iterables
from gapscope.measure.loading.datasets.arrays import Keys
from gapscope.measure.loading.datasets.iterables import read_object

X = torch.arange(20.0).view(10, 2)
Y = torch.arange(10)
SET = TensorDataset(X, Y)


def read(factory):
    return read_object("mine:data", factory)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Shared(IterableDataset):
    """Gives every worker a part, and each sample with the process that read it."""

    def __iter__(self):
        about = torch.utils.data.get_worker_info()
        for i in range(about.id if about else 0, 10, about.num_workers if about else 1):
            yield X[i], Y[i] + 1000 * os.getpid()


class Counted(Stream):
    """Knows its length, and has no samples by number."""

    def __len__(self):
        return 10


class Called(TensorDataset):
    """Does something when called, and is the data itself."""

    def __call__(self):
        raise AssertionError


class CalledStream:
    """As above, and has no samples by number."""

    def __iter__(self):
        return iter(zip(X, Y, strict=True))

    def __call__(self):
        raise AssertionError


class Batches(IterableDataset):
    """Makes its own batches."""

    def __iter__(self):
        return ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 10, 4))


class Drawn(IterableDataset):
    def __iter__(self):
        return ((x * torch.randint(0, 2, ()), y) for x, y in zip(X, Y, strict=True))


class Augmented(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, i):
        return X[i] * torch.randint(0, 2, ()), Y[i]


class Endless(Dataset):
    """Samples by number, and no number of samples."""

    def __getitem__(self, i):
        return X[i], Y[i]


def test_a_stream_is_read_in_this_process_whole_and_in_order():
    """Workers could not import the user's file where they begin as new processes."""
    loader = DataLoader(Shared(), batch_size=4, num_workers=2, timeout=60, persistent_workers=True, prefetch_factor=3)
    pair = read(loader)
    assert torch.equal(pair.inputs, X)
    assert (pair.targets - 1000 * os.getpid()).tolist() == Y.tolist()
    assert (loader.num_workers, loader.timeout, loader.prefetch_factor) == (2, 60, 3)


def test_arrays_without_splits_that_were_named_as_test_data_are_all_test():
    for found in ({"images": X, "labels": Y}, SET):
        assert read_object("mine:data", lambda found=found: found, split="test").targets.tolist() == Y.tolist()


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
        lambda: DataLoader(Endless(), sampler=range(10), batch_size=4),
        lambda: DataLoader(TensorDataset(X.view(2, 5, 2), Y.view(2, 5)), batch_size=None),
        lambda: DataLoader(Stream(), batch_size=4),
        lambda: DataLoader(Stream(), batch_size=None),
        lambda: DataLoader(Counted(), batch_size=4),
        lambda: Stream(),
        Stream,
        Called(X, Y),
        CalledStream(),
        lambda: DataLoader(Batches(), batch_size=None),
        lambda: dict(enumerate(SET)).values(),
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


def test_batches_of_a_stream_are_joined_whatever_a_sample_is():
    class Numbers(IterableDataset):
        def __iter__(self):
            return iter(zip(X[:, 0], Y, strict=True))

    pair = read(DataLoader(Numbers(), batch_size=5))
    assert torch.equal(pair.inputs, X[:, 0])
    assert torch.equal(pair.targets, Y)


def test_two_samples_are_not_taken_for_two_arrays():
    assert torch.equal(read((SET[3], SET[5])).inputs, X[[3, 5]])


def test_classes_that_are_texts_are_of_single_samples():
    pair = read(iter([{"a": x, "label": str(int(y))} for x, y in zip(X, Y, strict=True)]))
    assert torch.equal(pair.inputs, X)
    assert torch.equal(pair.targets, Y)


def test_pictures_with_one_class_each_are_single_samples():
    assert torch.equal(read(zip(X.view(10, 2, 1), Y, strict=True)).inputs, X.view(10, 2, 1))


def test_pictures_with_several_targets_each_are_single_samples():
    pictures, several = torch.rand(10, 4, 3), torch.rand(10, 2)
    pair = read(zip(pictures, several, strict=True))
    assert torch.equal(pair.inputs, pictures)
    assert torch.equal(pair.targets, several)


def test_what_was_inferred_is_noted():
    assert read(lambda: DataLoader(SET, shuffle=True)).notes == (
        "data: the loader shuffles; its dataset was read in order",
    )
    assert read(lambda: zip(X, Y, strict=True)).notes == ("data: `mine:data` was read as single samples",)
    assert read(lambda: DataLoader(SET, batch_sampler=[[0, 1], [2]])).notes == (
        "data: the loader's batch sampler was set aside; its dataset was read in order",
    )
    assert read(lambda: iter([(X, Y)])).notes == ("data: `mine:data` was read as batches",)
    assert read(lambda: SET).notes == ()


def test_a_loaders_subset_and_collation_are_kept():
    loader = DataLoader(SET, sampler=torch.utils.data.SubsetRandomSampler([7, 2, 5]))
    assert read(lambda: loader).targets.tolist() == [2, 5, 7]

    def doubled(items):
        return torch.stack([x for x, _ in items]) * 2, torch.stack([y for _, y in items])

    assert torch.equal(read(lambda: DataLoader(SET, batch_size=4, collate_fn=doubled)).inputs, 2 * X)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: DataLoader(s, batch_size=2),
        lambda s: ((s[i]) for i in range(10)),
        lambda _: DataLoader(Drawn(), batch_size=2),
    ],
)
def test_random_augmentation_is_refused(wrap):
    torch.manual_seed(0)
    with pytest.raises(
        LoadError, match=r"reading item \d twice gave two different answers.*Turn off shuffling and random"
    ):
        read(lambda: wrap(Augmented()))


def test_random_augmentation_of_a_stream_that_can_be_read_again_is_refused():
    torch.manual_seed(0)
    with pytest.raises(LoadError, match=r"reading item \d twice gave two different answers"):
        read(Drawn())


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3)])
def test_a_stream_that_ends_elsewhere_when_it_is_read_again_is_refused(lengths):
    ends = itertools.cycle(lengths)

    class Torn(IterableDataset):
        def __iter__(self):
            return itertools.islice(zip(X, Y, strict=True), next(ends))

    with pytest.raises(LoadError, match=r"reading item 3 twice gave two different answers"):
        read(lambda: Torn())


def test_a_collate_function_that_draws_is_refused():
    def masked(items):
        x, y = torch.utils.data.default_collate(items)
        return torch.where(torch.rand(x.shape) < 0.5, 0.0, x), y

    def mixed(items):
        x, y = torch.utils.data.default_collate(items)
        share = torch.rand(())
        return {"x": share * x + (1 - share) * x.flip(0), "y": y}

    torch.manual_seed(0)
    for collate in (masked, mixed):
        with pytest.raises(LoadError, match=r"`mine:data`: collating the same 8 samples twice gave two different answ"):
            read(lambda collate=collate: DataLoader(SET, batch_size=9, collate_fn=collate))
    with pytest.raises(LoadError, match=r"collating the same 3 samples twice gave two different answers"):
        read(lambda: DataLoader(SET, batch_size=3, collate_fn=masked))


def test_a_collate_function_that_changes_its_samples_changes_those_of_a_data_set_once():
    rows = [{"x": x.clone(), "y": y} for x, y in SET]

    def doubled(items):
        for item in items:
            item["x"] *= 2
        return torch.utils.data.default_collate(items)

    assert torch.equal(read(lambda: DataLoader(rows, batch_size=4, collate_fn=doubled)).inputs, 2 * X)


def test_samples_that_have_no_copies_are_collated_all_the_same():
    weight = torch.ones((), requires_grad=True)
    rows = [(weight * x, y) for x, y in SET]
    pair = read(
        lambda: DataLoader(
            rows, batch_size=4, collate_fn=lambda items: [torch.stack(c) for c in zip(*items, strict=True)]
        )
    )
    assert torch.equal(pair.inputs, X)
    with pytest.raises(LoadError, match=r"has no samples"):
        read(lambda: DataLoader([], batch_size=4))


def test_random_augmentation_of_dicts_and_texts_is_refused():
    count = itertools.count()
    text_and_number, number_and_text = itertools.cycle(["a", 1]), itertools.cycle([1, "a"])
    for make in (
        lambda: {"other": torch.full((2,), next(count))},
        lambda: {"other": str(next(count))},
        lambda: {"other": next(text_and_number)},
        lambda: {"other": next(number_and_text)},
        itertools.cycle([{}, {"other": 1}]).__next__,
    ):

        class Rows(Dataset):
            def __len__(self):
                return 10

            def __getitem__(self, i, make=make):
                return {"x": X[i], "y": Y[i]} | make()

        with pytest.raises(LoadError, match=r"reading item 0 twice gave two different answers"):
            read(lambda rows=Rows: rows())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            DataLoader(SET, sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "with a WeightedRandomSampler, which weights or repeats",
        ),
        (
            DataLoader(SET, batch_size=None, sampler=WeightedRandomSampler([1.0] * 10, 10)),
            "with a WeightedRandomSampler, which weights or repeats",
        ),
        (
            DataLoader(SET, sampler=RandomSampler(SET, replacement=True)),
            "with a RandomSampler, which weights or repeats samples. Expected every sample once",
        ),
        (DataLoader(SET, sampler=RandomSampler(SET, num_samples=15)), "with a RandomSampler, which weights or repeats"),
        (3, "`mine:data` gave int. Expected a Dataset"),
        ([], "has no samples. Expected at least one pair (x, y)."),
        ([5], "gives int per item. Expected pairs (x, y)."),
        ([torch.tensor(5)], "gives Tensor per item. Expected pairs (x, y)."),
        ([()], "gives tuple per item. Expected pairs (x, y)."),
        ([(x, y, i) for i, (x, y) in enumerate(SET)], "the last of 3 parts counts the samples 0, 1, 2, ..."),
        ([{"a": 1, "y": 2}, {"b": 1, "y": 2}], "item 1 has b, y, the first a, y. Expected the same entries"),
        ([{"a": 1, "y": 2}, {"a": "text", "y": 2}], "item 1 has a, y, the first a, y. Expected the same entries of"),
        ([{"a": 1, "y": 2}, (1, 2)], "item 1 has x, y, the first a, y"),
        ([{"x": X[0], "y": 2}, (X[0], 2)], "item 1 has x, y, the first x, y. Expected the same entries of the same ki"),
        ([({"a": X[0]}, X[0], 1)], "x1 is builtins.dict, not numbers"),
        ((X, 2 * X, Y), "samples differ in shape ((10,), (10, 2))"),
        ([{"a": torch.ones(2), "b": 2}], "has `a`, `b`, and none is called `y`, `label` or `target`"),
        ([{"a": "text", "y": 2}], "`a` holds no numbers"),
        ([("text", 1)], "x is builtins.str, not numbers"),
        ([(torch.ones(2), 1), (torch.ones(3), 1)], "samples differ in shape ((2,), (3,))"),
        ([(torch.ones(2), [1]), (torch.ones(2), [1, 2])], "samples differ in shape ((1,), (2,))"),
        ({"x": X, "z": Y}, "has the arrays `x`, `z`"),
    ],
)
def test_what_gives_no_pairs_says_why(source, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read(lambda: source)


def test_what_is_no_factory_and_no_data_says_so():
    with pytest.raises(LoadError, match=r"`mine:data` gave int. Expected a Dataset, a DataLoader, an iterable"):
        read(3)


def test_a_stream_whose_first_item_has_no_target_says_so():
    with pytest.raises(LoadError, match="has `a`, `b`, and none is called `y`, `label` or `target`"):
        read(iter([{"a": X, "b": X}]))


def test_an_endless_iterable_is_stopped(monkeypatch):
    monkeypatch.setattr(iterables, "MEMORY_BYTES", 2**20)
    with pytest.raises(LoadError, match=r"gave more than 0.000977 GiB and had not ended. Expected a finite data set"):
        read(lambda: zip(itertools.repeat(torch.ones(100)), itertools.repeat(1)))


@pytest.mark.parametrize("name", ["label", "y"])
def test_an_input_called_like_a_target_stays_beside_the_target_of_a_pair(name):
    """As of a conditional model, forward(image, label=None)."""
    pair = read([({"a": x, name: x + 1}, y) for x, y in zip(X, Y, strict=True)])
    assert list(pair.inputs) == ["a", name]
    assert torch.equal(pair.inputs[name], X + 1)
    assert torch.equal(pair.targets, Y)
    chosen = read_object("m", [({"a": x, name: y}, 0) for x, y in zip(X, Y, strict=True)], keys=Keys(("a",), name))
    assert torch.equal(chosen.inputs, X)
    assert torch.equal(chosen.targets, Y)


class Animal(enum.Enum):
    CAT = 1


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([None, None], "NoneType"),
        ([b"cat", b"dog"], "bytes"),
        ([Decimal(1), Decimal(2)], "Decimal"),
        ([Animal.CAT, Animal.CAT], "Animal"),
        ([{"a": 1}, {"a": 2}], "dict"),
        (["dog", None], "NoneType"),
    ],
)
def test_a_target_that_is_neither_number_nor_text_is_no_class(targets, kind):
    items = [{"x": x, "label": label} for x, label in zip(X, targets, strict=False)]
    with pytest.raises(LoadError, match=f"`label` holds {kind}, which is neither numbers nor text. Expected the numbe"):
        read(items)


def test_texts_that_are_missing_now_and_then_are_left_out_of_the_inputs():
    pair = read([{"x": x, "remark": remark, "y": 1} for x, remark in zip(X, ["fine", None], strict=False)])
    assert torch.equal(pair.inputs, X[:2])
    assert "data: `mine:data`: left out, not numbers: `remark`" in pair.notes


def test_a_factory_that_fails_is_named_with_its_error():
    def broken():
        raise FileNotFoundError("no images")

    with pytest.raises(
        LoadError, match=r"Reading the data `mine:data` raised FileNotFoundError: no images. Expected a factory"
    ):
        read(broken)


def test_a_named_factory_is_imported(folder):
    assert len(read_object("zoo:pairs").inputs) == 6


def test_several_inputs_are_given_in_order_with_the_target_last():
    for item in (lambda x, y: (x, 2 * x, y + 1), lambda x, y: ((x, 2 * x), y + 1)):
        pair = read(lambda item=item: [item(x, y) for x, y in SET])
        assert torch.equal(pair.inputs[1], 2 * X)
        assert torch.equal(pair.targets, Y + 1)
        assert pair.notes == ("data: `mine:data` gives 2 inputs, model(x1, x2), and the target last",)
    pair = read(lambda: DataLoader(TensorDataset(X, 2 * X, Y + 1), batch_size=3))
    assert torch.equal(pair.inputs[1], 2 * X)
    assert read([(X[0], X[1], 0)]).targets.tolist() == [0]  # no row of numbers yet
    pair = read([((x, x), 2 * x, y + 1) for x, y in SET])  # of which one is a list
    assert pair.inputs[0].shape == (10, 2, 2)
    assert torch.equal(pair.inputs[1], 2 * X)


def test_a_pair_with_an_empty_input_has_one_input_all_the_same():
    assert read([((), 1), ([], 0)]).inputs.shape == (2, 0)


def test_inputs_alone_are_their_own_targets():
    for source in (DataLoader(TensorDataset(X), batch_size=4), TensorDataset(X), list(X)):
        pair = read(lambda source=source: source)
        assert torch.equal(pair.inputs, X)
        assert torch.equal(pair.targets, X)
        assert "gives inputs alone: each is its own target" in pair.notes[-1]


def test_dicts_are_given_by_name():
    rows = [{"input_ids": [i, 2], "attention_mask": [1, 1], "text": "t", "labels": i % 2} for i in range(4)]
    for source in (rows, DataLoader(rows, batch_size=3), (r for r in rows), [({"a": x, "b": x}, y) for x, y in SET]):
        pair = read_object("mine:data", source)
        assert list(pair.inputs) in (["input_ids", "attention_mask"], ["a", "b"])
        assert len(pair.targets) in (4, 10)
    for batch in ({"a": X, "b": Y}, {"b": Y, "a": X}):
        pair = read_object("mine:data", iter([batch]), keys=Keys(("a",), "b"))
        assert torch.equal(pair.inputs, X)
    batch = {"input_ids": torch.ones(4, 2), "attention_mask": torch.ones(4, 2), "labels": torch.ones(4)}
    assert read(lambda: iter([batch, batch])).inputs["input_ids"].shape == (8, 2)


def test_rows_of_differing_length_are_padded_and_batches_to_the_longest():
    rows = [{"input_ids": torch.arange(1, n), "labels": n % 2} for n in (3, 4, 2, 3)]
    assert read(lambda: rows).inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]

    def collate(items):
        ids = torch.nn.utils.rnn.pad_sequence([item["input_ids"] for item in items], batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids}

    pair = read(lambda: DataLoader(rows, batch_size=2, collate_fn=collate))
    assert pair.inputs["input_ids"].tolist() == [[1, 2, 0], [1, 2, 3], [1, 0, 0], [1, 2, 0]]
    assert pair.targets.tolist()[2] == [1, 0, -100]


def test_names_choose_entries_of_dicts_but_not_parts_of_tuples():
    rows = [{"a": x, "b": 2 * x, "c": y} for x, y in SET]
    pair = read_object("mine:data", lambda: rows, keys=Keys(("b",), "c"))
    assert torch.equal(pair.inputs, 2 * X)
    assert torch.equal(read_object("mine:data", lambda: {"a": X, "b": Y}, keys=Keys(("a",), "b")).inputs, X)
    pair = read_object("mine:data", lambda: [({"a": x, "b": 2 * x}, y) for x, y in SET], keys=Keys(("b",), "y"))
    assert torch.equal(pair.inputs, 2 * X)
    assert torch.equal(pair.targets, Y)
    with pytest.raises(LoadError, match=r"gives tuples, whose parts have no names for `--x-key` or `--y-key`"):
        read_object("mine:data", lambda: SET, keys=Keys(("x",)))


def test_a_dict_of_data_sets_has_a_part_for_training_and_one_for_tests():
    both = {"train": SET, "validation": TensorDataset(X[:3], Y[:3])}
    assert len(read_object("mine:data", lambda: both).targets) == 10
    assert len(read_object("mine:data", lambda: both, split="test").targets) == 3
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3]}
    assert [len(read_object("mine:data", lambda: arrays, split=s).targets) for s in ("train", "test")] == [10, 3]
    named = read_object("mine:data", lambda: {"train": X, "test": Y}, keys=Keys(("train",), "test"))
    assert torch.equal(named.inputs, X)
    assert torch.equal(named.targets, Y)


def test_images_of_pillow_in_dicts_are_pixels():
    image = pytest.importorskip("PIL.Image").new("RGB", (4, 3), (9, 8, 7))
    pair = read(lambda: [{"image": image, "label": 1}] * 2)
    assert pair.inputs[:, :, 0, 0].tolist() == [[9, 8, 7], [9, 8, 7]]
    assert pair.pixels
    assert not read([{"table": torch.ones(2, dtype=torch.uint8), "label": 1}] * 2).pixels  # bytes that are no picture
    assert read([{"image": image, "label": 1}, {"image": pair.inputs[0], "label": 1}]).pixels


@pytest.mark.filterwarnings("ignore")
def test_data_sets_of_hugging_face_are_read():
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": [[1, 2], [3]], "label": [0, 1], "text": ["a", "b"]}
    for form in (None, "torch", "numpy"):
        source = datasets.Dataset.from_dict(rows).with_format(form)
        pair = read(lambda source=source: source)
        assert pair.inputs["input_ids"].tolist() == [[1, 2], [3, 0]]
        assert pair.targets.tolist() == [0, 1]
    pair = read(lambda: datasets.DatasetDict({"train": source}))
    assert (pair.targets.tolist(), pair.notes[0]) == ([0, 1], "data: `mine:data` is a dict of data sets, read: `train`")
    assert read(lambda: source.to_iterable_dataset()).targets.tolist() == [0, 1]


@pytest.mark.parametrize(("split", "rows", "word"), [("train", 6, "first"), ("test", 4, "last")])
def test_several_data_sets_are_training_data_first_and_test_data_last(split, rows, word):
    def made():
        return DataLoader(Subset(SET, range(6)), shuffle=True), SET, Subset(SET, range(6, 10))

    pair = read_object("mine:data", made, split=split)
    assert len(pair.targets) == rows
    assert pair.notes[0] == f"data: `mine:data` gives 3 data sets: the {word} was read"
