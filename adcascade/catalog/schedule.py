"""Which ads of a catalog may be shown at a moment. Knows when ads begin and end, and nothing else of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from threading import Lock

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from adcascade.vectors.faiss_index import Rows

Microseconds = npt.NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ALWAYS, _NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max
# Callers choose the moment, so what is kept of a million ads (a megabyte each) must be few.
_KEPT = 8


class Eligibility:
    """The ads that one request may be answered with. Equal only to itself.

    Args:
        allowed: whether each ad may be shown, bool [ads]; None if all may.
        ads: how many there are in all.
    """

    def __init__(self, allowed: npt.NDArray[np.bool_] | None, ads: int) -> None:
        self.allowed = allowed
        self.ads = ads
        self.count = ads if allowed is None else int(np.count_nonzero(allowed))

    @property
    def is_everything(self) -> bool:
        """Whether no ad is left out."""
        return self.allowed is None

    @cached_property
    def rows(self) -> Rows:
        """Of the ads that may be shown, ascending, int64 [count]."""
        return np.arange(self.ads) if self.allowed is None else np.flatnonzero(self.allowed)

    @cached_property
    def bitmap(self) -> npt.NDArray[np.uint8]:
        """A bit for each ad, the lowest of a byte first: what FAISS calls IDSelectorBitmap."""
        allowed = np.ones(self.ads, np.bool_) if self.allowed is None else self.allowed
        return np.packbits(allowed, bitorder="little")

    def of(self, rows: Rows) -> Rows:
        """Those of `rows` that may be shown, in their order."""
        return rows if self.allowed is None else rows[self.allowed[rows]]


class Schedule:
    """When each ad of a catalog may be shown: from its start on, until right before its end.

    Args:
        starts, ends: microseconds since 1970, int64 [ads]; `unscheduled` gives those of ads that have none.

    Attributes:
        everything: all ads, whenever they may be shown.
    """

    def __init__(self, starts: Microseconds, ends: Microseconds) -> None:
        self._starts, self._ends = starts, ends
        both = np.concatenate([starts[starts != _ALWAYS], ends[ends != _NEVER]])
        self._changes = np.sort(both)  # between two of these, what may be shown stays the same
        self.everything = Eligibility(None, len(starts))
        self._kept: LRUCache[int, Eligibility] = LRUCache(_KEPT)
        self._lock = Lock()

    @staticmethod
    def unscheduled(ads: int) -> "tuple[Microseconds, Microseconds]":
        """Starts and ends of ads that may always be shown."""
        return np.full(ads, _ALWAYS), np.full(ads, _NEVER)

    @classmethod
    def of(cls, times: "Sequence[tuple[datetime | None, datetime | None]]") -> "Schedule":
        """Of ads given by their start and end, None for none."""
        starts = [_ALWAYS if start is None else _microseconds(start) for start, _ in times]
        ends = [_NEVER if end is None else _microseconds(end) for _, end in times]
        return cls(np.array(starts, np.int64), np.array(ends, np.int64))

    def at(self, when: datetime | None) -> Eligibility:
        """What may be shown at a moment; None is now. The same object for moments between which nothing changes."""
        if not len(self._changes):
            return self.everything
        time = _microseconds(when or datetime.now(UTC))
        span = int(np.searchsorted(self._changes, time, side="right"))
        with self._lock:
            kept = self._kept.get(span)
        if kept is None:
            allowed = (self._starts <= time) & (time < self._ends)
            kept = self.everything if allowed.all() else Eligibility(allowed, len(allowed))
            with self._lock:
                self._kept[span] = kept
        return kept


def may_be_shown(start: datetime | None, end: datetime | None, at: datetime) -> bool:
    """Whether an ad with these times may be shown at a moment; see `Schedule`."""
    return (start is None or start <= at) and (end is None or at < end)


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)
