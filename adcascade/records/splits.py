"""A click log cut into training, validation and test: by time, by request, by ad, at random. Knows no models."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import NO_TIME, ClickLog, Integers
from adcascade.records.coded import NO_VALUE, CodedColumn, grouped
from adcascade.records.errors import InputError
from adcascade.records.packed import blocks, index_type, totals


class Split(NamedTuple):
    """Row indices of the three parts of a log, int32 where that is enough; a part may be empty."""

    train: Integers
    valid: Integers
    test: Integers


def split_by_time(log: ClickLog, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """Row indices of training, validation and test: earliest rows first. No moment falls into two parts.

    Raises InputError if a row has no time, all rows have one time, or a part would be empty.
    """
    if not log.has_time:
        raise InputError(f"a split by time needs a timestamp in every row: {log.untimed_rows}")
    if log.one_moment:
        raise InputError(f"a split by time needs rows of several times: {log.one_moment_rows}")
    cuts = [0, *(_cut(log.time, sum(shares[:parts])) for parts in (1, 2)), len(log)]
    return _non_empty([np.arange(start, end, dtype=index_type(len(log))) for start, end in pairwise(cuts)])


def split_each_user(log: ClickLog, shares: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> Split:
    """Row indices of training, validation and test: of each user the earliest rows, the next and the newest.

    Rows without a user or a time are in no part. Raises InputError if all rows have one time, or a part is empty.
    """
    if log.one_moment:
        raise InputError(f"a split of each user's rows by time needs rows of several times: {log.one_moment_rows}")
    rows = np.flatnonzero(log.user_id.known & (log.time != NO_TIME))
    order, start = grouped(log.user_id.codes[rows], len(log.user_id.names))  # the log is in order of time
    users, rows = log.user_id.codes[rows[order]], rows[order]
    counts = np.diff(start[1:])
    place = np.arange(len(rows)) - np.r_[0, np.cumsum(counts)[:-1]][users]
    cuts = np.array([np.floor(counts * sum(shares[:parts]) + 1e-9) for parts in (1, 2)])[:, users]
    part = (place >= cuts).sum(axis=0)
    return _non_empty([np.sort(rows[part == number]) for number in range(3)])


def split_by_key(keys: CodedColumn, seed: int, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Split:
    """Row indices of training, validation and test: all rows of one key together, keys at random.

    With request ids, no request is torn apart; with ad ids, the test holds ads that no training row has. Raises
    InputError if a part is empty.
    """
    return split_at_random(len(keys.sorted.names), seed, shares, keys.sorted.codes)


def split_folds(keys: CodedColumn, folds: int, fold: int, seed: int = 0) -> Split:
    """Row indices of training, validation and test: the keys of one fold test, an eighth of the others validate.

    Raises InputError if a part is empty.
    """
    group = keys.sorted.codes
    place = np.random.default_rng(seed).permutation(len(keys.sorted.names))
    part = np.where(place % folds == fold, 2, np.where(place // folds % 8 == 0, 1, 0))
    return _non_empty([np.flatnonzero(part[group] == number) for number in range(3)])


def split_at_random(
    count: int,
    seed: int,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    group: npt.NDArray[np.integer[Any]] | None = None,
) -> Split:
    """Row indices of training, validation and test: `count` rows (or groups, with the group of each row) at random.

    Raises InputError if a part is empty.
    """
    place = np.random.default_rng(seed).permutation(count) / count
    part = np.searchsorted(np.cumsum(shares[:2]) - 1e-9, place, side="right")
    return _non_empty([np.flatnonzero((part if group is None else part[group]) == number) for number in range(3)])


def drawn_units(log: ClickLog, rows: Integers, most: int, seed: int | Sequence[int] = 0) -> Integers:
    """Some of the given rows, those of users drawn at random (rows of nobody by request), at most so many.

    All rows of a drawn user are kept, so that GAUC and a bootstrap over users see them as they would in the whole; who
    does not fit any more is passed over. If nobody fits, the first of the rows are taken.

    Args:
        rows: row indices, rising.
    """
    if len(rows) <= most:
        return rows
    users, requests = log.user_id, log.request_id
    # Of each row the place of its user among all, in the order of their names, or after them that of its request.
    unit = np.empty(len(rows), index_type(len(users.names) + len(requests.names)))
    for some in blocks(len(rows)):
        code = users.codes[rows[some]]
        unit[some] = users.ranks[code] if len(users.names) else 0
        nobody = np.flatnonzero(code == NO_VALUE)
        unit[some.start + nobody] = len(users.names) + requests.ranks[requests.codes[rows[some][nobody]]]
    of_all = totals(unit, len(users.names) + len(requests.names))
    there = np.flatnonzero(of_all)
    counts = of_all[there]
    order = np.random.default_rng(seed).permutation(len(counts))
    kept, left = np.zeros(len(counts), bool), most
    while left > 0 and len(order := order[counts[order] <= left]):
        # Up to the first that does not fit; those after it that do are looked at again. Who fits has at most `left`
        # rows, so that at least half of what is left is taken, or all of the users.
        taken = order[np.cumsum(counts[order]) <= left]
        kept[taken] = True
        left -= int(counts[taken].sum())
        order = order[len(taken) + 1 :]
    if not kept.any():
        return rows[:most]
    is_kept = np.zeros(len(of_all), bool)
    is_kept[there[kept]] = True
    return rows[is_kept[unit]]


def _cut(time: Integers, share: float) -> int:
    """The first row at or after `share` of the log that begins a new moment."""
    row = min(round(share * len(time)), len(time) - 1)
    return int(np.searchsorted(time, time[row], side="left"))


def _non_empty(parts: list[npt.NDArray[Any]]) -> Split:
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if len(part) == 0:
            rows = sum(map(len, parts))
            raise InputError(f"the log is too small to split: the {name} part would be empty ({rows:,} rows in all)")
    return Split(*parts)
