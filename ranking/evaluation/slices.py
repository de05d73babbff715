"""Parts of a test on which a model may do better or worse than on the whole. Plain functions of arrays."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, Integers
from adcascade.records.coded import CodedColumn
from adcascade.records.packed import blocks
from ranking.data.dataset import Dataset
from ranking.inputs.text import HISTORY_EVENTS

# A context column with more values than this is no slice that people read.
_MOST_VALUES = 12
_LABEL_CHARS = 80
_HISTORY_ENDS = (0, 4, 19, 99)
_POSITION_ENDS = (0, 1, 2, 3, 5, 10)

Labels = npt.NDArray[np.str_]


def slices(data: Dataset, rows: Integers) -> Iterator[tuple[str, Labels]]:
    """Names of ways to slice the given rows, and the label of each row; labels sort in the order to be shown."""
    log, training = data.log, data.split.train
    yield "ad", _known(log.ad_id[rows], log.ad_id[training])
    if log.user_id[rows].known.any():
        yield "user", _known(log.user_id[rows], log.user_id[training])
        yield "events before", _classes(_history_lengths(data, rows), _HISTORY_ENDS)
    yield "ad's impressions in training", _deciles(_impressions(data, rows))
    if (log.position[rows] > 0).any():
        yield "position", _classes(log.position[rows].astype(np.int64), _POSITION_ENDS)
    if (log.time[rows] != NO_TIME).all():
        minutes = log.time[rows] // 60_000_000 + log.utc_offset[rows]
        hours = minutes // 60 % 24
        yield "hour", np.array([f"{hour // 6 * 6:02d}-{hour // 6 * 6 + 5:02d}" for hour in hours.tolist()])
    for name, column in log.context.items():
        values = column[rows]
        if 1 < values.distinct + int(not values.known.all()) <= _MOST_VALUES:
            yield name, values.of_names(lambda value: value[:_LABEL_CHARS], "unknown")


def _known(ids: CodedColumn, training: CodedColumn) -> Labels:
    """Both columns are rows of one, so equal texts have equal codes."""
    return np.where(np.isin(ids.codes, training.codes), "in training", "not in training")


def _history_lengths(data: Dataset, rows: Integers) -> Integers:
    return np.diff(data.past.spans(rows, HISTORY_EVENTS).recent()[0])


def _impressions(data: Dataset, rows: Integers) -> Integers:
    training = data.split.train
    ads = data.log.ad_id
    total = np.zeros(len(ads.names), np.int64)
    for some in blocks(len(training)):
        np.add.at(total, ads.codes[training[some]], data.log.impressions[training[some]])
    return total[ads.codes[rows]]


def _deciles(values: Integers) -> Labels:
    """Tenths of the rows by value; rows of one value stay together."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, 11)[1:-1]))
    bin_of = np.searchsorted(edges, values, side="left")
    labels = np.empty(len(values), "U32")
    width = len(str(values.max()))
    for number in np.unique(bin_of):
        inside = values[bin_of == number]
        labels[bin_of == number] = f"{inside.min():{width}d} to {inside.max():{width}d}"
    return labels


def _classes(values: Integers, ends: tuple[int, ...]) -> Labels:
    """Classes that end at (and include) the given values; the last one is open."""
    width, starts = len(str(ends[-1] + 1)), (0, *(end + 1 for end in ends))
    names = [
        f"{start:{width}d}" if start == end else f"{start:{width}d} to {end}"
        for start, end in zip(starts, ends, strict=False)
    ]
    return np.array([*names, f"{starts[-1]} or more"])[np.searchsorted(ends, values, side="left")]
