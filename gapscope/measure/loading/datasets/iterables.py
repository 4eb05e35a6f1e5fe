"""Read a user's Dataset, DataLoader or iterable of samples into memory, once, in order.

A sample is (x, y), (x1, x2, y) or ((x1, x2), y) for a model of several inputs, a dict whose entries the model is given
by name, or x alone, which is then its own target.  Training loaders shuffle and augment; a measurement must see the
same numbers every time.  So a shuffling loader is read through its dataset, and a sample that reads differently twice
is refused.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from gapscope.errors import GapscopeError, LoadError
from gapscope.measure.loading.datasets.arrays import (
    MEMORY_BYTES,
    PARTS,
    USUAL,
    Keys,
    Pair,
    Split,
    given,
    pick_pair,
    to_tensor,
)
from gapscope.measure.loading.datasets.columns import Unread, pair_of_columns, stacked, target_name
from gapscope.measure.loading.datasets.images import pixels_of
from gapscope.measure.loading.trust import importable, one_line, resolve

REREAD = 8  # a random flip escapes one comparison in two, eight in 256


class Sample(NamedTuple):
    """One item as named numbers and texts; `form`: named (a dict), ordered (a tuple, the target last), or alone.

    `target`: under which name the target is that came beside a dict.
    """

    values: dict[str, Tensor | str]
    form: str
    target: str | None = None


def read_object(spec: str, found: object = None, *, keys: Keys = USUAL, split: Split = "train") -> Pair:
    """Call the user's factory (or take the object it names) and return all of its samples.

    `split`: which entry to take of a dict of data sets.
    """
    found = resolve(spec) if found is None else found
    try:
        with importable(spec):
            return _read(_made(found), found, spec, keys, split)
    except GapscopeError:
        raise
    except (Exception, SystemExit) as error:
        raise LoadError(
            f"Reading the data `{spec}` raised {one_line(error)}. Expected a factory that takes no arguments "
            "and returns a Dataset, a DataLoader or an iterable of (x, y)."
        ) from error


def _made(found: object) -> object:
    is_data = hasattr(found, "__iter__") or hasattr(found, "__getitem__")
    return found() if callable(found) and (isinstance(found, type) or not is_data) else found


def _read(source: Any, found: object, spec: str, keys: Keys, split: Split) -> Pair:
    if isinstance(source, Mapping):
        name = next((name for name in PARTS[split] if name in source), None)
        if name and not isinstance(source[name], Tensor | np.ndarray | list | tuple):
            pair = _read(source[name], source[name], spec, keys, split)
            return pair._replace(notes=(f"data: `{spec}` is a dict of data sets, read: `{name}`", *pair.notes))
        arrays = {str(name): to_tensor(value, f"{spec}[{name!r}]") for name, value in source.items()}
        found_pair = pick_pair(arrays, split, spec, whole=True, keys=keys)
        assert found_pair is not None  # `whole` finds something or raises
        return found_pair
    if isinstance(source, list | tuple) and source and all(isinstance(part, DataLoader | Dataset) for part in source):
        place = 0 if split == "train" else len(source) - 1
        pair = _read(source[place], source[place], spec, keys, split)
        note = f"data: `{spec}` gives {len(source)} data sets: the {'last' if place else 'first'} was read"
        return pair._replace(notes=(note, *pair.notes))
    if isinstance(source, tuple) and len(source) == 2 and all(hasattr(part, "shape") for part in source):
        return Pair(to_tensor(source[0], f"{spec}: x"), to_tensor(source[1], f"{spec}: y"))
    if isinstance(source, DataLoader):
        return _read_loader(source, spec, keys)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        _check_repeatable((source[i] for i in range(len(source))), (source[i] for i in range(len(source))), spec)
        return _collect((source[i] for i in range(len(source))), spec, keys, batched=False)
    if not isinstance(source, Iterable):
        raise LoadError(
            f"`{spec}` gave {type(source).__name__}. Expected a Dataset, a DataLoader, an iterable of (x, y), "
            "or two arrays."
        )
    once = iter(source) is source
    if not once:
        _check_repeatable(iter(source), iter(source), spec)
    elif callable(found):
        _check_repeatable(iter(_made(found)), iter(_made(found)), spec)  # type: ignore[call-overload]
    return _collect(iter(source), spec, keys, batched=None)


def _read_loader(loader: DataLoader[Any], spec: str, keys: Keys) -> Pair:
    """Read a loader's dataset in order with the loader's own collation; nothing is shuffled or dropped."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        with _in_this_process(loader):
            _check_repeatable(iter(loader), iter(loader), spec)
            return _collect(iter(loader), spec, keys, batched=loader.batch_size is not None or None)
    sampler: Any = loader.sampler
    notes: tuple[str, ...] = ()
    order: list[int] = list(range(len(dataset)))
    if isinstance(sampler, SubsetRandomSampler):
        order = sorted(int(i) for i in sampler.indices)
        notes = (f"data: the loader's subset of {len(order)} samples, in order",)
    elif isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == len(dataset):
        notes = ("data: the loader shuffles; its dataset was read in order",)
    elif loader.batch_size is None and loader.batch_sampler is not None:
        notes = ("data: the loader's batch sampler was set aside; its dataset was read in order",)
    elif not isinstance(sampler, SequentialSampler):
        raise LoadError(
            f"`{spec}` is a DataLoader with a {type(sampler).__name__}, which weights or repeats samples. "
            "Expected every sample once: return its dataset instead."
        )
    _check_repeatable((dataset[i] for i in order), (dataset[i] for i in order), spec)
    if loader.batch_sampler is None:  # the dataset makes its own batches, or is wanted sample by sample
        return _collect((dataset[i] for i in order), spec, keys, batched=None)
    size = loader.batch_size or 64
    _check_collation(loader, [dataset[i] for i in order[: min(size, REREAD)]], spec)
    collated = (
        loader.collate_fn([dataset[i] for i in order[start : start + size]]) for start in range(0, len(order), size)
    )
    pair = _collect(collated, spec, keys, batched=True)
    return pair._replace(notes=pair.notes + notes)


@contextmanager
def _in_this_process(loader: DataLoader[Any]) -> Iterator[None]:
    """Let a stream be read without its loader's workers.

    From Python 3.14 on they begin as new processes, which cannot import the user's file.  A stream that gives each
    worker a part gives all of it without them, in its own order; one that does not gives every sample once.
    """
    before = loader.num_workers, loader.timeout
    loader.num_workers, loader.timeout = 0, 0
    try:
        yield
    finally:
        loader.num_workers, loader.timeout = before


def _check_repeatable(first: Iterator[Any], second: Iterator[Any], spec: str) -> None:
    end = object()
    both = (itertools.islice(items, REREAD) for items in (first, second))
    for i, (one, two) in enumerate(itertools.zip_longest(*both, fillvalue=end)):
        if one is end or two is end or not _all_same(_sample(one, spec).values, _sample(two, spec).values):
            raise LoadError(
                f"`{spec}`: reading item {i} twice gave two different answers, so its loss is not a fixed "
                "function. Turn off shuffling and random augmentation, and give the data as the network is "
                "tested on it."
            )


def _check_collation(loader: DataLoader[Any], some: list[Any], spec: str) -> None:
    """Collate a few samples twice: masking, mixing and cropping may happen there.

    Copies of them, because a collate function may change what it is given, which may be the dataset's own.
    """
    if not some:
        return
    one, two = (_sample(loader.collate_fn(_copied(some)), spec).values for _ in range(2))
    if not _all_same(one, two):
        raise LoadError(
            f"`{spec}`: collating the same {len(some)} samples twice gave two different answers, so its loss is not a "
            "fixed function. Expected a collate function without masking, mixing and augmentation at random: give the "
            "loader one, as the network is tested."
        )


def _copied(samples: list[Any]) -> list[Any]:
    try:
        return copy.deepcopy(samples)
    except Exception:  # open files and tensors with a graph have no copies
        return samples


def _all_same(a: Mapping[str, Tensor | str], b: Mapping[str, Tensor | str]) -> bool:
    return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)


def _same(a: Tensor | str, b: Tensor | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _sample(item: Any, spec: str) -> Sample:
    if isinstance(item, Mapping):
        return Sample({str(name): _value(value, f"`{spec}`: `{name}`") for name, value in item.items()}, "named")
    if isinstance(item, Tensor) and item.ndim:
        item = (item,)
    if not isinstance(item, list | tuple) or not item:
        raise LoadError(f"`{spec}` gives {type(item).__name__} per item. Expected pairs (x, y).")
    *inputs, target = item if len(item) > 1 else (item[0], item[0])
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        values = _sample(inputs[0], spec).values
        name = "y"
        while name in values:  # an input of that name stays one
            name = f"({name})"
        return Sample({**values, name: to_tensor(target, f"`{spec}`: y")}, "named", name)
    parts = inputs[0] if len(inputs) == 1 else ()
    if isinstance(parts, list | tuple) and parts and all(hasattr(x, "shape") for x in parts):
        inputs = list(parts)
    names = ["x"] if len(inputs) == 1 else [f"x{i + 1}" for i in range(len(inputs))]
    values = {name: to_tensor(x, f"`{spec}`: {name}") for name, x in zip(names, inputs, strict=True)}
    return Sample({**values, "y": to_tensor(target, f"`{spec}`: y")}, "alone" if len(item) == 1 else "ordered")


def _value(value: Any, where: str) -> Tensor | str:
    """Return an entry of a dict as numbers; text, and what is no number at all, as text."""
    if _is_picture(value):
        return pixels_of(value, where)
    try:
        return to_tensor(value, where)
    except LoadError:
        return value if isinstance(value, str) else Unread(type(value).__name__)


def _is_picture(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.")


def _collect(items: Iterator[Any], spec: str, keys: Keys, *, batched: bool | None) -> Pair:
    """Stack samples or join batches; None looks at the first item to tell which."""
    columns: dict[str, list[Any]] = {}
    form, used, guessed, pixels = "", 0, batched is None, False
    for i, item in enumerate(items):
        sample = _sample(item, spec)
        pixels = pixels or (isinstance(item, Mapping) and any(map(_is_picture, item.values())))
        columns = columns or {name: [] for name in sample.values}
        form = form or sample.form
        keys = keys._replace(target=keys.target or sample.target)
        batched = _is_batch(sample, keys) if batched is None else batched
        for name in columns:
            value = sample.values.get(name)
            other = columns[name] and isinstance(value, str) != isinstance(columns[name][0], str)
            if value is None or sample.form != form or other:
                raise LoadError(
                    f"`{spec}`: item {i} has {', '.join(sample.values)}, the first {', '.join(columns)}. Expected the "
                    "same entries of the same kinds in all."
                )
            columns[name].append(value if batched or isinstance(value, str) else value[None])
            used += 0 if isinstance(value, str) else value.nbytes
        if used > MEMORY_BYTES:
            raise LoadError(
                f"`{spec}` gave more than {MEMORY_BYTES / 2**30:.3g} GiB and had not ended. Expected a finite "
                "data set that fits into memory: return a part of it, for example with `torch.utils.data.Subset`."
            )
    if not columns:
        raise LoadError(f"`{spec}` has no samples. Expected at least one pair (x, y).")
    notes = (f"data: `{spec}` was read as {'batches' if batched else 'single samples'}",) if guessed else ()
    if form != "named":
        pair = _in_order(columns, form, spec, keys)
    else:
        pair = pair_of_columns(columns, keys, f"`{spec}`")._replace(pixels=pixels)
    return pair._replace(notes=(*notes, *pair.notes))


def _is_batch(sample: Sample, keys: Keys) -> bool:
    numbers = {name: value for name, value in sample.values.items() if isinstance(value, Tensor)}
    y = numbers.get(keys.target or target_name(numbers) or "")
    if y is None:
        return False
    x = next((value for name, value in numbers.items() if value is not y), y)
    return y.ndim >= 1 and x.ndim >= 2 and len(x) == len(y)


def _in_order(columns: dict[str, list[Tensor]], form: str, spec: str, keys: Keys) -> Pair:
    if keys != USUAL:
        raise LoadError(
            f"`{spec}` gives tuples, whose parts have no names for `--x-key` or `--y-key`. Expected dicts: return "
            "{'x': x, 'y': y}, or choose the parts in the factory."
        )
    joined = {name: stacked(parts, f"`{spec}`") for name, parts in columns.items()}
    y = joined.pop("y")
    if form == "alone":
        return Pair(joined["x"], y, (f"data: `{spec}` gives inputs alone: each is its own target",), same=True)
    if len(joined) == 1:
        return Pair(joined["x"], y)
    if y.ndim == 1 and len(y) > 1 and torch.equal(y, torch.arange(len(y))):
        raise LoadError(
            f"`{spec}`: the last of {len(joined) + 1} parts counts the samples 0, 1, 2, ... Expected the target last: "
            "return (x, y) alone."
        )
    note = f"data: `{spec}` gives {len(joined)} inputs, model({', '.join(joined)}), and the target last"
    return Pair(given(joined, by_name=False), y, (note,))
