"""What each row of a log may look back on: the user's strictly earlier events, or those of other folds.

A training must never see its own answer. In a split by time, a row sees only what happened before it
(`PointInTimeHistory`). In any other split it sees the training rows of other folds than its own (`OutOfFoldHistory`):
were it alone left out of its own counters, what is missing there would still tell its answer. Knows no models.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import NO_VALUE, CodedColumn, code_ranges, grouped
from adcascade.records.counters import (
    Counts,
    Floats,
    out_of_fold_counts,
    out_of_fold_decayed,
    point_in_time_counts,
    point_in_time_decayed,
)
from adcascade.records.packed import index_type
from adcascade.records.users import Event, EventType, UserProfile

_WINDOW_ROWS = 128
# Rows that are put in the order of their users at once, about.
_USERS_ROWS = 1 << 22
_KINDS = (EventType.IMPRESSION, EventType.CLICK, EventType.CONVERSION)


@dataclass(frozen=True)
class Window:
    """Some rows of one user, and what they look back on.

    Attributes:
        rows: row indices, [rows].
        events: row indices of events that any of them sees, oldest first, [events].
        visible: which of those each row sees, bool [rows, events].
    """

    rows: Integers
    events: Integers
    visible: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Spans:
    """What some rows look back on, as spans of one array of events.

    Attributes:
        events: row indices, one user after the other, each user's oldest first, [events]; int32 where that is enough.
        first, last: row i may see ``events[first[i]:last[i]]`` and nothing else, [rows]; of few bits, too.
        event_fold, row_fold: of each event and of each row, which see only events of other folds; None if there are no
            folds.
    """

    events: Integers
    first: Integers
    last: Integers
    event_fold: Integers | None = None
    row_fold: Integers | None = None

    def take(self, places: Integers) -> "Spans":
        """Those of some of the rows."""
        fold = None if self.row_fold is None else self.row_fold[places]
        return replace(self, first=self.first[places], last=self.last[places], row_fold=fold)

    def recent(self) -> tuple[Integers, Integers]:
        """What each row sees, one row after the other, oldest first.

        Returns:
            offsets, [rows + 1], and row indices of events, [offsets[-1]]: row i sees
            ``events[offsets[i]:offsets[i + 1]]``.
        """
        lengths = self.last - self.first
        places = ranges(self.first, lengths)
        seen = np.repeat(np.arange(len(lengths)), lengths)
        if self.event_fold is not None and self.row_fold is not None:
            other = self.event_fold[places] != self.row_fold[seen]
            places, seen = places[other], seen[other]
        return np.searchsorted(seen, np.arange(len(lengths) + 1)), self.events[places]


def ranges(starts: Integers, lengths: Integers) -> Integers:
    """The numbers ``start .. start + length - 1`` of each pair, one pair after the other."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - (ends - lengths), lengths)
    return shift + np.arange(len(shift))


class HistoryView(Protocol):
    """What each row of a log may look back on."""

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """The given rows in windows of one user; each row sees at most `limit` events."""

    def spans(self, rows: Integers, limit: int) -> Spans:
        """The same for each of the given rows in their order, without going through them one by one."""

    def counts(self, keys: CodedColumn, rows: Integers | None = None) -> Counts:
        """Impressions and clicks of each row's key in the rows it may look back on.

        Args:
            keys: of each of `rows`.
            rows: row indices, rising; all rows that have one of the keys. None for the whole log.
        """

    def decayed(self, keys: CodedColumn, rows: Integers | None = None) -> Floats:
        """The same under each half-life, as it was at the last of them, float64 [rows, half-lives, 2]."""


class PointInTimeHistory:
    """Each row sees the strictly earlier rows of the log: rows of the same moment do not see each other.

    Args:
        events: What rows see: the rows of the log, and after them events that nobody counts; default: the log alone.
    """

    def __init__(self, log: ClickLog, events: ClickLog | None = None) -> None:
        self._log = log
        self._events = log if events is None else events

    @cached_property
    def _histories(self) -> "Histories":
        return Histories(self._events)

    @cached_property
    def _user_events(self) -> tuple[Integers, Integers, Integers]:
        """The events of all users, and which of them each row sees.

        Returns:
            Row indices, one user after the other, each user's oldest first, [events]; where those of each user begin,
            [users + 1], with a 0 at the end for nobody; and where those end that each row of the log may see, [rows].
            All are int32 where that is enough.
        """
        log, index = self._events, index_type(len(self._events))
        begin, last = np.zeros(len(log.user_id.names) + 1, index), np.zeros(len(log), index)
        events, done = np.empty(len(log), index), 0
        for users in code_ranges(log.user_id, _USERS_ROWS):
            rows = _by_time(log, np.flatnonzero(users & (log.time != NO_TIME)))
            mine = rows[np.argsort(log.user_id.codes[rows], kind="stable")]
            code, time = log.user_id.codes[mine], log.time[mine]
            new_user = np.r_[True, code[1:] != code[:-1]][: len(mine)]
            new_moment = new_user | np.r_[True, time[1:] != time[:-1]][: len(mine)]
            place = done + np.arange(len(mine))
            begin[code[new_user]] = place[new_user]
            last[mine] = np.maximum.accumulate(np.where(new_moment, place, 0))  # where its moment begins
            events[done : done + len(mine)] = mine
            done += len(mine)
        return events[:done], begin, last

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """See `HistoryView`."""
        for user, wanted in _by_user(self._events, rows):
            mine = self._histories.rows_of_code(user)
            time = self._events.time[mine]
            for part in _parts(wanted[np.argsort(self._log.time[wanted], kind="stable")]):
                earlier = np.searchsorted(time, self._log.time[part], side="left")
                first, last = max(0, int(earlier[0]) - limit), int(earlier[-1])
                place = np.arange(first, last)
                seen = (place < earlier[:, None]) & (place >= earlier[:, None] - limit)
                yield Window(part, mine[first:last], seen & (self._log.time[part] != NO_TIME)[:, None])

    def spans(self, rows: Integers, limit: int) -> Spans:
        """See `HistoryView`."""
        events, begin, last = self._user_events
        ends = last[rows]
        # A row without a time sees nothing, and ends before its user begins.
        first = np.minimum(begin[self._events.user_id.codes[rows]], ends)
        return Spans(events, np.maximum(first, ends - limit), ends)

    def counts(self, keys: CodedColumn, rows: Integers | None = None) -> Counts:
        """See `HistoryView`."""
        return point_in_time_counts(keys, _some_of(self._log, rows))

    def decayed(self, keys: CodedColumn, rows: Integers | None = None) -> Floats:
        """See `HistoryView`."""
        return point_in_time_decayed(keys, _some_of(self._log, rows))


class OutOfFoldHistory:
    """Each training row sees the training rows of other folds, any other row all of them; time plays no part.

    Args:
        fold: Fold of each training row, 0 or more; -1 for all other rows, which nobody sees.
    """

    def __init__(self, log: ClickLog, fold: Integers) -> None:
        self._log = log
        self._fold = fold

    @cached_property
    def _mine(self) -> "_UserRows":
        return _UserRows(self._log, self._fold >= 0)

    @cached_property
    def _spans(self) -> Spans:
        """All training rows of the user of each row, of whatever fold."""
        codes = _user_codes(self._log)
        training = np.flatnonzero((self._fold >= 0) & (codes != NO_VALUE))
        events = training[np.argsort(codes[training], kind="stable")]
        first, last = (np.searchsorted(codes[events], codes, side=side) for side in ("left", "right"))
        return Spans(events, first, np.where(codes != NO_VALUE, last, first), self._fold[events], self._fold)

    def windows(self, rows: Integers, limit: int) -> Iterator[Window]:
        """See `HistoryView`; of a user with more events than `limit`, those nearest in time."""
        for user, wanted in _by_user(self._log, rows):
            mine = self._mine.of(user)
            for part in _parts(wanted[np.argsort(self._log.time[wanted], kind="stable")]):
                near = np.searchsorted(self._log.time[mine], self._log.time[part])
                start = np.clip(near - limit // 2, 0, max(0, len(mine) - limit))
                first, last = int(start.min()), min(len(mine), int(start.max()) + limit)
                place = np.arange(first, last)
                seen = (place >= start[:, None]) & (place < start[:, None] + limit)
                yield Window(part, mine[first:last], seen & self._other_fold(part, mine[first:last]))

    @cached_property
    def _moments(self) -> Integers:
        """Numbers of the rows of the log that rise with (user, time)."""
        ranks = np.unique(self._log.time, return_inverse=True)[1]
        return _user_codes(self._log) * (int(ranks.max(initial=0)) + 1) + ranks

    def spans(self, rows: Integers, limit: int) -> Spans:
        """See `HistoryView`; of a user with more events than `limit`, those nearest in time."""
        mine = self._spans.take(rows)
        # How many of the user's training rows are of an earlier moment: below (user, time), from (user, -infinity) on.
        near = np.searchsorted(self._moments[mine.events], self._moments[rows], side="left") - mine.first
        first = mine.first + np.clip(near - limit // 2, 0, np.maximum(0, mine.last - mine.first - limit))
        return replace(mine, first=first, last=np.minimum(first + limit, mine.last))

    def _other_fold(self, rows: Integers, past: Integers) -> npt.NDArray[np.bool_]:
        different: npt.NDArray[np.bool_] = self._fold[rows][:, None] != self._fold[past][None]
        return different

    def counts(self, keys: CodedColumn, rows: Integers | None = None) -> Counts:
        """See `HistoryView`."""
        return out_of_fold_counts(keys, _some_of(self._log, rows), self._fold_of(rows), self._folds)

    def decayed(self, keys: CodedColumn, rows: Integers | None = None) -> Floats:
        """See `HistoryView`."""
        return out_of_fold_decayed(keys, _some_of(self._log, rows), self._fold_of(rows), self._folds)

    def _fold_of(self, rows: Integers | None) -> Integers:
        return self._fold if rows is None else self._fold[rows]

    @property
    def _folds(self) -> int:
        return int(self._fold.max(initial=0)) + 1


def _some_of(log: ClickLog, rows: Integers | None) -> ClickLog:
    """Some rows of a log, or all, without their context."""
    return log if rows is None else replace(log, context={}).take(rows)


def _by_user(log: ClickLog, rows: Integers) -> Iterator[tuple[int, Integers]]:
    """The rows of each user, in order of time, users by name; rows without a user stand together before all others.

    A user is a code of ``log.user_id.sorted``.
    """
    if not len(rows):
        return
    codes = log.user_id.sorted.codes[rows]
    order = np.lexsort((rows, codes))  # the log is in order of time
    starts = np.flatnonzero(np.diff(codes[order], prepend=codes[order[0]] - 1))
    yield from zip(codes[order[starts]].tolist(), np.split(rows[order], starts[1:]), strict=True)


def _by_time(log: ClickLog, rows: Integers) -> Integers:
    """Rows, which are in the order of the log, in that of time; those of a moment keep their order."""
    time = log.time[rows]
    return rows if (time[1:] >= time[:-1]).all() else rows[np.argsort(time, kind="stable")]


class _UserRows:
    """Some rows of a log by their user, in the order of time; those without a user are nobody's."""

    def __init__(self, log: ClickLog, wanted: npt.NDArray[np.bool_]) -> None:
        users = log.user_id.sorted
        rows = _by_time(log, np.flatnonzero(wanted & users.known))
        order, self._start = grouped(users.codes[rows], len(users.names))
        self._rows = rows[order]

    def of(self, user: int) -> Integers:
        """Row indices of a user, who is a code of ``log.user_id.sorted``."""
        return self._rows[self._start[user + 1] : self._start[user + 2]]


def _user_codes(log: ClickLog) -> Integers:
    """A number of each row's user, int64 [rows]; equal for equal users alone, `NO_VALUE` for nobody."""
    return log.user_id.codes.astype(np.int64)


def _parts(rows: Integers) -> Iterator[Integers]:
    for start in range(0, len(rows), _WINDOW_ROWS):
        yield rows[start : start + _WINDOW_ROWS]


class Histories:
    """Every user's events in the order of time."""

    def __init__(self, log: ClickLog) -> None:
        self._log = log
        self._rows = _UserRows(log, log.time != NO_TIME)

    def rows_of(self, user_id: str) -> Integers:
        """Row indices of a user's events in the order of time; rows without a time or a user are nobody's."""
        return self.rows_of_code(self._log.user_id.sorted.code_of(user_id))

    def rows_of_code(self, user: int) -> Integers:
        """The same of a user by their code in ``log.user_id.sorted``."""
        return self._rows.of(user)

    def before(self, user_id: str, time: int, limit: int) -> tuple[Event, ...]:
        """A user's newest `limit` events strictly before `time` (microseconds since 1970), oldest first."""
        earlier = self._rows_before(user_id, time)
        return tuple(events_of(self._log, earlier[-limit:])) if limit > 0 else ()

    def _rows_before(self, user_id: str, time: int) -> Integers:
        rows = self.rows_of(user_id)
        return rows[: np.searchsorted(self._log.time[rows], time, side="left")]


def events_of(log: ClickLog, rows: Integers) -> list[Event]:
    """What each of some rows of the log says that the user did."""
    columns = zip(kinds_of(log, rows), log.ad_id[rows].tolist(), log.time[rows].tolist(), strict=True)
    return [Event(kind, ad_id=ad_id, timestamp=_moment(time)) for kind, ad_id, time in columns]


def kinds_of(log: ClickLog, rows: Integers) -> list[EventType]:
    """The strongest that each of some rows of the log says that the user did."""
    kinds = np.select([log.conversions[rows] > 0, log.clicks[rows] > 0], [2, 1], 0)
    return [_KINDS[kind] for kind in kinds.tolist()]


def _moment(time: int) -> datetime | None:
    return datetime.fromtimestamp(time / 1_000_000, UTC) if time != NO_TIME else None


def with_history(user: UserProfile, histories: Histories, time: int, limit: int) -> UserProfile:
    """`user` with the history of the log before `time` (microseconds since 1970)."""
    return replace(user, history=histories.before(user.user_id, time, limit))
