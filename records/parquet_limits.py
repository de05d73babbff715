"""How much memory reading a Parquet file may take, whatever the file says. Knows not what the rows mean.

A column of one long text takes a few hundred bytes in a file, as a dictionary of one value or as differences to the
value before, and hundreds of megabytes once each row has its own. So the longest value of each column is looked up in
its dictionary first, and so few rows are decoded at once that they fit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from records.errors import InputError

BATCH_ROWS = 4096
# For the rows that are decoded at once, in bytes.
BATCH_BYTES = 64 * 2**20
# A file of more bytes or rows for each byte of it holds nothing that is worth reading, unless it is small all the same.
_MOST_DENSE, _MOST_ROWS_A_BYTE = 1000, 100
_SMALL_BYTES, _SMALL_ROWS = 64 * 2**20, 1_000_000
# Of each row, in lists and strings that hold nothing.
_BYTES_A_ROW = 64


def bounded_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a few thousand at a time, or fewer where they are large.

    Raises:
        InputError: The file would take far more memory than it has bytes.
        ArrowException, OSError: It cannot be read.
    """
    with pq.ParquetFile(path) as parquet:
        check_density(path, parquet.metadata)
        for group in range(parquet.num_row_groups):
            rows = _rows_at_once(path, parquet, group)
            yield from parquet.iter_batches(rows, row_groups=[group])


def check_density(path: Path, metadata: Any) -> None:
    """Raises InputError if a file's footer speaks of many more bytes or rows than such a file can hold."""
    size = path.stat().st_size
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > max(_SMALL_BYTES, _MOST_DENSE * size):
        raise InputError(f"{path} has {size:,} bytes and unpacks to {unpacked:,}; that is no file of real rows")
    if metadata.num_rows > max(_SMALL_ROWS, _MOST_ROWS_A_BYTE * size):
        raise InputError(f"{path} has {size:,} bytes and {metadata.num_rows:,} rows; that is no file of real rows")


def _rows_at_once(path: Path, parquet: Any, group: int) -> int:
    """How many rows of a group are decoded at once."""
    columns = [parquet.metadata.row_group(group).column(place) for place in range(parquet.metadata.num_columns)]
    texts = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
    # Values of a list count for its row; each row is taken to have as many of them as the mean.
    rows = max(1, parquet.metadata.row_group(group).num_rows)
    widest = float(_BYTES_A_ROW)
    kept = [column for column in texts if _is_in_dictionary(column)]
    longest = _longest_in_dictionaries(path, group, [column.path_in_schema for column in kept])
    for column in texts:
        of_value = longest.get(column.path_in_schema, column.total_uncompressed_size / max(1, column.num_values))
        if "DELTA_BYTE_ARRAY" in column.encodings:  # a value may repeat all that stands before it
            of_value = float(column.total_uncompressed_size)
        widest += of_value * max(1.0, column.num_values / rows)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / widest)))


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
