"""How good click probabilities are, with confidence intervals. Plain functions of arrays.

Rows are aggregated: each has a number of impressions and of clicks among them (1 and 0 or 1 in a row-level log). Every
metric takes the weight of each row, so that a bootstrap draw is nothing but other weights.

Rows of equal score stand in no order: metrics of an order are their expectation over all orders of these (see
`adcascade.reports.ranking_metrics`), so that a constant model gets what chance gives, whatever the order of the log.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from adcascade.records.clicks import Integers
from ranking.evaluation.request_metrics import RequestMetrics

Probabilities = npt.NDArray[np.float64]
Weights = npt.NDArray[np.float64]

BINS = 15
_CERTAINTY = 1e-7


@dataclass(frozen=True)
class Sample:
    """What one model said of some rows, and what happened.

    Attributes:
        p_click: float64 [rows].
        clicks, impressions: int64 [rows].
        units: number of the user of each row (of the request where there is no user), [rows]: what a bootstrap draws
            and what GAUC is averaged over.
        requests: number of the request of each row, [rows].
    """

    p_click: Probabilities
    clicks: Integers
    impressions: Integers
    units: Integers
    requests: Integers

    @cached_property
    def user_aucs(self) -> tuple[Probabilities, Weights]:
        """AUC within each unit that has both classes (NaN elsewhere) and the unit's impressions, [units]."""
        order = np.lexsort((self.p_click, self.units))
        unit, score = self.units[order], self.p_click[order]
        level = np.cumsum(np.r_[False, (unit[1:] != unit[:-1]) | (score[1:] != score[:-1])])
        clicked, passed = (
            np.bincount(level, column[order]) for column in (self.clicks, self.impressions - self.clicks)
        )
        of_level = unit[np.flatnonzero(np.r_[True, level[1:] != level[:-1]])]
        clicks, others = np.bincount(of_level, clicked), np.bincount(of_level, passed)
        lower = np.cumsum(passed) - passed - (np.cumsum(others) - others)[of_level]  # of the unit, with a lower score
        above = np.bincount(of_level, clicked * (lower + passed / 2))
        pairs = clicks * others
        found = np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1.0), np.nan)
        return found, np.asarray(clicks + others, np.float64)

    @cached_property
    def levels(self) -> tuple[Integers, Probabilities]:
        """The place of each row's score among all, lowest first, [rows]; and the scores, [levels]."""
        scores, level = np.unique(self.p_click, return_inverse=True)
        return np.asarray(level, np.int64), np.asarray(scores, np.float64)

    @cached_property
    def order_by_score(self) -> Integers:
        """Rows, lowest score first, [rows]."""
        return np.argsort(self.p_click, kind="stable")

    @property
    def all_differ(self) -> bool:
        """Whether no two rows have one score."""
        return len(self.levels[1]) == len(self.p_click)

    @cached_property
    def losses(self) -> Probabilities:
        """Negative log-likelihood of each row's impressions together, in nats, [rows]."""
        p_click = np.clip(self.p_click, _CERTAINTY, 1 - _CERTAINTY)
        return -(self.clicks * np.log(p_click) + (self.impressions - self.clicks) * np.log1p(-p_click))

    def by_level(self, weights: Weights) -> tuple[Weights, Weights]:
        """Weighted clicks, and impressions without one, of each of `levels`."""
        level, scores = self.levels
        clicked, passed = (
            np.asarray(np.bincount(level, weights * column, len(scores)), np.float64)
            for column in (self.clicks, self.impressions - self.clicks)
        )
        return clicked, passed

    @cached_property
    def of_requests(self) -> RequestMetrics:
        """Metrics of the order within each request."""
        return RequestMetrics.of(self.p_click, self.clicks / self.impressions, self.units, self.requests)


# ---- metrics of rows


def auc(p_click: Probabilities, clicks: Integers, impressions: Integers, weights: Weights | None = None) -> float:
    """Area under the ROC curve, weighted by impressions; NaN if only one class is present."""
    labels, counts, scores = unrolled(p_click, clicks, impressions, weights)
    if not (counts[labels == 1].any() and counts[labels == 0].any()):
        return float("nan")
    return float(roc_auc_score(labels, scores, sample_weight=counts))


def log_loss(p_click: Probabilities, clicks: Integers, impressions: Integers, weights: Weights | None = None) -> float:
    """Mean negative log-likelihood of an impression, in nats."""
    labels, counts, scores = unrolled(p_click, clicks, impressions, weights)
    scores = np.clip(scores, _CERTAINTY, 1 - _CERTAINTY)
    return float(sklearn_log_loss(labels, scores, sample_weight=counts, labels=[0, 1]))


def unrolled(
    p_click: Probabilities, clicks: Integers, impressions: Integers, weights: Weights | None = None
) -> tuple[Integers, Weights, Probabilities]:
    """Each row twice, as clicked and as not clicked: labels, counts (times the row's weight) and scores."""
    labels = np.repeat([1, 0], len(p_click))
    counts = np.concatenate([clicks, impressions - clicks]).astype(np.float64)
    if weights is not None:
        counts *= np.concatenate([weights, weights])
    return labels, counts, np.concatenate([p_click, p_click])


def normalised_entropy(sample: Sample, weights: Weights) -> float:
    """Log loss over that of always saying the CTR of these rows (He et al. 2014); below 1 is better than that."""
    counts = weights * sample.impressions
    ctr = float((weights * sample.clicks).sum() / counts.sum())
    base = -(ctr * np.log(max(ctr, _CERTAINTY)) + (1 - ctr) * np.log(max(1 - ctr, _CERTAINTY)))
    return _log_loss(sample, weights) / max(float(base), _CERTAINTY)


def expected_calibration_error(sample: Sample, weights: Weights) -> float:
    """Mean distance of predicted from actual CTR over 15 bins of equal mass (Naeini et al. 2015)."""
    predicted, actual, mass = reliability(sample, weights)
    return float(np.abs(predicted - actual) @ mass)


def reliability(
    sample: Sample, weights: Weights, bins: int = BINS
) -> tuple[Probabilities, Probabilities, Probabilities]:
    """Predicted CTR, actual CTR and share of impressions of bins of equal mass, lowest first; empty ones left out.

    Where rows of one p_click lie in several bins, each of these has their common CTR.
    """
    order = sample.order_by_score if sample.all_differ else np.lexsort((weights * sample.impressions, sample.p_click))
    counts, clicks = (weights * sample.impressions)[order], (weights * sample.clicks)[order]
    if not sample.all_differ:
        level = sample.levels[0][order]
        mass_of, clicks_of = np.bincount(level, counts), np.bincount(level, clicks)
        clicks = counts * (clicks_of / np.where(mass_of > 0, mass_of, 1.0))[level]
    place = (np.cumsum(counts) - counts / 2) / counts.sum()
    bin_of = np.minimum((place * bins).astype(int), bins - 1)

    def total(values: npt.NDArray[np.floating[Any]]) -> Probabilities:
        return np.asarray(np.bincount(bin_of, values, bins), np.float64)

    mass = total(counts)
    kept = mass > 0
    predicted = total(counts * sample.p_click[order])[kept] / mass[kept]
    actual = total(clicks)[kept] / mass[kept]
    return predicted, actual, mass[kept] / mass.sum()


def calibration_noise(sample: Sample, draws: int = 50, seed: int = 0) -> float:
    """The calibration error that chance alone would give, were every probability exactly right: its mean over draws."""
    generator = np.random.default_rng(seed)
    ones = np.ones(len(sample.p_click))
    errors = []
    for _ in range(draws):
        clicks = generator.binomial(sample.impressions, np.clip(sample.p_click, 0, 1))
        drawn = Sample(sample.p_click, clicks, sample.impressions, sample.units, sample.requests)
        errors.append(expected_calibration_error(drawn, ones))
    return float(np.mean(errors))


def _auc(sample: Sample, weights: Weights) -> float:
    clicked, passed = sample.by_level(weights)
    pairs = float(clicked.sum() * passed.sum())
    return float(clicked @ (np.cumsum(passed) - passed / 2)) / pairs if pairs else float("nan")


def _log_loss(sample: Sample, weights: Weights) -> float:
    return float(weights @ sample.losses / (weights @ sample.impressions))


def _pr_auc(sample: Sample, weights: Weights) -> float:
    """Average precision: the precision at each score, weighted by the clicks that are called there."""
    clicked, passed = (column[::-1] for column in sample.by_level(weights))
    clicks = float(clicked.sum())
    if not clicks:
        return float("nan")
    called = np.cumsum(clicked)
    return float(clicked @ (called / np.maximum(called + np.cumsum(passed), _CERTAINTY))) / clicks


def _predicted_over_actual(sample: Sample, weights: Weights) -> float:
    clicks = float((weights * sample.clicks).sum())
    return float((weights * sample.p_click * sample.impressions).sum()) / clicks if clicks else float("nan")


def top_share(sample: Sample, share: float) -> float:
    """The highest threshold from which on at least that share of the impressions is called a click."""
    order = np.argsort(-sample.p_click, kind="stable")
    called = np.cumsum(sample.impressions[order])
    place = min(int(np.searchsorted(called, share * called[-1])), len(order) - 1)
    return float(sample.p_click[order[place]])


def at_threshold(sample: Sample, threshold: float) -> dict[str, float]:
    """Precision, recall, F1 and accuracy of calling a click wherever p_click is at least `threshold`."""
    labels, counts, scores = unrolled(sample.p_click, sample.clicks, sample.impressions)
    called = scores >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, called, average="binary", sample_weight=counts, zero_division=0
    )
    accuracy = float(((called == labels) * counts).sum() / counts.sum())
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1), "accuracy": accuracy}


# ---- metrics of units and requests: a mean over those that have one


def _gauc(sample: Sample, weights: Weights) -> float:
    values, impressions = sample.user_aucs
    drawn = _of_units(sample, weights)
    return _mean(values, drawn * impressions)


def _pair_accuracy(sample: Sample, weights: Weights) -> float:
    of = sample.of_requests
    drawn = _of_units(sample, weights)[of.unit]
    pairs = float(drawn @ of.pairs)
    return float(drawn @ of.concordant) / pairs if pairs else float("nan")


def _of_request(name: str) -> "MetricFunction":
    def metric(sample: Sample, weights: Weights) -> float:
        of = sample.of_requests
        return _mean(getattr(of, name), _of_units(sample, weights)[of.unit])

    return metric


def _of_units(sample: Sample, weights: Weights) -> Weights:
    """Weight of each unit; all its rows have the same."""
    found = np.zeros(int(sample.units.max()) + 1)
    found[sample.units] = weights
    return found


def _mean(values: Probabilities, weights: Weights) -> float:
    known = ~np.isnan(values) & (weights > 0)
    return float(np.average(values[known], weights=weights[known])) if known.any() else float("nan")


MetricFunction = Callable[[Sample, Weights], float]


METRICS: Mapping[str, MetricFunction] = {
    "auc": _auc,
    "log_loss": _log_loss,
    "gauc": _gauc,
    "normalised_entropy": normalised_entropy,
    "pr_auc": _pr_auc,
    "ndcg_5": _of_request("ndcg_5"),
    "ndcg_10": _of_request("ndcg_10"),
    "mrr": _of_request("mrr"),
    "pair_accuracy": _pair_accuracy,
    "ece": expected_calibration_error,
    "predicted_over_actual": _predicted_over_actual,
}
