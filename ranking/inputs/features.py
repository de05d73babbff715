"""What the ranker knows beside the text, computed alike for training and for serving.

How often ad, advertiser, category and user were shown and clicked, and how long ago; hashed ids. Knows no tensors.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from adcascade.records.ads import Ad
from adcascade.records.clicks import Integers
from adcascade.records.counters import Counts
from adcascade.records.users import EVENT_WEIGHT, EventType

Features = npt.NDArray[np.float32]

# What is counted, and the features made from each count.
COUNTED = ("ad", "advertiser", "category", "user", "user_category", "user_advertiser")
_OF_EACH = ("impressions_log", "ctr_logit", "recency_log")
FEATURES = (*(f"{key}_{feature}" for key in COUNTED for feature in _OF_EACH), "ad_age_log")

# A rate shrinks to the CTR of the whole log as if this many impressions had been seen at that CTR.
PRIOR_IMPRESSIONS = 10.0
# Counters that were brought up to date longer ago than this, in seconds, are read as if it were this long.
_LONGEST_LAG = 86_400.0

# Texts whose hashes are kept, and how long they may be: of four bytes a character, and some 200 that keep them.
_SHORT_TEXTS, _SHORT_CHARS = 2**15, 64

# Upper ends, in seconds, of the classes into which the time between an event and an impression falls.
_GAP_ENDS = (1, 10, 60, 300, 1800, 6 * 3600, 86_400, 7 * 86_400, 60 * 86_400)
UNKNOWN_TIME_GAP = 0
TIME_GAP_BUCKETS = len(_GAP_ENDS) + 2

# What a click log can teach of an event: passed over, liked, converted. Other kinds count as the nearest of these.
EVENT_CLASSES = 3
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


def dense_features(counts: Mapping[str, Counts], ctr: float, moments: npt.NDArray[np.float64]) -> Features:
    """Features of impressions.

    Args:
        counts: Past counts of each of `COUNTED`, arrays of shape [rows].
        ctr: Clicks per impression that rates shrink to, 0 to 1.
        moments: When each impression happens, seconds since 1970, NaN where nobody knows, [rows].

    Returns:
        float32 [rows, len(FEATURES)], not normalised; NaN where a time is not known.
    """
    columns = []
    for key in COUNTED:
        of_key = counts[key]
        columns += [np.log1p(of_key.impressions), _ctr_logit(of_key, ctr), _hours_log(moments - of_key.last)]
    columns.append(_hours_log(moments - counts["ad"].first))
    return np.stack(columns, axis=1).astype(np.float32)


def snapshot_features(
    counts: Mapping[str, Counts], ctr: float, moments: npt.NDArray[np.float64], end: float | None
) -> Features:
    """`dense_features` by counters that were brought up to date at `end`, seconds since 1970 (None: unknown).

    See there for the other arguments and for what is returned.
    """
    # Long after the log's end all looks old alike, which training has never seen.
    latest = np.nan if end is None else end + _LONGEST_LAG
    return dense_features(counts, ctr, np.minimum(moments, latest))


def _hours_log(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.log1p(np.maximum(seconds, 0) / 3600)


def _ctr_logit(counts: Counts, ctr: float) -> npt.NDArray[np.float64]:
    """Log-odds of the smoothed click rate."""
    prior = float(np.clip(ctr, 1e-6, 1 - 1e-6))
    clicks = counts.clicks + PRIOR_IMPRESSIONS * prior
    others = counts.impressions - counts.clicks + PRIOR_IMPRESSIONS * (1 - prior)
    return np.log(clicks / others)


def id_bucket(ad_id: str, buckets: int) -> int:
    """Where the learned vector of an id stands, 1 to buckets - 1; 0, which is never learned, for no id.

    Ids share vectors where their hashes meet (the hashing trick, arXiv 0902.2206).
    """
    if not ad_id:
        return 0
    return 1 + hashed(ad_id) % (buckets - 1)


def hashed(text: str) -> int:
    """A number of 64 bits that is the same for a text on every machine and for ever.

    Those of short texts, which come again, are kept: some 15 MiB at most, whatever is sent.
    """
    return _hashed_short(text) if len(text) <= _SHORT_CHARS else _hashed(text)


@lru_cache(maxsize=_SHORT_TEXTS)
def _hashed_short(text: str) -> int:
    return _hashed(text)


def _hashed(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def time_gap_buckets(seconds: npt.NDArray[np.float64]) -> Integers:
    """The class of each time between an event and an impression, whichever came first; NaN is unknown.

    Takes float64 of any shape, and returns int64 of that shape, 0 to `TIME_GAP_BUCKETS` - 1.
    """
    classes = 1 + np.searchsorted(_GAP_ENDS, np.abs(seconds), side="right")
    return np.where(np.isnan(seconds), UNKNOWN_TIME_GAP, classes).astype(np.int64)
