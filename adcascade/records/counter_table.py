"""Totals of what was counted, by id, in columns: what counters are looked up in. Knows no logs."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adcascade.records.decayed_counts import decay

Floats = npt.NDArray[np.float64]

# Half-lives of counts that fade, in hours, by the names that they have in features and files.
HALF_LIVES_H: Mapping[str, float] = MappingProxyType({"1h": 1.0, "6h": 6.0, "1d": 24.0, "7d": 168.0})
_HALF_LIVES = np.array(list(HALF_LIVES_H.values()))  # [half-lives]


class Total(NamedTuple):
    """What was counted of one key; `first` and `last` are seconds since 1970, None where no time is known.

    `decayed` holds impressions and clicks under each of `HALF_LIVES_H`, as they were at `last`; none if not counted.
    """

    impressions: int
    clicks: int
    first: float | None = None
    last: float | None = None
    decayed: tuple[float, ...] = ()


NUMBERS = ("impressions", "clicks", "first", "last")
DECAYED_NUMBERS = tuple(f"{what}_{name}" for name in HALF_LIVES_H for what in ("impressions", "clicks"))
_UNKNOWN_VALUES = np.array([0, 0, np.nan, np.nan, *(0.0 for _ in DECAYED_NUMBERS)])
WIDTH = len(_UNKNOWN_VALUES)
_LINES = 1 << 20  # that are written at once
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.string()),
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("first", pa.float64()),
        ("last", pa.float64()),
        *((name, pa.float64()) for name in DECAYED_NUMBERS),
    ]
)


class CounterTable(Mapping[str, Total]):
    """Totals by id, in columns: a thousand ids are looked up in a tenth of a millisecond.

    Args:
        ids: Each once; of an Arrow array they become texts of Python only once one is looked up.
        values: of each id, float64 [ids, 4 + 2 half-lives]: impressions, clicks, first, last (NaN where no time is
            known), and the decayed impressions and clicks of each half-life, as they were at `last`; or the first four
            alone, if nothing is counted with decay.
    """

    def __init__(self, ids: Iterable[str] | pa.LargeStringArray, values: Floats) -> None:
        self._ids = ids if isinstance(ids, pa.LargeStringArray) else pa.array(list(ids), pa.large_string())
        if not isinstance(ids, pa.LargeStringArray):
            self._rows  # noqa: B018 (a server looks ids up at once)
        # One more row stands for ids that are not known.
        self._values = np.concatenate([values, _UNKNOWN_VALUES[None, : values.shape[1]]])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._ids.to_pylist())}

    @classmethod
    def of(cls, totals: Mapping[str, Total]) -> "CounterTable":
        """The same totals in columns."""
        if isinstance(totals, CounterTable):
            return totals
        values = np.array([_values_of(total) for total in totals.values()], np.float64)
        return cls(totals, values.reshape(-1, WIDTH))

    def lines(self, key: str) -> Iterator[pa.Table]:
        """The totals as lines of ``counters.parquet``, which are of `key`, some after the other."""
        for start in range(0, len(self), _LINES):
            ids = self._ids[start : start + _LINES]
            numbers = np.zeros((WIDTH, len(ids)))
            numbers[: self._values.shape[1]] = self._values[start : start + len(ids)].T
            columns = [pa.array(one, mask=np.isnan(one)) for one in numbers]
            names = pa.array([key]).take(pa.array(np.zeros(len(ids), np.int8)))
            yield pa.Table.from_arrays([names, ids, *columns], SCHEMA.names).cast(SCHEMA)

    def __getitem__(self, name: str) -> Total:
        impressions, clicks, *times = self._values[self._rows[name], :4].tolist()
        first, last = (None if math.isnan(time) else time for time in times)
        decayed = self._values[self._rows[name], 4:]
        return Total(int(impressions), int(clicks), first, last, tuple(decayed.tolist()) if decayed.any() else ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def last(self) -> float | None:
        """The latest `last`; None if no time is known."""
        known = self._values[~np.isnan(self._values[:, 3]), 3]
        return float(known.max()) if len(known) else None

    def values_of(self, ids: Sequence[str]) -> Floats:
        """Columns as `values` of these ids, float64 [ids, columns]; an unknown one counts nothing."""
        rows, unknown = self._rows, len(self._ids)
        found = self._values[[rows.get(name, unknown) for name in ids]]
        return np.pad(found, ((0, 0), (0, WIDTH - found.shape[1])))


def _values_of(total: Total) -> list[float | None]:
    """A row of `CounterTable`; None becomes NaN in it."""
    return [*total[:4], *(total.decayed or (0.0,) * len(DECAYED_NUMBERS))]


def overridden(values: Floats, total: Total) -> Floats:
    """A row of `CounterTable` with a fresher total in its place."""
    result = np.array(_values_of(total), np.float64)  # None becomes NaN
    if not total.decayed:
        if np.isnan(result[3]):  # a total that says no time is of the one that is known
            result[3] = values[3]
        hours = np.nan_to_num((result[3] - values[3]) / 3600).clip(0)
        since = (result[:2] - values[:2]).clip(0)
        since[1] = min(since)  # no more clicks than impressions, though each alone is a fresher total
        result[4:] = (values[4:].reshape(-1, 2) * decay(hours, _HALF_LIVES)[:, None] + since).ravel()
    return result
