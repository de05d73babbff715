"""Dense features of every row of a log, block by block of whole requests. Knows no tensors and no models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import CodedColumn
from adcascade.records.counter_table import HALF_LIVES_H
from adcascade.records.counters import CounterSnapshot, Counts
from adcascade.records.history import HistoryView
from ranking.data.feature_table import RowTable, TableLimits, request_blocks
from ranking.inputs.features import (
    FeatureInputs,
    Features,
    counter_of,
    dense_features,
    reads_decayed,
    snapshot_features,
)

# Into how many tables of counters the memory of one of features is cut.
_TABLES = 8

Moments = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FeatureSource:
    """What the features of a log's rows are made from.

    Attributes:
        keys: what each row's counters are looked up by, for each of `ranking.inputs.features.COUNTED`.
        past: what each row may look back on.
        counters: of a model version, which then stand in for those of `past`; None for these.
        ctr: that rates shrink to, 0 to 1.
        requests: number of each row's request, int64 [rows].
        request_rows: rows of each request, int64 [requests].
    """

    log: ClickLog
    keys: Mapping[str, CodedColumn]
    past: HistoryView
    counters: CounterSnapshot | None
    ctr: float
    names: tuple[str, ...]
    requests: Integers
    request_rows: Integers

    @property
    def read_keys(self) -> dict[str, CodedColumn]:
        """Those of `keys` whose counters any of the features reads."""
        read = {counter_of(name) for name in self.names}
        return {key: ids for key, ids in self.keys.items() if key in read}


def features_by_block(source: FeatureSource, limits: TableLimits) -> RowTable:
    """The named features of each row, float32 [rows, features], not normalised.

    Features are made block by block. Counters are not: those of a key are replayed for the whole log at once, one key
    after the other, and wait in a table of their own until all are there.

    Raises:
        InputError: The folder for temporary files has no room for the tables.
    """
    count = len(source.log)
    order, cuts = request_blocks(source.requests, limits.block_rows)
    table = RowTable(count, len(source.names), np.float32, order, limits.most_in_memory)
    tables = {}
    if source.counters is None:
        tables = {key: _counted(source, key, limits) for key in source.read_keys}
    for start, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        rows = np.arange(start, end) if order is None else order[start:end]
        table.append(_features(source, tables, rows))
    return table


def _features(source: FeatureSource, tables: Mapping[str, RowTable], rows: Integers) -> Features:
    """Of some rows, which are whole requests, float32 [rows, features]."""
    time = source.log.time[rows]
    timestamps_s = np.where(time != NO_TIME, time / 1e6, np.nan)
    shown = source.request_rows[source.requests[rows]].astype(np.float64)
    request = np.unique(source.requests[rows], return_inverse=True)[1]
    if source.counters is None:
        counts = {key: _counts_of(table[rows]) for key, table in tables.items()}
        return dense_features(FeatureInputs(counts, source.ctr, timestamps_s, request, shown), source.names)
    counts = {key: source.counters.counts(key, ids[rows].tolist()) for key, ids in source.read_keys.items()}
    inputs = FeatureInputs(counts, source.ctr, timestamps_s, request, shown)
    return snapshot_features(inputs, source.counters.end, source.names)


def _counted(source: FeatureSource, key: str, limits: TableLimits) -> RowTable:
    """Impressions, clicks, first and last of each row's key, and the faded ones if any feature reads them."""
    ids, count = source.keys[key], len(source.log)
    faded = None
    if reads_decayed(key, source.names):
        faded = source.past.decayed(ids).reshape(count, -1)
    counts = source.past.counts(ids)
    table = RowTable(
        count, 4 + (0 if faded is None else faded.shape[1]), np.float64, None, limits.most_in_memory // _TABLES
    )
    for start in range(0, count, limits.block_rows):
        some = slice(start, start + limits.block_rows)
        columns = [one[some, None] for one in (counts.impressions, counts.clicks, counts.first, counts.last)]
        table.append(np.concatenate([*columns, *([] if faded is None else [faded[some]])], axis=1))
    return table


def _counts_of(values: npt.NDArray[np.float64]) -> Counts:
    """Rows of `_counted` as counts."""
    decayed = values[:, 4:].reshape(len(values), len(HALF_LIVES_H), 2) if values.shape[1] > 4 else None
    return Counts(values[:, 0], values[:, 1], values[:, 2], values[:, 3], decayed)


def moments(table: RowTable, rows: Integers, limits: TableLimits) -> tuple[Moments, Moments]:
    """Mean and deviation of each feature over those of some rows where it is known, float64 [features] each."""

    def blocks() -> Iterator[tuple[Moments, npt.NDArray[np.bool_]]]:
        for start in range(0, len(rows), limits.block_rows):
            features = table[rows[start : start + limits.block_rows]].astype(np.float64)
            yield features, ~np.isnan(features)

    count, total, squares = np.zeros((3, table.shape[1]))
    for features, known in blocks():
        count += known.sum(axis=0)
        total += np.where(known, features, 0).sum(axis=0)
    count = np.maximum(count, 1)
    mean = total / count
    for features, known in blocks():
        squares += (np.where(known, features - mean, 0) ** 2).sum(axis=0)
    return mean, np.sqrt(squares / count)
