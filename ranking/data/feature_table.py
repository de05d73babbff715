"""Numbers of every row of a log, in memory or, where they are many, in a scratch file. Knows no logs and no models.

A file costs disk in place of memory: rows are read from it by position, so that the memory of a training grows with the
rows that it looks at, not with those that there are. The file has no name and is gone with the table, however the
process ends. Its room on the disk is taken when it is made, so that a disk that is too small is found at once.
"""

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.packed import blocks, index_type
from ranking.inputs.features import Features

# Rows that lie so close that the stretch they are in has at most so many times as many are read in one piece.
_SPARSE = 4
# Rows that are normalised at once.
_NORMAL_ROWS = 1 << 17
# What a file system says that cannot reserve room.
_NO_RESERVING = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class TableLimits:
    """How much of what is made of a log's rows is in memory at once.

    Attributes:
        block_rows: rows whose features are made at once, which takes about a kilobyte a row.
        counted_rows: rows whose counters are replayed at once, about, which takes about 300 bytes a row; those of a key
            are never torn apart.
        most_in_memory: bytes; a larger table is a file in the folder for temporary files (TMPDIR).
    """

    block_rows: int = 1 << 18
    counted_rows: int = 1 << 21
    most_in_memory: int = 1 << 30


class RowFeatures(Protocol):
    """Features of the rows of a log, looked up by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Integers, /) -> Features:
        """Of some rows, float32 [rows, features]."""
        ...


class RowTable:
    """A table [rows, columns] that is filled block after block and, once it is full, read by row.

    Args:
        order: which row each line of the table is of, [rows]; None if line i is of row i.
        most_in_memory: see `TableLimits`.

    Raises:
        InputError: The folder for temporary files has no room for the table, or there is no such folder.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        dtype: npt.DTypeLike,
        order: Integers | None = None,
        most_in_memory: int = TableLimits.most_in_memory,
    ) -> None:
        self.shape, self._dtype = (rows, columns), np.dtype(dtype)
        self._line: Integers | None = None
        if order is not None:
            self._line = np.empty(rows, index_type(rows))
            for some in blocks(rows):
                self._line[order[some]] = np.arange(some.start, some.stop)
        self._width, self._filled = columns * self._dtype.itemsize, 0
        self._file = _scratch_file(rows * self._width) if rows * self._width > most_in_memory else None
        self._values = np.empty(self.shape if self._file is None else (0, columns), self._dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, block: npt.NDArray[Any]) -> None:
        """Fills the next lines, [lines, columns].

        Raises:
            ValueError: The block has other columns, or more lines than are left.
            InputError: The disk is full after all, on a file system that reserves no room.
        """
        end = self._filled + len(block)
        if block.shape[1:] != self.shape[1:] or end > len(self):
            raise ValueError(f"{block.shape} more lines do not fit a table {self.shape} with {self._filled} lines")
        if self._file is None:
            self._values[self._filled : end] = block
        else:
            self._write(self._file, np.ascontiguousarray(block, self._dtype))
        self._filled = end

    def __getitem__(self, rows: Integers, /) -> npt.NDArray[Any]:
        """Of some rows, [rows, columns].

        Raises:
            ValueError: The table is not full yet.
            IndexError: There is no such row.
            OSError: The file cannot be read to its end.
        """
        if self._filled < len(self):
            raise ValueError(f"{self._filled} of {len(self)} lines of the table are filled; it is read once all are")
        if not len(rows):
            return np.empty((0, self.shape[1]), self._dtype)
        if not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a table of {len(self)} rows")
        lines = rows if self._line is None else self._line[rows]
        if self._file is None:
            return self._values[lines]
        first, span = int(lines.min()), int(np.ptp(lines)) + 1
        if span <= _SPARSE * len(lines):
            return self._read(self._file, first, span)[lines - first]
        found = np.empty((len(lines), self.shape[1]), self._dtype)
        for line, of_row in zip(lines.tolist(), found.view(np.uint8), strict=True):
            _fill(self._file, of_row, self._width * line)
        return found

    def _write(self, file: IO[bytes], block: npt.NDArray[Any]) -> None:
        values, start = block.reshape(-1).view(np.uint8), self._filled * self._width
        done = 0
        try:
            while done < len(values):  # a call writes two gigabytes at most
                done += os.pwrite(file.fileno(), values[done:].data, start + done)
        except OSError as error:
            raise _no_room(len(self) * self._width, error) from error

    def _read(self, file: IO[bytes], first: int, lines: int) -> npt.NDArray[Any]:
        found = np.empty((lines, self.shape[1]), self._dtype)
        _fill(file, found.reshape(-1).view(np.uint8), self._width * first)
        return found


def _scratch_file(size: int) -> IO[bytes]:
    """A file of so many bytes without a name. Raises InputError."""
    try:
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    except OSError as error:
        raise _no_room(size, error) from error
    try:
        _reserve(file, size)
    except OSError as error:
        file.close()
        raise _no_room(size, error) from error
    return file


def _reserve(file: IO[bytes], size: int) -> None:
    """Takes the room of a file, where the system can."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in _NO_RESERVING:
            raise


def _no_room(size: int, error: OSError) -> InputError:
    folder = tempfile.gettempdir() if tempfile.tempdir is not None else os.environ.get("TMPDIR", "none was found")
    return InputError(
        f"a table of features of the log, one of several, needs {size:,} bytes of disk in the folder for temporary "
        f"files ({folder}): {error.strerror}. Set TMPDIR to a folder on a disk with several times as much room, or "
        "read fewer rows (--newest)"
    )


def _fill(file: IO[bytes], buffer: npt.NDArray[np.uint8], start: int) -> None:
    """Reads bytes from `start` on until the buffer is full. Raises OSError if the file ends before."""
    done = 0
    while done < len(buffer):  # a call reads two gigabytes at most
        read = os.preadv(file.fileno(), [buffer[done:].data], start + done)
        if not read:
            raise OSError(errno.EIO, f"a scratch file ends at byte {start + done:,}, not at {start + len(buffer):,}")
        done += read


class NormalFeatures:
    """Features of every row of a log as a network reads them: those of a table, normalised where they are looked up.

    Args:
        normalise: see `ranking.spec.CtrSpec.normalise`.
    """

    def __init__(self, table: RowFeatures, normalise: Callable[[Features], Features]) -> None:
        self._table, self._normalise = table, normalise

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: Integers, /) -> Features:
        """Of some rows, float32 [rows, features]."""
        if len(rows) <= _NORMAL_ROWS:
            return self._normalise(self._table[rows])
        parts = (self._normalise(self._table[rows[some]]) for some in blocks(len(rows), _NORMAL_ROWS))
        first = next(parts)
        found = np.empty((len(rows), first.shape[1]), first.dtype)
        for some, part in zip(blocks(len(rows), _NORMAL_ROWS), chain([first], parts), strict=True):
            found[some] = part
        return found


def request_blocks(requests: Integers, rows: int) -> tuple[Integers | None, Integers]:
    """Rows in blocks of about so many, in which no request is torn apart.

    Args:
        requests: number of each row's request, from 0, [rows of the log].

    Returns:
        The order of the rows, int32 where that is enough, [rows of the log], None if it is their own; and where blocks
        begin in it, with the end of the last one, int64 [blocks + 1].
    """
    count, index = len(requests), index_type(len(requests))
    first, key = np.empty(int(requests.max(initial=-1)) + 1, index), np.empty(count, index)
    for some in reversed([*blocks(count)]):
        first[requests[some][::-1]] = np.arange(some.start, some.stop)[::-1]  # of several, the last one written stays
    for some in blocks(count):
        key[some] = first[requests[some]]
    order = None
    if (key[1:] < key[:-1]).any():
        order = np.argsort(key, kind="stable").astype(index, copy=False)
        key = key[order]
    begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][:count])
    wanted = np.searchsorted(begins, np.arange(0, count, rows))
    return order, np.unique(np.r_[begins[wanted[wanted < len(begins)]], count])
