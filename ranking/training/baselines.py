"""What a ranker has to beat: logistic regressions on counters. Plain functions of arrays."""

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import LogisticRegression

from ranking.features import FEATURES, Features
from ranking.training.dataset import Dataset
from ranking.training.metrics import Probabilities
from records.clicks import Integers

POPULARITY, CLICK_RATES = "ad popularity", "logistic regression on past click rates"

# What each baseline is a logistic regression on, fitted on the training part.
BASELINES: Mapping[str, tuple[str, ...]] = {
    POPULARITY: ("ad_impressions_log",),
    CLICK_RATES: ("ad_ctr_logit", "user_ctr_logit"),
}


def fit_logistic(features: Features, clicks: Integers, impressions: Integers) -> LogisticRegression | None:
    """Logistic regression of clicks on features [rows, features]; None if the rows hold one class only."""
    others = impressions - clicks
    if not clicks.any() or not others.any():
        return None
    rows = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(features))
    return LogisticRegression(max_iter=1000).fit(rows, labels, sample_weight=np.concatenate([clicks, others]))


def baselines(data: Dataset, features: Features, rows: Integers) -> dict[str, Probabilities]:
    """p_click of each baseline for the given rows; the CTR of the training part where that holds one class only."""
    training = data.parts[0]
    clicks, impressions = data.log.clicks[training], data.log.impressions[training]
    predictions: dict[str, Probabilities] = {}
    for name, wanted in BASELINES.items():
        columns = [FEATURES.index(feature) for feature in wanted]
        fitted = fit_logistic(features[training][:, columns], clicks, impressions)
        predictions[name] = (
            np.full(len(rows), data.prior_ctr)
            if fitted is None
            else fitted.predict_proba(features[rows][:, columns])[:, 1]
        )
    return predictions
