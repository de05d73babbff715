"""Where the ads that users clicked next stand among all, and what that is worth. Plain functions of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from records.clicks import Integers

Floats = npt.NDArray[np.float64]


def recall_at(places: Sequence[Integers], k: int) -> Floats:
    """Share of each user's clicked ads in the first `k`, of as many as fit there: hits / min(k, clicked).

    Args:
        places: of each user, the places of the clicked ads from 0; a large one where an ad was not found at all.
    """
    return np.array([np.count_nonzero(of_user < k) / min(k, len(of_user)) for of_user in places])


def ndcg_at(places: Sequence[Integers], k: int) -> Floats:
    """Normalised discounted cumulative gain of each user's first `k` (Järvelin and Kekäläinen 2002)."""
    discounts = 1 / np.log2(np.arange(k) + 2)
    return np.array(
        [discounts[of_user[of_user < k]].sum() / discounts[: min(k, len(of_user))].sum() for of_user in places]
    )


def reciprocal_rank(places: Sequence[Integers]) -> Floats:
    """1 / place (from 1) of each user's first clicked ad; their mean is the MRR."""
    return np.array([1 / (1 + of_user.min()) for of_user in places])


def places_of(scores: npt.NDArray[np.float32], clicked: Integers, seen: Integers) -> Integers:
    """Places of the clicked ads when all ads but the seen ones stand by their scores, best first; equals by number."""
    scores = scores.copy()
    scores[seen] = -np.inf
    place_of = np.empty(len(scores), np.int64)
    place_of[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return place_of[clicked]


@dataclass(frozen=True)
class Interval:
    """A mean over users with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def with_interval(values: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """The mean of one value a user; users are drawn with replacement."""
    column = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).multinomial(len(column), np.full(len(column), 1 / len(column)), resamples)
    low, high = np.percentile(draws @ column / len(column), [2.5, 97.5])
    return Interval(float(column.mean()), float(low), float(high))
