"""How often an ad, an advertiser, a category or a user was shown and clicked, without a look at the row itself.

`counts_before` and `counts_of_other_folds` replay a log for training; `CounterSnapshot` is what serving reads. Knows no
models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from records.clicks import NO_TIME, ClickLog, Integers, Texts

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Impressions and clicks, float64 arrays of one shape; not always whole numbers (see `counts_of_other_folds`)."""

    impressions: Floats
    clicks: Floats


def counts_before(keys: Texts, log: ClickLog) -> Counts:
    """For each row of `log`: impressions and clicks of its key in strictly earlier rows. Arrays of shape [rows].

    Rows of the same moment do not see each other; a row without a time neither sees nor is seen. An empty key counts
    nothing.
    """
    codes = np.unique(keys.astype(str), return_inverse=True)[1]
    order = np.lexsort((log.time, codes))
    code, time = codes[order], log.time[order]
    new_key = np.r_[True, code[1:] != code[:-1]]
    new_moment = new_key | np.r_[True, time[1:] != time[:-1]]
    rows = np.arange(len(order))
    key_start = np.maximum.accumulate(np.where(new_key, rows, 0))
    moment_start = np.maximum.accumulate(np.where(new_moment, rows, 0))
    usable = (time != NO_TIME) & (keys[order] != "")

    def before(column: Integers) -> Floats:
        total = np.r_[0, np.cumsum(np.where(usable, column[order], 0))]
        result = np.empty(len(order))
        result[order] = np.where(usable, total[moment_start] - total[key_start], 0)
        return result

    return Counts(before(log.impressions), before(log.clicks))


def counts_of_other_folds(keys: Texts, log: ClickLog, fold: Integers) -> Counts:
    """For each row of `log`: impressions and clicks of its key in the folds that the row is not in. Shape [rows].

    Args:
        keys: Key of each row; an empty one counts nothing.
        fold: Fold of each training row, 0 or more; -1 for rows that are not to be learned from, which see all folds.
            What a training row sees is scaled up as if it saw all folds too, so that a model meets counts of one size.
    """
    codes = np.unique(keys.astype(str), return_inverse=True)[1]
    folds = int(fold.max(initial=0)) + 1
    training = (fold >= 0) & (keys != "")
    scale = np.where(fold >= 0, folds / max(1, folds - 1), 1.0)

    def elsewhere(column: Integers) -> Floats:
        table = np.zeros((int(codes.max(initial=0)) + 1, folds))
        np.add.at(table, (codes[training], fold[training]), column[training])
        own = np.where(training, table[codes, np.maximum(fold, 0)], 0.0)
        return np.where(keys != "", (table.sum(axis=1)[codes] - own) * scale, 0.0)

    return Counts(elsewhere(log.impressions), elsewhere(log.clicks))


@dataclass(frozen=True)
class CounterSnapshot:
    """Impressions and clicks of every key at the end of a log, for serving.

    Attributes:
        totals: what is counted ("ad", "user", ...) -> id -> (impressions, clicks).
    """

    totals: Mapping[str, Mapping[str, tuple[int, int]]]

    @classmethod
    def of(cls, log: ClickLog, keys: Mapping[str, Texts]) -> "CounterSnapshot":
        """Counts the whole log; `keys` holds the id of each row by what is counted."""
        return cls({name: _totals(ids, log) for name, ids in keys.items()})

    def save(self, path: Path) -> None:
        """Writes a Parquet table with the columns key, id, impressions and clicks."""
        lines = [(key, name, *counts) for key, totals in self.totals.items() for name, counts in totals.items()]
        key, name, impressions, clicks = zip(*lines, strict=True) if lines else ((), (), (), ())
        table = pa.table(
            {
                "key": pa.array(key, pa.string()),
                "id": pa.array(name, pa.string()),
                "impressions": pa.array(impressions, pa.int64()),
                "clicks": pa.array(clicks, pa.int64()),
            }
        )
        pq.write_table(table, path)

    @classmethod
    def load(cls, path: Path) -> "CounterSnapshot":
        """Reads what `save` wrote."""
        table = pq.read_table(path)
        totals: dict[str, dict[str, tuple[int, int]]] = {}
        columns = (table[name].to_pylist() for name in ("key", "id", "impressions", "clicks"))
        for key, name, impressions, clicks in zip(*columns, strict=True):
            totals.setdefault(key, {})[name] = (impressions, clicks)
        return cls(totals)

    def counts(self, key: str, ids: list[str]) -> Counts:
        """Counts of the given ids; zeros for unknown ones. Arrays of shape [ids]."""
        known = self.totals.get(key, {})
        pairs = np.array([known.get(name, (0, 0)) for name in ids], np.float64).reshape(len(ids), 2)
        return Counts(pairs[:, 0], pairs[:, 1])


def _totals(keys: Texts, log: ClickLog) -> dict[str, tuple[int, int]]:
    names, codes = np.unique(keys.astype(str), return_inverse=True)
    impressions = np.bincount(codes, log.impressions, len(names)).astype(np.int64)
    clicks = np.bincount(codes, log.clicks, len(names)).astype(np.int64)
    lines = zip(names.tolist(), impressions.tolist(), clicks.tolist(), strict=True)
    return {name: (shown, clicked) for name, shown, clicked in lines if name}
