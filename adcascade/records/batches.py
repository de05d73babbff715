"""Some rows of a file, as Python's values or as Arrow holds them. Knows no formats, and not what the rows mean."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adcascade.records.parquet_limits import BATCH_ROWS
from adcascade.records.rounded import RoundedFloat

# What holds values of JSON and CSV without changing any.
_ARROW_TYPES = {str: pa.large_string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
# Whole numbers above these are not exact in a float of so many bits.
_EXACT = {16: 2**11, 32: 2**24}


def is_table(source: str) -> bool:
    """Whether a file of this name has one set of columns for all rows, as CSV and Parquet have, and JSONL has not."""
    return source.lower().endswith((".csv", ".csv.gz", ".parquet"))


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row that cannot be read: a reason (one word) and a detail."""

    reason: str
    detail: str


Row = Mapping[str, Any] | DamagedRow


@dataclass(frozen=True)
class Batch:
    """Some rows of a file.

    Attributes:
        source: name of the file.
        numbers: number of each good row in it, from 1.
        columns: their values, as long as `numbers`; None where a row has no value.
        damaged: the rows among them that could not be read, by number.
    """

    source: str
    numbers: Sequence[int]
    columns: Mapping[str, Sequence[Any]]
    damaged: Mapping[int, DamagedRow]

    def take(self, rows: npt.NDArray[np.int64]) -> "Batch":
        """Some of the good rows, by their places, and none that is damaged."""
        places = rows.tolist()
        columns = {name: [values[place] for place in places] for name, values in self.columns.items()}
        return Batch(self.source, [self.numbers[place] for place in places], columns, {})

    def as_table(self) -> pa.RecordBatch | None:
        """The good rows as Arrow holds them; None if a column has values of several types, or of one with parts."""
        try:
            columns = {name: _as_array(values) for name, values in self.columns.items()}
            return pa.RecordBatch.from_pydict(columns) if columns else None
        except (ValueError, OverflowError, TypeError):
            return None

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Good and damaged rows in their order, with their numbers."""
        names, lines = list(self.columns), zip(*self.columns.values(), strict=True)
        good = {number: dict(zip(names, line, strict=True)) for number, line in zip(self.numbers, lines, strict=False)}
        for number in sorted((*self.numbers, *self.damaged)):
            yield number, self.damaged[number] if number in self.damaged else good.get(number, {})


def _as_array(values: Sequence[Any]) -> pa.Array:
    """Values of one type, exactly as they are. Raises TypeError for others."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) > 1 or not kinds <= _ARROW_TYPES.keys():
        raise TypeError
    return pa.array(values, _ARROW_TYPES[kinds.pop()] if kinds else pa.null())


@dataclass(frozen=True)
class TableBatch:
    """Some rows of a Parquet or CSV file as Arrow holds them.

    Attributes:
        source: name of the file.
        first: number of the first row in it, from 1.
    """

    source: str
    first: int
    table: pa.RecordBatch

    def by_row(self, rows: npt.NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """The given rows, or all, as batches of Python's values."""
        count = self.table.num_rows if rows is None else len(rows)
        for start in range(0, count, BATCH_ROWS):
            if rows is None:
                part = self.table.slice(start, BATCH_ROWS)
                yield _parquet_batch(self.source, range(self.first + start, self.first + start + len(part)), part)
            else:
                some = rows[start : start + BATCH_ROWS]
                yield _parquet_batch(self.source, (self.first + some).tolist(), self.table.take(pa.array(some)))


def _parquet_batch(source: str, rows: Sequence[int], batch: pa.RecordBatch) -> Batch:
    damaged: dict[int, DamagedRow] = {}
    columns: dict[str, list[Any]] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = columns[name] = []
        try:
            values += plain_values(column)
        except (ValueError, OverflowError):
            for row, number in enumerate(rows):
                try:
                    values += plain_values(column.slice(row, 1))
                except UnicodeDecodeError:
                    values.append(None)
                    damaged[number] = DamagedRow("bad_utf8", f"{name} has bytes that are no UTF-8")
                except (ValueError, OverflowError) as error:
                    values.append(None)
                    damaged[number] = DamagedRow("bad_row", f"{name}: {error}")
    if not damaged:
        return Batch(source, rows, columns, {})
    kept = [place for place, number in enumerate(rows) if number not in damaged]
    good = {name: [values[place] for place in kept] for name, values in columns.items()}
    return Batch(source, [rows[place] for place in kept], good, damaged)


def plain_values(column: pa.Array) -> list[Any]:
    """Python's values of a column; timestamps are cut to microseconds, rounded whole floats are marked."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    values = column.to_pylist(maps_as_pydicts="lossy")
    if pa.types.is_floating(column.type) and (exact := _EXACT.get(column.type.bit_width)):
        return [RoundedFloat(value) if value is not None and abs(value) >= exact else value for value in values]
    return cast("list[Any]", values)
