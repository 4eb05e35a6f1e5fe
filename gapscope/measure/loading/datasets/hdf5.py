"""HDF5 data files: named arrays at any depth; links and storage that lead out of the file are refused."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.datasets.arrays import DEFLATE_RATIO, Lazy, check_size, to_tensor
from gapscope.measure.loading.trust import one_line

_HOPS = 16  # a soft link may lead to another, and in a circle
_UNWRITTEN = 2**24  # bytes of values that nobody wrote: they take no room in the file


def read_hdf5(path: Path) -> Mapping[str, Tensor]:
    """Return the datasets of a file by their path inside it, without the leading slash; each is read when asked for."""
    try:
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda name, found: names.append(name) if isinstance(found, h5py.Dataset) else None)
            # visititems follows no links; soft ones at the top are the usual aliases of x and y
            names += [name for name in file if isinstance(file.get(name, getlink=True), h5py.SoftLink)]
    except Exception as error:  # a damaged file can raise anything
        raise LoadError(f"{path} is a damaged HDF5 file ({one_line(error)}). Copy or write it again.") from None
    return Lazy(names, lambda name: read_dataset(path, name))


def read_dataset(path: Path, name: str) -> Tensor:
    """Return one dataset; its values must lie in this file."""
    where = f"{path}: `{name}`"
    try:
        with h5py.File(path, "r") as file:
            data = _follow(file, name, where, _HOPS)
            if not isinstance(data, h5py.Dataset):
                raise LoadError(
                    f"{where} is a group. Expected a dataset: {', '.join(list(data)[:8]) or 'it is empty'}."
                )
            if data.external or (data.is_virtual and any(s.file_name != "." for s in data.virtual_sources())):
                raise LoadError(f"{where} keeps its values in other files, which are never followed. {_COPY}")
            if data.dtype.hasobject:  # texts and lists lie in heaps, which a damaged file makes HDF5 walk for ever
                raise LoadError(f"{where} holds texts or lists. Expected numbers, one by one. Write it again as such.")
            stored = path.stat().st_size if data.is_virtual else data.id.get_storage_size()
            check_size(data.nbytes, where, held=max(_UNWRITTEN, DEFLATE_RATIO * stored))
            return to_tensor(data[()], where)
    except LoadError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise LoadError(f"{where} cannot be read ({one_line(error)}). Copy or write the file again.") from None


_COPY = "Expected one file with all of its data: copy them into it."


def _follow(file: Any, name: str, where: str, hops: int) -> Any:
    """Walk to a member step by step: h5py itself would follow a link into any file of its reader."""
    found, place = file, PurePosixPath("/")
    for part in PurePosixPath("/", name).parts[1:]:
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            near = did_you_mean(part, found) if isinstance(found, h5py.Group) else ""
            raise LoadError(f"{where} is not there.{near} Expected the path of a dataset, like `file.h5::/x,/y`.")
        if isinstance(link, h5py.ExternalLink):
            raise LoadError(f"{where} is a link into another file, which is never followed. {_COPY}")
        if isinstance(link, h5py.SoftLink):
            if hops == 0:
                raise LoadError(f"{where} is a link that leads in a circle. Expected a dataset.")
            found = _follow(file, str(place / link.path), where, hops - 1)
        else:
            found = found[part]
        place = place / part
    return found
