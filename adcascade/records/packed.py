"""Narrow types for what there is one of for each row: most numbers of a log are small. Knows no logs."""

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Numbers = TypeVar("Numbers", bound=npt.NDArray[np.integer[Any]])
Number = TypeVar("Number", bound=np.generic)

_TYPES = (np.int8, np.int16, np.int32, np.int64)
# Rows of a column that are worked on at once, where temporary copies of all of them would be most of the memory.
ROWS_AT_ONCE = 1 << 20


def type_for(least: int, most: int) -> type[np.signedinteger[Any]]:
    """The narrowest signed type that holds all whole numbers from `least` to `most`, which int64 does."""
    return next(kind for kind in _TYPES if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max)


def index_type(count: int) -> type[np.signedinteger[Any]]:
    """int32, or int64 where a number of rows (or the place after the last of them) needs it; both can be indices."""
    return np.int32 if type_for(0, count) is not np.int64 else np.int64


def packed(values: Numbers) -> Numbers:
    """The same numbers in the narrowest signed type that holds all of them."""
    if not len(values):
        return values
    return values.astype(type_for(int(values.min()), int(values.max())), copy=False)  # type: ignore[return-value]


def packed_counts(values: Numbers) -> Numbers:
    """The same numbers in int32, or int64 where one is larger; what numpy makes of them with floats is float64."""
    if len(values) and type_for(int(values.min()), int(values.max())) is np.int64:
        return values.astype(np.int64, copy=False)  # type: ignore[return-value]
    return values.astype(np.int32, copy=False)  # type: ignore[return-value]


def blocks(rows: int, at_once: int = ROWS_AT_ONCE) -> Iterator[slice]:
    """All of so many rows, block after block."""
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def looked_up(values: npt.NDArray[Number], places: npt.NDArray[np.integer[Any]]) -> npt.NDArray[Number]:
    """``values[places]``, [places], a block at a time: numpy copies places of fewer bits to 64."""
    found = np.empty(len(places), values.dtype)
    for some in blocks(len(places)):
        found[some] = values[places[some]]
    return found


def sum_of(column: npt.NDArray[np.integer[Any]], rows: npt.NDArray[np.integer[Any]]) -> int:
    """The sum of a column over some rows, of which no copy is made as a whole."""
    return sum(int(column[rows[some]].sum()) for some in blocks(len(rows)))


def totals(codes: npt.NDArray[np.integer[Any]], count: int) -> npt.NDArray[np.int64]:
    """How many rows have each code from 0 on, int64 [count]; negative ones are of no row.

    ``np.bincount`` copies its numbers to 64 bits: here it does a block at a time.
    """
    found = np.zeros(count, np.int64)
    for some in blocks(len(codes)):
        block = codes[some]
        np.add.at(found, block[block >= 0], 1)
    return found
