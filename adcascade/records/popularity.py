"""How popular and how fresh ads are at a moment, from clicks and impressions before it. Knows no models.

Clicks and impressions of each ad are summed with exponential forgetting, at several half-lives at once: a state of a
few numbers an ad, to which later rows are added without looking at earlier ones again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.clicks import NO_TIME, ClickLog, Integers

Floats = npt.NDArray[np.float64]
Features = npt.NDArray[np.float32]

HALF_LIVES_DAYS = (3.0, 14.0, 60.0, np.inf)
FEATURES = (
    *(f"clicks, half-life {days:g} days" for days in HALF_LIVES_DAYS),
    *(f"impressions, half-life {days:g} days" for days in HALF_LIVES_DAYS),
    *(f"CTR, half-life {days:g} days" for days in HALF_LIVES_DAYS),
    "days since first shown",
    "never shown",
    "first shown within 14 days",
)

_SUMS = 2 * len(HALF_LIVES_DAYS)  # of clicks, then of impressions
_DAY = 86_400e6  # microseconds
_NEVER = np.iinfo(np.int64).max
_FORGETTING = np.log(2) / (np.array(2 * HALF_LIVES_DAYS) * _DAY)  # per microsecond, [sums]
_FRESH_DAYS = 14
# What every ad begins with: half a click (or impression) when compared with the mean ad, and two clicks on four
# impressions for its CTR.
_PRIOR, _PRIOR_IMPRESSIONS = 0.5, 4.0


@dataclass(frozen=True)
class PopularitySnapshot:
    """Popularity at the end of a log.

    Attributes:
        as_of_us: microseconds since 1970; all rows that were counted are earlier.
        ad_ids: every ad that was shown.
        sums: forgetting sums of each ad as of `as_of_us`: clicks, then impressions, each by `HALF_LIVES_DAYS`, float64
            [ads, sums].
        first: when each was first shown, microseconds since 1970, int64 [ads].
    """

    as_of_us: int
    ad_ids: tuple[str, ...]
    sums: Floats
    first: Integers

    @classmethod
    def of(cls, log: ClickLog) -> "PopularitySnapshot":
        """Counts all rows of a log that have a time."""
        log = log.take(log.time != NO_TIME)
        names, ads = log.ad_id.sorted.names, log.ad_id.sorted.codes
        as_of_us = int(log.time.max()) + 1 if len(log) else 0
        left = np.exp(-(as_of_us - log.time)[:, None] * _FORGETTING)
        half = _SUMS // 2
        sums = np.zeros((len(names), _SUMS))
        for place in range(_SUMS):
            counted = log.clicks if place < half else log.impressions
            sums[:, place] = np.bincount(ads, counted * left[:, place], len(names))
        first = np.full(len(names), _NEVER)
        np.minimum.at(first, ads, log.time)
        return cls(as_of_us, tuple(names.to_pylist()), sums, first)

    def updated(self, log: ClickLog) -> "PopularitySnapshot":
        """With the rows of `log` that are not earlier than `as_of_us`; earlier ones are counted already."""
        fresh = PopularitySnapshot.of(log.take(log.time >= max(self.as_of_us, NO_TIME + 1)))
        if not fresh.ad_ids:
            return self
        ids = tuple(dict.fromkeys((*self.ad_ids, *fresh.ad_ids)))
        place = {ad_id: row for row, ad_id in enumerate(ids)}
        sums, first = np.zeros((len(ids), _SUMS)), np.full(len(ids), _NEVER)
        for part in (self, fresh):
            rows = np.array([place[ad_id] for ad_id in part.ad_ids], np.int64)
            sums[rows] += part.sums * np.exp(-(fresh.as_of_us - part.as_of_us) * _FORGETTING)
            first[rows] = np.minimum(first[rows], part.first)
        return PopularitySnapshot(fresh.as_of_us, ids, sums, first)

    def features(self, ad_ids: Sequence[str]) -> Features:
        """Numbers of `FEATURES` of the given ads, float32 [ads, features]; an ad that was never shown has them, too.

        Clicks and impressions are logs of how many times those of the mean ad they are; the CTR is its difference to
        a half; days are logs, too.
        """
        rows = np.array([self._row_of.get(ad_id, -1) for ad_id in ad_ids], np.int64)
        shown = rows >= 0
        sums, first = np.zeros((len(rows), _SUMS)), np.full(len(rows), self.as_of_us)
        sums[shown], first[shown] = self.sums[rows[shown]], self.first[rows[shown]]
        mean = self.sums.mean(axis=0) if len(self.sums) else np.zeros(_SUMS)
        times_the_mean = np.log((sums + _PRIOR) / (mean + _PRIOR))
        half = _SUMS // 2
        ctr = (sums[:, :half] + _PRIOR_IMPRESSIONS / 2) / (sums[:, half:] + _PRIOR_IMPRESSIONS) - 0.5
        days = (self.as_of_us - first) / _DAY
        age = np.stack([np.log1p(days) / 5, ~shown, shown & (days < _FRESH_DAYS)], axis=1)
        return np.concatenate([times_the_mean, ctr, age], axis=1).astype(np.float32)

    def clicks(self, ad_ids: Sequence[str], half_life_days: float) -> Floats:
        """Forgetting sum of the clicks of the given ads, float64 [ads]. The half-life is one of `HALF_LIVES_DAYS`."""
        place = HALF_LIVES_DAYS.index(half_life_days)
        return np.array([self.sums[row, place] if (row := self._row_of.get(ad, -1)) >= 0 else 0.0 for ad in ad_ids])

    def impressions(self, ad_ids: Sequence[str]) -> Floats:
        """Impressions of the given ads in all, float64 [ads]."""
        return np.array([self.sums[row, -1] if (row := self._row_of.get(ad_id, -1)) >= 0 else 0.0 for ad_id in ad_ids])

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {ad_id: row for row, ad_id in enumerate(self.ad_ids)}

    def save(self, path: Path) -> None:
        """Writes a Parquet table, a row an ad; the moment is in its metadata."""
        columns = {"ad_id": list(self.ad_ids), "first": self.first}
        columns |= {f"sum_{place}": self.sums[:, place] for place in range(_SUMS)}
        table = pa.table(columns).replace_schema_metadata({"moment": str(self.as_of_us)})
        pq.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> "PopularitySnapshot":
        """Reads what `save` wrote."""
        table = pq.read_table(path)
        sums = np.stack([table[f"sum_{place}"].to_numpy() for place in range(_SUMS)], axis=1)
        as_of_us = int(table.schema.metadata[b"moment"])
        return cls(as_of_us, tuple(table["ad_id"].to_pylist()), sums, table["first"].to_numpy())
