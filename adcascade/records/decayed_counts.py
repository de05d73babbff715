"""Counts that fade: each event counts half as much after a half-life, so that they tell what is popular now.

The sum of what happened strictly before each row, each value times 2^(-age / half-life), is a linear recurrence over
the rows of a key in order of time. It is solved for all keys at once by a blocked scan (Blelloch, "Prefix sums and
their applications", 1990), in time linear in the rows and without a Python step a row or key. Knows no logs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, Integers
from adcascade.records.coded import grouped

Floats = npt.NDArray[np.float64]

MICROS_PER_HOUR = 3_600_000_000.0
# Rows of a block of the scan: a step of Python for each, so many fewer rows on the next level.
_BLOCK = 32


def decay(hours: npt.ArrayLike, half_life_h: npt.ArrayLike) -> Floats:
    """What is left of a count after some hours, 0 to 1: 2^(-hours / half-life), float64; both are broadcast."""
    faded: Floats = np.exp2(-np.asarray(hours, np.float64) / np.asarray(half_life_h, np.float64))
    return faded


class KeyedEvents:
    """What happened to each key, in order of time, to be summed under several half-lives.

    Rows of a key and a moment are one event: they do not see each other.

    Args:
        codes: number of each row's key, int64 [rows], from 0; a negative one counts nothing.
        time: microseconds since 1970, or `NO_TIME`, which counts nothing, int64 [rows].
        values: what is summed, [rows, columns].

    Attributes:
        key, last: key and moment of each event, int64 [events], in order of key, then of time.
        before_rows: for each of the rows: the last event of its key that is strictly earlier, -1 if there is none,
            int64 [rows].

    Example:
        >>> hour = 3_600_000_000
        >>> events = KeyedEvents(np.array([0, 0, 0]), np.array([0, hour, 2 * hour]), np.ones((3, 1)))
        >>> events.states(half_life_h=1.0)[:, 0].tolist()
        [1.0, 1.5, 1.75]
        >>> events.before(np.array([0, 0]), np.array([0, 2 * hour])).tolist()
        [-1, 1]
    """

    def __init__(self, codes: Integers, time: Integers, values: npt.NDArray[np.floating[Any]] | Integers) -> None:
        rows = np.flatnonzero((codes >= 0) & (time != NO_TIME))
        rows = rows[_by_key_and_time(codes[rows], time[rows])]
        code, event_time = codes[rows], time[rows]
        new_key = np.ones(len(rows), bool)
        new_key[1:] = code[1:] != code[:-1]
        new_event = new_key.copy()
        new_event[1:] |= event_time[1:] != event_time[:-1]
        first = np.flatnonzero(new_event)
        self.key, self.last = code[first], event_time[first]
        del code, event_time  # one ad may have millions of rows
        self._begins = new_key[first]  # [events]
        event = np.cumsum(new_event)  # [rows]
        event -= 1
        self.before_rows = np.full(len(codes), -1)
        self.before_rows[rows] = np.where(self._begins[event], -1, event - 1)
        self._values: Floats = np.empty((len(first), values.shape[1]))  # [events, columns]
        for place, column in enumerate(values.T):
            self._values[:, place] = np.bincount(event, column[rows], len(first))

    def __len__(self) -> int:
        return len(self.key)

    def states(self, half_life_h: float) -> Floats:
        """The faded sum of each key at each of its events, that one included, float64 [events, columns]."""
        # Hours since the event before.
        hours = np.where(self._begins, np.inf, np.diff(self.last, prepend=0) / MICROS_PER_HOUR)
        return recurrence(decay(hours, half_life_h), self._values)

    def before(self, codes: Integers, time: Integers) -> Integers:
        """As `before_rows`, for any rows, int64 [rows]."""
        if not len(self):
            return np.full(len(codes), -1)
        times = np.unique(self.last)
        # Orders by key, then by time; a row stands before the events of its own moment.
        place = self.key * (len(times) + 1) + np.searchsorted(times, self.last)
        wanted = codes * (len(times) + 1) + np.searchsorted(times, time)
        event = np.searchsorted(place, wanted) - 1
        of_key = (event >= 0) & (codes >= 0) & (time != NO_TIME) & (self.key[np.maximum(event, 0)] == codes)
        return np.where(of_key, event, -1)

    @property
    def ends(self) -> Integers:
        """The last event of each key, int64 [keys]."""
        return np.flatnonzero(np.append(self._begins[1:], True)) if len(self) else np.empty(0, np.int64)


def _by_key_and_time(codes: Integers, time: Integers) -> Integers:
    """The order of rows by key, then by time, int64 [rows]; a log mostly is in order of time already."""
    if (time[1:] < time[:-1]).any():
        return np.lexsort((time, codes))
    return grouped(codes, int(codes.max(initial=-1)) + 1)[0]


def recurrence(factor: Floats, values: Floats) -> Floats:
    """s[i] = factor[i] s[i - 1] + values[i] with s[-1] = 0, float64 [events, columns].

    Args:
        factor: [events]; zero begins anew.
        values: [events, columns].
    """
    count = len(values)
    if count <= 1:
        return values.copy()
    blocks = -(-count // _BLOCK)
    # [columns, place in block, blocks], so that each step works on whole stretches of memory.
    state = _in_blocks(values.T, blocks)
    product = _in_blocks(factor[None], blocks)[0]
    # In each block: the sum from its beginning, and the product of its factors so far, by which what was before fades.
    for step in range(1, _BLOCK):
        state[:, step] += product[step] * state[:, step - 1]
        product[step] *= product[step - 1]
    if blocks > 1:
        ends = recurrence(product[-1], state[:, -1].T)  # [blocks, columns]
        state[:, :, 1:] += product[None, :, 1:] * ends.T[:, None, :-1]
    return np.ascontiguousarray(state.transpose(2, 1, 0).reshape(blocks * _BLOCK, -1)[:count])


def _in_blocks(columns: Floats, blocks: int) -> Floats:
    """[columns, events] as [columns, place in block, blocks], filled up with zeros."""
    padded = np.zeros((len(columns), blocks * _BLOCK))
    padded[:, : columns.shape[1]] = columns
    return np.ascontiguousarray(padded.reshape(len(columns), blocks, _BLOCK).swapaxes(1, 2))
