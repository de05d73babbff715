"""Numbers of every row of a log, in memory or, where they are many, in a scratch file. Knows no logs and no models.

A file costs disk in place of memory: rows are read from it by position, so that the memory of a training grows with the
rows that it looks at, not with those that there are. The file has no name and is gone with the table, however the
process ends.
"""

import os
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from ranking.inputs.features import Features

# Tables up to this size, in bytes, stay in memory.
MOST_IN_MEMORY = 1 << 30
# Rows that lie so close that the stretch they are in has at most so many times as many are read in one piece.
_SPARSE = 4


class RowFeatures(Protocol):
    """Features of the rows of a log, looked up by row."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Integers, /) -> Features:
        """Of some rows, float32 [rows, features]."""
        ...


class RowTable:
    """A table [rows, columns] that is filled block after block and then read by row.

    Args:
        order: which row each line of the table is of, int64 [rows]; None if line i is of row i.
        most_in_memory: bytes; a larger table is a file in the folder for temporary files (TMPDIR).
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        dtype: npt.DTypeLike,
        order: Integers | None = None,
        most_in_memory: int = MOST_IN_MEMORY,
    ) -> None:
        self.shape, self._dtype = (rows, columns), np.dtype(dtype)
        self._line: Integers | None = None
        if order is not None:
            self._line = np.empty(rows, np.int64)
            self._line[order] = np.arange(rows)
        self._width, self._filled = columns * self._dtype.itemsize, 0
        self._file = tempfile.TemporaryFile() if rows * self._width > most_in_memory else None  # noqa: SIM115
        self._values = np.empty(self.shape if self._file is None else (0, columns), self._dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def append(self, block: npt.NDArray[Any]) -> None:
        """Fills the next lines, [lines, columns]."""
        if self._file is None:
            self._values[self._filled : self._filled + len(block)] = block
        else:
            np.ascontiguousarray(block, self._dtype).tofile(self._file)
            self._file.flush()
        self._filled += len(block)

    def __getitem__(self, rows: Integers, /) -> npt.NDArray[Any]:
        """Of some rows, [rows, columns]."""
        lines = rows if self._line is None else self._line[rows]
        if self._file is None or not len(lines):
            return self._values[lines] if len(lines) else np.empty((0, self.shape[1]), self._dtype)
        first, span = int(lines.min()), int(np.ptp(lines)) + 1
        if span <= _SPARSE * len(lines):
            return self._read(first, span)[lines - first]
        file, width = self._file.fileno(), self._width
        found = b"".join([os.pread(file, width, width * line) for line in lines.tolist()])
        return np.frombuffer(bytearray(found), self._dtype).reshape(-1, self.shape[1])

    def _read(self, first: int, lines: int) -> npt.NDArray[Any]:
        assert self._file is not None
        buffer = np.empty((lines, self.shape[1]), self._dtype)
        view, done = buffer.data.cast("B"), 0
        while done < len(view):  # a call reads two gigabytes at most
            done += os.preadv(self._file.fileno(), [view[done:]], first * self._width + done)
        return buffer


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
        return self._normalise(self._table[rows])


def request_blocks(requests: Integers, rows: int) -> tuple[Integers | None, Integers]:
    """Rows in blocks of about so many, in which no request is torn apart.

    Args:
        requests: number of each row's request, from 0, int64 [rows of the log].

    Returns:
        The order of the rows, int64 [rows of the log], None if it is their own; and where blocks begin in it, with the
        end of the last one, int64 [blocks + 1].
    """
    count = len(requests)
    first = np.empty(int(requests.max(initial=-1)) + 1, np.int64)
    first[requests[::-1]] = np.arange(count)[::-1]  # of several rows, the last one written stays
    key = first[requests]
    order = None if (key[1:] >= key[:-1]).all() else np.argsort(key, kind="stable")
    key = key if order is None else key[order]
    begins = np.flatnonzero(np.r_[True, key[1:] != key[:-1]][:count])
    wanted = np.searchsorted(begins, np.arange(0, count, rows))
    return order, np.unique(np.r_[begins[wanted[wanted < len(begins)]], count])
