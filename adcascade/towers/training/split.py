"""Which rows of a log the towers are trained on, which choose, and which test."""

from dataclasses import dataclass

import numpy as np

from adcascade.records.clicks import ClickLog, Integers
from adcascade.records.errors import InputError
from adcascade.records.splits import split_by_time, split_each_user

SPLITS = ("time", "user", "ad", "none")
_HIDDEN_ADS = 0.2


@dataclass(frozen=True)
class TowerSplit:
    """Row indices of a log.

    Attributes:
        fit: what the towers are trained on to choose by `tune`.
        tune: later rows, by which weights of popularity are chosen.
        train: what the towers are then trained on anew, once all is chosen.
        test: rows that no training sees; empty if all rows train.
    """

    fit: Integers
    tune: Integers
    train: Integers
    test: Integers


def split_log(log: ClickLog, split: str, seed: int) -> TowerSplit:
    """Cuts a log.

    Args:
        split: "time" (the newest tenth of the rows tests), "user" (the newest fifth of each user's), "ad" (the same,
            of ads that no training row has), "none" (nothing tests).
        seed: for the choice of the ads that are hidden.

    Raises:
        InputError: Rows have no time, or all the same, or none has a user, or a part would be empty.
    """
    if not (log.has_time and log.user_id.known.any()):
        why = log.untimed_rows if not log.has_time else "no row has a user_id"
        raise InputError(f"the towers learn from what users did over time: the log needs user_id and timestamp; {why}")
    if log.one_moment:
        raise InputError(
            f"the towers learn from what users did over time, but {log.one_moment_rows}: give each row its own time"
        )
    if split == "time":
        fit, tune, test = split_by_time(log)
        return TowerSplit(fit, tune, np.concatenate([fit, tune]), test)
    if split == "none":
        fit, tune, last = split_by_time(log)
        return TowerSplit(np.concatenate([fit, tune]), last, np.arange(len(log)), np.empty(0, np.int64))
    fit, tune, test = split_each_user(log)
    train = np.sort(np.concatenate([fit, tune]))
    if split == "user":
        return TowerSplit(fit, tune, train, test)
    if split == "ad":
        to_test, to_choose = _hidden_ads(log, seed)
        return TowerSplit(
            fit[~(to_test | to_choose)[fit]],
            tune[~to_test[tune]],
            train[~to_test[train]],
            test[to_test[test]],
        )
    raise InputError(f"there is no split {split!r}; choose one of {', '.join(SPLITS)}")


def _hidden_ads(log: ClickLog, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are of ads that are hidden from all training, and from `fit` alone."""
    ads, count = log.ad_id.sorted.codes, log.ad_id.distinct
    place = np.random.default_rng(seed).permutation(count) / count
    return (place < _HIDDEN_ADS)[ads], ((place >= _HIDDEN_ADS) & (place < 2 * _HIDDEN_ADS))[ads]
