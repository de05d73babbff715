"""Batches of a click log turned into checked columns: what is usable, and why the rest is not. Knows no whole log.

Columns are converted value by value, each distinct value once, and checked as arrays; a row is looked at by itself only
to say why it was refused.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.batches import Batch, DamagedRow, is_table
from adcascade.records.coded import CodedColumn
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_FIELD_CHARS, MAX_ID_CHARS, MAX_TEXT_CHARS, MAX_UTC_OFFSET_MINUTES
from adcascade.records.log_forms import CLICK_LOG, MAX_IMPRESSIONS, REQUIRED, LogForm
from adcascade.records.missing import is_missing
from adcascade.records.near_names import warn_of_near_names
from adcascade.records.times import AHEAD, EARLIEST, Moment, check_happened, micros_of, minutes_ahead, read_moment
from adcascade.records.values import as_attributes, as_id, as_int, as_word

Integers = npt.NDArray[np.int64]
Shorts = npt.NDArray[np.int16]
Places = npt.NDArray[np.int32]

TEXTS = ("request_id", "ad_id", "user_id")
# The smallest types that hold what the limits allow.
NUMBERS: Mapping[str, type[np.integer[Any]]] = {
    "time": np.int64,
    "utc_offset": np.int16,
    "clicks": np.int64,
    "impressions": np.int64,
    "conversions": np.int64,
    "position": np.int32,  # of 16 bits torch makes no index
}
MAX_POSITION = 1000
# Time of a row without one: before everything, so that no history or counter is ever made from it.
NO_TIME = np.iinfo(np.int64).min
# Position of a row without one; 0 is the first place of a log that counts from 0.
NO_POSITION = -1

COUNTS = ("clicks", "impressions", "conversions", "position")

NO_CONTEXT = frozenset((*REQUIRED, "user_id", "timestamp", "position", "conversions", "utc_offset_minutes"))
_NAMES = (*REQUIRED, "user_id", "timestamp", "position", "conversions", "utc_offset_minutes", "page_text")
FIELD_LIMITS = {
    **dict.fromkeys(("country", "language", "device", "placement"), MAX_FIELD_CHARS),
    "page_text": MAX_TEXT_CHARS,
}
_MEMO_VALUES = 1024
_MEMO_CHARS = 1024
_MAX_NAMES = 1024


class _Converted:
    """The values of a column, converted; what cannot be is an InputError in its place."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self._convert = convert
        self._known: dict[tuple[type, Any], Any] = {}

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """One result a value; equal results are one object."""
        if len(self._known) > _MEMO_VALUES:
            self._known.clear()
        return [self._one(value) for value in values]

    def _one(self, value: Any) -> Any:
        key = (value.__class__, value)
        try:
            return self._known[key]
        except KeyError:
            found = self._tried(value)
            if not isinstance(value, str) or len(value) <= _MEMO_CHARS:
                self._known[key] = found
            return found
        except TypeError:  # a list or an object
            return self._tried(value)

    def _tried(self, value: Any) -> Any:
        try:
            return self._convert(value)
        except InputError as error:
            return error


@dataclass(frozen=True)
class GoodRows:
    """The usable rows of a batch.

    Attributes:
        rows: number of each in its file.
        texts: by `TEXTS`; no value reads as "".
        numbers: by `NUMBERS`; `NO_TIME` and `NO_POSITION` where there is none.
        has_zone: whether the time of each row has a zone; False where there is no time.
        context: further columns, None where a row has no value.
    """

    source: str
    rows: Integers
    texts: Mapping[str, CodedColumn]
    numbers: Mapping[str, npt.NDArray[Any]]
    has_zone: npt.NDArray[np.bool_]
    context: Mapping[str, CodedColumn]


class BatchChecker:
    """Turns batches into usable rows and refused ones.

    Args:
        known_ads: ids of the catalog; None if any will do.
        why_rejected: why some ads are not in it.
        now: what no row may be more than a day later than.
        form: what the file must have.

    Attributes:
        ids, counts, time, offset: what makes ids, whole numbers, moments and minutes of values of columns.
        left_out: further columns that hold lists, objects or bytes, which are no context.
    """

    def __init__(
        self,
        known_ads: Collection[str] | None,
        why_rejected: Mapping[str, str],
        now: datetime,
        form: LogForm = CLICK_LOG,
    ) -> None:
        self.known_ads = known_ads
        self._why_rejected = why_rejected
        self.now = now
        self.form = form
        self.ids = {name: _Converted(partial(_id, name, form.absent.get(name, ""))) for name in TEXTS}
        self.counts = {name: _Converted(partial(_count, name, form.absent.get(name))) for name in COUNTS}
        self.time = _Converted(lambda value: read_moment(value, "timestamp"))
        self.offset = _Converted(lambda value: minutes_ahead(value, "utc_offset_minutes"))
        self._attributes = _Converted(as_attributes)
        self._words: dict[str, _Converted] = {}
        self.left_out: set[str] = set()
        self._checked = ""
        self._lacks: list[str] = []
        self._complete = False
        self._told: set[str] = set()

    def __call__(self, batch: Batch) -> tuple[GoodRows, dict[int, DamagedRow]]:
        """The usable rows of a batch, and why each other row is refused, by its number.

        Raises:
            InputError: A required column is missing, or there are too many columns.
        """
        count = len(batch.numbers)
        missing = self.missing_names(batch.source, batch.columns) if count else []
        empty = [None] * count
        problems = _Problems(count)
        for row in range(count if missing else 0):
            problems.add(row, "bad_row", f"there is no {', '.join(missing)}; there is {_named(batch, row)}")
        ids = {name: problems.of(self.ids[name](batch.columns.get(name, empty)), "") for name in TEXTS}
        counts = {name: problems.of(self.counts[name](batch.columns.get(name, empty)), None) for name in COUNTS}
        moments = problems.of(self.time(batch.columns.get("timestamp", empty)), None)
        offsets = problems.of(self.offset(batch.columns.get("utc_offset_minutes", empty)), 0)
        context = self._context(batch.columns, count, problems)
        numbers = _numbers(counts, moments, offsets)
        self._check_ids(ids, problems)
        _check_counts(counts, numbers, problems)
        self._check_times(numbers, moments, problems)
        _check_lengths(context, problems)
        good = np.flatnonzero(~problems.found)
        kept = GoodRows(
            batch.source,
            np.array(batch.numbers, np.int64)[good],
            {name: CodedColumn.of([values[row] for row in good.tolist()], "") for name, values in ids.items()},
            {name: values[good].astype(NUMBERS[name]) for name, values in numbers.items()},
            np.array([one is not None and one.offset is not None for one in moments], bool)[good],
            {name: CodedColumn.of([values[row] for row in good.tolist()]) for name, values in context.items()},
        )
        return kept, {batch.numbers[row]: problem for row, problem in problems.by_row.items()}

    def missing_names(self, source: str, names: Collection[str]) -> list[str]:
        """Which required columns the rows of a file have not. Raises InputError if no row of it can have them."""
        required = self.form.required
        missing = [name for name in required if name not in names]
        if missing:
            lacks = (
                f"the {self.form.name} lacks {', '.join(missing)}; it needs {', '.join(required)}; {source} has the "
                f"columns {', '.join(map(repr, names))[:1000]}"
            )
            if is_table(source):
                raise InputError(lacks)
            self._lacks.append(lacks)
        self._complete |= not missing
        if source != self._checked:
            warn_of_near_names(source, names, _NAMES, self._told, "context")
            self._checked = source
        return missing

    def words_of(self, names: Collection[str]) -> list[_Converted]:
        """What makes words of values of columns of context. Raises InputError if there are too many columns."""
        if len(self._words.keys() | set(names)) > _MAX_NAMES:
            raise InputError(f"the click log has more than {_MAX_NAMES:,} columns; leave out what is no context")
        return [self._words.setdefault(name, _Converted(_word)) for name in names]

    def finish(self) -> None:
        """Raises InputError if no line of JSON had the names of a log: then it is another file."""
        if self._lacks and not self._complete:
            raise InputError(max(self._lacks, key=len))

    def _context(self, columns: Mapping[str, Sequence[Any]], count: int, problems: "_Problems") -> dict[str, list[Any]]:
        given: dict[str, Sequence[Any]] = {name: columns[name] for name in columns.keys() - NO_CONTEXT}
        for row, values in enumerate(problems.of(self._attributes(given.pop("attributes", ())), {})):
            for name, value in values.items():
                if name not in NO_CONTEXT and name not in columns:
                    column = given.setdefault(name, [None] * count)
                    if isinstance(column, list):
                        column[row] = value
            if len(given) > _MAX_NAMES:
                break
        found = {}
        for name, convert in zip(sorted(given), self.words_of(sorted(given)), strict=True):
            words = convert(given[name])
            if _NOT_PLAIN in words:
                self.left_out.add(name)
            words = [None if word is _NOT_PLAIN else word for word in problems.of(words, None)]
            if any(word is not None for word in words):
                found[name] = words
        return found

    def _check_ids(self, ids: Mapping[str, list[str]], problems: "_Problems") -> None:
        for row in _where(not (request and ad) for request, ad in zip(ids["request_id"], ids["ad_id"], strict=True)):
            problems.add(row, "missing_id", "request_id or ad_id is empty")
        for name, values in ids.items():
            for row in _where(len(value) > MAX_ID_CHARS for value in values):
                length = len(values[row])
                problems.add(row, "long_id", f"{name} has {length:,} characters; the limit is {MAX_ID_CHARS}")
        if self.known_ads is None:
            return
        for row in _where(ad_id not in self.known_ads for ad_id in ids["ad_id"]):
            ad_id = ids["ad_id"][row]
            why = f": it was rejected ({self._why_rejected[ad_id]})" if ad_id in self._why_rejected else ""
            problems.add(row, "unknown_ad", f"ad {ad_id[:MAX_ID_CHARS]!r} is not in the catalog{why}")

    def _check_times(
        self, numbers: Mapping[str, Integers], moments: list[Moment | None], problems: "_Problems"
    ) -> None:
        time = numbers["time"]
        latest = micros_of(self.now + AHEAD)
        for row in np.flatnonzero((time != NO_TIME) & ((time < micros_of(EARLIEST)) | (time > latest))).tolist():
            moment = moments[row]
            try:
                if moment is not None:
                    check_happened(moment.time, "timestamp", self.now)
            except InputError as error:
                problems.add(row, "bad_time", str(error))
        for row in np.flatnonzero(abs(numbers["utc_offset"]) > MAX_UTC_OFFSET_MINUTES).tolist():
            minutes = numbers["utc_offset"][row]
            problems.add(row, "bad_time", f"utc_offset_minutes is {minutes}; no place is that far from UTC")


class _Problems:
    """The first problem of each row of a batch."""

    def __init__(self, count: int) -> None:
        self.found = np.zeros(count, bool)
        self.by_row: dict[int, DamagedRow] = {}

    def add(self, row: int, reason: str, detail: str) -> None:
        """Notes a problem unless the row has one."""
        if not self.found[row]:
            self.found[row] = True
            self.by_row[row] = DamagedRow(reason, detail)

    def of(self, values: list[Any], instead: Any) -> list[Any]:
        """The values, with `instead` in place of those that are InputErrors, which are problems of their rows."""
        for row in _where(isinstance(value, InputError) for value in values):
            self.add(row, "bad_row", str(values[row]))
        return [instead if isinstance(value, InputError) else value for value in values]


def _named(batch: Batch, row: int) -> str:
    names = [name for name, values in batch.columns.items() if values[row] is not None]
    return ", ".join(map(repr, names))[:300] or "nothing"


def _where(flags: Any) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag]


_NOT_PLAIN = object()


def _word(value: Any) -> Any:
    word = as_word(value)
    return _NOT_PLAIN if word is None else (word or None)


def _id(name: str, absent: str, value: Any) -> str:
    return as_id({name: value}, name) or absent


def _count(name: str, absent: int | None, value: Any) -> int | None:
    return absent if is_missing(value) else as_int({name: value}, name)


def _numbers(
    counts: Mapping[str, list[int | None]], moments: list[Moment | None], offsets: list[int]
) -> dict[str, Integers]:
    filled = {**dict.fromkeys(COUNTS, 0), "position": NO_POSITION}
    zones = [(one.offset if one is not None else 0) or offset for one, offset in zip(moments, offsets, strict=True)]
    return {
        "time": np.array([NO_TIME if one is None else micros_of(one.time) for one in moments], np.int64),
        "utc_offset": np.array(zones, object).clip(-(2**31), 2**31).astype(np.int64),
        **{
            name: np.array([filled[name] if value is None else value for value in values], np.int64)
            for name, values in counts.items()
        },
    }


def _check_counts(counts: Mapping[str, list[int | None]], numbers: Mapping[str, Integers], problems: _Problems) -> None:
    clicks, impressions, conversions = (numbers[name] for name in ("clicks", "impressions", "conversions"))
    for row in _where(None in pair for pair in zip(counts["clicks"], counts["impressions"], strict=True)):
        problems.add(row, "bad_counts", "clicks or impressions is empty; write 0 where there was no click")
    for row in np.flatnonzero((clicks < 0) | (clicks > impressions) | (impressions < 1)).tolist():
        problems.add(row, "bad_counts", f"{clicks[row]} clicks on {impressions[row]} impressions")
    for row in np.flatnonzero(impressions > MAX_IMPRESSIONS).tolist():
        problems.add(row, "bad_counts", f"{impressions[row]:,} impressions; the limit is {MAX_IMPRESSIONS:,}")
    for row in np.flatnonzero((conversions < 0) | (conversions > clicks)).tolist():
        problems.add(row, "bad_counts", f"{conversions[row]} conversions of {clicks[row]} clicks")
    for row in _where(value is not None and not 0 <= value <= MAX_POSITION for value in counts["position"]):
        problems.add(row, "bad_counts", f"position {counts['position'][row]} is not 0 to {MAX_POSITION}")


def _check_lengths(context: Mapping[str, list[str | None]], problems: _Problems) -> None:
    total = np.zeros(len(problems.found), np.int64)
    for name, values in context.items():
        lengths = np.array([0 if value is None else len(value) for value in values], np.int64)
        limit = FIELD_LIMITS.get(name)
        if limit is None:
            total += np.where(lengths > 0, lengths + len(name), 0)
            limit = MAX_TEXT_CHARS
        for row in np.flatnonzero(lengths > limit).tolist():
            problems.add(row, "long_text", f"{name} has {lengths[row]:,} characters; the limit is {limit:,}")
    for row in np.flatnonzero(total > MAX_TEXT_CHARS).tolist():
        problems.add(row, "long_text", f"context has {total[row]:,} characters in all; the limit is {MAX_TEXT_CHARS:,}")
