"""What was known just before an impression: histories and counters made from strictly earlier rows only.

The same functions replay a log for training and make the snapshot that serving reads. Knows no models.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from records.clicks import NO_TIME, ClickLog, Integers, Texts
from records.users import Event, EventType, UserProfile

KEYS = ("ad", "user")
_WINDOW_ROWS = 512


@dataclass(frozen=True)
class Counts:
    """Impressions and clicks, int64 arrays of one shape."""

    impressions: Integers
    clicks: Integers


def counts_before(keys: Texts, log: ClickLog) -> Counts:
    """For each row of `log`: impressions and clicks of its key in strictly earlier rows. Arrays of shape [rows].

    Rows of the same moment do not see each other; a row without a time neither sees nor is seen. An empty key counts
    nothing.
    """
    codes = np.unique(keys.astype(str), return_inverse=True)[1]
    order = np.lexsort((log.time, codes))
    code, time = codes[order], log.time[order]
    new_key = np.r_[True, code[1:] != code[:-1]]
    new_moment = new_key | np.r_[True, time[1:] != time[:-1]]
    rows = np.arange(len(order))
    key_start = np.maximum.accumulate(np.where(new_key, rows, 0))
    moment_start = np.maximum.accumulate(np.where(new_moment, rows, 0))
    usable = (time != NO_TIME) & (keys[order] != "")

    def before(column: Integers) -> Integers:
        total = np.r_[0, np.cumsum(np.where(usable, column[order], 0))]
        result = np.empty(len(order), np.int64)
        result[order] = np.where(usable, total[moment_start] - total[key_start], 0)
        return result

    return Counts(before(log.impressions), before(log.clicks))


def earlier_windows(log: ClickLog, limit: int) -> Iterator[tuple[Integers, Integers, npt.NDArray[np.bool_]]]:
    """For the rows of each user: what `Histories.before` would return, as arrays.

    Yields (rows, past, seen): some rows of one user, the rows that any of them looks back on, and which of those each
    row sees, bool [rows, past]: its newest `limit` strictly earlier ones.
    """
    histories = Histories(log)
    for rows in histories.rows_by_user():
        time = log.time[rows]
        earlier = np.searchsorted(time, time, side="left")
        for start in range(0, len(rows), _WINDOW_ROWS):
            part = slice(start, start + _WINDOW_ROWS)
            first, last = max(0, int(earlier[start]) - limit), int(earlier[part][-1])
            place = np.arange(first, last)
            seen = (place < earlier[part, None]) & (place >= earlier[part, None] - limit)
            yield rows[part], rows[first:last], seen


class Histories:
    """Every user's events in the order of time."""

    def __init__(self, log: ClickLog) -> None:
        rows = np.flatnonzero((log.time != NO_TIME) & (log.user_id != ""))
        users = log.user_id[rows].astype(str)
        order = np.argsort(users, kind="stable")  # the log is in order of time, and stays so within a user
        self._rows = rows[order]
        names, starts = np.unique(users[order], return_index=True)
        ends = [*starts[1:], *[len(rows)] * bool(len(rows))]
        self._range = {str(name): (int(start), int(end)) for name, start, end in zip(names, starts, ends, strict=True)}
        self._log = log

    def rows_by_user(self) -> Iterator[Integers]:
        """Row indices of each user's events, in the order of time."""
        for start, end in self._range.values():
            yield self._rows[start:end]

    def before(self, user_id: str, time: int, limit: int) -> tuple[Event, ...]:
        """A user's newest `limit` events strictly before `time` (microseconds since 1970), oldest first."""
        start, end = self._range.get(user_id, (0, 0))
        rows = self._rows[start:end]
        earlier = rows[: np.searchsorted(self._log.time[rows], time, side="left")]
        return tuple(self._event(int(row)) for row in earlier[-limit:]) if limit > 0 else ()

    def _event(self, row: int) -> Event:
        kind = EventType.CLICK if self._log.clicks[row] > 0 else EventType.IMPRESSION
        moment = datetime.fromtimestamp(int(self._log.time[row]) / 1_000_000, UTC)
        return Event(kind, ad_id=str(self._log.ad_id[row]), timestamp=moment)


def with_history(user: UserProfile, histories: Histories, time: int, limit: int) -> UserProfile:
    """`user` with the history of the log before `time` (microseconds since 1970)."""
    return replace(user, history=histories.before(user.user_id, time, limit))


@dataclass(frozen=True)
class CounterSnapshot:
    """Impressions and clicks per ad and per user at the end of a log, for serving.

    Attributes:
        ads, users: id -> (impressions, clicks).
    """

    ads: Mapping[str, tuple[int, int]]
    users: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, log: ClickLog) -> "CounterSnapshot":
        """Counts the whole log."""
        return cls(_totals(log.ad_id, log), _totals(log.user_id, log))

    def save(self, path: Path) -> None:
        """Writes a Parquet table with the columns key, id, impressions and clicks."""
        lines = [(key, name, *counts) for key in KEYS for name, counts in self._of(key).items()]
        key, name, impressions, clicks = zip(*lines, strict=True) if lines else ((), (), (), ())
        table = pa.table(
            {
                "key": pa.array(key, pa.string()),
                "id": pa.array(name, pa.string()),
                "impressions": pa.array(impressions, pa.int64()),
                "clicks": pa.array(clicks, pa.int64()),
            }
        )
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> "CounterSnapshot":
        """Reads what `save` wrote."""
        table = pq.read_table(path)
        found: dict[str, dict[str, tuple[int, int]]] = {key: {} for key in KEYS}
        columns = (table[name].to_pylist() for name in ("key", "id", "impressions", "clicks"))
        for key, name, impressions, clicks in zip(*columns, strict=True):
            found[key][name] = (impressions, clicks)
        return cls(found["ad"], found["user"])

    def _of(self, key: str) -> Mapping[str, tuple[int, int]]:
        return self.ads if key == "ad" else self.users

    def counts(self, key: str, ids: list[str]) -> Counts:
        """Counts of the given ads ("ad") or users ("user"); zeros for unknown ones. Arrays of shape [ids]."""
        known = self._of(key)
        pairs = np.array([known.get(name, (0, 0)) for name in ids], np.int64).reshape(len(ids), 2)
        return Counts(pairs[:, 0], pairs[:, 1])


def _totals(keys: Texts, log: ClickLog) -> dict[str, tuple[int, int]]:
    names, codes = np.unique(keys.astype(str), return_inverse=True)
    impressions = np.bincount(codes, log.impressions, len(names)).astype(np.int64)
    clicks = np.bincount(codes, log.clicks, len(names)).astype(np.int64)
    lines = zip(names.tolist(), impressions.tolist(), clicks.tolist(), strict=True)
    return {name: (shown, clicked) for name, shown, clicked in lines if name}
