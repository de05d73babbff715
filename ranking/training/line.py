"""What a network has to beat to be kept: a ridge logistic regression on the dense features. Knows no tensors.

A log of a few hundred clicks hardly tells more than a straight line. A network of a few thousand numbers overshoots it
within its first steps, and the best of its validations is a matter of chance.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from adcascade.records.clicks import Integers
from ranking.data.dataset import Dataset
from ranking.data.feature_table import RowFeatures
from ranking.data.labels import labelled_rows
from ranking.inputs.features import Features, reads_content
from ranking.model.trees import LabelledRows

Floats = npt.NDArray[np.float64]

# A line of some dozen numbers learns nothing from more rows, the newest.
_MOST_ROWS = 200_000
# Variances of a weight's prior (scikit-learn's C), the strongest pull to zero first.
_STRENGTHS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
# How much less than others a weight is pulled to zero, in deviations of its prior, where the feature is no estimate
# from few clicks: how many ads stand on a page, and how near their words are to what the user liked.
_FREER = 3.0


@dataclass(frozen=True)
class Line:
    """A logit: intercept + weights x normalised features.

    Attributes:
        weights: float64 [features].
        strength: which of `_STRENGTHS` was chosen.
    """

    weights: Floats
    intercept: float
    strength: float

    def logits(self, features: Features) -> Floats:
        """Of each row, float64 [rows]."""
        said: Floats = features @ self.weights + self.intercept
        return said


def fit_line(data: Dataset, features: RowFeatures, names: Sequence[str]) -> Line | None:
    """The line of the training part whose pull to zero the validation part chooses; None if a part has one label only.

    The strongest pull wins whose loss is within a standard error of the least (Breiman et al. 1984): over few clicks,
    the least one is a matter of chance.

    Args:
        features: normalised, of the rows of the log.
        names: of the features.
    """
    is_freer = [name == "request_size_log" or reads_content(name) for name in names]
    scales = np.where(is_freer, _FREER, 1.0).astype(np.float32)
    train, valid = data.split.train[-_MOST_ROWS:], data.split.valid[-_MOST_ROWS:]
    rows, others = (labelled_rows(data.log, features, part) for part in (train, valid))
    if not (rows.has_both and others.has_both):
        return None
    rows = replace(rows, features=rows.features * scales)
    model = LogisticRegression(solver="newton-cholesky", warm_start=True)
    lines, losses = [], []
    for strength in _STRENGTHS:
        weights, intercept = _fitted(model.set_params(C=strength), rows)
        lines.append(Line(weights * scales, intercept, strength))
        losses.append(row_losses(lines[-1].logits(features[valid]), data, valid))
    least = min(losses, key=np.sum)
    requests = data.groups[valid]
    return next(line for line, loss in zip(lines, losses, strict=True) if not is_certain(loss - least, requests))


def _fitted(model: LogisticRegression, rows: LabelledRows) -> tuple[Floats, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # features that are alike: any of the weights will do
        model.fit(rows.features.astype(np.float64), rows.labels, sample_weight=rows.weights)
    return np.asarray(model.coef_[0], np.float64).copy(), float(model.intercept_[0])


def row_losses(logits: Floats, data: Dataset, rows: Integers) -> Floats:
    """Log loss of all impressions of each row, in nats, float64 [rows]."""
    clicks, impressions = data.log.clicks[rows], data.log.impressions[rows]
    lost: Floats = impressions * np.logaddexp(0, logits) - clicks * logits
    return lost


def is_certain(more: Floats, requests: Integers, errors: float = 1.0) -> bool:
    """Whether the sum of `more` is above 0 by more than so many of its standard errors.

    Args:
        more: of each row, float64 [rows].
        requests: number of each row's request, [rows]; rows of one are not independent.
    """
    _, request = np.unique(requests, return_inverse=True)
    of_request = np.bincount(request, more)
    return bool(of_request.sum() > errors * np.sqrt(len(of_request)) * of_request.std())


def as_text(line: Line | None) -> str:
    """A line as text, for the other processes of a training; "" for none."""
    return "" if line is None else json.dumps([line.weights.tolist(), line.intercept, line.strength])


def of_text(text: str) -> Line | None:
    """What `as_text` made a text of."""
    if not text:
        return None
    weights, intercept, strength = json.loads(text)
    return Line(np.array(weights), intercept, strength)
