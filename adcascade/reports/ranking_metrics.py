"""nDCG and reciprocal rank of lists in which equal scores stand in no order. Plain functions of arrays.

Each metric is its expectation over all orders of what is equal (McSherry and Najork, "Computing information retrieval
performance measures efficiently in the presence of tied scores", ECIR 2008): who scores all alike gets what chance
gives.

The items of many lists lie one after the other, [items]: `lists` is the number of each one's list (from 0, none without
an item); `first` is how many of its list have a higher score, the first place that it can have, from 0; `tied` is how
many have the same score, itself among them.
"""

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers

Floats = npt.NDArray[np.float64]


def tied_places(scores: npt.NDArray[np.floating], lists: Integers) -> tuple[Integers, Integers]:
    """`first` and `tied` of items that stand by their scores, highest first, int64 [items] each."""
    order = np.lexsort((-scores, lists))
    by_score, of = scores[order], lists[order]
    begins = np.flatnonzero(np.r_[True, (by_score[1:] != by_score[:-1]) | (of[1:] != of[:-1])][: len(of)])
    sizes = np.diff(np.r_[begins, len(of)])
    first, tied = np.empty((2, len(of)), np.int64)
    first[order] = np.repeat(_places(of)[begins], sizes)
    tied[order] = np.repeat(sizes, sizes)
    return first, tied


def ndcg(gains: Floats, first: Integers, tied: Integers, lists: Integers, k: int) -> Floats:
    """Normalised discounted cumulative gain of the first `k` (Järvelin and Kekäläinen 2002), float64 [lists].

    Each item has the mean discount of the places that it may have; items that are left out have no gain.

    Args:
        gains: At least 0, float64 [items]; a list without any gain has NaN.
    """
    discounts = np.r_[1 / np.log2(np.arange(k) + 2), 0.0]
    total = np.r_[0.0, np.cumsum(discounts[:k])]  # of the first places
    mean = (total[np.minimum(first + tied, k)] - total[np.minimum(first, k)]) / tied
    best = np.lexsort((-gains, lists))
    ideal = np.bincount(lists[best], gains[best] * discounts[np.minimum(_places(lists[best]), k)])
    return np.bincount(lists, gains * mean) / np.where(ideal > 0, ideal, np.nan)


def reciprocal_rank(relevant: npt.NDArray[np.bool_], first: Integers, tied: Integers, lists: Integers) -> Floats:
    """1 / place (from 1) of the first relevant item of each list, NaN where none is, float64 [lists]."""
    count = int(lists.max(initial=-1)) + 1
    place = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(place, lists[relevant], first[relevant])
    leading = relevant & (first == place[lists])
    size, hits = np.zeros(count, np.int64), np.bincount(lists[leading], minlength=count)
    size[lists[leading]] = tied[leading]
    found = 1 / (1.0 + place)
    for one in np.flatnonzero(size > 1):
        missed = none_before(int(size[one]), int(hits[one]))
        found[one] = ((missed[:-1] - missed[1:]) / (1 + place[one] + np.arange(size[one]))).sum()
    return np.where(hits > 0, found, np.nan)


def none_before(tied: int, relevant: int) -> Floats:
    """The chance that none of `relevant` of `tied` items is among the first 0, 1, ... `tied`, float64 [tied + 1].

    C(tied - n, relevant) / C(tied, relevant) for the first n: hypergeometric, without a factorial.
    """
    left = np.arange(tied, 0, -1, dtype=np.float64)  # items left before each draw
    none: Floats = np.r_[1.0, np.cumprod(np.clip((left - relevant) / left, 0.0, 1.0))]
    return none


def _places(lists: Integers) -> Integers:
    """Place of each item in its list, from 0, where the items of a list lie together, lowest list first."""
    return np.arange(len(lists)) - np.searchsorted(lists, lists)
