"""Vectors on disk, read row by row when they are asked for. Knows nothing of what they are of.

They are not mapped into memory: a mapped file that somebody cuts short ends the process (SIGBUS) at the next access.
Reading says so instead, and what is read is in memory only as long as it is used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.files import open_regular
from adcascade.vectors.encoder import Vectors

# A file of at most so many bytes is kept in memory: reading a row takes a microsecond, copying it a tenth of that.
_KEPT_BYTES = 64 * 2**20
_ITEM = np.dtype("<f4")


class VectorFile:
    """The rows of a ``.npy`` file of float32 [rows, columns], as of an array.

    Raises:
        CorruptVersion: The file is no such array, or has not exactly the bytes that its header promises. Indexing
            raises it where the file has been cut short since.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with open_regular(path) as descriptor:
                # Unbuffered, and closed with the last user of this object.
                self._file = os.fdopen(os.dup(descriptor), "rb", buffering=0)
            self.shape = _read_header(self._file)
            self._start = self._file.tell()
            size = os.fstat(self._file.fileno()).st_size
        except (OSError, ValueError) as error:
            raise CorruptVersion(f"{path} holds no vectors that can be read: {error}") from error
        if size != self._start + self.shape[0] * self._row_bytes:
            raise CorruptVersion(f"{path} promises vectors of {self.shape} numbers and has {size} bytes")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: "slice | Sequence[int] | npt.NDArray[np.integer[Any]]") -> Vectors:
        """Rows by number, float32 [rows, columns]; negative numbers count from the end."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(start, max(0, stop - start))
            rows = range(start, stop, step)
        wanted = np.asarray(rows, np.int64).reshape(-1)
        wanted = np.where(wanted < 0, wanted + len(self), wanted)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"{self._path} has {len(self)} rows")
        found = np.empty((len(wanted), self.shape[1]), _ITEM)
        size, start, descriptor = self._row_bytes, self._start, self._file.fileno()
        parts = [os.pread(descriptor, size, start + row * size) for row in wanted.tolist()]
        if any(len(part) != size for part in parts):
            raise self._cut_short()
        return np.frombuffer(b"".join(parts), _ITEM).reshape(found.shape) if parts else found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All rows, for numpy."""
        return np.asarray(self[:], dtype)

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * _ITEM.itemsize

    def _read(self, start: int, count: int) -> Vectors:
        found = np.empty((count, self.shape[1]), _ITEM)
        view, place = found.reshape(-1).view(np.uint8).data, self._start + start * self._row_bytes
        while len(view):
            got = os.preadv(self._file.fileno(), [view], place)
            if not got:
                raise self._cut_short()
            view, place = view[got:], place + got
        return found

    def _cut_short(self) -> CorruptVersion:
        return CorruptVersion(f"{self._path} has been cut short since it was opened; publish a version that is whole")


StoredVectors = Vectors | VectorFile


def load_vectors(path: Path) -> StoredVectors:
    """The vectors of a file, in memory if they are few. Raises CorruptVersion."""
    if not hasattr(os, "pread"):  # Windows, where nobody can cut a mapped file short
        mapped: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    found = VectorFile(path)
    return found[:] if len(found) * found.shape[1] * _ITEM.itemsize <= _KEPT_BYTES else found


def _read_header(file: Any) -> tuple[int, int]:
    """Rows and columns; leaves the file at the first number. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has the format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    if dtype != _ITEM or fortran_order or len(shape) != 2:
        raise ValueError(f"it holds {dtype} of shape {shape}, not float32 [rows, columns]")
    return int(shape[0]), int(shape[1])
