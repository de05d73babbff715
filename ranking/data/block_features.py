"""Dense features of every row of a log, block by block of whole requests. Knows no tensors and no models."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.counter_table import HALF_LIVES_H
from adcascade.records.counters import CounterSnapshot, Counts
from adcascade.records.history import HistoryView
from adcascade.records.memory import release_unused
from ranking.data.feature_table import RowTable, TableLimits, request_blocks
from ranking.data.log_keys import LogKeys
from ranking.inputs.content import Similarity
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
        similarity: what the ads of some rows have in common with what their users liked; None if no feature reads it.
    """

    log: ClickLog
    keys: LogKeys
    past: HistoryView
    counters: CounterSnapshot | None
    ctr: float
    names: tuple[str, ...]
    requests: Integers
    request_rows: Integers
    similarity: Callable[[Integers], Similarity] | None = None

    @property
    def read_keys(self) -> list[str]:
        """Those of `keys` whose counters any of the features reads."""
        read = {counter_of(name) for name in self.names}
        return [key for key in self.keys if key in read]


def features_by_block(source: FeatureSource, limits: TableLimits) -> RowTable:
    """The named features of each row, float32 [rows, features], not normalised.

    Features are made block by block of whole requests. Counters are replayed one key after the other, in parts that
    hold all rows of each id, and wait in tables in the order of the log until all are there.

    Raises:
        InputError: The folder for temporary files has no room for the tables.
    """
    count = len(source.log)
    order, cuts = request_blocks(source.requests, limits.block_rows)
    table = RowTable(count, len(source.names), np.float32, order, limits.most_in_memory)
    tables = {}
    for key in source.read_keys if source.counters is None else ():
        tables[key] = _counted(source, key, limits)
        release_unused()
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
    similarity = None if source.similarity is None else source.similarity(rows)
    if source.counters is None:
        counts = {key: _counts_of(table[rows]) for key, table in tables.items()}
        return dense_features(FeatureInputs(counts, source.ctr, timestamps_s, request, shown, similarity), source.names)
    some = source.keys.take(rows)
    counts = {key: source.counters.counts(key, some[key].tolist()) for key in source.read_keys}
    inputs = FeatureInputs(counts, source.ctr, timestamps_s, request, shown, similarity)
    return snapshot_features(inputs, source.counters.end, source.names)


def _counted(source: FeatureSource, key: str, limits: TableLimits) -> RowTable:
    """Impressions, clicks, first and last of each row's key, and the faded ones if any feature reads them."""
    part, parts = source.keys.parts(key, limits.counted_rows)
    if parts == 1:
        return _counted_of(source, key, None, replace(limits, most_in_memory=limits.most_in_memory // _TABLES))
    bounded = replace(limits, most_in_memory=limits.most_in_memory // _TABLES // parts)
    tables = [_counted_of(source, key, np.flatnonzero(part == number), bounded) for number in range(parts)]
    whole = RowTable(len(source.log), tables[0].shape[1], np.float64, None, limits.most_in_memory // _TABLES)
    read = [0] * parts  # lines of each part that stand before the block
    for start in range(0, len(source.log), limits.block_rows):
        of_block = part[start : start + limits.block_rows]
        block = np.empty((len(of_block), whole.shape[1]))
        for number, table in enumerate(tables):
            places = np.flatnonzero(of_block == number)
            block[places] = table[np.arange(read[number], read[number] + len(places))]
            read[number] += len(places)
        whole.append(block)
    return whole


def _counted_of(source: FeatureSource, key: str, rows: Integers | None, limits: TableLimits) -> RowTable:
    """The same of some rows, which are all rows of their ids; None for all rows."""
    ids = (source.keys if rows is None else source.keys.take(rows))[key]
    count = len(ids)
    faded = None
    if reads_decayed(key, source.names):
        faded = source.past.decayed(ids, rows).reshape(count, 2 * len(HALF_LIVES_H))
    counts = source.past.counts(ids, rows)
    table = RowTable(count, 4 + (0 if faded is None else faded.shape[1]), np.float64, None, limits.most_in_memory)
    for start in range(0, count, limits.block_rows):
        block = slice(start, start + limits.block_rows)
        columns = [one[block, None] for one in (counts.impressions, counts.clicks, counts.first, counts.last)]
        table.append(np.concatenate([*columns, *([] if faded is None else [faded[block]])], axis=1))
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
            yield features, np.isnan(features)

    count, total, squares = np.zeros((3, table.shape[1]))
    for features, unknown in blocks():
        count += len(features) - unknown.sum(axis=0)
        features[unknown] = 0
        total += features.sum(axis=0)
    count = np.maximum(count, 1)
    mean = total / count
    for features, unknown in blocks():
        features -= mean
        features[unknown] = 0
        squares += np.square(features, out=features).sum(axis=0)
    return mean, np.sqrt(squares / count)
