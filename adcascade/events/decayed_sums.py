"""Sums that decay with a half-life, in whole numbers, so that no order of adding changes them by a single bit.

Forward decay (Cormode et al., "Forward decay: a practical time decay model for streaming systems", ICDE 2009) in fixed
point.

With a half-life h, what happened at t is worth 2^(-(T - t) / h) at T. Written as t = b h + r with a whole b and
0 <= r < h this is 2^(b - T / h) 2^(r / h). The second factor is kept as a whole number of 2^-24, and these are summed
by b: adding and taking away are exact, and the first factor comes in only when a sum is read. A sum keeps the newest
`KEPT` of its b; what is older has decayed to less than 2^-`KEPT`. Knows nothing of what is summed.
"""

import struct
from collections.abc import Iterable

KEPT = 56
_ONE = 1 << 24  # so that 64 bits hold 10^11 impressions of a key in a half-life
_ENTRY = struct.Struct("<iqq")


class DecayedSums:
    """Impressions and clicks of one key under one half-life.

    Args:
        half_life_us: in microseconds.
        sums: impressions and clicks by b, in units of 2^-24.

    Example:
        >>> hour = 3_600_000_000
        >>> sums = DecayedSums(hour)
        >>> sums.add(0, impressions=1, clicks=0)
        >>> sums.add(2 * hour, impressions=1, clicks=1)
        >>> sums.at(2 * hour)
        (1.25, 1.0)
    """

    def __init__(self, half_life_us: int, sums: dict[int, tuple[int, int]] | None = None) -> None:
        self._half_life_us = half_life_us
        self._sums = {} if sums is None else sums

    @classmethod
    def from_bytes(cls, half_life_us: int, data: bytes) -> "DecayedSums":
        """What `to_bytes` wrote."""
        return cls(half_life_us, {b: (impressions, clicks) for b, impressions, clicks in _ENTRY.iter_unpack(data)})

    def to_bytes(self, newest_us: int) -> bytes:
        """What is worth keeping once something happened at `newest_us`: equal sums give equal bytes."""
        oldest = newest_us // self._half_life_us - KEPT
        kept: Iterable[tuple[int, tuple[int, int]]] = sorted(self._sums.items())
        return b"".join(_ENTRY.pack(b, *both) for b, both in kept if b > oldest and any(both))

    def add(self, time_us: int, impressions: int, clicks: int) -> None:
        """Counts what happened at a moment; negative numbers take it away again."""
        b, rest = divmod(time_us, self._half_life_us)
        weight = round(2.0 ** (rest / self._half_life_us) * _ONE)
        before = self._sums.get(b, (0, 0))
        self._sums[b] = (before[0] + weight * impressions, before[1] + weight * clicks)

    def at(self, time_us: int) -> tuple[float, float]:
        """What is left of impressions and clicks at a moment; what comes later than it does not count yet.

        Of the half-life in which the moment lies all is counted, as if it had happened before.
        """
        whole, rest = divmod(time_us, self._half_life_us)
        scale = 2.0 ** (-rest / self._half_life_us) / _ONE
        left = [0.0, 0.0]
        for b, both in sorted(self._sums.items()):
            if b <= whole:
                for place, value in enumerate(both):
                    left[place] += value * scale * 2.0 ** (b - whole)
        return left[0], left[1]
