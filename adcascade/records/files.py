"""Rows of Parquet, JSONL and CSV files, a batch at a time, so that files larger than memory can be read.

Knows formats, not what the rows mean.
"""

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.batches import Batch, DamagedRow, Row, TableBatch
from adcascade.records.csv_rows import MAX_LINE_CHARS, CsvRecords, RecordError
from adcascade.records.errors import InputError
from adcascade.records.folders import SourceFile, list_files
from adcascade.records.parquet_limits import BATCH_ROWS, bounded_batches

log = logging.getLogger(__name__)

# Rows that are read by column at once, if they are not large.
TABLE_ROWS = 1 << 16
_BATCH_ROWS = 1024
_BATCH_CHARS = 8 * 1024 * 1024
_BATCH_CELLS = 4096 * _BATCH_ROWS
_MOST_TOLD = 20
# Columns that pandas writes for its row numbers.
_ROW_NUMBERS = re.compile(r"|Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
_UTF_16 = "is UTF-16, or no text at all: write it in UTF-8"
_ONE_A_LINE = "each line must be one object by itself"
_MAGIC = {
    b"\x1f\x8b": "is compressed by gzip: let its name end in .gz",
    b"PAR1": "is Parquet: let its name end in .parquet",
    b"PK\x03\x04": "is an archive or a spreadsheet: export it as CSV or Parquet",
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
}


def read_rows(path: Path) -> Iterator[tuple[str, int, Row]]:
    """Yields (file name, row number from 1, row) for all rows of a file or folder; see `read_batches`."""
    for batch in read_batches(path):
        yield from ((batch.source, number, row) for number, row in batch.rows())


def read_batches(path: Path) -> Iterator[Batch]:
    """The rows of a file, or of all files in a folder and its subfolders, in the order of their names.

    What is left out (files of unknown formats, columns of row numbers) is named in a warning. Folders such as
    ``country=DE`` give a column, unless the file has it.

    Raises:
        InputError: There is no readable file, or one that cannot be read at all.
    """
    for batch in read_tables(path, BATCH_ROWS):
        if isinstance(batch, TableBatch):
            yield from batch.by_row()
        else:
            yield batch


def read_tables(path: Path, rows_at_once: int = TABLE_ROWS) -> Iterator[Batch | TableBatch]:
    """The same, but rows of Parquet and CSV, of Parquet at most so many at once, as Arrow holds them."""
    listing = list_files(path)
    if listing.left_out:
        named = [f"{name} ({why})" for name, why in listing.left_out.items()]
        more = f" and {len(named) - _MOST_TOLD} more" if len(named) > _MOST_TOLD else ""
        log.warning("%s: left out %s%s", path, ", ".join(named[:_MOST_TOLD]), more)
    told: set[str] = set()
    for file in listing.files:
        for batch in _batches_of(file, rows_at_once):
            rows = _without_row_numbers(batch, told)
            if isinstance(rows, TableBatch) and not all(map(_is_utf8, file.partition.values())):
                yield from (_with_names_of_folders(part, file.partition) for part in rows.by_row())
            else:
                yield _with_names_of_folders(rows, file.partition)


def _is_utf8(text: str | None) -> bool:
    """Whether a part of a path is text: Python stands surrogates in for other bytes."""
    return text is None or not any("\ud800" <= char <= "\udfff" for char in text)


def _without_row_numbers(batch: Batch | TableBatch, told: set[str]) -> Batch | TableBatch:
    names = batch.columns if isinstance(batch, Batch) else batch.table.schema.names
    numbers = [name for name in names if _ROW_NUMBERS.fullmatch(name)]
    for name in numbers:
        if name not in told and len(told) < _MOST_TOLD:
            told.add(name)
            log.warning("%s: left out the column %r, which looks like pandas' row numbers", batch.source, name)
    if not numbers:
        return batch
    if isinstance(batch, TableBatch):
        return replace(batch, table=batch.table.select([name for name in names if name not in numbers]))
    return replace(batch, columns={name: column for name, column in batch.columns.items() if name not in numbers})


def _with_names_of_folders(batch: Batch | TableBatch, partition: Mapping[str, str | None]) -> Batch | TableBatch:
    if isinstance(batch, Batch):
        columns = dict(batch.columns)
        for name, value in partition.items():
            columns.setdefault(name, [value] * len(batch.numbers))
        return replace(batch, columns=columns)
    table = batch.table
    for name in [name for name in partition if name not in table.schema.names]:
        table = table.append_column(name, pa.repeat(pa.scalar(partition[name], pa.large_string()), table.num_rows))
    return replace(batch, table=table)


def _batches_of(file: SourceFile, rows_at_once: int) -> Iterator[Batch | TableBatch]:
    kind = file.suffix.removesuffix(".gz")
    try:
        if kind == ".parquet":
            yield from _parquet_batches(file, rows_at_once)
        else:
            yield from _csv_batches(file) if kind == ".csv" else _jsonl_batches(file)
    except EOFError as error:
        raise InputError(f"cannot read {file.path}: it is cut off; copy it again") from error
    except (OSError, zlib.error, pa.ArrowException) as error:
        raise InputError(f"cannot read {file.path}: {error}") from error


def _opened(file: SourceFile) -> IO[bytes]:
    """The plain bytes of a text file. Raises InputError if they are something else."""
    opened = gzip.open(file.path) if file.suffix.endswith(".gz") else file.path.open("rb")  # noqa: SIM115 (whoever asked closes it)
    try:
        start = opened.peek(8)
        for magic, what in _MAGIC.items():
            if start.startswith(magic):
                raise InputError(f"{file.path} {what}")
        if start[1:2] == b"\0" or start[:1] == b"\0":
            raise InputError(f"{file.path} {_UTF_16}")
    except BaseException:
        opened.close()
        raise
    return cast("IO[bytes]", opened)


class _Pending:
    """Rows of a file that wait to become a batch."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._number = 0
        self._limit = 1  # grows, so that the first rows do not wait for many others
        self._clear()

    def _clear(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._numbers: list[int] = []
        self._names: dict[str, None] = {}
        self._damaged: dict[int, DamagedRow] = {}
        self._chars = 0

    def add(self, row: Row, chars: int) -> bool:
        """Takes a row of so many characters; whether the batch is full."""
        self._number += 1
        self._chars += chars
        if isinstance(row, DamagedRow):
            self._damaged[self._number] = row
        else:
            self._rows.append(row)
            self._numbers.append(self._number)
            if row.keys() - self._names.keys():
                self._names.update(dict.fromkeys(row))
        rows = self.rows
        return rows >= self._limit or self._chars >= _BATCH_CHARS or rows * len(self._names) >= _BATCH_CELLS

    @property
    def rows(self) -> int:
        """How many wait."""
        return len(self._rows) + len(self._damaged)

    def skip(self, table: pa.Table) -> Iterator[TableBatch]:
        """Batches of the rows that come next, which wait for nothing."""
        for batch in table.combine_chunks().to_batches(TABLE_ROWS):
            yield TableBatch(self._source, self._number + 1, batch)
            self._number += batch.num_rows

    def flush(self) -> Batch:
        """The batch of what was taken."""
        columns = {name: [row.get(name) for row in self._rows] for name in self._names}
        batch = Batch(self._source, self._numbers, columns, self._damaged)
        self._limit = min(2 * self._limit, _BATCH_ROWS)
        self._clear()
        return batch


def _batched(source: str, rows: Iterator[tuple[Row, int]]) -> Iterator[Batch]:
    pending = _Pending(source)
    for row, chars in rows:
        if pending.add(row, chars):
            yield pending.flush()
    yield pending.flush()


def _jsonl_batches(file: SourceFile) -> Iterator[Batch]:
    with _opened(file) as lines:
        yield from _batched(file.name, _jsonl_rows(lines))


def _jsonl_rows(lines: IO[bytes]) -> Iterator[tuple[Row, int]]:
    while line := lines.readline(MAX_LINE_CHARS):
        line = line.removeprefix(b"\xef\xbb\xbf")  # files that were joined have one in the middle, too
        if len(line) >= MAX_LINE_CHARS and not line.endswith(b"\n"):
            while len(rest := lines.readline(MAX_LINE_CHARS)) >= MAX_LINE_CHARS and not rest.endswith(b"\n"):
                pass
            yield DamagedRow("bad_row", f"the line has more than {MAX_LINE_CHARS:,} bytes"), 0
        elif line.strip():
            yield _json_row(line), len(line)


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line.decode(), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return DamagedRow("bad_utf8", f"byte {error.start} of the line is no UTF-8")
    except (ValueError, RecursionError) as error:
        return DamagedRow("bad_row", f"not valid JSON: {error}; {_ONE_A_LINE}")
    return row if isinstance(row, dict) else DamagedRow("bad_row", f"the line is not a JSON object; {_ONE_A_LINE}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one name twice")
    return found


def _csv_batches(file: SourceFile) -> Iterator[Batch | TableBatch]:
    with _opened(file) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as lines:
        records = CsvRecords(lines, str(file.path))
        pending, one_by_one = _Pending(file.name), _csv_rows(records)
        while True:
            while (table := records.plain_block()) is not None:
                if pending.rows:
                    yield pending.flush()
                yield from pending.skip(table)
            row = next(one_by_one, None)
            if row is None:
                break
            if pending.add(*row):
                yield pending.flush()
        yield pending.flush()


def _csv_rows(records: CsvRecords) -> Iterator[tuple[Row, int]]:
    bad_header = any(map(_has_bad_bytes, records.header))
    for values in records:
        if isinstance(values, RecordError):
            yield DamagedRow("bad_row", str(values)), 0
        elif bad_header or any(map(_has_bad_bytes, values)):
            yield DamagedRow("bad_utf8", "the row, or the header, has bytes that are no UTF-8"), 0
        else:
            yield dict(zip(records.header, values, strict=True)), sum(map(len, values))


def _has_bad_bytes(text: str) -> bool:
    """Whether surrogateescape had to stand in for bytes that are no UTF-8."""
    return not text.isascii() and any("\udc80" <= char <= "\udcff" for char in text)


def _parquet_batches(file: SourceFile, rows_at_once: int) -> Iterator[TableBatch]:
    number = 1
    names = pq.read_schema(file.path).names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{file.path} names the column {twice[0]!r} twice; give each column a name of its own")
    for table in bounded_batches(file.path, rows_at_once):
        yield TableBatch(file.name, number, table)
        number += table.num_rows
