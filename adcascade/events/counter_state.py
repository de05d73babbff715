"""What was counted of one key, in numbers that no order of counting changes. Knows no events and no disk."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from adcascade.events.decayed_sums import DecayedSums
from adcascade.events.impressions import Contribution
from adcascade.events.values import CounterKey
from adcascade.records.counter_table import HALF_LIVES_H, Total
from adcascade.records.counters import DECAYED

HALF_LIVES_US = tuple(int(hours * 3_600_000_000) for hours in HALF_LIVES_H.values())
_NUMBERS = struct.Struct("<qqqqqq")
_LENGTHS = struct.Struct(f"<{len(HALF_LIVES_US)}I")
# No moment is known; microseconds since 1970 never come near it.
_NONE = -(1 << 62)


def keys_of(ad_id: str, advertiser: str, category: str, user_id: str) -> Iterator[CounterKey]:
    """All keys that an impression of an ad to a user counts for."""
    for kind, name in (("ad", ad_id), ("advertiser", advertiser), ("category", category)):
        if name:
            yield CounterKey(kind, name)
    if user_id:
        yield CounterKey("user", "", user_id)
        for kind, name in (("user_advertiser", advertiser), ("user_category", category)):
            if name:
                yield CounterKey(kind, name, user_id)


@dataclass
class CounterState:
    """Totals of one key.

    Attributes:
        impressions, clicks, conversions: whole numbers.
        first_us, last_us: of its impressions, microseconds since 1970; None before one is known.
        newest_us: of all that was counted of it.
        decayed: impressions and clicks under each half-life; empty for keys that are not counted so.
    """

    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    first_us: int | None = None
    last_us: int | None = None
    newest_us: int | None = None
    decayed: list[DecayedSums] = field(default_factory=list)

    @classmethod
    def empty(cls, kind: str) -> "CounterState":
        """Of a key of which nothing was counted."""
        return cls(decayed=[DecayedSums(one) for one in HALF_LIVES_US] if kind in DECAYED else [])

    @classmethod
    def from_bytes(cls, data: bytes) -> "CounterState":
        """What `to_bytes` wrote."""
        impressions, clicks, conversions, *times = _NUMBERS.unpack_from(data)
        first, last, newest = (None if time == _NONE else time for time in times)
        decayed, place = [], _NUMBERS.size
        if len(data) > place:
            lengths = _LENGTHS.unpack_from(data, place)
            place += _LENGTHS.size
            for half_life, length in zip(HALF_LIVES_US, lengths, strict=True):
                decayed.append(DecayedSums.from_bytes(half_life, data[place : place + length]))
                place += length
        return cls(impressions, clicks, conversions, first, last, newest, decayed)

    def to_bytes(self) -> bytes:
        """Equal states give equal bytes."""
        times = (_NONE if time is None else time for time in (self.first_us, self.last_us, self.newest_us))
        numbers = _NUMBERS.pack(self.impressions, self.clicks, self.conversions, *times)
        if not self.decayed:
            return numbers
        newest = 0 if self.newest_us is None else self.newest_us
        sums = [one.to_bytes(newest) for one in self.decayed]
        return numbers + _LENGTHS.pack(*map(len, sums)) + b"".join(sums)

    @property
    def has_counts(self) -> bool:
        """Whether anything is counted in it."""
        return bool(self.impressions or self.clicks or self.conversions)

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not self.has_counts and self.newest_us is None

    def count(self, one: Contribution, sign: int = 1) -> None:
        """Counts a contribution; with a sign of -1 takes it away again."""
        self.impressions += sign * one.impressions
        self.clicks += sign * one.clicks
        self.conversions += sign * one.conversions
        for sums in self.decayed:
            sums.add(one.time_us, sign * one.impressions, sign * one.clicks)

    def touch(self, time_us: int, *, impression: bool) -> None:
        """Notes when something happened to the key."""
        self.newest_us = time_us if self.newest_us is None else max(self.newest_us, time_us)
        if impression:
            self.first_us = time_us if self.first_us is None else min(self.first_us, time_us)
            self.last_us = time_us if self.last_us is None else max(self.last_us, time_us)

    def total(self) -> Total:
        """As the ranker reads it: no more clicks than impressions, and what fades as it was at `last`."""
        first, last = (None if time is None else time / 1e6 for time in (self.first_us, self.last_us))
        decayed = self.decayed_at(self.last_us) if self.last_us is not None else ()
        return Total(self.impressions, min(self.clicks, self.impressions), first, last, decayed)

    def decayed_at(self, time_us: int) -> tuple[float, ...]:
        """Impressions and clicks under each half-life at a moment, one after the other."""
        return tuple(value for sums in self.decayed for value in sums.at(time_us))
