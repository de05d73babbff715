"""What a click log is like, before anything is learned from it. Plain functions of arrays."""

from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, Integers
from adcascade.records.coded import Codes, combinations
from adcascade.records.packed import blocks
from ranking.data.dataset import Dataset

_DAY = 86_400_000_000
# Rows that are compared with each other at once, about.
_PART_ROWS = 1 << 21


@dataclass(frozen=True)
class Day:
    """One day (UTC) of a log."""

    day: date
    impressions: int
    clicks: int


@dataclass(frozen=True)
class LogFacts:
    """A click log and its split.

    Attributes:
        ctr: clicks per impression of the training, validation and test part, None for an empty part.
        days: CTR by day; empty without times.
        unseen_ads, unseen_users: share of the test rows whose ad, or user, no training row has.
        duplicates: rows that say of the same request, user, ad and moment what an earlier row says already.
        clicks_before_shown: clicks on an ad before its catalog entry says that it starts.
    """

    rows: int
    impressions: int
    clicks: int
    conversions: int
    ads: int
    users: int
    requests: int
    split: str
    ctr: tuple[float | None, ...]
    days: tuple[Day, ...]
    unseen_ads: float
    unseen_users: float
    duplicates: int
    clicks_before_shown: int


def report_on(data: Dataset) -> LogFacts:
    """Looks at all rows; takes a second or two for a hundred thousand."""
    log, training, test = data.log, data.split.train, data.split.test
    return LogFacts(
        rows=len(log),
        impressions=int(log.impressions.sum()),
        clicks=int(log.clicks.sum()),
        conversions=int(log.conversions.sum()),
        ads=log.ad_id.distinct,
        users=log.user_id.distinct,
        requests=int(data.groups.max()) + 1,
        split=data.split_by,
        ctr=tuple(log.ctr_of(part) if len(part) else None for part in data.split),
        days=tuple(_days(data)),
        unseen_ads=_unseen(log.ad_id.codes, training, test),
        unseen_users=_unseen(log.user_id.codes, training, test),
        duplicates=_duplicates(data),
        clicks_before_shown=_clicks_before_shown(data),
    )


def _days(data: Dataset) -> list[Day]:
    log = data.log
    counts: dict[int, npt.NDArray[np.int64]] = {}
    for some in blocks(len(log)):
        timed = log.time[some] != NO_TIME
        days, codes = np.unique(log.time[some][timed] // _DAY, return_inverse=True)
        found = np.zeros((len(days), 2), np.int64)
        for place, column in enumerate((log.impressions, log.clicks)):
            np.add.at(found[:, place], codes, column[some][timed])
        for day, of_block in zip(days.tolist(), found, strict=True):
            counts[day] = counts.get(day, 0) + of_block
    dates = {day: datetime.fromtimestamp(day * 86_400, UTC).date() for day in sorted(counts)}
    return [Day(date, *counts[day].tolist()) for day, date in dates.items()]


def _unseen(ids: Codes, training: Integers, test: Integers) -> float:
    return float((~np.isin(ids[test], ids[training])).mean()) if len(test) else 0.0


def _duplicates(data: Dataset) -> int:
    log, different = data.log, 0
    parts = 1 + len(log) // _PART_ROWS
    for number in range(parts):  # rows of a request are in one
        rows = np.flatnonzero(log.request_id.codes % parts == number)
        columns = (log.request_id.codes, log.user_id.codes, log.ad_id.codes, log.time)
        different += len(combinations([column[rows] for column in columns])[0])
    return len(log) - different


def _clicks_before_shown(data: Dataset) -> int:
    starts = {ad_id: ad.start_time.timestamp() * 1e6 for ad_id, ad in data.ads.items() if ad.start_time is not None}
    if not starts:
        return 0
    start = data.log.ad_id.of_names(lambda ad_id: starts.get(ad_id, -np.inf), -np.inf)
    early = (data.log.time != NO_TIME) & (data.log.time < start)
    return int(data.log.clicks[early].sum())
