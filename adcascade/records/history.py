"""What each row of a log may look back on: the user's strictly earlier events, or those of other folds.

A training must never see its own answer. In a split by time, a row sees only what happened before it
(`PointInTimeHistory`). In any other split it sees the training rows of other folds than its own (`OutOfFoldHistory`):
were it alone left out of its own counters, what is missing there would still tell its answer. Knows no models.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag

from adcascade.records.clicks import NO_TIME, ClickLog, Integers, Texts
from adcascade.records.counters import (
    Counts,
    Floats,
    key_codes,
    out_of_fold_counts,
    out_of_fold_decayed,
    point_in_time_counts,
    point_in_time_decayed,
)
from adcascade.records.users import Event, EventType, UserProfile

_WINDOW_ROWS = 128
_NOBODY = np.empty(0, np.int64)


@dataclass(frozen=True)
class Window:
    """Some rows, of one user unless merged, and what they look back on.

    Attributes:
        rows: row indices, [rows].
        events: row indices of events that any of them sees, oldest first, [events].
        visible: which of those each row sees, bool [rows, events].
    """

    rows: Integers
    events: Integers
    visible: npt.NDArray[np.bool_]


def merged(windows: Iterable[Window], max_cells: int) -> Iterator[Window]:
    """The same windows, neighbours put together while rows x events stays within `max_cells`; no row sees more."""
    waiting: list[Window] = []
    rows = events = 0
    for window in windows:
        rows, events = rows + len(window.rows), events + len(window.events)
        if waiting and rows * events > max_cells:
            yield _together(waiting)
            waiting, rows, events = [], len(window.rows), len(window.events)
        waiting.append(window)
    if waiting:
        yield _together(waiting)


def _together(windows: list[Window]) -> Window:
    rows, events = ([getattr(window, name) for window in windows] for name in ("rows", "events"))
    return Window(np.concatenate(rows), np.concatenate(events), block_diag(*(window.visible for window in windows)))


class HistoryView(Protocol):
    """What each row of a log may look back on."""

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """The given rows in windows of one user; each row sees at most `limit` events."""

    def counts(self, keys: Texts) -> Counts:
        """Impressions and clicks of each row's key in the rows it may look back on; `keys` has one for each row."""

    def decayed(self, keys: Texts) -> Floats:
        """The same under each half-life, as it was at the last of them, float64 [rows, half-lives, 2]."""


class PointInTimeHistory:
    """Each row sees the strictly earlier rows of the log: rows of the same moment do not see each other."""

    def __init__(self, log: ClickLog) -> None:
        self._log = log
        self._histories = Histories(log)

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """See `HistoryView`."""
        for user, wanted in _by_user(self._log, rows):
            mine = self._histories.rows_of(user)
            time = self._log.time[mine]
            for part in _parts(wanted[np.argsort(self._log.time[wanted], kind="stable")]):
                earlier = np.searchsorted(time, self._log.time[part], side="left")
                first, last = max(0, int(earlier[0]) - limit), int(earlier[-1])
                place = np.arange(first, last)
                seen = (place < earlier[:, None]) & (place >= earlier[:, None] - limit)
                yield Window(part, mine[first:last], seen & (self._log.time[part] != NO_TIME)[:, None])

    def counts(self, keys: Texts) -> Counts:
        """See `HistoryView`."""
        return point_in_time_counts(keys, self._log)

    def decayed(self, keys: Texts) -> Floats:
        """See `HistoryView`."""
        return point_in_time_decayed(key_codes(keys), self._log)


class OutOfFoldHistory:
    """Each training row sees the training rows of other folds, any other row all of them; time plays no part.

    Args:
        fold: Fold of each training row, 0 or more; -1 for all other rows, which nobody sees.
    """

    def __init__(self, log: ClickLog, fold: Integers) -> None:
        self._log = log
        self._fold = fold
        training = np.flatnonzero((fold >= 0) & (log.user_id != ""))
        self._mine = dict(_by_user(log, training))

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """See `HistoryView`; of a user with more events than `limit`, those nearest in time."""
        for user, wanted in _by_user(self._log, rows):
            mine = self._mine.get(user, _NOBODY)
            for part in _parts(wanted[np.argsort(self._log.time[wanted], kind="stable")]):
                near = np.searchsorted(self._log.time[mine], self._log.time[part])
                start = np.clip(near - limit // 2, 0, max(0, len(mine) - limit))
                first, last = int(start.min()), min(len(mine), int(start.max()) + limit)
                place = np.arange(first, last)
                seen = (place >= start[:, None]) & (place < start[:, None] + limit)
                yield Window(part, mine[first:last], seen & self._other_fold(part, mine[first:last]))

    def _other_fold(self, rows: Integers, past: Integers) -> npt.NDArray[np.bool_]:
        different: npt.NDArray[np.bool_] = self._fold[rows][:, None] != self._fold[past][None]
        return different

    def counts(self, keys: Texts) -> Counts:
        """See `HistoryView`."""
        return out_of_fold_counts(keys, self._log, self._fold)

    def decayed(self, keys: Texts) -> Floats:
        """See `HistoryView`."""
        return out_of_fold_decayed(key_codes(keys), self._log, self._fold)


def _by_user(log: ClickLog, rows: Integers) -> Iterator[tuple[str, Integers]]:
    """The rows of each user, in order of time; rows without a user stand together under ""."""
    if not len(rows):
        return
    ordered = rows[np.argsort(rows, kind="stable")]  # the log is in order of time
    names, codes = np.unique(log.user_id[ordered].astype(str), return_inverse=True)
    groups = np.split(ordered[np.argsort(codes, kind="stable")], np.cumsum(np.bincount(codes, minlength=1))[:-1])
    yield from zip(names.tolist(), groups, strict=True)


def _parts(rows: Integers) -> Iterator[Integers]:
    for start in range(0, len(rows), _WINDOW_ROWS):
        yield rows[start : start + _WINDOW_ROWS]


class Histories:
    """Every user's events in the order of time."""

    def __init__(self, log: ClickLog) -> None:
        self._log = log
        self._rows = dict(_by_user(log, np.flatnonzero((log.time != NO_TIME) & (log.user_id != ""))))

    def rows_of(self, user_id: str) -> Integers:
        """Row indices of a user's events in the order of time; rows without a time or a user are nobody's."""
        return self._rows.get(user_id, _NOBODY)

    def before(self, user_id: str, time: int, limit: int) -> tuple[Event, ...]:
        """A user's newest `limit` events strictly before `time` (microseconds since 1970), oldest first."""
        earlier = self._rows_before(user_id, time)
        return tuple(event_of(self._log, int(row)) for row in earlier[-limit:]) if limit > 0 else ()

    def ads_before(self, user_id: str, time: int) -> frozenset[str]:
        """Every ad of a user's events strictly before `time` (microseconds since 1970)."""
        return frozenset(self._log.ad_id[self._rows_before(user_id, time)].tolist())

    def _rows_before(self, user_id: str, time: int) -> Integers:
        rows = self.rows_of(user_id)
        return rows[: np.searchsorted(self._log.time[rows], time, side="left")]


def event_of(log: ClickLog, row: int) -> Event:
    """What a row of the log says that the user did."""
    kind = EventType.CLICK if log.clicks[row] > 0 else EventType.IMPRESSION
    if log.conversions[row] > 0:
        kind = EventType.CONVERSION
    time = int(log.time[row])
    moment = datetime.fromtimestamp(time / 1_000_000, UTC) if time != NO_TIME else None
    return Event(kind, ad_id=str(log.ad_id[row]), timestamp=moment)


def with_history(user: UserProfile, histories: Histories, time: int, limit: int) -> UserProfile:
    """`user` with the history of the log before `time` (microseconds since 1970)."""
    return replace(user, history=histories.before(user.user_id, time, limit))
