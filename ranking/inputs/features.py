"""What the ranker knows beside the text, computed alike for training and for serving.

How often ad, advertiser, category and user were shown and clicked, and how long ago. Knows no tensors.

Features stand in a registry by name. A model version names those that it was trained with, and reads exactly those, so
that one more in the registry changes no version that was saved before. A formula that changes gets a new name.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from adcascade.records.ads import Ad
from adcascade.records.clicks import Integers
from adcascade.records.coded import CodedColumn, pairs
from adcascade.records.counter_table import HALF_LIVES_H
from adcascade.records.counters import DECAYED, Counts
from adcascade.records.decayed_counts import decay
from adcascade.records.users import EVENT_WEIGHT, EventType
from ranking.inputs.feature_inputs import FeatureInputs as FeatureInputs
from ranking.inputs.feature_inputs import Numbers, once

Features = npt.NDArray[np.float32]

# What is counted.
COUNTED = ("ad", "advertiser", "category", "user", "user_category", "user_advertiser")

# Stands between the two names of a pair.
_BETWEEN = "\x1f"

# A rate shrinks to the CTR of the whole log as if this many impressions had been seen at that CTR.
PRIOR_IMPRESSIONS = 10.0
# From so many rows a request on, what stands beside an ad is worth reading.
REQUEST_ROWS = 1.5
# Of the rows of a log, how many have a category, say, if its counters are to be read: from fewer, a model learns more
# noise than it can tell of the others.
LEAST_KNOWN = 0.1
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


def key_column(key: str, ad_ids: CodedColumn, user_ids: CodedColumn, ads: Mapping[str, Ad]) -> CodedColumn:
    """One of `keys_of` of many impressions; no value where there is no id.

    Args:
        key: of `COUNTED`.
        ads: those of `ad_ids`, at least, by id.
    """
    if key in ("ad", "user"):
        return ad_ids if key == "ad" else user_ids
    if key.startswith("user_"):
        return pairs(user_ids, key_column(key.removeprefix("user_"), ad_ids, user_ids, ads), _BETWEEN)
    return ad_ids.renamed(lambda ad_id: ads[ad_id].advertiser if key == "advertiser" else ads[ad_id].category)


def counter_id(key: str, name: str, user_id: str) -> str:
    """What a counter of `COUNTED` is looked up by: `name` is that of an ad, advertiser or category."""
    if key == "user":
        return user_id
    return _both(user_id, name) if key.startswith("user_") else name


def _both(first: str, second: str) -> str:
    return f"{first}{_BETWEEN}{second}" if first and second else ""


# One number an impression, float64 [rows]; NaN where it is not known.
Feature = Callable[[FeatureInputs], Numbers]


def _impressions_log(key: str, inputs: FeatureInputs) -> Numbers:
    return np.log1p(inputs.counts[key].impressions)


def _ctr_logit(key: str, inputs: FeatureInputs) -> Numbers:
    return _smoothed_logit(inputs.counts[key].clicks, inputs.counts[key].impressions, inputs.ctr)


def _smoothed_logit(clicks: Numbers, impressions: Numbers, ctr: float) -> Numbers:
    """Log-odds of the smoothed click rate: log((clicks + m p) / (no clicks + m (1 - p))), m = PRIOR_IMPRESSIONS."""
    prior = float(np.clip(ctr, 1e-6, 1 - 1e-6))
    return np.log((clicks + PRIOR_IMPRESSIONS * prior) / (impressions - clicks + PRIOR_IMPRESSIONS * (1 - prior)))


def _decayed(key: str, half_life: str, inputs: FeatureInputs) -> Numbers:
    """Impressions and clicks as they have faded by the time of each impression, float64 [2, rows]."""
    counts = inputs.counts[key]
    if counts.decayed is None:
        raise ValueError(f"the counters of {key!r} have no decayed counts")
    hours = once(inputs, ("hours", key), partial(_hours_since, counts, inputs))
    totals = counts.decayed[:, list(HALF_LIVES_H).index(half_life)].T
    return once(inputs, ("faded", key, half_life), lambda: totals * decay(hours, HALF_LIVES_H[half_life]))


def _hours_since(counts: Counts, inputs: FeatureInputs) -> Numbers:
    # Nothing was counted where no time is known.
    return np.nan_to_num(inputs.timestamp_s - counts.last).clip(0) / 3600


def _decayed_impressions_log(key: str, half_life: str, inputs: FeatureInputs) -> Numbers:
    logs: Numbers = np.log1p(_decayed(key, half_life, inputs)[0])
    return logs


def _decayed_ctr_logit(key: str, half_life: str, inputs: FeatureInputs) -> Numbers:
    impressions, clicks = _decayed(key, half_life, inputs)
    return _smoothed_logit(clicks, impressions, inputs.ctr)


def _recency_log(key: str, inputs: FeatureInputs) -> Numbers:
    return _hours_log(inputs.timestamp_s - inputs.counts[key].last)


def _ad_age_log(inputs: FeatureInputs) -> Numbers:
    return _hours_log(inputs.timestamp_s - inputs.counts["ad"].first)


def _hours_log(seconds: Numbers) -> Numbers:
    # ln (1 + hours); what is still to come counts as now, NaN stays
    return np.log1p(np.maximum(seconds, 0) / 3600)


def _request_size_log(inputs: FeatureInputs) -> Numbers:
    """How many ads are shown together: of many, each is clicked less."""
    if inputs.shown is None:
        return np.full(len(inputs.timestamp_s), np.nan)
    return np.log(inputs.shown)


def _content_similarity(name: str, inputs: FeatureInputs) -> Numbers:
    """One of the figures of `Similarity`."""
    if inputs.similarity is None:
        return np.full(len(inputs.timestamp_s), np.nan)
    values: Numbers = getattr(inputs.similarity, name)
    return values


def _in_request(feature: Feature, inputs: FeatureInputs) -> Numbers:
    """What a feature is above its mean over the candidates of the request (those whose feature is known)."""
    values = once(inputs, feature, partial(feature, inputs))
    request = np.zeros(len(values), np.int64) if inputs.request is None else inputs.request
    known = ~np.isnan(values)
    count = np.bincount(request, known)
    mean = np.bincount(request, np.where(known, values, 0.0)) / np.maximum(count, 1)
    return values - mean[request]


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
# What every new model is trained with.
FEATURES = tuple(REGISTRY)

# Where the log has times: counts that fade.
_DECAYED_FEATURES: dict[str, Feature] = {
    f"{key}_{name}_{half_life}": partial(of_decayed, key, half_life)
    for key in DECAYED
    for half_life in HALF_LIVES_H
    for name, of_decayed in (("impressions_log", _decayed_impressions_log), ("ctr_logit", _decayed_ctr_logit))
}
REGISTRY |= _DECAYED_FEATURES
# Where requests show several ads: how many, and how each stands to the others.
_REQUEST_FEATURES: dict[str, Feature] = {
    "request_size_log": _request_size_log,
    **{
        f"{name}_in_request": partial(_in_request, REGISTRY[name])
        for name in (
            "ad_impressions_log",
            "ad_ctr_logit",
            "ad_recency_log",
            "ad_age_log",
            "category_ctr_logit",
            "user_category_ctr_logit",
            *(name for name in _DECAYED_FEATURES if name.startswith("ad_")),
        )
    },
}
REGISTRY |= _REQUEST_FEATURES
# Where users are known to have liked something: how near to it the ad is, and how much nearer than the others.
_CONTENT_FEATURES: dict[str, Feature] = {
    f"content_similarity_{name}": partial(_content_similarity, name) for name in ("total", "nearest")
}
REGISTRY |= _CONTENT_FEATURES
_CONTENT_IN_REQUEST = {f"{name}_in_request": partial(_in_request, of) for name, of in _CONTENT_FEATURES.items()}
REGISTRY |= _CONTENT_IN_REQUEST


def features_for(*, timed: bool, request_rows: float, counted: Collection[str] = COUNTED) -> tuple[str, ...]:
    """Names of the features that a log can teach without comparing texts.

    Args:
        timed: whether its rows have times.
        request_rows: how many rows a request has in the mean.
        counted: those of `COUNTED` that enough of its rows have to learn from.
    """
    names = FEATURES + (tuple(_DECAYED_FEATURES) if timed else ())
    if request_rows >= REQUEST_ROWS:
        decayed = {f"{name}_in_request" for name in _DECAYED_FEATURES}
        names += tuple(name for name in _REQUEST_FEATURES if timed or name not in decayed)
    return tuple(name for name in names if counter_of(name) in (None, *counted))


def counter_of(name: str) -> str | None:
    """Which of `COUNTED` a feature reads; None for one of the request alone."""
    # "user_category_ctr_logit" begins like one of "user", too.
    return max((key for key in COUNTED if name.startswith(f"{key}_")), key=len, default=None)


def reads_decayed(key: str, names: Sequence[str]) -> bool:
    """Whether any of the named features needs the faded counts of one of `COUNTED`."""
    return any(name in _DECAYED_FEATURES and name.startswith(f"{key}_") for name in map(_of_whole_log, names))


def _of_whole_log(name: str) -> str:
    """The feature that one within the request is made from."""
    return name.removesuffix("_in_request")


def content_features(*, request_rows: float) -> tuple[str, ...]:
    """Names of those that compare texts, of a log whose requests have so many rows in the mean."""
    return tuple(_CONTENT_FEATURES) + (tuple(_CONTENT_IN_REQUEST) if request_rows >= REQUEST_ROWS else ())


def reads_content(name: str) -> bool:
    """Whether a feature compares texts."""
    return name in _CONTENT_FEATURES or name in _CONTENT_IN_REQUEST


def unknown_features(names: Sequence[str]) -> list[str]:
    """Those that this release does not compute."""
    return [name for name in names if name not in REGISTRY]


def dense_features(inputs: FeatureInputs, names: Sequence[str] = FEATURES) -> Features:
    """The named features of impressions, float32 [rows, features], not normalised; NaN where a time is not known."""
    columns = np.empty((len(names), len(inputs.timestamp_s)), np.float32)
    for column, name in zip(columns, names, strict=True):
        feature = REGISTRY[name]
        column[:] = once(inputs, feature, partial(feature, inputs))
    return np.ascontiguousarray(columns.T)


def snapshot_features(inputs: FeatureInputs, end: float | None, names: Sequence[str] = FEATURES) -> Features:
    """`dense_features` by counters that were brought up to date at `end`, seconds since 1970 (None: unknown)."""
    # Long after the log's end all looks old alike, which training has never seen.
    latest = np.nan if end is None else end + _LONGEST_LAG
    return dense_features(replace(inputs, timestamp_s=np.minimum(inputs.timestamp_s, latest)), names)


def time_gap_buckets(seconds: Numbers, ends: Sequence[float] = TIME_GAP_ENDS) -> Integers:
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
