"""Rows of a log in units of one user, many of which make a batch: by sorted codes, never row by row. Knows no tensors.

A unit is some rows of a user that stand near each other in time, so that they look back on much the same events, which
are then read once for all of them. Rows of a request are never torn apart, but for a very long one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.records.coded import Codes
from adcascade.records.history import Spans
from adcascade.records.packed import index_type, packed

_UNIT_ROWS, _UNIT_EVENTS = 128, 256
# What one more tile costs, and what reading one more impression or event does, in (user, impression, event) cells of
# computing; and how many cells a tile has at most.
_CELLS_OF_A_TILE, _CELLS_OF_A_SLOT, _TILE_CELLS = 8192, 4, 131_072


@dataclass(frozen=True)
class UserUnits:
    """Rows in units of one user.

    Attributes:
        rows: row indices, those of a unit together in order of time, [rows].
        spans: what each of them may see, from the first event of its unit, [rows].
        starts: where the rows of each unit begin, [units + 1].
        event_starts, event_counts: which of `spans.events` each unit looks back on, [units].
        looking_back: how many of its rows, the last ones, may have a past, [units].

    Of a large log they are most of the memory: all are of few bits, as far as these hold them.
    """

    rows: Integers
    spans: Spans
    starts: Integers
    event_starts: Integers
    event_counts: Integers
    looking_back: Integers

    def __len__(self) -> int:
        return len(self.event_starts)

    @property
    def counts(self) -> Integers:
        """Rows of each unit."""
        return np.diff(self.starts)

    def in_random_order(self, generator: np.random.Generator, rows_per_batch: int) -> Iterator[Integers]:
        """Units in random order, in batches of about so many rows, int64 [units of the batch]."""
        order = generator.permutation(len(self)).astype(index_type(len(self)))
        return self._batches(order, rows_per_batch)

    def by_size(self, rows_per_batch: int) -> Iterator[Integers]:
        """All units, those with many events together, in batches of about so many rows."""
        return self._batches(np.lexsort((self.looking_back, self.event_counts)), rows_per_batch)

    def _batches(self, order: Integers, rows_per_batch: int) -> Iterator[Integers]:
        if not len(order):
            return
        yield from np.split(order, self._cuts(order, rows_per_batch))

    def _cuts(self, order: Integers, rows_per_batch: int) -> Integers:
        """Where batches begin but for the first one, int64 [batches - 1]."""
        counts = self.counts[order]
        batch = np.cumsum(counts)
        batch -= counts
        batch //= rows_per_batch
        return np.flatnonzero(batch[1:] != batch[:-1]) + 1


def units_together(parts: Sequence[UserUnits]) -> UserUnits:
    """Units of one log, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    spans = [part.spans for part in parts]
    folds = [one.row_fold for one in spans if one.row_fold is not None]
    before = np.cumsum([0, *(len(part.rows) for part in parts)]).tolist()
    ends = [part.starts[1:].astype(np.int64) + rows for part, rows in zip(parts, before, strict=False)]
    return UserUnits(
        np.concatenate([part.rows for part in parts]),
        replace(
            spans[0],
            first=np.concatenate([one.first for one in spans]),
            last=np.concatenate([one.last for one in spans]),
            row_fold=np.concatenate(folds) if folds else None,
        ),
        np.concatenate([np.zeros(1, np.int64), *ends]).astype(index_type(before[-1])),
        np.concatenate([part.event_starts for part in parts]),
        np.concatenate([part.event_counts for part in parts]),
        np.concatenate([part.looking_back for part in parts]),
    )


def make_units(rows: Integers, users: Codes, requests: Integers, spans: Spans) -> UserUnits:
    """Puts rows into units.

    Args:
        rows: row indices; the log is in order of time.
        users, requests: codes of each row of the log, [log rows].
        spans: of each of `rows`.
    """
    order = np.lexsort((rows, users[rows]))
    rows, spans = rows[order], spans.take(order)
    starts = _unit_starts(users[rows], requests[rows], spans.last)
    sees, place = spans.last > spans.first, np.arange(len(rows))
    low = _of_units(np.minimum, np.where(sees, spans.first, len(spans.events)), starts)
    high = _of_units(np.maximum, np.where(sees, spans.last, 0), starts)
    counts = np.maximum(high - low, 0)
    low = np.where(counts > 0, low, 0)
    ends = np.r_[starts, len(rows)][1:]
    first_that_sees = _of_units(np.minimum, np.where(sees, place, len(rows)), starts)
    shift = np.repeat(low, ends - starts)
    first, last = (packed(np.where(sees, place - shift, 0)) for place in (spans.first, spans.last))
    of_units = (packed(one) for one in (low, counts, np.maximum(ends - first_that_sees, 0)))
    relative = replace(spans, first=first, last=last)
    begins = np.r_[starts, len(rows)].astype(index_type(len(rows)))
    return UserUnits(rows.astype(index_type(len(users))), relative, begins, *of_units)


def _unit_starts(user: Codes, request: Integers, last: Integers) -> Integers:
    """Where units begin, [units]: at another user, and every so many rows or events."""
    new_user = _changes(user)
    user_start = _latest(new_user)
    place = np.arange(len(user))
    # A run of rows of one request goes where its first row goes.
    run = place - _latest(new_user | _changes(request))
    head = place - run % _UNIT_ROWS
    of_rows, of_events = (head - user_start) // _UNIT_ROWS, (last[head] - last[user_start]) // _UNIT_EVENTS
    return np.flatnonzero(new_user | _changes(of_rows) | _changes(of_events))


def _changes(codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
    """Where a code differs from the one before; the first one does."""
    changes = np.ones(len(codes), np.bool_)
    changes[1:] = codes[1:] != codes[:-1]
    return changes


def _latest(starts: npt.NDArray[np.bool_]) -> Integers:
    """The latest place so far that is a start, [places]."""
    found: Integers = np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
    return found


def _of_units(ufunc: np.ufunc, values: Integers, starts: Integers) -> Integers:
    found: Integers = ufunc.reduceat(values, starts) if len(starts) else np.empty(0, np.int64)
    return found


def tiles_of(rows: Integers, events: Integers) -> list[Integers]:
    """Users in tiles in which padding is little, int64 [users of the tile] each; who has no events is in none.

    Users whose numbers of rows and of events have as many binary digits are alike and stay together. Of all ways to put
    neighbours in the order of these digits into tiles, the cheapest is taken.

    Args:
        rows, events: how many each user has, [users].
    """
    have = np.flatnonzero((rows > 0) & (events > 0))
    if not len(have):
        return []
    alike = 64 * _digits(events[have]) + _digits(rows[have])
    order = np.argsort(alike, kind="stable")
    have, starts = have[order], np.flatnonzero(_changes(alike[order]))
    sizes = np.diff(np.r_[starts, len(have)]).tolist()
    cuts = _cheapest(sizes, *(np.maximum.reduceat(one[have], starts).tolist() for one in (rows, events)))
    tiles = np.split(have, starts[cuts[1:]])
    return [part for tile in tiles for part in _cut(tile, rows, events)]


def _cheapest(users: list[int], rows: list[int], events: list[int]) -> list[int]:
    """Which of some classes, each of so many users of at most so many rows and events, begin a tile; the first does."""
    best, begins = [0], [0]  # the cost of the first classes, and where the last tile of these begins
    for end in range(1, len(users) + 1):
        count = width = height = 0
        costs = []
        for start in range(end - 1, -1, -1):
            count, width, height = count + users[start], max(width, rows[start]), max(height, events[start])
            cells = count * (width * height + _CELLS_OF_A_SLOT * (width + height))
            costs.append((best[start] + cells + _CELLS_OF_A_TILE, start))
        cost, start = min(costs)
        best.append(cost)
        begins.append(start)
    cuts = [begins[-1]]
    while cuts[0] > 0:
        cuts.insert(0, begins[cuts[0]])
    return cuts


def _cut(tile: Integers, rows: Integers, events: Integers) -> list[Integers]:
    users = max(1, _TILE_CELLS // (int(rows[tile].max()) * int(events[tile].max())))
    return [tile[start : start + users] for start in range(0, len(tile), users)]


def _digits(numbers: Integers) -> Integers:
    """Binary digits of the numbers less one: 1 to 1 have none, 2 one, 3 and 4 two, 5 to 8 three."""
    return np.ceil(np.log2(numbers)).astype(np.int64)
