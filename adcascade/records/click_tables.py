"""Arrow tables of a click log turned into checked columns without looking at rows, as far as values are plainly good.

Rows with anything else go the way of `adcascade.records.click_batches`, which alone refuses a row and says why.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adcascade.records.batches import Batch, DamagedRow, TableBatch
from adcascade.records.click_batches import (
    COUNTS,
    FIELD_LIMITS,
    MAX_POSITION,
    NO_CONTEXT,
    NO_POSITION,
    NO_TIME,
    NUMBERS,
    TEXTS,
    BatchChecker,
    GoodRows,
)
from adcascade.records.coded import NO_VALUE, CodedColumn, Mask, joined
from adcascade.records.limits import MAX_ID_CHARS, MAX_TEXT_CHARS, MAX_UTC_OFFSET_MINUTES
from adcascade.records.log_forms import MAX_IMPRESSIONS
from adcascade.records.plain_columns import (
    PlainNumbers,
    PlainTexts,
    converted_values,
    plain_ids,
    plain_numbers,
    plain_words,
)
from adcascade.records.plain_times import MomentReader, PlainMoments

Integers = npt.NDArray[np.int64]

# What a column may hold that only rows can be read of.
_ONLY_BY_ROW = (pa.ArrowException, ValueError, LookupError, OverflowError)


@dataclass(frozen=True)
class CheckedRows:
    """Some rows of a file.

    Attributes:
        rows: how many there are.
        good: those that can be used, in their order.
        refused: why each other one cannot be, by its number.
    """

    rows: int
    good: GoodRows
    refused: Mapping[int, DamagedRow]


class TableChecker:
    """Turns batches of either kind into usable rows and refused ones."""

    def __init__(self, check: BatchChecker) -> None:
        self._check = check
        self._moments = MomentReader(check.time, check.now)

    def __call__(self, batch: Batch | TableBatch) -> Iterator[CheckedRows]:
        """What is usable and what is not, in the order of the file. Raises InputError as `BatchChecker` does."""
        if isinstance(batch, TableBatch):
            numbers = batch.first + np.arange(batch.table.num_rows)
            plain = self._plain(batch.source, numbers, batch.table)
            if plain is None:
                yield from map(self._by_row, batch.by_row())
            else:
                yield _joined(len(numbers), plain.good, map(self._by_row, batch.by_row(plain.others)))
            return
        table = batch.as_table()
        plain = None if table is None else self._plain(batch.source, np.array(batch.numbers, np.int64), table)
        if plain is None:
            yield self._by_row(batch)
        else:
            others = replace(batch.take(plain.others), damaged=batch.damaged)
            rest = [self._by_row(others)] if others.numbers or others.damaged else []
            yield _joined(len(batch.numbers) + len(batch.damaged), plain.good, rest)

    def _plain(self, source: str, numbers: Integers, table: pa.RecordBatch) -> "_Plain | None":
        """The rows that are plainly good; None if all rows are to be looked at."""
        if not len(numbers) or self._check.missing_names(source, table.schema.names):
            return None
        try:
            return _PlainRows(source, numbers, table, self._check, self._moments).found()
        except _ONLY_BY_ROW:
            return None

    def _by_row(self, batch: Batch) -> CheckedRows:
        good, refused = self._check(batch)
        return CheckedRows(len(batch.numbers) + len(batch.damaged), good, {**batch.damaged, **refused})


@dataclass(frozen=True)
class _Plain:
    """Rows that are plainly good, and the places of all others."""

    good: GoodRows
    others: Integers


class _PlainRows:
    """The rows of a table whose values are all plainly good.

    Args:
        numbers: of the rows in their file, int64 [rows].
    """

    def __init__(
        self, source: str, numbers: Integers, table: pa.RecordBatch, check: BatchChecker, moments: MomentReader
    ) -> None:
        self._source = source
        self._in_file = numbers
        self._table = table
        self._check = check
        self._read_moments = moments
        self._count = len(numbers)
        self._good = np.ones(self._count, bool)

    def found(self) -> _Plain:
        """Those rows. Raises one of `_ONLY_BY_ROW` if columns are to be read by row."""
        ids = {name: self._texts(self._ids(name)) for name in TEXTS}
        self._check_ids(ids)
        numbers, has_zone = self._numbers()
        context = self._context()
        rows = np.flatnonzero(self._good)
        all_good = len(rows) == self._count
        wanted = slice(None) if all_good else rows
        context = {name: column[wanted] for name, column in context.items()}
        good = GoodRows(
            self._source,
            self._in_file[rows],
            {name: column[wanted] for name, column in ids.items()},
            {name: values[wanted].astype(NUMBERS[name]) for name, values in numbers.items()},
            has_zone[wanted],
            {name: column for name, column in context.items() if column.known.any()},
        )
        return _Plain(good, np.flatnonzero(~self._good))

    def _column(self, name: str) -> pa.Array:
        if name in self._table.schema.names:
            return self._table.column(name)
        absent = self._check.form.absent.get(name)
        return pa.nulls(self._count) if absent is None else pa.repeat(absent, self._count)

    def _texts(self, found: PlainTexts) -> CodedColumn:
        self._good &= found.good
        return found.column

    def _ids(self, name: str) -> PlainTexts:
        return plain_ids(self._column(name), self._check.ids[name], MAX_ID_CHARS)

    def _check_ids(self, ids: Mapping[str, CodedColumn]) -> None:
        self._good &= ids["request_id"].known & ids["ad_id"].known
        if self._check.known_ads is not None:
            self._good &= ids["ad_id"].among(self._check.known_ads)

    def _numbers(self) -> tuple[dict[str, Integers], Mask]:
        found = {name: plain_numbers(self._column(name), self._check.counts[name]) for name in COUNTS}
        moments = self._read_moments(self._column("timestamp"))
        for good in (*(one.good for one in found.values()), moments.good):
            self._good &= good
        self._check_counts(found)
        return {
            "time": np.where(moments.missing, NO_TIME, moments.micros),
            "utc_offset": self._offsets(moments),
            "clicks": found["clicks"].values,
            "impressions": found["impressions"].values,
            "conversions": found["conversions"].values,
            "position": np.where(found["position"].missing, NO_POSITION, found["position"].values),
        }, moments.has_zone & ~moments.missing

    def _check_counts(self, found: Mapping[str, PlainNumbers]) -> None:
        clicks, impressions, conversions, position = (found[name].values for name in COUNTS)
        self._good &= ~(found["clicks"].missing | found["impressions"].missing)
        self._good &= (clicks >= 0) & (clicks <= impressions) & (impressions >= 1) & (impressions <= MAX_IMPRESSIONS)
        self._good &= (conversions >= 0) & (conversions <= clicks) & (position >= 0) & (position <= MAX_POSITION)

    def _offsets(self, moments: PlainMoments) -> Integers:
        """Minutes ahead of UTC as the times say, or else the column of offsets."""
        minutes, codes = converted_values(self._column("utc_offset_minutes"), self._check.offset)
        of_values = [value if isinstance(value, int) else 0 for value in minutes]
        self._good &= np.array([*(isinstance(value, int) for value in minutes[:-1]), True], bool)[codes]
        limit = MAX_UTC_OFFSET_MINUTES + 1
        given = np.array([min(max(value, -limit), limit) for value in of_values], np.int64)[codes]
        offsets = np.where(~moments.missing & (moments.offset != 0), moments.offset, given)
        self._good &= np.abs(offsets) < limit
        return offsets

    def _context(self) -> dict[str, CodedColumn]:
        names = sorted(set(self._table.schema.names) - NO_CONTEXT)
        if "attributes" in names:  # each row's own names
            names.remove("attributes")
            self._good &= self._column("attributes").is_null().to_numpy(zero_copy_only=False)
        found = {}
        for name, convert in zip(names, self._check.words_of(names), strict=True):
            limit = FIELD_LIMITS.get(name, MAX_TEXT_CHARS)
            found[name] = self._texts(plain_words(self._column(name), convert, limit))
        self._check_lengths({name: column for name, column in found.items() if name not in FIELD_LIMITS})
        return found

    def _check_lengths(self, context: Mapping[str, CodedColumn]) -> None:
        lengths = {name: pc.utf8_length(column.names).to_numpy() for name, column in context.items()}
        if sum(int(of_names.max(initial=0)) + len(name) for name, of_names in lengths.items()) <= MAX_TEXT_CHARS:
            return
        total = np.zeros(self._count, np.int64)
        for name, of_names in lengths.items():
            total += np.append(of_names + len(name), 0)[context[name].codes]
        self._good &= total <= MAX_TEXT_CHARS


def _joined(rows: int, good: GoodRows, others: Iterable[CheckedRows]) -> CheckedRows:
    """So many rows, of which some were good at once and the others were looked at."""
    rest = list(others)
    refused = {number: problem for part in rest for number, problem in part.refused.items()}
    return CheckedRows(rows, _together([good, *(part.good for part in rest)]), refused)


def _together(parts: list[GoodRows]) -> GoodRows:
    """The rows of several parts of one file in their order."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(rows, kind="stable")
    names = sorted({name for part in parts for name in part.context})

    def of_context(name: str) -> CodedColumn:
        return joined([part.context.get(name, _nothing(len(part.rows))) for part in parts])[order]

    return GoodRows(
        parts[0].source,
        rows[order],
        {name: joined([part.texts[name] for part in parts])[order] for name in TEXTS},
        {name: np.concatenate([part.numbers[name] for part in parts])[order] for name in NUMBERS},
        np.concatenate([part.has_zone for part in parts])[order],
        {name: of_context(name) for name in names},
    )


def _nothing(rows: int) -> CodedColumn:
    return CodedColumn(np.full(rows, NO_VALUE, np.int32), pa.array([], pa.large_string()))
