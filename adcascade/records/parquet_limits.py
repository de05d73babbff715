"""How much memory reading a Parquet file may take, whatever the file says. Knows not what the rows mean.

A column of one long text takes a few hundred bytes in a file, as a dictionary of one value or as differences to the
value before, and hundreds of megabytes once each row has its own. So the longest value of each column is looked up in
its dictionary first, and so few rows are decoded at once that they fit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adcascade.records.errors import InputError

BATCH_ROWS = 4096
# For the rows that are decoded at once, in bytes.
BATCH_BYTES = 16 * 2**20
# A file of more bytes or rows for each byte of it holds nothing that is worth reading, unless it is small all the same.
_MOST_DENSE, _MOST_ROWS_A_BYTE = 1000, 100
_SMALL_BYTES, _SMALL_ROWS, _SMALL_VALUES = 64 * 2**20, 1_000_000, 4_000_000
# A single row may not be larger than this.
_ROW_BYTES = 256 * 2**20
_LISTS_AT_ONCE = 1024
# Of each row, in lists and strings that hold nothing.
_BYTES_A_ROW = 64


def bounded_batches(path: Path, most_rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a few thousand (or `most_rows`) at a time, or fewer where they are large.

    Raises:
        InputError: The file would take far more memory than it has bytes.
        ArrowException, OSError: It cannot be read.
    """
    with pq.ParquetFile(path) as parquet:
        check_density(path, parquet.metadata)
        for group in range(parquet.num_row_groups):
            rows = _rows_at_once(path, parquet, group, most_rows)
            yield from parquet.iter_batches(rows, row_groups=[group])


def check_density(path: Path, metadata: Any) -> None:
    """Raises InputError if a file's footer speaks of many more bytes or rows than such a file can hold."""
    size = path.stat().st_size
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > max(_SMALL_BYTES, _MOST_DENSE * size):
        raise InputError(f"{path} has {size:,} bytes and unpacks to {unpacked:,}; that is no file of real rows")
    values = max((group.column(place).num_values for group in groups for place in range(group.num_columns)), default=0)
    if values > max(_SMALL_VALUES, _MOST_ROWS_A_BYTE * size):
        raise InputError(f"{path} has {size:,} bytes and lists of {values:,} values; that is no file of real rows")
    if metadata.num_rows > max(_SMALL_ROWS, _MOST_ROWS_A_BYTE * size):
        raise InputError(f"{path} has {size:,} bytes and {metadata.num_rows:,} rows; that is no file of real rows")


def _rows_at_once(path: Path, parquet: Any, group: int, most_rows: int) -> int:
    """How many rows of a group are decoded at once. Raises InputError for a row that is too large by itself."""
    described = parquet.metadata.row_group(group)
    columns = [described.column(place) for place in range(described.num_columns)]
    texts = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
    kept = [column.path_in_schema for column in texts if _is_in_dictionary(column)]
    longest = _longest_in_dictionaries(path, group, kept)
    widest = float(_BYTES_A_ROW)
    for column in texts:
        name, values = column.path_in_schema, max(1, column.num_values)
        of_value = longest.get(name, column.total_uncompressed_size / values)
        if "DELTA_BYTE_ARRAY" in column.encodings:  # a value may repeat all that stands before it
            of_value = float(column.total_uncompressed_size)
        of_row = max(1.0, values / max(1, described.num_rows))
        if name in longest and of_row * of_value <= _ROW_BYTES < values * of_value:
            of_row = _most_values_of_a_row(path, group, name)
        if of_row * of_value > _ROW_BYTES:
            raise InputError(f"{path}: a row of {name} would take {of_row * of_value:,.0f} bytes; that is no real row")
        widest += of_value * of_row
    return max(1, min(most_rows, int(BATCH_BYTES / widest)))


def _most_values_of_a_row(path: Path, group: int, column: str) -> float:
    """How many values the longest list of a column holds; texts stay in their dictionary meanwhile."""
    with pq.ParquetFile(path, read_dictionary=[column]) as parquet:
        batches = parquet.iter_batches(_LISTS_AT_ONCE, row_groups=[group], columns=[column])
        return float(max((_values_of_rows(batch.column(0)).max(initial=0) for batch in batches), default=0))


def _values_of_rows(array: pa.Array) -> npt.NDArray[np.int64]:
    """How many values each row of an array holds, however deep; int64 [rows]."""
    if isinstance(array, pa.StructArray):
        fields = [_values_of_rows(array.field(place)) for place in range(array.type.num_fields)]
        return np.max(fields, axis=0) if fields else np.zeros(len(array), np.int64)
    if isinstance(array, pa.ListArray | pa.LargeListArray | pa.MapArray):
        ends = np.concatenate([[0], np.cumsum(_values_of_rows(array.values))])
        counted: npt.NDArray[np.int64] = np.diff(ends[array.offsets.to_numpy()])
        return counted
    return np.ones(len(array), np.int64)


def _is_in_dictionary(column: Any) -> bool:
    return bool(column.has_dictionary_page) and "DELTA_BYTE_ARRAY" not in column.encodings


def _longest_in_dictionaries(path: Path, group: int, columns: list[str]) -> dict[str, float]:
    """Bytes of the longest value in the dictionary of each column; reads the first row, and with it dictionaries."""
    if not columns:
        return {}
    found: dict[str, float] = {}
    with pq.ParquetFile(path, read_dictionary=columns) as parquet:
        for name in columns:
            first = next(iter(parquet.iter_batches(1, row_groups=[group], columns=[name])), None)
            found[name] = 0.0 if first is None else max(map(_longest, _dictionaries(first.column(0))), default=0.0)
    return found


def _dictionaries(array: pa.Array) -> Iterator[pa.Array]:
    """The dictionaries in an array, however deep."""
    if isinstance(array, pa.DictionaryArray):
        yield array.dictionary
    elif isinstance(array, pa.StructArray):
        for place in range(array.type.num_fields):
            yield from _dictionaries(array.field(place))
    elif isinstance(array, pa.MapArray):
        yield from _dictionaries(array.keys)
        yield from _dictionaries(array.items)
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        yield from _dictionaries(array.values)


def _longest(dictionary: pa.Array) -> float:
    longest = pc.max(pc.binary_length(dictionary)).as_py()
    return float(longest or 0)
