"""Dense features beside the text: past impressions and click rates, computed alike for training and serving."""

from typing import Any

import numpy as np
import numpy.typing as npt

from records.history import Counts

Features = npt.NDArray[np.float32]

Vectors = npt.NDArray[np.float32]

FEATURES = ("ad_impressions_log", "ad_ctr_logit", "user_impressions_log", "user_ctr_logit", "taste")

# A rate shrinks to the CTR of the whole log as if this many impressions had been seen at that CTR.
PRIOR_IMPRESSIONS = 10.0

# Taste: how fast the weight of a past event falls with its distance, the similarity at which it weighs 1, and how much
# weight of events without a like or dislike is assumed beforehand.
_SHARPNESS, _NEUTRAL_SIMILARITY, _PRIOR_WEIGHT = 4.0, 0.3, 5.0


def dense_features(ad: Counts, user: Counts, taste: npt.NDArray[np.floating[Any]], ctr: float) -> Features:
    """Features of (ad, user) pairs.

    Args:
        ad: Past counts of the ad of each row, shape [rows].
        user: Past counts of the user of each row, shape [rows].
        taste: What `taste_of` says of each row, shape [rows].
        ctr: Clicks per impression that rates shrink to, 0 to 1.

    Returns:
        float32 [rows, len(FEATURES)], not normalised.
    """
    columns = (np.log1p(ad.impressions), _ctr_logit(ad, ctr), np.log1p(user.impressions), _ctr_logit(user, ctr), taste)
    return np.stack(columns, axis=1).astype(np.float32)


def taste_of(
    candidates: Vectors,
    past: Vectors,
    liked: npt.NDArray[np.bool_],
    ctr: float,
    seen: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float64]:
    """How much more than usual a user liked past ads that read like the candidate: positive, 0, or negative.

    A kernel-weighted mean (Nadaraya 1964, Watson 1964) of past likes, less what is usual, shrunk to 0 where little is
    near. It is what attention over the past ads (DIN, arXiv 1706.06978) says before anything is learned.

    Args:
        candidates: Unit text vectors [candidates, width].
        past: Unit text vectors of past ads [events, width].
        liked: Which of them the user liked, [events].
        ctr: The usual share of likes, 0 to 1.
        seen: Which events count for which candidate, [candidates, events]; all if None.

    Returns:
        float64 [candidates].
    """
    similarity = (candidates @ past.T).astype(np.float64)
    weights = np.exp(_SHARPNESS * (similarity - _NEUTRAL_SIMILARITY))
    if seen is not None:
        weights *= seen
    taste: npt.NDArray[np.float64] = weights @ (liked - ctr) / (weights.sum(axis=1) + _PRIOR_WEIGHT)
    return taste


def _ctr_logit(counts: Counts, ctr: float) -> npt.NDArray[np.floating[Any]]:
    """Log-odds of the smoothed click rate."""
    prior = float(np.clip(ctr, 1e-6, 1 - 1e-6))
    clicks = counts.clicks + PRIOR_IMPRESSIONS * prior
    others = counts.impressions - counts.clicks + PRIOR_IMPRESSIONS * (1 - prior)
    return np.log(clicks / others)
