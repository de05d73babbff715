"""Rows of Parquet, JSONL and CSV files, one at a time, so that files larger than memory can be read.

Knows formats, not what the rows mean.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from records.errors import InputError
from records.parquet_limits import bounded_batches

SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv")
_MAX_CSV_FIELD = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """A row that cannot be read: a reason (one word) and a detail."""

    reason: str
    detail: str


Row = Mapping[str, Any] | DamagedRow


def list_files(path: Path) -> list[Path]:
    """`path` itself, or the readable files directly in it, sorted by name. Raises InputError if there are none."""
    if path.is_file():
        files = [path]
    elif path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    else:
        raise InputError(f"{path} does not exist")
    if not files or any(file.suffix.lower() not in SUFFIXES for file in files):
        raise InputError(f"{path}: expected a file, or a folder with files, ending in {', '.join(SUFFIXES)}")
    return files


def read_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    """Yields (file name, row number from 1, row) for all rows of a file or folder. Raises InputError."""
    for file in list_files(path):
        suffix = file.suffix.lower()
        reader = {".parquet": _parquet_rows, ".csv": _csv_rows}.get(suffix, _jsonl_rows)
        try:
            for number, row in enumerate(reader(file), start=1):
                yield file.name, number, row
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot read {file}: {error}") from error


def _jsonl_rows(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except UnicodeDecodeError as error:
                yield DamagedRow("bad_utf8", f"byte {error.start} of the line is no UTF-8")
            except (ValueError, RecursionError) as error:
                yield DamagedRow("bad_row", f"not valid JSON: {error}")
            else:
                yield row if isinstance(row, dict) else DamagedRow("bad_row", "the line is not a JSON object")


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CSV_FIELD)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    yield DamagedRow("bad_row", f"expected {len(reader.fieldnames or ())} columns")
                elif any(_has_bad_bytes(value) for pair in row.items() for value in pair):
                    yield DamagedRow("bad_utf8", "the row has bytes that are no UTF-8")
                else:
                    yield row
        except csv.Error as error:
            raise InputError(f"cannot read {file}, line {reader.line_num}: {error}") from error


def _has_bad_bytes(text: str) -> bool:
    """Whether surrogateescape had to stand in for bytes that are no UTF-8."""
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)


def _parquet_rows(file: Path) -> Iterator[Row]:
    for batch in bounded_batches(file):
        for place, column in enumerate(batch.schema):
            if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
                micros = batch.column(place).cast(pa.timestamp("us", column.type.tz), safe=False)
                batch = batch.set_column(place, column.name, micros)
        try:
            yield from batch.to_pylist(maps_as_pydicts="lossy")
        except (ValueError, OverflowError):
            for index in range(batch.num_rows):
                yield _parquet_row(batch.slice(index, 1))


def _parquet_row(batch: pa.RecordBatch) -> Row:
    try:
        return dict(batch.to_pylist(maps_as_pydicts="lossy")[0])
    except UnicodeDecodeError:
        return DamagedRow("bad_utf8", "the row has bytes that are no UTF-8")
    except (ValueError, OverflowError) as error:
        return DamagedRow("bad_row", str(error))
