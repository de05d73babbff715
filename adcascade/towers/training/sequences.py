"""Users' events in the order of time, and what each moment of them should foretell. Knows no tensors.

Leak-free by construction: a moment sees the events strictly before it, and foretells those at or after it. Events of
one moment never see each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import combinations
from adcascade.records.users import EventType
from adcascade.towers.model import EVENT_TYPES, UNKNOWN_GAP, attribute_buckets

Floats = npt.NDArray[np.float32]

_MICROSECONDS = 1e6


@dataclass(frozen=True)
class Sequences:
    """Events of several users, one user after the other, each in the order of time.

    Attributes:
        users: their ids.
        start: where each user's events begin, and behind the last their end, int64 [users + 1].
        ads: number of the ad in the catalog, int64 [events].
        types: place in `EVENT_TYPES`, int64 [events].
        time: microseconds since 1970, int64 [events].
        gaps: class of the time since the user's event before, int64 [events].
        contexts: `attribute_buckets` of where each happened, int64 [events, values].
    """

    users: Sequence[str]
    start: Integers
    ads: Integers
    types: Integers
    time: Integers
    gaps: Integers
    contexts: Integers

    def of(self, user: int) -> slice:
        """The events of a user."""
        return slice(int(self.start[user]), int(self.start[user + 1]))


def sequences_of(log: ClickLog, rows: Integers, number_of: Mapping[str, int]) -> Sequences:
    """The given rows of a log that have a user, a time and a known ad."""
    numbers = log.ad_id[rows].of_names(lambda ad_id: number_of.get(ad_id, -1), -1, np.int64)
    usable = (numbers >= 0) & log.user_id[rows].known & (log.time[rows] != NO_TIME)
    rows, numbers = rows[usable], numbers[usable]
    named = log.user_id[rows].sorted
    names, users = named.names, named.codes
    order = np.lexsort((rows, log.time[rows], users))
    rows, numbers, users = rows[order], numbers[order], users[order]
    start = np.searchsorted(users, np.arange(len(names) + 1))
    time = log.time[rows]
    types = np.full(len(rows), EVENT_TYPES.index(EventType.IMPRESSION))
    types[log.clicks[rows] > 0] = EVENT_TYPES.index(EventType.CLICK)
    types[log.conversions[rows] > 0] = EVENT_TYPES.index(EventType.CONVERSION)
    return Sequences(names.to_pylist(), start, numbers, types, time, _gaps(time, start[:-1]), _contexts(log, rows))


def _contexts(log: ClickLog, rows: Integers) -> Integers:
    """`attribute_buckets` of where each row happened, int64 [rows, values]."""
    if not log.context:
        return np.zeros((len(rows), 0), np.int64)
    first, kind = combinations([column.codes[rows] for column in log.context.values()])
    return attribute_buckets([log.context_at(int(row)).values for row in rows[first]])[kind]


def _gaps(time: Integers, first: Integers) -> Integers:
    """Classes of the time since the event before; that of each user's first event is unknown."""
    seconds = np.diff(time, prepend=time[:1]) / _MICROSECONDS
    classes: Integers = np.minimum(np.log2(1 + np.maximum(seconds, 0)).astype(np.int64), UNKNOWN_GAP - 1)
    classes[first] = UNKNOWN_GAP
    return classes


@dataclass(frozen=True)
class Moment:
    """A moment in a user's history.

    Attributes:
        seen: how many of the user's events are strictly before it.
        ads, weights: ads of the clicks that followed, and how much each counts; no ad twice, none that was seen.
    """

    seen: int
    ads: Integers
    weights: Floats


def moments_of(
    sequences: Sequences, user: int, places: Integers, impression_weight: float, decay: float
) -> list[Moment]:
    """What some moments of a user's history should foretell.

    Args:
        places: How many events each moment is to see; those that would tear a moment apart are moved back.
        impression_weight: What an impression without a click counts, beside a click's 1.
        decay: How much less each later click counts than the one before it.
    """
    part = sequences.of(user)
    ads, time = sequences.ads[part], sequences.time[part]
    worth = np.where(sequences.types[part] == EVENT_TYPES.index(EventType.IMPRESSION), impression_weight, 1.0)
    found = []
    for place in np.unique(np.searchsorted(time, time[np.minimum(places, len(time) - 1)], side="left")).tolist():
        later, first, which = np.unique(ads[place:], return_index=True, return_inverse=True)
        weights = np.zeros(len(later))
        np.maximum.at(weights, which, worth[place:])
        weights *= (1 - decay) ** np.argsort(np.argsort(first))
        kept = (weights > 0) & ~np.isin(later, ads[:place])
        if kept.any():
            found.append(Moment(place, later[kept], weights[kept].astype(np.float32)))
    return found
