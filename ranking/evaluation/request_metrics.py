"""How good the order within each request is. Plain functions of arrays; knows no probabilities and no bootstrap.

Rows of equal score stand in no order; see `adcascade.reports.ranking_metrics`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adcascade.records.clicks import Integers
from adcascade.reports import ranking_metrics

Probabilities = npt.NDArray[np.float64]

_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class RequestMetrics:
    """Metrics of the order within each request, float64 [requests]; NaN where the request has no click to rank.

    Attributes:
        unit: of the request's rows.
        ndcg_5, ndcg_10: with clicks as gains (Järvelin and Kekäläinen 2002).
        mrr: 1 / rank of the first click.
        concordant, pairs: how many pairs of rows with different click rates are in the right order (half for equal
            scores), and how many there are.
    """

    unit: Integers
    ndcg_5: Probabilities
    ndcg_10: Probabilities
    mrr: Probabilities
    concordant: Probabilities
    pairs: Probabilities

    @classmethod
    def of(cls, p_click: Probabilities, ctr: Probabilities, units: Integers, requests: Integers) -> "RequestMetrics":
        """Metrics of all requests; p_click, click rate, unit and request of each row, [rows]."""
        first, tied = ranking_metrics.tied_places(p_click, requests)
        unit = np.zeros(int(requests.max()) + 1, np.int64)
        unit[requests] = units
        alone = np.bincount(requests) < 2

        def of_several(values: Probabilities) -> Probabilities:
            return np.where(alone, np.nan, values)

        ndcg_5, ndcg_10 = (ranking_metrics.ndcg(ctr, first, tied, requests, k) for k in (5, 10))
        mrr = ranking_metrics.reciprocal_rank(ctr > 0, first, tied, requests)
        concordant, pairs = _pairs(ctr, p_click, requests)
        return cls(unit, of_several(ndcg_5), of_several(ndcg_10), of_several(mrr), concordant, pairs)


def _pairs(ctr: Probabilities, scores: Probabilities, requests: Integers) -> tuple[Probabilities, Probabilities]:
    """Pairs of each request in the right order, half for equal scores, and all of different click rates, [requests].

    Requests of one size are taken together.
    """
    sizes = np.bincount(requests)
    starts, order = np.cumsum(sizes) - sizes, np.argsort(requests, kind="stable")
    concordant, pairs = np.zeros((2, len(sizes)))
    for size in np.unique(sizes[sizes > 1]).tolist():
        first, second = np.triu_indices(size, 1)
        alike = np.flatnonzero(sizes == size)
        for some in np.array_split(alike, -(-len(alike) * len(first) // _PAIRS_AT_ONCE)):
            rows = order[starts[some, None] + np.arange(size)]  # [requests, size]
            truth = np.sign(ctr[rows[:, first]] - ctr[rows[:, second]])
            said = np.sign(scores[rows[:, first]] - scores[rows[:, second]])
            right = (truth == said) + 0.5 * (said == 0)
            concordant[some], pairs[some] = (right * (truth != 0)).sum(axis=1), (truth != 0).sum(axis=1)
    return concordant, pairs


def members(codes: Integers) -> list[Integers]:
    """Rows of each code, from 0 to the highest; all codes occur."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])


def pair_accuracies(
    scores: Probabilities, clicks: Integers, impressions: Integers, requests: Integers
) -> tuple[float, float]:
    """Share of pairs of a request in the right order: of all that differ in CTR, and of those that differ for certain.

    The second are pairs with |z| > 1.96 in the test of two proportions with a pooled variance.
    """
    right: list[npt.NDArray[np.float64]] = []
    certain: list[npt.NDArray[np.bool_]] = []
    for rows in members(np.unique(requests, return_inverse=True)[1]):
        first, second = (rows[place] for place in np.triu_indices(len(rows), 1))
        pooled = (clicks[first] + clicks[second]) / (impressions[first] + impressions[second])
        variance = pooled * (1 - pooled) * (1 / impressions[first] + 1 / impressions[second])
        difference = clicks[first] / impressions[first] - clicks[second] / impressions[second]
        said = np.sign(scores[first] - scores[second])
        differ = difference != 0
        right.append(((np.sign(difference) == said) + 0.5 * (said == 0))[differ])
        certain.append((np.abs(difference) > 1.96 * np.sqrt(variance))[differ])
    all_right, all_certain = np.concatenate(right), np.concatenate(certain)
    return float(all_right.mean()), float(all_right[all_certain].mean()) if all_certain.any() else float("nan")
