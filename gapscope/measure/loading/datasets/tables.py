"""Parquet, Arrow, and folders written by Hugging Face's `datasets`, all read with pyarrow alone."""

import json
from pathlib import Path
from typing import Any

import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import PARTS, Keys, Pair, Split, check_size, to_tensor
from gapscope.measure.loading.datasets.arrow import unpacked_bytes
from gapscope.measure.loading.datasets.columns import Parts, Unread, pair_of_columns, target_name
from gapscope.measure.loading.datasets.images import decoded
from gapscope.measure.loading.datasets.parquet import read_parquet
from gapscope.measure.loading.trust import one_line

ARROW_FILE, PARQUET, ARROW_STREAM = b"ARROW1\0\0", b"PAR1", b"\xff\xff\xff\xff"
_TEXTS = ("string", "large_string", "string_view")


def read_table(path: Path, keys: Keys) -> Pair:
    """Return the samples of a parquet or Arrow file (file or stream)."""
    return _pair(_table(path), keys, str(path))


def is_table_folder(folder: Path) -> bool:
    """Return whether `datasets` saved the folder, or it holds parquet files."""
    return bool(_saved(folder) or _shards(folder))


def read_table_folder(folder: Path, split: Split, keys: Keys, *, whole: bool) -> Pair | None:
    """Return one split of a folder made by `save_to_disk`, or of parquet files named after their split."""
    if _saved(folder) == "dataset_dict.json":
        names = _json(folder / "dataset_dict.json", "splits", list)
        chosen = next((name for name in PARTS[split] if name in names), None)
        if chosen is None:
            if split == "test" and not whole:
                return None
            raise LoadError(
                f"{folder} has the splits {', '.join(map(str, names[:8]))}. Expected {' or '.join(PARTS[split])}: "
                f"name the folder of one, `{folder / str((names or ['train'])[0])}`."
            )
        folder = folder / chosen
        return _pair(_saved_table(folder), keys, str(folder))
    if _saved(folder):
        return _pair(_saved_table(folder), keys, str(folder)) if split == "train" or whole else None
    files = _shards(folder)
    # one name for a split: a folder may have files for tests and others for validation
    part = next((name for name in PARTS[split] if any(file.name.startswith(name) for file in files)), None)
    own = [file for file in files if part and file.name.startswith(part)]
    if not own and split == "test" and not whole:
        return None
    if not own and any(file.name.startswith((*PARTS["train"], *PARTS["test"])) for file in files):
        raise LoadError(f"{folder} has no {split} files, but {files[0].name}. Expected names like `{split}-0.parquet`.")
    taken = own or files
    pair = _pair(_joined([_table(file) for file in taken], folder), keys, str(folder))
    more = f" and {len(taken) - 4} more" if len(taken) > 4 else ""
    note = f"data: {folder}: read from {', '.join(file.name for file in taken[:4])}{more}"
    return pair._replace(notes=(note, *pair.notes))


def _saved(folder: Path) -> str | None:
    return next((name for name in ("dataset_dict.json", "state.json") if (folder / name).is_file()), None)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def _json(path: Path, key: str, kind: type) -> Any:
    try:
        found = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise LoadError(f"{path} has no `{key}`. Expected a folder that `datasets` wrote: save it again.")
    return found


def _saved_table(folder: Path) -> Any:
    listed = _json(folder / "state.json", "_data_files", list)
    names: list[Any] = [file.get("filename") if isinstance(file, dict) else None for file in listed]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise LoadError(f"{folder}/state.json names the file {name!r}. Expected files of this folder alone.")
    table = _joined([_table(folder / name) for name in names], folder)
    shown = json.loads((folder / "state.json").read_bytes()).get("_format_columns")
    return table.select([name for name in table.column_names if name in shown]) if shown else table


def _joined(tables: list[Any], folder: Path) -> Any:
    if not tables:
        raise LoadError(f"{folder} names no data files. Expected at least one: save the data set again.")
    try:
        return _pyarrow().concat_tables(tables)
    except _pyarrow().ArrowException as error:
        raise LoadError(f"{folder}: its files do not fit together ({one_line(error)}). Save it again.") from None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise LoadError(
            "Reading parquet and Arrow files takes pyarrow, which is not installed. `pip install pyarrow`."
        ) from None
    return pyarrow


def _table(path: Path) -> Any:
    arrow = _pyarrow()
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if head == b"version ":
            raise LoadError(f"{path} is a Git LFS pointer, not the data themselves. Fetch them: `git lfs pull`.")
        if head.startswith(PARQUET):
            table = read_parquet(path)
        else:
            with arrow.memory_map(str(path)) as source:
                check_size(unpacked_bytes(source, footer=head == ARROW_FILE), str(path))
                source.seek(0)
                table = (arrow.ipc.open_file if head == ARROW_FILE else arrow.ipc.open_stream)(source).read_all()
        table.validate(full=True)  # offsets that lead out of the buffers would read foreign memory
        return table.rename_columns([str(name) for name in table.column_names])  # names that are no text raise here
    except LoadError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise LoadError(f"{path} is damaged ({one_line(error)[:120]}). Copy or write it again.") from None


def _pair(table: Any, keys: Keys, where: str) -> Pair:
    names = table.column_names
    if len(set(names)) < len(names):
        raise LoadError(f"{where} has two columns of one name: {', '.join(names[:12])}. Expected different names.")
    target = keys.target or target_name(dict.fromkeys(names)) or (names[-1] if names else None)
    wanted = {*keys.inputs, target} if keys.inputs else set(names)
    images = [name for name in names if _is_image(table.schema.field(name).type)]
    columns = {
        name: _column(table[name], f"{where}: `{name}`", name == target) if name in wanted else ["unused"]
        for name in names
    }
    pair = pair_of_columns(columns, keys, where, table=True, last=True)
    return pair._replace(pixels=any(name in wanted for name in images))


def _column(column: Any, where: str, is_target: bool) -> Parts | list[str]:
    """Return numbers as tensors, one for each chunk or, of differing lengths, each row; else texts."""
    if not len(column):  # of whatever kind: there are no samples
        return [torch.empty(0)]
    arrow = _pyarrow()
    kind = column.type
    if isinstance(kind, arrow.BaseExtensionType):  # of `datasets`, when it is imported: lists below a name
        column = arrow.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        kind = kind.storage_type
    values = kind.value_type if arrow.types.is_dictionary(kind) else kind
    texts = _texts(column) if is_target and str(values) in _TEXTS else None
    if texts is None and values is not kind and _is_numeric(values) and not _is_list(values):
        column, kind = column.cast(values), values
    if texts is None and not _is_numeric(kind) and not _is_image(kind):
        return list[str]((Unread(kind),))
    missing = column.null_count if texts is None else texts.count(None)
    if missing:
        raise LoadError(f"{where} has {missing} missing values. Expected none: fill or remove them.")
    if texts is not None:
        return texts
    if arrow.types.is_decimal(kind):
        column = column.cast(arrow.float64())
    if _is_image(kind):
        return _images([row["bytes"] for row in column.to_pylist()], where)
    check_size(column.get_total_buffer_size(), where)  # before the tensors take as much again
    return [part for chunk in column.chunks if len(chunk) for part in _nested(chunk, where)]


def _texts(column: Any) -> list[Any]:
    """Return texts, None where one is missing; those of a dictionary are kept once, however often they are named."""
    if not _pyarrow().types.is_dictionary(column.type):
        plain: list[Any] = column.to_pylist()
        return plain
    texts: list[Any] = []
    kept: dict[Any, Any] = {}
    for chunk in column.chunks:
        own = [kept.setdefault(text, text) for text in chunk.dictionary.to_pylist()]
        texts += [None if i is None else own[i] for i in chunk.indices.to_pylist()]
    return texts


def _images(contents: list[bytes | None], where: str) -> Parts:
    images: Parts = []
    for i, content in enumerate(contents):
        if content is None:
            raise LoadError(f"{where}, row {i} names an image elsewhere. Expected its bytes: save the data with them.")
        images.append(decoded(content, f"{where}, row {i}")[None])
        check_size(4 * images[0].numel() * len(contents), where)  # all as floats, known from the first
    return images


def _is_image(kind: Any) -> bool:
    """Return whether a column holds encoded images, as `datasets` stores them."""
    types = _pyarrow().types
    return bool(types.is_struct(kind)) and kind.get_field_index("bytes") >= 0 and kind.get_field_index("path") >= 0


def _is_list(kind: Any) -> bool:
    types = _pyarrow().types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_numeric(kind: Any) -> bool:
    types = _pyarrow().types
    while _is_list(kind):
        kind = kind.value_type
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))


def _nested(chunk: Any, where: str) -> Parts:
    """Return lists of lists of one shape as one tensor (n, ...), of differing lengths as n tensors (1, ...)."""
    if chunk.null_count:
        raise LoadError(f"{where} has missing values inside its lists. Expected none: fill or remove them.")
    if not _is_list(chunk.type):
        return [to_tensor(chunk.to_numpy(zero_copy_only=False), where)]
    inner = _nested(chunk.flatten(), where)
    if len(inner) > 1:
        raise LoadError(f"{where} has lists of differing lengths inside lists. Expected one shape: pad or crop them.")
    lengths = _lengths(chunk)
    if len(set(lengths)) > 1:
        return [row[None] for row in torch.split(inner[0], lengths)]
    return [inner[0].view(len(chunk), max(lengths, default=0), *inner[0].shape[1:])]


def _lengths(chunk: Any) -> list[int]:
    import pyarrow.compute

    lengths: list[int] = pyarrow.compute.list_value_length(chunk).to_numpy().tolist()
    return lengths
