"""How often and when an ad, an advertiser, a category or a user was shown and clicked, but for the row itself.

`point_in_time_counts` and `out_of_fold_counts` replay a log for training; `CounterSnapshot` is what serving reads.
Knows no models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import NO_VALUE, CodedColumn, grouped
from adcascade.records.counter_table import (
    DECAYED_NUMBERS,
    HALF_LIVES_H,
    NUMBERS,
    SCHEMA,
    WIDTH,
    CounterTable,
    Total,
    overridden,
)
from adcascade.records.decayed_counts import KeyedEvents

Floats = npt.NDArray[np.float64]

# What is counted with decay.
DECAYED = ("ad", "advertiser", "category")
_NONE: Mapping[str, Total] = MappingProxyType({})


@dataclass(frozen=True)
class Counts:
    """Impressions and clicks, not always whole numbers (see `out_of_fold_counts`), and when the key was shown.

    Attributes:
        impressions, clicks: float64 arrays of one shape.
        first, last: of its impressions, seconds since 1970, float64 of the same shape; NaN where no time is known.
        decayed: impressions and clicks under each of `HALF_LIVES_H`, as they were at `last`, float64
            [rows, half-lives, 2]; None if they were not counted.
    """

    impressions: Floats
    clicks: Floats
    first: Floats
    last: Floats
    decayed: Floats | None = None


def point_in_time_counts(keys: CodedColumn, log: ClickLog) -> Counts:
    """For each row of `log`: what was counted of its key in strictly earlier rows. Arrays of shape [rows].

    Rows of the same moment do not see each other; a row without a time neither sees nor is seen. A row without a key
    counts nothing.
    """
    # Rows by key, then by time: those of a key that are earlier than row i are key_start[i] .. moment_start[i] - 1.
    order = _by_key_and_time(keys, log)
    code, time = keys.codes[order], log.time[order]
    new_key = np.r_[True, code[1:] != code[:-1]]
    new_time = new_key | np.r_[True, time[1:] != time[:-1]]
    rows = np.arange(len(order))
    first_time = new_key | np.r_[True, time[:-1] == NO_TIME]  # NO_TIME sorts before all times
    # The place where the key, or the moment, of each row begins: the last place so far at which one began.
    key_start = np.maximum.accumulate(np.where(first_time, rows, 0))
    time_start = np.maximum.accumulate(np.where(new_time, rows, 0))
    usable = (time != NO_TIME) & (code != NO_VALUE)

    def in_log_order(values: Floats) -> Floats:
        result = np.empty(len(order))
        result[order] = values
        return result

    def before(column: Integers) -> Floats:
        # sum(column[key_start:moment_start]) = total[moment_start] - total[key_start], total[i] = sum(column[:i])
        total = np.r_[0, np.cumsum(np.where(usable, column[order], 0))]
        return in_log_order(np.where(usable, total[time_start] - total[key_start], 0))

    seen = usable & (time_start > key_start)
    first = in_log_order(np.where(seen, time[key_start] / 1e6, np.nan))
    last = in_log_order(np.where(seen, time[np.maximum(time_start - 1, 0)] / 1e6, np.nan))
    return Counts(before(log.impressions), before(log.clicks), first, last)


def _by_key_and_time(keys: CodedColumn, log: ClickLog) -> Integers:
    if (log.time[1:] < log.time[:-1]).any():  # rows that were taken in another order
        return np.lexsort((log.time, keys.codes))
    return grouped(keys.codes, len(keys.names))[0]


def out_of_fold_counts(keys: CodedColumn, log: ClickLog, fold: Integers, folds: int | None = None) -> Counts:
    """For each row of `log`: what was counted of its key in the folds that the row is not in. Shape [rows].

    Args:
        keys: Key of each row; a row without one counts nothing.
        fold: Fold of each training row, 0 or more; -1 for rows that are not to be learned from, which see all folds.
            What a training row sees is scaled up as if it saw all folds too, so that a model meets counts of one size.
        folds: how many there are, of which these rows may have some; None for those that they have.

    Returns:
        Impressions and clicks of the whole log; `first` and `last` of the rows that are also strictly earlier.
    """
    keys = keys.compact()
    codes, known = keys.codes.astype(np.int64), keys.known
    folds = folds or int(fold.max(initial=0)) + 1
    training = (fold >= 0) & known
    scale = np.where(fold >= 0, folds / max(1, folds - 1), 1.0)

    def elsewhere(column: Integers) -> Floats:
        cells = codes[training] * folds + fold[training]
        table = np.bincount(cells, column[training], (len(keys.names) + 1) * folds).reshape(-1, folds)
        own = np.where(training, table[codes, np.maximum(fold, 0)], 0.0)
        return np.where(known, (table.sum(axis=1)[codes] - own) * scale, 0.0)

    first, last = np.full(len(log), np.nan), np.full(len(log), np.nan)
    shown = training & (log.time != NO_TIME)
    for number in (-1, *range(folds)):
        asking = np.flatnonzero((fold == number) & known & (log.time != NO_TIME))
        pool = np.flatnonzero(shown & (fold != number))
        first[asking], last[asking] = _earlier_times(codes, log.time, asking, pool)
    return Counts(elsewhere(log.impressions), elsewhere(log.clicks), first, last)


def point_in_time_decayed(keys: CodedColumn, log: ClickLog) -> Floats:
    """For each row of `log`: what its key's strictly earlier rows count, as it was at the last of them.

    Returns:
        Impressions and clicks, float64 [rows, half-lives, 2]; zero for a row without a key.
    """
    events = _events(keys, log)
    return _decayed_at(events, events.before_rows)


def out_of_fold_decayed(keys: CodedColumn, log: ClickLog, fold: Integers, folds: int | None = None) -> Floats:
    """The same of the strictly earlier rows that are in other folds, scaled up; see `out_of_fold_counts`."""
    folds = folds or int(fold.max(initial=0)) + 1
    result = np.zeros((len(log), len(HALF_LIVES_H), 2))
    for number in (-1, *range(folds)):
        asking = np.flatnonzero(fold == number)
        events = _events(keys, log, np.flatnonzero((fold >= 0) & (fold != number)))
        scale = 1.0 if number < 0 else folds / max(1, folds - 1)
        result[asking] = scale * _decayed_at(
            events, events.before(keys.codes[asking].astype(np.int64), log.time[asking])
        )
    return result


def _events(keys: CodedColumn, log: ClickLog, rows: Integers | slice = slice(None)) -> KeyedEvents:
    codes = keys.codes[rows].astype(np.int64)
    return KeyedEvents(codes, log.time[rows], np.stack([log.impressions[rows], log.clicks[rows]], axis=1))


def _decayed_at(events: KeyedEvents, at: Integers) -> Floats:
    """State at each of the given events, float64 [rows, half-lives, 2]; zero for -1."""
    found = np.empty((len(at), len(HALF_LIVES_H), 2))
    for number, hours in enumerate(HALF_LIVES_H.values()):
        # One state more, which -1 stands for.
        found[:, number] = np.append(events.states(hours), np.zeros((1, 2)), axis=0)[at]
    return found


def _earlier_times(codes: Integers, time: Integers, asking: Integers, pool: Integers) -> tuple[Floats, Floats]:
    """First and last moment, in seconds, of the rows of `pool` with the code of each asking row and before it."""
    if not len(pool):
        return np.full(len(asking), np.nan), np.full(len(asking), np.nan)
    ranks = np.unique(time, return_inverse=True)[1]  # [rows], 0 for the earliest time
    place = codes * (int(ranks.max()) + 1) + ranks  # orders by code, then by time
    pool = pool[np.argsort(place[pool], kind="stable")]
    # pool[start:end] are earlier rows of the same code: below (code, time), and not below (code, -infinity).
    end = np.searchsorted(place[pool], place[asking], side="left")
    start = np.searchsorted(codes[pool], codes[asking], side="left")
    times_s = time[pool] / 1e6
    first = np.where(end > start, times_s[np.minimum(start, len(pool) - 1)], np.nan)
    return first, np.where(end > start, times_s[np.maximum(end - 1, 0)], np.nan)


_NO_TABLE = CounterTable((), np.empty((0, WIDTH)))


class SavedCounters(Protocol):
    """Counters that can be written for serving."""

    def save(self, path: Path) -> None:
        """Writes what `CounterSnapshot.load` reads."""


@dataclass(frozen=True)
class CounterSnapshot:
    """What was counted of every key by the end of a log, for serving.

    Attributes:
        totals: what is counted ("ad", "user", ...) -> id -> total.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.records.clicks import read_clicks
        >>> from adcascade.records.counters import CounterSnapshot
        >>> log, _ = read_clicks(Path("examples/clicks.csv"), known_ads=None)
        >>> snapshot = CounterSnapshot.of(log, {"ad": log.ad_id, "user": log.user_id})
        >>> total = snapshot.totals["ad"]["ad-001"]
        >>> total.impressions == len(log.take(log.ad_id == "ad-001"))
        True
        >>> counts = snapshot.counts("ad", ["ad-001", "no such ad"])  # arrays of shape [ids]
        >>> counts.clicks[0].item() == total.clicks, counts.clicks[1].item(), counts.last[1].item()
        (True, 0.0, nan)
    """

    totals: Mapping[str, Mapping[str, Total]]

    @classmethod
    def of(cls, log: ClickLog, keys: Mapping[str, CodedColumn]) -> "CounterSnapshot":
        """Counts the whole log; `keys` holds the id of each row by what is counted."""
        return cls({name: _totals(name, ids, log) for name, ids in keys.items()})

    @cached_property
    def _tables(self) -> dict[str, CounterTable]:
        return {key: CounterTable.of(totals) for key, totals in self.totals.items()}

    @cached_property
    def end(self) -> float | None:
        """The moment of the last impression, seconds since 1970; None if no time is known."""
        return max((table.last for table in self._tables.values() if table.last is not None), default=None)

    def save(self, path: Path) -> None:
        """Writes a Parquet table: key, id, impressions, clicks, first, last, and these decayed by each half-life."""
        with pq.ParquetWriter(path, SCHEMA) as writer:
            self.write(writer)

    def write(self, writer: pq.ParquetWriter) -> None:
        """Writes the lines of that table."""
        for key, table in self._tables.items():
            for lines in table.lines(key):
                writer.write_table(lines)

    @classmethod
    def load(cls, path: Path) -> "CounterSnapshot":
        """Reads what `save` wrote; releases before decayed counts wrote none, and their models read none."""
        table = pq.read_table(path)
        keys, ids = (table[name].to_numpy(zero_copy_only=False) for name in ("key", "id"))
        decayed = [name for name in DECAYED_NUMBERS if name in table.column_names]
        numbers = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in (*NUMBERS, *decayed)]
        values = np.zeros((len(keys), WIDTH))
        values[:, [*range(len(NUMBERS)), *(4 + DECAYED_NUMBERS.index(name) for name in decayed)]] = np.stack(
            numbers, axis=1
        )
        places = {key: np.flatnonzero(keys == key) for key in dict.fromkeys(keys.tolist())}
        return cls({key: CounterTable(ids[rows].tolist(), values[rows]) for key, rows in places.items()})

    def counts(self, key: str, ids: Sequence[str], counter_overrides: Mapping[str, Total] = _NONE) -> Counts:
        """Counts of the given ids, arrays of shape [ids]; `counter_overrides` totals go before, unknown ids count
        nothing.

        An override that says nothing of decayed counts keeps those of this snapshot, faded to its `last`, and what came
        since then counts in full.
        """
        values = self._tables.get(key, _NO_TABLE).values_of(ids)
        if counter_overrides:
            for row, name in enumerate(ids):
                if name in counter_overrides:
                    values[row] = overridden(values[row], counter_overrides[name])
        impressions, clicks, first, last = values[:, :4].T
        return Counts(impressions, clicks, first, last, values[:, 4:].reshape(-1, len(HALF_LIVES_H), 2))


def _totals(key: str, keys: CodedColumn, log: ClickLog) -> CounterTable:
    keys = keys.compact()
    known = keys.known
    codes, count = keys.codes[known], len(keys.names)
    first, last = np.full(count, np.inf), np.full(count, -np.inf)
    time = log.time[known]
    timed = time != NO_TIME
    np.minimum.at(first, codes[timed], time[timed] / 1e6)
    np.maximum.at(last, codes[timed], time[timed] / 1e6)
    counted = [np.bincount(codes, column[known], count) for column in (log.impressions, log.clicks)]
    values = np.zeros((count, WIDTH if key in DECAYED else 4))
    values[:, :4] = np.stack([*counted, *(np.where(np.isfinite(end), end, np.nan) for end in (first, last))], axis=1)
    if key in DECAYED:
        events = _events(keys, log)
        values[events.key[events.ends], 4:] = _decayed_at(events, events.ends).reshape(-1, len(DECAYED_NUMBERS))
    return CounterTable(keys.names, values)
