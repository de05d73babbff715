"""Where the ads that users clicked next stand among all, and what that is worth. Plain functions of arrays.

Ads of equal score stand in no order: each metric is its expectation over all orders of these, drawn anew for each user
(`adcascade.reports.ranking_metrics`). Whoever scores all ads alike gets what chance gives, whatever the order of the
catalog.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.reports import ranking_metrics
from adcascade.reports.interval import Interval, bootstrap

Floats = npt.NDArray[np.float64]
# The place of an ad that a list does not hold.
NOT_FOUND = int(np.iinfo(np.int32).max)


@dataclass(frozen=True)
class Places:
    """Where the clicked ads of one user stand.

    Attributes:
        first: how many ads have a higher score than each, int64 [clicked]: the first place it can have, from 0.
        tied: how many ads have the same score, itself among them, int64 [clicked]; 1 where the order is known.
    """

    first: Integers
    tied: Integers

    @classmethod
    def known(cls, places: npt.ArrayLike) -> "Places":
        """Places of a list that has an order, from 0; `NOT_FOUND` for an ad that is not in it."""
        first = np.asarray(places, np.int64)
        return cls(first, np.ones_like(first))

    def __len__(self) -> int:
        return len(self.first)

    def take(self, which: npt.NDArray[np.bool_]) -> "Places":
        """Of some of the clicked ads, bool [clicked]."""
        return Places(self.first[which], self.tied[which])

    def without(self, which: npt.NDArray[np.bool_]) -> "Places":
        """The same, but that some of the clicked ads, bool [clicked], are not found."""
        return Places(np.where(which, NOT_FOUND, self.first), np.where(which, 1, self.tied))

    def within(self, k: int) -> Floats:
        """The chance of each ad to be among the first `k`, float64 [clicked]."""
        return np.clip((k - self.first) / self.tied, 0.0, 1.0)

    def leading(self) -> tuple[int, int, int]:
        """Of the ads that share the best score of a clicked one: their first place, how many, how many clicked."""
        first = int(self.first.min())
        leaders = self.first == first
        return first, int(self.tied[leaders][0]), int(leaders.sum())


def ranks_of(scores: npt.NDArray[np.float32], clicked: Integers, seen: Integers) -> Places:
    """Places of the clicked ads when all ads but the seen ones stand by their scores, best first.

    Args:
        scores: [ads]; one that is not a number stands last.
        clicked, seen: numbers of ads.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    rising = np.sort(np.delete(scores, seen))
    below, up_to = (np.searchsorted(rising, scores[clicked], side=side) for side in ("left", "right"))
    return Places((len(rising) - up_to).astype(np.int64), np.maximum(up_to - below, 1).astype(np.int64))


def recall_at(places: Sequence[Places], k: int) -> Floats:
    """Share of each user's clicked ads in the first `k`, of as many as fit there: hits / min(k, clicked)."""
    return np.array([of_user.within(k).sum() / min(k, len(of_user)) for of_user in places])


def ndcg_at(places: Sequence[Places], k: int) -> Floats:
    """Normalised discounted cumulative gain of each user's first `k`, with clicks as gains."""
    first, tied, users = _joined(places)
    return ranking_metrics.ndcg(np.ones(len(first)), first, tied, users, k)


def reciprocal_rank(places: Sequence[Places]) -> Floats:
    """1 / place (from 1) of each user's first clicked ad; their mean is the MRR."""
    first, tied, users = _joined(places)
    return ranking_metrics.reciprocal_rank(np.ones(len(first), np.bool_), first, tied, users)


def _joined(places: Sequence[Places]) -> tuple[Integers, Integers, Integers]:
    """`first`, `tied` and the user's number of the clicked ads of all users, int64 [clicked]."""
    nothing = np.empty(0, np.int64)
    first = np.concatenate([nothing, *(of_user.first for of_user in places)])
    tied = np.concatenate([nothing, *(of_user.tied for of_user in places)])
    return first, tied, np.repeat(np.arange(len(places)), [len(of_user) for of_user in places])


def hit_at(places: Sequence[Places], k: int) -> Floats:
    """Whether any of each user's clicked ads is among the first `k`: 0, 1, or the chance of it."""

    def chance(of_user: Places) -> float:
        first, tied, clicked = of_user.leading()
        if k <= first:
            return 0.0
        return 1.0 - float(ranking_metrics.none_before(tied, clicked)[min(k - first, tied)])

    return np.array([chance(of_user) for of_user in places])


@dataclass(frozen=True)
class Shown:
    """The chance of ads to be among the first of one user; those that are not named have none.

    Attributes:
        ads: numbers of ads, int64 [shown].
        chance: float64 [shown]; 1 where the order is known.
    """

    ads: Integers
    chance: Floats


def shown_first(scores: npt.NDArray[np.float32], seen: Integers, k: int) -> Shown:
    """Who is among the first `k` when all ads but the seen ones stand by their scores."""
    scores = np.where(np.isnan(scores), -np.inf, scores)
    left = np.delete(np.arange(len(scores)), seen)
    k = min(k, len(left))
    if not k:
        return Shown(left, np.zeros(len(left)))
    of_left = scores[left]
    last = np.partition(of_left, len(left) - k)[len(left) - k]  # the k-th best score
    above, level = of_left > last, of_left == last
    chance = np.where(above, 1.0, (k - above.sum()) / level.sum())
    named = above | level
    return Shown(left[named], chance[named])


def with_interval(values: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """The mean of one value a user; users are drawn with replacement."""
    column = np.asarray(values, np.float64)
    return bootstrap(lambda drawn: [float(drawn @ column) / len(column)], len(column), resamples=resamples, seed=seed)[
        0
    ]
