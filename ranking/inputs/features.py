"""What the ranker knows beside the text, computed alike for training and for serving.

How often ad, advertiser, category and user were shown and clicked, and how long ago. Knows no tensors.

Features stand in a registry by name. A model version names those that it was trained with, and reads exactly those, so
that one more in the registry changes no version that was saved before. A formula that changes gets a new name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from adcascade.records.ads import Ad
from adcascade.records.clicks import Integers
from adcascade.records.counters import Counts
from adcascade.records.users import EVENT_WEIGHT, EventType

Features = npt.NDArray[np.float32]

# What is counted.
COUNTED = ("ad", "advertiser", "category", "user", "user_category", "user_advertiser")

# A rate shrinks to the CTR of the whole log as if this many impressions had been seen at that CTR.
PRIOR_IMPRESSIONS = 10.0
# Counters that were brought up to date longer ago than this, in seconds, are read as if it were this long.
_LONGEST_LAG = 86_400.0

# Upper ends, in seconds, of the classes into which the time between an event and an impression falls, unless a model
# says otherwise.
TIME_GAP_ENDS = (1.0, 10.0, 60.0, 300.0, 1800.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0, 60 * 86_400.0)
UNKNOWN_TIME_GAP = 0
TIME_GAP_BUCKETS = len(TIME_GAP_ENDS) + 2

# What a click log can teach of an event: passed over, liked, converted. Other kinds count as the nearest of these.
EVENT_CLASSES: Final = 3
# What a user says of their interests counts as something they liked.
INTERESTS_CLASS = 1


def event_class(kind: EventType) -> int:
    """0 for an event that does not speak for its ad, 1 for one that does, 2 for a conversion."""
    return 2 if kind is EventType.CONVERSION else int(is_liked(kind))


def is_liked(kind: EventType) -> bool:
    """Whether an event speaks for what it is about."""
    return EVENT_WEIGHT[kind] > 0


def keys_of(ad: Ad, user_id: str) -> dict[str, str]:
    """What the counters of an impression are looked up by: the id for each of `COUNTED`, "" where there is none."""
    return {
        "ad": ad.ad_id,
        "advertiser": ad.advertiser,
        "category": ad.category,
        "user": user_id,
        "user_category": _both(user_id, ad.category),
        "user_advertiser": _both(user_id, ad.advertiser),
    }


def counter_id(key: str, name: str, user_id: str) -> str:
    """What a counter of `COUNTED` is looked up by: `name` is that of an ad, advertiser or category."""
    if key == "user":
        return user_id
    return _both(user_id, name) if key.startswith("user_") else name


def _both(first: str, second: str) -> str:
    return f"{first}\x1f{second}" if first and second else ""


@dataclass(frozen=True)
class FeatureInputs:
    """What the features of impressions are made from.

    Attributes:
        counts: past counts of each of `COUNTED`, arrays of shape [rows].
        ctr: clicks per impression that rates shrink to, 0 to 1.
        timestamp_s: when each impression happens, seconds since 1970, NaN where nobody knows, float64 [rows].
    """

    counts: Mapping[str, Counts]
    ctr: float
    timestamp_s: npt.NDArray[np.float64]


# One number an impression, float64 [rows]; NaN where it is not known.
Feature = Callable[[FeatureInputs], npt.NDArray[np.float64]]


def _impressions_log(key: str, inputs: FeatureInputs) -> npt.NDArray[np.float64]:
    return np.log1p(inputs.counts[key].impressions)


def _ctr_logit(key: str, inputs: FeatureInputs) -> npt.NDArray[np.float64]:
    """Log-odds of the smoothed click rate."""
    # ln (clicks + m p) / (impressions - clicks + m (1 - p)), with m prior impressions at the CTR p of the whole log
    counts, prior = inputs.counts[key], float(np.clip(inputs.ctr, 1e-6, 1 - 1e-6))
    clicks = counts.clicks + PRIOR_IMPRESSIONS * prior
    others = counts.impressions - counts.clicks + PRIOR_IMPRESSIONS * (1 - prior)
    return np.log(clicks / others)


def _recency_log(key: str, inputs: FeatureInputs) -> npt.NDArray[np.float64]:
    return _hours_log(inputs.timestamp_s - inputs.counts[key].last)


def _ad_age_log(inputs: FeatureInputs) -> npt.NDArray[np.float64]:
    return _hours_log(inputs.timestamp_s - inputs.counts["ad"].first)


def _hours_log(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # ln (1 + hours); what is still to come counts as now, NaN stays
    return np.log1p(np.maximum(seconds, 0) / 3600)


# Every feature that this release computes, by its name in ``ctr.json``. None is ever taken out or changed.
REGISTRY: dict[str, Feature] = {
    f"{key}_{name}": partial(of_count, key)
    for key in COUNTED
    for name, of_count in (
        ("impressions_log", _impressions_log),
        ("ctr_logit", _ctr_logit),
        ("recency_log", _recency_log),
    )
}
REGISTRY["ad_age_log"] = _ad_age_log
# What a new model is trained with.
FEATURES = tuple(REGISTRY)


def unknown_features(names: Sequence[str]) -> list[str]:
    """Those that this release does not compute."""
    return [name for name in names if name not in REGISTRY]


def dense_features(inputs: FeatureInputs, names: Sequence[str] = FEATURES) -> Features:
    """The named features of impressions, float32 [rows, features], not normalised; NaN where a time is not known."""
    return np.stack([REGISTRY[name](inputs) for name in names], axis=1).astype(np.float32)


def snapshot_features(inputs: FeatureInputs, end: float | None, names: Sequence[str] = FEATURES) -> Features:
    """`dense_features` by counters that were brought up to date at `end`, seconds since 1970 (None: unknown)."""
    # Long after the log's end all looks old alike, which training has never seen.
    latest = np.nan if end is None else end + _LONGEST_LAG
    return dense_features(replace(inputs, timestamp_s=np.minimum(inputs.timestamp_s, latest)), names)


def time_gap_buckets(seconds: npt.NDArray[np.float64], ends: Sequence[float] = TIME_GAP_ENDS) -> Integers:
    """The class of each time between an event and an impression, whichever came first; NaN is unknown.

    Args:
        seconds: float64 of any shape.
        ends: upper ends of the classes, in seconds, rising.

    Returns:
        int64 of the shape of `seconds`, 0 to the number of `ends` + 1.
    """
    # Class n: ends[n - 2] <= seconds < ends[n - 1]; the first begins at 0, the last has no end.
    classes = 1 + np.searchsorted(ends, np.abs(seconds), side="right")
    return np.where(np.isnan(seconds), UNKNOWN_TIME_GAP, classes).astype(np.int64)
