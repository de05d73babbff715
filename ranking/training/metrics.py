"""How good click probabilities are, with confidence intervals. Plain functions of arrays.

Rows are aggregated: each has a number of impressions and of clicks among them (1 and 0 or 1 in a row-level log).
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from ranking.artifact import Metric
from records.clicks import Integers

Probabilities = npt.NDArray[np.float64]


def auc(p_click: Probabilities, clicks: Integers, impressions: Integers) -> float:
    """Area under the ROC curve, weighted by impressions; NaN if only one class is present."""
    labels, weights, scores = _unrolled(p_click, clicks, impressions)
    if len(set(labels[weights > 0])) < 2:
        return float("nan")
    return float(roc_auc_score(labels, scores, sample_weight=weights))


def log_loss(p_click: Probabilities, clicks: Integers, impressions: Integers) -> float:
    """Mean negative log-likelihood of an impression, in nats."""
    labels, weights, scores = _unrolled(p_click, clicks, impressions)
    return float(sklearn_log_loss(labels, np.clip(scores, 1e-7, 1 - 1e-7), sample_weight=weights, labels=[0, 1]))


METRICS: Mapping[str, Callable[[Probabilities, Integers, Integers], float]] = {"auc": auc, "log_loss": log_loss}


def _unrolled(
    p_click: Probabilities, clicks: Integers, impressions: Integers
) -> tuple[Integers, Integers, Probabilities]:
    """Each row twice, as clicked and as not clicked, with its counts as weights."""
    labels = np.repeat([1, 0], len(p_click))
    return labels, np.concatenate([clicks, impressions - clicks]), np.concatenate([p_click, p_click])


def with_intervals(
    predictions: Mapping[str, Probabilities],
    clicks: Integers,
    impressions: Integers,
    groups: npt.NDArray[np.integer],
    *,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, Metric]]:
    """All metrics of several models on the same rows, with 95 % bootstrap confidence intervals.

    Whole groups are drawn with replacement (rows of one user are not independent), the same ones for every model.

    Args:
        predictions: Model name to p_click, float64 [rows].
        groups: Group of each row, [rows].

    Returns:
        Model name to metric name to value and interval.
    """
    _, group = np.unique(groups, return_inverse=True)
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    generator = np.random.default_rng(seed)
    draws: dict[tuple[str, str], list[float]] = {(model, name): [] for model in predictions for name in METRICS}
    for _ in range(resamples):
        rows = np.concatenate([members[pick] for pick in generator.integers(0, len(members), len(members))])
        for model, p_click in predictions.items():
            for name, metric in METRICS.items():
                draws[model, name].append(metric(p_click[rows], clicks[rows], impressions[rows]))

    def measured(model: str, name: str) -> Metric:
        low, high = np.nanpercentile(draws[model, name], [2.5, 97.5])
        return Metric(value=METRICS[name](predictions[model], clicks, impressions), low=float(low), high=float(high))

    return {model: {name: measured(model, name) for name in METRICS} for model in predictions}
