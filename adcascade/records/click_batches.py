"""Batches of a click log turned into checked columns: what is usable, and why the rest is not. Knows no whole log.

Columns are converted value by value (`converted`) and checked as arrays (`click_checks`); a row is looked at by itself
only to say why it was refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.click_checks import (
    NO_TIME,
    Integers,
    RowProblems,
    check_counts,
    check_ids,
    check_lengths,
    check_times,
    micros,
)
from adcascade.records.converted import Converted
from adcascade.records.errors import InputError
from adcascade.records.files import Batch, DamagedRow, is_table
from adcascade.records.missing import is_missing
from adcascade.records.near_names import warn_of_near_names
from adcascade.records.times import Moment, minutes_ahead, read_moment
from adcascade.records.values import as_attributes, as_id, as_int, as_word

REQUIRED = ("request_id", "ad_id", "clicks", "impressions")
TEXTS = ("request_id", "ad_id", "user_id")
NUMBERS = ("time", "utc_offset", "clicks", "impressions", "conversions", "position")
# Position of a row without one; 0 is the first place of a log that counts from 0.
NO_POSITION = -1

_COUNTS = ("clicks", "impressions", "conversions", "position")
_NO_CONTEXT = frozenset((*REQUIRED, "user_id", "timestamp", "position", "conversions", "utc_offset_minutes"))
_NAMES = (*REQUIRED, "user_id", "timestamp", "position", "conversions", "utc_offset_minutes", "page_text")
_MAX_NAMES = 1024


@dataclass(frozen=True)
class GoodRows:
    """The usable rows of a batch.

    Attributes:
        rows: number of each in its file.
        texts: by `TEXTS`, object arrays of str.
        numbers: by `NUMBERS`, int64; `NO_TIME` and `NO_POSITION` where there is none.
        has_zone: whether the time of each row has a zone; False where there is no time.
        context: further columns, None where a row has no value.
    """

    source: str
    rows: Integers
    texts: Mapping[str, npt.NDArray[np.object_]]
    numbers: Mapping[str, Integers]
    has_zone: npt.NDArray[np.bool_]
    context: Mapping[str, npt.NDArray[np.object_]]


class BatchChecker:
    """Turns batches into usable rows and refused ones.

    Args:
        known_ads: ids of the catalog; None if any will do.
        why_rejected: why some ads are not in it.
        now: what no row may be more than a day later than.

    Attributes:
        left_out: further columns that hold lists, objects or bytes, which are no context.
    """

    def __init__(self, known_ads: Collection[str] | None, why_rejected: Mapping[str, str], now: datetime) -> None:
        self._known_ads = known_ads
        self._why_rejected = why_rejected
        self._now = now
        self._ids = {name: Converted(partial(_id, name)) for name in TEXTS}
        self._counts = {name: Converted(partial(_count, name)) for name in _COUNTS}
        self._time = Converted(lambda value: read_moment(value, "timestamp"))
        self._offset = Converted(lambda value: minutes_ahead(value, "utc_offset_minutes"))
        self._attributes = Converted(as_attributes)
        self._words: dict[str, Converted] = {}
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
        missing = [name for name in REQUIRED if name not in batch.columns]
        if missing and count:
            lacks = (
                f"the click log lacks {', '.join(missing)}; it needs {', '.join(REQUIRED)}; {batch.source} has the "
                f"columns {', '.join(map(repr, batch.columns))[:1000]}"
            )
            if is_table(batch.source):
                raise InputError(lacks)
            self._lacks.append(lacks)
        self._complete |= bool(count and not missing)
        if count and batch.source != self._checked:
            warn_of_near_names(batch.source, batch.columns, _NAMES, self._told, "context")
            self._checked = batch.source
        empty = [None] * count
        problems = RowProblems(count)
        for row in range(count if missing else 0):
            problems.add(row, "bad_row", f"there is no {', '.join(missing)}; there is {_named(batch, row)}")
        ids = {name: problems.of(self._ids[name](batch.columns.get(name, empty)), "") for name in TEXTS}
        counts = {name: problems.of(self._counts[name](batch.columns.get(name, empty)), None) for name in _COUNTS}
        moments = problems.of(self._time(batch.columns.get("timestamp", empty)), None)
        offsets = problems.of(self._offset(batch.columns.get("utc_offset_minutes", empty)), 0)
        context = self._context(batch.columns, count, problems)
        numbers = _numbers(counts, moments, offsets)
        check_ids(ids, self._known_ads, self._why_rejected, problems)
        check_counts(counts, numbers, problems)
        check_times(numbers, moments, self._now, problems)
        check_lengths(context, problems)
        good = np.flatnonzero(~problems.found)
        kept = GoodRows(
            batch.source,
            np.array(batch.numbers, np.int64)[good],
            {name: _objects(values)[good] for name, values in ids.items()},
            {name: values[good] for name, values in numbers.items()},
            np.array([one is not None and one.offset is not None for one in moments], bool)[good],
            {name: _objects(values)[good] for name, values in context.items()},
        )
        return kept, {batch.numbers[row]: problem for row, problem in problems.by_row.items()}

    def finish(self) -> None:
        """Raises InputError if no line of JSON had the names of a log: then it is another file."""
        if self._lacks and not self._complete:
            raise InputError(max(self._lacks, key=len))

    def _context(self, columns: Mapping[str, Sequence[Any]], count: int, problems: RowProblems) -> dict[str, list[Any]]:
        given: dict[str, Sequence[Any]] = {name: columns[name] for name in columns.keys() - _NO_CONTEXT}
        for row, values in enumerate(problems.of(self._attributes(given.pop("attributes", ())), {})):
            for name, value in values.items():
                if name not in _NO_CONTEXT and name not in columns:
                    column = given.setdefault(name, [None] * count)
                    if isinstance(column, list):
                        column[row] = value
            if len(given) > _MAX_NAMES:
                break
        if len(self._words.keys() | given.keys()) > _MAX_NAMES:
            raise InputError(f"the click log has more than {_MAX_NAMES:,} columns; leave out what is no context")
        found = {}
        for name in sorted(given):
            words = self._words.setdefault(name, Converted(_word))(given[name])
            if _NOT_PLAIN in words:
                self.left_out.add(name)
            words = [None if word is _NOT_PLAIN else word for word in problems.of(words, None)]
            if any(word is not None for word in words):
                found[name] = words
        return found


def _named(batch: Batch, row: int) -> str:
    names = [name for name, values in batch.columns.items() if values[row] is not None]
    return ", ".join(map(repr, names))[:300] or "nothing"


def _objects(values: list[Any]) -> npt.NDArray[np.object_]:
    column = np.empty(len(values), object)
    column[:] = values
    return column


_NOT_PLAIN = object()


def _word(value: Any) -> Any:
    word = as_word(value)
    return _NOT_PLAIN if word is None else (word or None)


def _id(name: str, value: Any) -> str:
    return as_id({name: value}, name)


def _count(name: str, value: Any) -> int | None:
    return None if is_missing(value) else as_int({name: value}, name)


def _numbers(
    counts: Mapping[str, list[int | None]], moments: list[Moment | None], offsets: list[int]
) -> dict[str, Integers]:
    filled = {**dict.fromkeys(_COUNTS, 0), "position": NO_POSITION}
    zones = [(one.offset if one is not None else 0) or offset for one, offset in zip(moments, offsets, strict=True)]
    return {
        "time": np.array([NO_TIME if one is None else micros(one.time) for one in moments], np.int64),
        "utc_offset": np.array(zones, object).clip(-(2**31), 2**31).astype(np.int64),
        **{
            name: np.array([filled[name] if value is None else value for value in values], np.int64)
            for name, values in counts.items()
        },
    }
