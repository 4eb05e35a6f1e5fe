"""Read a user's Dataset, DataLoader or iterable of (x, y) into memory, once, in order.

Training loaders shuffle and augment; a measurement must see the same numbers every time.  So a shuffling
loader is read through its dataset, and a sample that reads differently twice is refused.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, SubsetRandomSampler

from gapscope.errors import GapscopeError, LoadError
from gapscope.measure.loading.arrays import INPUT_NAMES, TARGET_NAMES, Pair, pick_pair, to_tensor
from gapscope.measure.loading.trust import importable, one_line, resolve

MEMORY_BYTES = 16 * 2**30
REREAD = 8  # a random flip escapes one comparison in two, eight in 256


def read_object(spec: str, found: object = None) -> Pair:
    """Call the user's factory (or take the object it names) and return all of its samples."""
    found = resolve(spec) if found is None else found
    try:
        with importable(spec):
            return _read(_made(found), found, spec)
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


def _read(source: Any, found: object, spec: str) -> Pair:
    if isinstance(source, Mapping):
        pair = pick_pair(
            {str(name): to_tensor(value, f"{spec}[{name!r}]") for name, value in source.items()}, "train", spec
        )
        assert pair is not None  # only a test split can be absent
        return pair
    if isinstance(source, tuple) and len(source) == 2 and all(hasattr(part, "shape") for part in source):
        return Pair(to_tensor(source[0], f"{spec}: x"), to_tensor(source[1], f"{spec}: y"))
    if isinstance(source, DataLoader):
        return _read_loader(source, spec)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        _check_repeatable((source[i] for i in range(len(source))), (source[i] for i in range(len(source))), spec)
        return _collect((source[i] for i in range(len(source))), spec, batched=False)
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
    return _collect(iter(source), spec, batched=None)


def _read_loader(loader: DataLoader[Any], spec: str) -> Pair:
    """Read a loader's dataset in order with the loader's own collation; nothing is shuffled or dropped."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        _check_repeatable(iter(loader), iter(loader), spec)
        return _collect(iter(loader), spec, batched=loader.batch_size is not None or None)
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
        return _collect((dataset[i] for i in order), spec, batched=None)
    size = loader.batch_size or 64
    collated = (
        loader.collate_fn([dataset[i] for i in order[start : start + size]]) for start in range(0, len(order), size)
    )
    pair = _collect(collated, spec, batched=True)
    return pair._replace(notes=pair.notes + notes)


def _check_repeatable(first: Iterator[Any], second: Iterator[Any], spec: str) -> None:
    for i, (one, two) in enumerate(
        zip(itertools.islice(first, REREAD), itertools.islice(second, REREAD), strict=False)
    ):
        for a, b in zip(_pair_of(one, spec), _pair_of(two, spec), strict=True):
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise LoadError(
                    f"`{spec}`: reading item {i} twice gave two different answers, so its loss is not a fixed "
                    "function. Turn off shuffling and random augmentation, and give the data as the network is "
                    "tested on it."
                )


def _pair_of(item: Any, spec: str) -> tuple[Tensor, Tensor]:
    if isinstance(item, Mapping):
        names = [next((n for n in known if n in item), None) for known in (INPUT_NAMES, TARGET_NAMES)]
        item = [item[name] for name in names if name is not None]
    if not isinstance(item, list | tuple) or len(item) != 2:
        got = f"{len(item)} values" if isinstance(item, list | tuple) else type(item).__name__
        raise LoadError(f"`{spec}` gives {got} per item. Expected pairs (x, y).")
    return to_tensor(item[0], f"`{spec}`: x"), to_tensor(item[1], f"`{spec}`: y")


def _collect(items: Iterator[Any], spec: str, *, batched: bool | None) -> Pair:
    """Stack samples or join batches; None looks at the first item to tell which."""
    inputs: list[Tensor] = []
    targets: list[Tensor] = []
    used = 0
    guessed = batched is None
    for item in items:
        x, y = _pair_of(item, spec)
        if batched is None:
            batched = y.ndim >= 1 and x.ndim >= 2 and len(x) == len(y)
        inputs.append(x if batched else x[None])
        targets.append(y if batched else y[None])
        used += x.nbytes + y.nbytes
        if used > MEMORY_BYTES:
            raise LoadError(
                f"`{spec}` gave more than {MEMORY_BYTES / 2**30:.3g} GiB and had not ended. Expected a finite "
                "data set that fits into memory: return a part of it, for example with `torch.utils.data.Subset`."
            )
    if not inputs:
        raise LoadError(f"`{spec}` has no samples. Expected at least one pair (x, y).")
    shapes = {tuple(x.shape[1:]) for x in inputs} if len({x.shape[1:] for x in inputs}) > 1 else set()
    shapes |= {tuple(y.shape[1:]) for y in targets} if len({y.shape[1:] for y in targets}) > 1 else set()
    if shapes:
        raise LoadError(
            f"`{spec}`: samples differ in shape ({', '.join(str(s) for s in sorted(shapes)[:3])}). "
            "Expected one shape for all: resize, crop or pad them."
        )
    notes = (f"data: `{spec}` was read as {'batches' if batched else 'single samples'}",) if guessed else ()
    return Pair(torch.cat(inputs), torch.cat(targets), notes)
