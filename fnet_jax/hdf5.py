"""HDF5 files from anyone, read as arrays of plain numbers and nothing else.

HDF5 can do more than that: names may link to other files, arrays may keep their numbers in other
files, groups may contain themselves, an array of any size takes no room where it was never written,
and a packed chunk grows to whatever its stream says. All of this is refused here.
"""

import contextlib
import math
import os
import zlib
from collections.abc import Container, Iterator

import h5py
import numpy as np

from fnet_jax.errors import UserError, reason, shown

_MAX_NAMES = 10_000  # groups and arrays together
_MAX_DEPTH = 8
_MAX_NUMBERS = 2**28  # of an array; VGG16's largest layer has 103 million

_LAYOUTS = (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED)
# In this order, each at most once; those of h5py's `compression="gzip"`.
_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
# What h5py raises for a damaged file depends on where the damage is.
_DAMAGED = (
    OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, MemoryError, zlib.error
)  # fmt: skip


class Array:
    """An array of an open file, not read yet: `numpy.asarray` reads it."""

    def __init__(self, path: str | os.PathLike, name: str, dataset: h5py.Dataset):
        self._path, self._name, self._dataset = path, name, dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.ndim: int = len(dataset.shape)
        self.dtype: np.dtype = dataset.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with _naming(self._path):
            if not _inflates_as_declared(self._dataset):
                _refuse(self._path, f"{shown(self._name)} is packed wrongly")
            return np.asarray(self._dataset[()], dtype)


@contextlib.contextmanager
def open_arrays(
    path: str | os.PathLike,
    names: Container[str] | None = None,
    max_numbers: int = _MAX_NUMBERS,
) -> Iterator[dict[str, Array]]:
    """The arrays of an HDF5 file, open as long as the context: by name, a/b being b of group a.

    Args:
      path: of the file.
      names: of all that may be looked at on the highest level; None for everything.
      max_numbers: that an array may have.

    Raises:
      UserError: the file is missing, damaged or no HDF5, or it holds, among what may be looked at,
        anything but groups and arrays of plain numbers in the file itself. Reading an array raises
        it, too.
    """
    with contextlib.ExitStack() as stack:
        with _naming(path):
            file = stack.enter_context(h5py.File(path, "r"))
            arrays = {
                name: Array(path, name, _checked(path, name, dataset, max_numbers))
                for name, dataset in _datasets(path, file, names)
            }
        yield arrays


def _datasets(path, file, names) -> Iterator[tuple[str, h5py.Dataset]]:
    groups = [("", file)]
    count = 0
    while groups:
        prefix, group = groups.pop()
        # Counted by their names: the same group may stand in many others, or in itself.
        count += len(group)
        if count > _MAX_NAMES or prefix.count("/") > _MAX_DEPTH:
            _refuse(path, f"it has over {_MAX_NAMES} names, or groups over {_MAX_DEPTH} deep")
        for key in group:
            if group is file and names is not None and key not in names:
                continue
            name = prefix + key
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                _refuse(path, f"{shown(name)} is a link")
            item = group[key]
            if isinstance(item, h5py.Group):
                groups.append((f"{name}/", item))
            elif isinstance(item, h5py.Dataset):
                yield name, item
            else:
                _refuse(path, f"{shown(name)} is neither a group nor an array")


def _checked(path, name, dataset, max_numbers) -> h5py.Dataset:
    properties = dataset.id.get_create_plist()
    # Before the shape: that of a virtual dataset may depend on other files.
    if properties.get_layout() not in _LAYOUTS or properties.get_external_count():
        _refuse(path, f"{shown(name)} lies in other files")
    if dataset.shape is None or dataset.dtype.kind not in "iuf":
        _refuse(path, f"{shown(name)} is no array of numbers")
    # HDF5 reads whole chunks, which may be larger than the array.
    if max(math.prod(dataset.shape), math.prod(dataset.chunks or ())) > max_numbers:
        _refuse(path, f"{shown(name)} has more than {max_numbers} numbers")
    filters = _filters(dataset)
    if filters != [known for known in _FILTERS if known in filters]:
        _refuse(path, f"{shown(name)} is packed in another way than with gzip")
    return dataset


def _filters(dataset: h5py.Dataset) -> list[int]:
    properties = dataset.id.get_create_plist()
    return [properties.get_filter(place)[0] for place in range(properties.get_nfilters())]


def _inflates_as_declared(dataset: h5py.Dataset) -> bool:
    """Whether no chunk is longer than it should be once inflated; HDF5 itself does not look."""
    filters = _filters(dataset)
    if h5py.h5z.FILTER_DEFLATE not in filters:
        return True
    skipped = 1 << filters.index(h5py.h5z.FILTER_DEFLATE)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    chunks = []
    dataset.id.chunk_iter(chunks.append)
    for chunk in chunks:
        mask, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if mask & skipped:
            continue
        if len(zlib.decompressobj().decompress(packed, size + 1)) > size:
            return False
    return True


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Turns what h5py raises into a UserError with the file's name."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"there is no file {os.fspath(path)}; correct the path") from None
    except _DAMAGED as error:
        raise UserError(
            f"{os.fspath(path)} cannot be read as HDF5 ({reason(error)}); give a whole .h5 file"
        ) from error


def _refuse(path: str | os.PathLike, what: str) -> None:
    raise UserError(
        f"{os.fspath(path)} is refused: {what}; give a file of plain arrays, none elsewhere"
    )
