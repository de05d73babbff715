"""How often and when an ad, an advertiser, a category or a user was shown and clicked, but for the row itself.

`point_in_time_counts` and `out_of_fold_counts` replay a log for training; `CounterSnapshot` is what serving reads.
Knows no models.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import NO_VALUE, CodedColumn, grouped
from adcascade.records.decayed_counts import KeyedEvents, decay

Floats = npt.NDArray[np.float64]

# What is counted with decay, and the half-lives, in hours, by the names that they have in features and files.
DECAYED = ("ad", "advertiser", "category")
HALF_LIVES_H: Mapping[str, float] = MappingProxyType({"1h": 1.0, "6h": 6.0, "1d": 24.0, "7d": 168.0})
_HALF_LIVES = np.array(list(HALF_LIVES_H.values()))  # [half-lives]


class Total(NamedTuple):
    """What was counted of one key; `first` and `last` are seconds since 1970, None where no time is known.

    `decayed` holds impressions and clicks under each of `HALF_LIVES_H`, as they were at `last`; none if not counted.
    """

    impressions: int
    clicks: int
    first: float | None = None
    last: float | None = None
    decayed: tuple[float, ...] = ()


_NUMBERS = ("impressions", "clicks", "first", "last")
_DECAYED_NUMBERS = tuple(f"{what}_{name}" for name in HALF_LIVES_H for what in ("impressions", "clicks"))
_UNKNOWN_VALUES = np.array([0, 0, np.nan, np.nan, *(0.0 for _ in _DECAYED_NUMBERS)])
_WIDTH = len(_UNKNOWN_VALUES)
_LINES = 1 << 20  # that are written at once
_NONE: Mapping[str, Total] = MappingProxyType({})
_SNAPSHOT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("first", pa.float64()),
        ("last", pa.float64()),
        *((name, pa.float64()) for name in _DECAYED_NUMBERS),
    ]
)


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


def out_of_fold_counts(keys: CodedColumn, log: ClickLog, fold: Integers) -> Counts:
    """For each row of `log`: what was counted of its key in the folds that the row is not in. Shape [rows].

    Args:
        keys: Key of each row; a row without one counts nothing.
        fold: Fold of each training row, 0 or more; -1 for rows that are not to be learned from, which see all folds.
            What a training row sees is scaled up as if it saw all folds too, so that a model meets counts of one size.

    Returns:
        Impressions and clicks of the whole log; `first` and `last` of the rows that are also strictly earlier.
    """
    keys = keys.compact()
    codes, known = keys.codes.astype(np.int64), keys.known
    folds = int(fold.max(initial=0)) + 1
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
    events = _events(keys, log, np.arange(len(log)))
    return _decayed_at(events, events.before_rows)


def out_of_fold_decayed(keys: CodedColumn, log: ClickLog, fold: Integers) -> Floats:
    """The same of the strictly earlier rows that are in other folds, scaled up; see `out_of_fold_counts`."""
    folds = int(fold.max(initial=0)) + 1
    result = np.zeros((len(log), len(HALF_LIVES_H), 2))
    for number in (-1, *range(folds)):
        asking = np.flatnonzero(fold == number)
        events = _events(keys, log, np.flatnonzero((fold >= 0) & (fold != number)))
        scale = 1.0 if number < 0 else folds / max(1, folds - 1)
        result[asking] = scale * _decayed_at(
            events, events.before(keys.codes[asking].astype(np.int64), log.time[asking])
        )
    return result


def _events(keys: CodedColumn, log: ClickLog, rows: Integers) -> KeyedEvents:
    codes = keys.codes[rows].astype(np.int64)
    return KeyedEvents(codes, log.time[rows], np.stack([log.impressions[rows], log.clicks[rows]], axis=1))


def _decayed_at(events: KeyedEvents, at: Integers) -> Floats:
    """State at each of the given events, float64 [rows, half-lives, 2]; zero for -1."""
    found = np.empty((len(at), len(HALF_LIVES_H), 2))
    for number, hours in enumerate(_HALF_LIVES.tolist()):
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


class CounterTable(Mapping[str, Total]):
    """Totals by id, in columns: a thousand ids are looked up in a tenth of a millisecond.

    Args:
        ids: Each once; of an Arrow array they become texts of Python only once one is looked up.
        values: of each id, float64 [ids, 4 + 2 half-lives]: impressions, clicks, first, last (NaN where no time is
            known), and the decayed impressions and clicks of each half-life, as they were at `last`; or the first four
            alone, if nothing is counted with decay.
    """

    def __init__(self, ids: Iterable[str] | pa.LargeStringArray, values: Floats) -> None:
        self._ids = ids if isinstance(ids, pa.LargeStringArray) else pa.array(list(ids), pa.large_string())
        if not isinstance(ids, pa.LargeStringArray):
            self._rows  # noqa: B018 (a server looks ids up at once)
        # One more row stands for ids that are not known.
        self._values = np.concatenate([values, _UNKNOWN_VALUES[None, : values.shape[1]]])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._ids.to_pylist())}

    @classmethod
    def of(cls, totals: Mapping[str, Total]) -> "CounterTable":
        """The same totals in columns."""
        if isinstance(totals, CounterTable):
            return totals
        values = np.array([_values_of(total) for total in totals.values()], np.float64)
        return cls(totals, values.reshape(-1, _WIDTH))

    def lines(self, key: str) -> Iterator[pa.Table]:
        """The totals as lines of ``counters.parquet``, which are of `key`, some after the other."""
        for start in range(0, len(self), _LINES):
            ids = self._ids[start : start + _LINES]
            numbers = np.zeros((_WIDTH, len(ids)))
            numbers[: self._values.shape[1]] = self._values[start : start + len(ids)].T
            columns = [pa.array(one, mask=np.isnan(one)) for one in numbers]
            names = pa.array([key]).take(pa.array(np.zeros(len(ids), np.int8)))
            yield pa.Table.from_arrays([names, ids, *columns], _SNAPSHOT_SCHEMA.names).cast(_SNAPSHOT_SCHEMA)

    def __getitem__(self, name: str) -> Total:
        impressions, clicks, *times = self._values[self._rows[name], :4].tolist()
        first, last = (None if math.isnan(time) else time for time in times)
        decayed = self._values[self._rows[name], 4:]
        return Total(int(impressions), int(clicks), first, last, tuple(decayed.tolist()) if decayed.any() else ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def last(self) -> float | None:
        """The latest `last`; None if no time is known."""
        known = self._values[~np.isnan(self._values[:, 3]), 3]
        return float(known.max()) if len(known) else None

    def values_of(self, ids: Sequence[str]) -> Floats:
        """Columns as `values` of these ids, float64 [ids, columns]; an unknown one counts nothing."""
        rows, unknown = self._rows, len(self._ids)
        found = self._values[[rows.get(name, unknown) for name in ids]]
        return np.pad(found, ((0, 0), (0, _WIDTH - found.shape[1])))


_NO_TABLE = CounterTable((), np.empty((0, _WIDTH)))


def _values_of(total: Total) -> list[float | None]:
    """A row of `CounterTable`; None becomes NaN in it."""
    return [*total[:4], *(total.decayed or (0.0,) * len(_DECAYED_NUMBERS))]


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
        with pq.ParquetWriter(path, _SNAPSHOT_SCHEMA) as writer:
            for key, table in self._tables.items():
                for lines in table.lines(key):
                    writer.write_table(lines)

    @classmethod
    def load(cls, path: Path) -> "CounterSnapshot":
        """Reads what `save` wrote; releases before decayed counts wrote none, and their models read none."""
        table = pq.read_table(path)
        keys, ids = (table[name].to_numpy(zero_copy_only=False) for name in ("key", "id"))
        decayed = [name for name in _DECAYED_NUMBERS if name in table.column_names]
        numbers = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in (*_NUMBERS, *decayed)]
        values = np.zeros((len(keys), _WIDTH))
        values[:, [*range(len(_NUMBERS)), *(4 + _DECAYED_NUMBERS.index(name) for name in decayed)]] = np.stack(
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
                    values[row] = _overridden(values[row], counter_overrides[name])
        impressions, clicks, first, last = values[:, :4].T
        return Counts(impressions, clicks, first, last, values[:, 4:].reshape(-1, len(_HALF_LIVES), 2))


def _overridden(values: Floats, total: Total) -> Floats:
    """A row of `CounterTable` with a fresher total in its place."""
    result = np.array(_values_of(total), np.float64)  # None becomes NaN
    if not total.decayed:
        if np.isnan(result[3]):  # a total that says no time is of the one that is known
            result[3] = values[3]
        hours = np.nan_to_num((result[3] - values[3]) / 3600).clip(0)
        since = (result[:2] - values[:2]).clip(0)
        since[1] = min(since)  # no more clicks than impressions, though each alone is a fresher total
        result[4:] = (values[4:].reshape(-1, 2) * decay(hours, _HALF_LIVES)[:, None] + since).ravel()
    return result


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
    values = np.zeros((count, _WIDTH if key in DECAYED else 4))
    values[:, :4] = np.stack([*counted, *(np.where(np.isfinite(end), end, np.nan) for end in (first, last))], axis=1)
    if key in DECAYED:
        events = _events(keys, log, np.arange(len(log)))
        values[events.key[events.ends], 4:] = _decayed_at(events, events.ends).reshape(-1, len(_DECAYED_NUMBERS))
    return CounterTable(keys.names, values)
