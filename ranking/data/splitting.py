"""How the rows of a log become those to train on, to validate on and to test on. Knows no catalog and no features."""

import numpy as np

from adcascade.records.clicks import ClickLog
from adcascade.records.errors import InputError
from adcascade.records.splits import (
    Split,
    drawn_units,
    split_at_random,
    split_by_key,
    split_by_time,
    split_each_user,
)

SPLITS = ("time", "user", "random", "request", "ad")
# Validation and test rows at most: of more, all figures would have the same three digits.
MOST_HELD_OUT = 500_000


def split_rows(log: ClickLog, split: str, seed: int) -> Split:
    """The rows split as asked, see `ranking.data.dataset.load_dataset`. Raises InputError where that cannot be."""
    if split == "time":
        return split_by_time(log)
    if split == "user":
        return split_each_user(log)
    if split == "random":
        return split_at_random(len(log), seed)
    if split == "none":
        everything, nothing = np.arange(len(log)), np.empty(0, np.int64)
        return Split(everything, nothing, nothing)
    if split in ("request", "ad"):
        return split_by_key(log.request_id if split == "request" else log.ad_id, seed)
    raise InputError(f"there is no split {split!r}; choose auto or one of {', '.join(SPLITS)}")


def why_not_by_time(log: ClickLog) -> str:
    """Why a log cannot be split by time; "" if it can."""
    if not log.has_time:
        return log.untimed_rows
    if log.one_moment:
        return log.one_moment_rows
    try:
        split_by_time(log)
    except InputError:
        return f"too many of the {len(log):,} rows share one of {len(np.unique(log.time)):,} times"
    return ""


def bounded(log: ClickLog, split: Split, most: int, *, in_time: bool) -> tuple[Split, tuple[str, ...]]:
    """The split with at most so many rows to validate and to test on, and what is to be said of it.

    Args:
        in_time: whether each row looks back on strictly earlier ones, those of no part among them.
    """
    rest = "are looked back on alone" if in_time else "are left out"
    drawn = Split(split.train, *(drawn_units(log, part, most) for part in (split.valid, split.test)))
    notes = [
        f"The {name} part is {len(few):,} of {len(every):,} rows, those of users (or, without one, requests) drawn at "
        f"random; the others {rest}."
        for name, few, every in (("validation", drawn.valid, split.valid), ("test", drawn.test, split.test))
        if len(few) < len(every)
    ]
    return drawn, tuple(notes)
