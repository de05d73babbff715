"""From logits to probabilities that mean what they say."""

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from ranking.artifact import Calibration
from records.clicks import Integers


def fit_platt(logits: npt.NDArray[np.float64], clicks: Integers, impressions: Integers) -> Calibration:
    """Platt scaling (Platt 1999): a logistic regression of clicks on the logit, fitted on rows not trained on.

    Returns the identity if the rows hold one class only, or the fit would turn the order around.
    """
    others = impressions - clicks
    if not clicks.any() or not others.any():
        return Calibration()
    rows = np.concatenate([logits, logits]).reshape(-1, 1)
    labels = np.repeat([1, 0], len(logits))
    fitted = LogisticRegression(C=1e6).fit(rows, labels, sample_weight=np.concatenate([clicks, others]))
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    return Calibration(method="platt", slope=slope, intercept=intercept) if slope > 0 else Calibration()
