"""The click log: who was shown what, when, and whether they clicked; read and checked. Knows no models."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.batches import Batch, TableBatch
from adcascade.records.click_batches import (
    NO_TIME,
    NUMBERS,
    TEXTS,
    BatchChecker,
    GoodRows,
    Integers,
    Places,
    Shorts,
)
from adcascade.records.click_report import (
    REJECTED_FILE,
    FoundRows,
    LogReport,
    check_replaceable,
    check_share,
    write_rejected,
)
from adcascade.records.click_tables import CheckedRows, TableChecker
from adcascade.records.coded import CodedColumn, GrowingColumn
from adcascade.records.errors import InputError
from adcascade.records.files import read_tables
from adcascade.records.limits import MAX_ATTRIBUTES
from adcascade.records.log_forms import CLICK_LOG, REQUIRED, LogForm
from adcascade.records.packed import packed_counts, sum_of
from adcascade.records.users import Context

__all__ = ["NO_TIME", "REJECTED_FILE", "REQUIRED", "ClickLog", "Integers", "LogReport", "read_clicks"]

_FIELDS = ("country", "language", "device", "placement", "page_text")


@dataclass(frozen=True)
class ClickLog:
    """Columns of equal length, ordered by time (rows of equal time keep their order in the file).

    Attributes:
        request_id, ad_id, user_id: texts; a user_id reads as "" where it is unknown.
        time: int64, microseconds since 1970 UTC, or `NO_TIME`.
        utc_offset: int16, minutes that the clock on the wall was ahead of UTC; 0 where unknown.
        clicks, impressions, conversions: int32, or int64 where a count needs it; conversions <= clicks <= impressions,
            impressions >= 1.
        position: int32, place on the page from 1; 0 where unknown.
        context: further columns, by name; None where a row has no value.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.records.clicks import read_clicks
        >>> log, report = read_clicks(Path("examples/clicks.csv"), known_ads=None)
        >>> len(log), round(log.ctr, 3), report.rejected
        (5400, 0.166, {})
        >>> log.user_id[0], log.ad_id[0], log.clicks[0].item(), log.context_at(0).device
        ('user-10', 'ad-004', 0, 'phone')
        >>> clicked = log.take(log.clicks > 0)
        >>> clicked.ctr
        1.0
    """

    request_id: CodedColumn
    ad_id: CodedColumn
    user_id: CodedColumn
    time: Integers
    utc_offset: Shorts
    clicks: Integers
    impressions: Integers
    conversions: Integers
    position: Places
    context: Mapping[str, CodedColumn]

    @classmethod
    def of(
        cls,
        request_id: Iterable[str],
        ad_id: Iterable[str],
        user_id: Iterable[str],
        time: npt.ArrayLike,
        utc_offset: npt.ArrayLike,
        clicks: npt.ArrayLike,
        impressions: npt.ArrayLike,
        conversions: npt.ArrayLike,
        position: npt.ArrayLike,
        context: Mapping[str, Iterable[str | None]],
    ) -> "ClickLog":
        """A log of plain texts and numbers, which are in order of time."""
        return cls(
            CodedColumn.of(request_id, ""),
            CodedColumn.of(ad_id, ""),
            CodedColumn.of(user_id, ""),
            np.asarray(time, np.int64),
            np.asarray(utc_offset, np.int16),
            np.asarray(clicks, np.int64),
            np.asarray(impressions, np.int64),
            np.asarray(conversions, np.int64),
            np.asarray(position, np.int32),
            {name: CodedColumn.of(texts) for name, texts in context.items()},
        )

    def __len__(self) -> int:
        return len(self.ad_id)

    @property
    def has_time(self) -> bool:
        """Whether every row has a time."""
        return bool((self.time != NO_TIME).all())

    @property
    def untimed(self) -> int:
        """How many rows have no time."""
        return int((self.time == NO_TIME).sum())

    @property
    def one_moment(self) -> bool:
        """Whether all rows have one and the same time."""
        return bool(len(self) and self.has_time and self.time[0] == self.time[-1])

    @property
    def untimed_rows(self) -> str:
        """How many rows are without a timestamp, in words."""
        return f"{self.untimed:,} of {len(self):,} rows are without a timestamp"

    @property
    def one_moment_rows(self) -> str:
        """That all rows have one time, and which, in words."""
        return (
            f"all {len(self):,} rows are of {datetime.fromtimestamp(int(self.time[0]) / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
        )

    @property
    def ctr(self) -> float:
        """Clicks per impression over the whole log."""
        return self.ctr_of(slice(None))

    def ctr_of(self, rows: npt.NDArray[np.integer[Any]] | slice) -> float:
        """Clicks per impression of some rows."""
        if isinstance(rows, slice):
            return float(self.clicks[rows].sum() / max(1, self.impressions[rows].sum()))
        return sum_of(self.clicks, rows) / max(1, sum_of(self.impressions, rows))

    def context_at(self, row: int) -> Context:
        """Where and when the impression of a row happened, from the further columns and the time."""
        values = {name: value for name, column in self.context.items() if (value := column[row]) is not None}
        named = {name: values.pop(name) for name in _FIELDS if name in values}
        time = int(self.time[row])
        at = datetime.fromtimestamp(time / 1e6, UTC) if time != NO_TIME else None
        return Context(**named, timestamp=at, utc_offset_minutes=int(self.utc_offset[row]), attributes=values)

    def take(self, rows: npt.NDArray[np.integer[Any]] | npt.NDArray[np.bool_] | slice) -> "ClickLog":
        """The given rows (indices, a mask or a slice), in the given order."""
        return ClickLog(
            self.request_id[rows],
            self.ad_id[rows],
            self.user_id[rows],
            self.time[rows],
            self.utc_offset[rows],
            self.clicks[rows],
            self.impressions[rows],
            self.conversions[rows],
            self.position[rows],
            {name: column[rows] for name, column in self.context.items()},
        )


class _Columns:
    """A log as it is read: numbers packed, equal texts held once."""

    def __init__(self) -> None:
        self.places = [False, False]  # whether any position was 0, and whether any was more
        self._zones: dict[bool, str] = {}
        self.attributes: set[str] = set()  # names of all columns of context but the contract's own
        self._clear()

    def _clear(self) -> None:
        self._rows = 0
        self.texts = {name: GrowingColumn(0, "") for name in TEXTS}
        self.numbers: dict[str, list[npt.NDArray[Any]]] = {name: [np.empty(0, NUMBERS[name])] for name in NUMBERS}
        self.context: dict[str, GrowingColumn] = {}

    def __len__(self) -> int:
        return self._rows

    def append(self, good: GoodRows) -> None:
        """Takes usable rows. Raises InputError if some times have a zone and others none."""
        self._check_zones(good)
        position = good.numbers["position"]
        self.places = [self.places[0] or bool((position == 0).any()), self.places[1] or bool((position > 0).any())]
        self._extend(good.texts, good.numbers, good.context)

    def _extend(
        self,
        texts: Mapping[str, CodedColumn],
        numbers: Mapping[str, npt.NDArray[Any]],
        context: Mapping[str, CodedColumn],
    ) -> None:
        rows = len(numbers["time"])
        for name, column in self.texts.items():
            column.append(texts[name])
        for name, parts in self.numbers.items():
            least = min(int(numbers[name].min(initial=0)), -1 - int(numbers[name].max(initial=0)))
            parts.append(numbers[name].astype(np.min_scalar_type(least)))  # most counts fit a byte
        for name in sorted(context.keys() - self.context.keys()):
            self.context[name] = GrowingColumn(self._rows)
            self.attributes |= {name} - set(_FIELDS)
        for name, column in self.context.items():
            if name in context:
                column.append(context[name])
            else:
                column.append_nothing(rows)
        self._rows += rows

    @property
    def has_zones(self) -> bool | None:
        """Whether the times have a zone; None if there are no times."""
        return next(iter(self._zones), None)

    def _check_zones(self, good: GoodRows) -> None:
        timed = good.numbers["time"] != NO_TIME
        for zone in (True, False):
            rows = np.flatnonzero(timed & (good.has_zone == zone))
            if len(rows) and zone not in self._zones:
                at = datetime.fromtimestamp(int(good.numbers["time"][rows[0]]) / 1e6, UTC)
                self._zones[zone] = f"{good.source}, row {good.rows[rows[0]]}: {at:%Y-%m-%d %H:%M:%S} UTC"
        if len(self._zones) > 1:
            raise InputError(
                f"some times have a zone and others have none ({self._zones[True]}, with a zone or a number; "
                f"{self._zones[False]}, if without a zone it is UTC): write all of them alike"
            )

    def keep_newest(self, count: int) -> None:
        """Forgets all but the newest rows (of equal time, those read last)."""
        log = self._ordered(slice(max(0, len(self) - count), None))
        names = {name: column.compact() for name, column in log.context.items()}
        self._extend(
            {name: getattr(log, name).compact() for name in TEXTS},
            {name: getattr(log, name) for name in NUMBERS},
            names,
        )

    def _ordered(self, rows: slice = slice(None)) -> ClickLog:
        """Some of the rows in order of time; they are handed over, and nothing is left here."""
        time = np.concatenate(self.numbers.pop("time"))
        order: Any = rows
        if (time[1:] < time[:-1]).any():
            order = np.argsort(time, kind="stable")[rows]
        columns: dict[str, Any] = {"time": time[order]}
        columns |= {name: self.texts.pop(name).column()[order] for name in TEXTS}
        context = {name: self.context.pop(name).column()[order] for name in list(self.context)}
        for name in list(self.numbers):
            columns[name] = _numbers(self.numbers.pop(name), NUMBERS[name], order)
        self._clear()
        return ClickLog(**columns, context=context)

    @property
    def counts_from_zero(self) -> bool:
        """Whether positions begin at 0: some are, and others are more."""
        return all(self.places)

    def log(self) -> ClickLog:
        """The rows in order of time, positions counted from 1, and 0 where unknown; nothing is left here."""
        log = self._ordered()
        names = sorted(self.attributes)[:MAX_ATTRIBUTES]
        context = {name: log.context[name] for name in sorted(log.context) if name in names or name in _FIELDS}
        position = log.position + 1 if self.counts_from_zero else log.position.clip(0)
        return replace(log, position=position, context=context)


def _numbers(parts: list[npt.NDArray[Any]], dtype: npt.DTypeLike, order: Any) -> npt.NDArray[Any]:
    """Some rows of a column, whose parts are handed over; a view of one number where all rows have it."""
    found = np.concatenate(parts)
    parts.clear()
    if len(found) and (found == found[0]).all():
        return np.broadcast_to(found[:1].astype(dtype), len(found[order]))
    values: npt.NDArray[Any] = found[order]
    return packed_counts(values) if dtype is np.int64 else values.astype(dtype, copy=False)


def read_clicks(
    path: Path,
    known_ads: Collection[str] | None,
    *,
    why_rejected: Mapping[str, str] | None = None,
    max_rejected: float = 0.01,
    newest: int | None = None,
    timed: bool = False,
    rejected_file: Path | None = None,
    form: LogForm = CLICK_LOG,
) -> tuple[ClickLog, LogReport]:
    """Reads a click log (Parquet, JSONL or CSV, or a folder of such files; row-level or aggregated) into memory.

    A row is rejected, and counted in the report, with one of these reasons:

    - ``bad_row``, ``bad_utf8``: a line, or a value of a type, that cannot be read
    - ``missing_id``: no request or ad id; ``long_id``: an id of more than 256 characters
    - ``unknown_ad``: not in `known_ads`, unless that is None
    - ``bad_counts``: clicks negative or above impressions, impressions below 1 or above ten billion, conversions
      negative or above clicks, a position below 0 or above 1,000
    - ``bad_time``: before 2000, or more than a day ahead of the clock
    - ``long_text``: a further column with a value beyond its limit
    - ``missing_time``: no timestamp, if `timed`

    Args:
        why_rejected: of ads that the catalog's file has but cannot be used, why.
        max_rejected: Share of the rows, 0 to 1, that may be rejected.
        newest: Keep only so many of the usable rows, in the memory of twice as many; of rows without times, the last.
        timed: Reject rows without a timestamp if others have one, unless they are more than `max_rejected`.
        rejected_file: Where rejected rows are written, also if they are too many; removed if there are none.
        form: Which columns are required, and what is read where others are absent.

    Raises:
        InputError: A required column is missing, no usable row is left, more than `max_rejected` of the rows were
            rejected, some times have a zone and others none, or `rejected_file` is something else.
    """
    if newest is not None and newest < 1:
        raise InputError(f"the number of newest rows must be 1 or more, not {newest}")
    if rejected_file is not None:
        check_replaceable(rejected_file)
    check = BatchChecker(known_ads, why_rejected or {}, datetime.now(UTC), form)
    columns, found = _Columns(), FoundRows()
    for checked in _checked(read_tables(path), check):
        found.add(checked.good.source, checked.rows, checked.refused)
        found.add_untimed(checked.good)
        columns.append(checked.good)
        if newest is not None and len(columns) >= 2 * newest:
            columns.keep_newest(newest)
    check.finish()
    if newest is not None:
        columns.keep_newest(newest)
    log = columns.log()
    if timed and found.reject_untimed(log.untimed, len(log), max_rejected):
        log = log.take(log.time != NO_TIME)
    report = replace(found.report(len(log), _notes(columns, check)), has_zones=columns.has_zones)
    if rejected_file is not None:
        write_rejected(rejected_file, report.rejected_rows)
    check_share(path, report, max_rejected, rejected_file)
    return log, report


def _checked(batches: Iterable[Batch | TableBatch], check: BatchChecker) -> Iterator[CheckedRows]:
    """Of batches of rows each row is looked at by itself, of tables only those that are not plainly good."""
    check_table = TableChecker(check)
    for batch in batches:
        yield from check_table(batch)


def _notes(columns: _Columns, check: BatchChecker) -> tuple[str, ...]:
    notes = []
    if columns.counts_from_zero:
        notes.append("Positions begin at 0, so they are counted from 0: 0 is the first place, not an unknown one.")
    if check.left_out:
        notes.append(
            f"Not read as context, for they hold lists, objects or bytes: {', '.join(sorted(check.left_out))[:1000]}."
        )
    beyond = sorted(columns.attributes)[MAX_ATTRIBUTES:]
    if beyond:
        notes.append(
            f"{len(beyond)} columns beyond the first {MAX_ATTRIBUTES} in the alphabet were left out: "
            f"{', '.join(beyond)[:1000]}."
        )
    return tuple(notes)
