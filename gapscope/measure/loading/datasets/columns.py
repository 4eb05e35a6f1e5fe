"""Samples with named entries (rows of a table, dicts of a Dataset) to inputs and targets.

One rule: entries of one number per sample form one row of features in a table; elsewhere every entry but the target
is given to the model by its name, and entries of one number beside longer ones (row numbers) are left out.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.batches import Inputs
from gapscope.measure.loading.datasets.arrays import TARGET_NAMES, Keys, Pair, check_size, given

Parts = list[Tensor]  # each (n, ...), to be joined
Columns = Mapping[str, Parts | list[str]]
IGNORED = -100  # the label that torch and Hugging Face leave out of the loss


class Unread(str):
    """The name of the type of an entry that is neither numbers nor text: left out as an input, and no class."""


def pair_of_columns(columns: Columns, keys: Keys, where: str, *, table: bool = False, last: bool = False) -> Pair:
    """Choose target and inputs, pad token rows of differing length, and join the parts.

    `last`: where no column is named as a target, the last is taken.
    """
    for name in (*keys.inputs, *([keys.target] if keys.target else [])):
        if name not in columns:
            raise LoadError(
                f"{where} has no `{name}`, but {_listed(columns)}.{did_you_mean(name, columns)} Expected one of them."
            )
    notes: list[str] = []
    target = keys.target or target_name(columns) or (list(columns)[-1] if last and columns else None)
    if target is None:
        raise LoadError(
            f"{where} has {_listed(columns)}, and none is called `y`, `label` or `target`. Expected a target: name it "
            "with `--y-key NAME` (the input's own name for an autoencoder)."
        )
    if keys.target is None and target_name(columns) is None:
        notes.append(f"data: {where}: the target is the last column, `{target}`")
    chosen = _inputs(columns, keys, target, where, notes)
    labels, classes = _labels(columns[target], target, where, notes)
    chosen, labels = _padded(chosen, labels, where, notes)
    joined = {name: stacked(parts, f"{where}: `{name}`") for name, parts in chosen.items()}
    inputs = _assembled(joined, keys, where, notes, table=table)
    targets, same = stacked(labels, f"{where}: `{target}`"), list(joined) == [target]
    return Pair(inputs, targets, tuple(notes), classes=classes, same=same)


def target_name(names: Mapping[str, object]) -> str | None:
    """Return the usual name of a target that is there, in whatever case."""
    lower = {name.lower(): name for name in reversed(list(names))}
    return next((name for name in TARGET_NAMES if name in names), None) or next(
        (lower[name.lower()] for name in TARGET_NAMES if name.lower() in lower), None
    )


def class_numbers(texts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return texts as the numbers of the classes in sorted order, and those classes."""
    classes = tuple(sorted(set(texts)))
    number = {text: i for i, text in enumerate(classes)}
    return torch.tensor([number[text] for text in texts]), classes


def classes_note(classes: Sequence[str], where: str) -> str:
    """Return which number stands for which class."""
    shown = ", ".join(f"{i} = {name}" for i, name in enumerate(classes[:10]))
    return f"data: {where}: classes {shown}{', ...' if len(classes) > 10 else ''}"


def stacked(parts: Parts, where: str) -> Tensor:
    """Join parts whose samples have one shape."""
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise LoadError(
            f"{where}: samples differ in shape ({', '.join(map(str, shapes[:3]))}). "
            "Expected one shape for all: resize, crop or pad them."
        )
    check_size(sum(part.nbytes for part in parts), where)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _inputs(columns: Columns, keys: Keys, target: str, where: str, notes: list[str]) -> dict[str, Parts]:
    names = keys.inputs or [name for name in columns if name != target]
    text = [name for name in names if _is_text(columns[name])]
    if text and (keys.inputs or len(text) == len(names)):
        raise LoadError(
            f"{where}: `{text[0]}` holds no numbers. Expected numbers as inputs: encode or tokenize it first, and give "
            "the result."
        )
    if text:
        notes.append(f"data: {where}: left out, not numbers: {', '.join(f'`{name}`' for name in text[:8])}")
    if not names:
        raise LoadError(f"{where} has only the column `{target}`. Expected inputs beside the target.")
    return {name: columns[name] for name in names if name not in text}  # type: ignore[misc]


def _labels(column: Parts | list[str], name: str, where: str, notes: list[str]) -> tuple[Parts, tuple[str, ...]]:
    if not _is_text(column):
        return column, ()  # type: ignore[return-value]
    missing = sum(isinstance(text, str) and not text.strip() for text in column)
    if missing:
        raise LoadError(f"{where}: `{name}` has {missing} missing values. Expected none: fill or remove them.")
    odd = next((text for text in column if isinstance(text, Unread)), None)
    if odd is not None:
        raise LoadError(
            f"{where}: `{name}` holds {odd}, which is neither numbers nor text. Expected the number of a class, or its "
            "name, for every sample. Convert them where the data are made."
        )
    numbers, classes = class_numbers(column)  # type: ignore[arg-type]
    notes.append(classes_note(classes, where))
    return [numbers], classes


def _padded(chosen: dict[str, Parts], labels: Parts, where: str, notes: list[str]) -> tuple[dict[str, Parts], Parts]:
    """Bring token rows to one length; the mask tells the model which tokens are none, -100 tells the loss."""
    tokens = chosen.get("input_ids", [])
    lengths = [part.shape[1] if part.ndim > 1 else 0 for part in tokens]
    if len(set(lengths)) < 2:
        return chosen, labels
    longest = max(lengths)
    if "attention_mask" not in chosen:
        chosen = chosen | {"attention_mask": [torch.ones_like(part, dtype=torch.long) for part in tokens]}

    def follows(parts: Parts) -> bool:
        return len(parts) == len(lengths) and all(
            part.ndim == 2 and part.shape[1] == length and not part.is_floating_point()
            for part, length in zip(parts, lengths, strict=True)
        )

    def lengthened(parts: Parts, value: int) -> Parts:
        return [F.pad(p.long(), (0, longest - p.shape[1]), value=value) for p in parts] if follows(parts) else parts

    notes.append(
        f"data: {where}: tokens of {min(lengths)} to {longest} per sample, padded to {longest} "
        "(attention_mask 0, labels -100)"
    )
    return {name: lengthened(parts, 0) for name, parts in chosen.items()}, lengthened(labels, IGNORED)


def _assembled(columns: dict[str, Tensor], keys: Keys, where: str, notes: list[str], *, table: bool) -> Inputs:
    single = [name for name, column in columns.items() if column.ndim == 1]
    if table and len(single) == len(columns):
        shown = ", ".join(list(columns)[:12]) + (f" and {len(columns) - 12} more" if len(columns) > 12 else "")
        notes.append(f"data: {where}: inputs side by side: {shown}")
        # float32 only where nothing is lost
        exact = all(column.dtype == torch.float32 for column in columns.values())
        return torch.stack([c if exact else c.double() for c in columns.values()], dim=1)
    if single and len(single) < len(columns) and not keys.inputs:
        notes.append(f"data: {where}: left out, as single numbers: {', '.join(f'`{name}`' for name in single[:8])}")
        columns = {name: column for name, column in columns.items() if name not in single}
    if len(columns) > 1:
        notes.append(f"data: {where}: inputs by name: {', '.join(columns)}")
    return given(columns, by_name=True)


def _is_text(column: Parts | list[str]) -> bool:
    return isinstance(column[0], str)


def _listed(columns: Columns) -> str:
    return ", ".join(f"`{name}`" for name in list(columns)[:12]) or "no columns"
