"""In which order the candidates of both stages are shown. Plain functions of arrays."""

from typing import Literal

import numpy as np
import numpy.typing as npt

# Of model versions that say none: chosen once, on MovieLens.
DEFAULT_RETRIEVAL_WEIGHT = 4.0
_LEAST = 1e-7

# What the weight of retrieval's score is fitted on; see `fit_order.fit_order`.
FittedBy = Literal["auto", "requests", "users"]

Floats = npt.NDArray[np.float64]


def log_odds(p_click: npt.ArrayLike) -> Floats:
    """log(p / (1 - p)) of probabilities, which are kept from 0 and 1."""
    p = np.clip(np.asarray(p_click, np.float64), _LEAST, 1 - _LEAST)
    odds: Floats = np.log(p / (1 - p))
    return odds


def order_of(p_click: npt.ArrayLike, score: npt.ArrayLike, retrieval_weight: float) -> npt.NDArray[np.int64]:
    """Places of the candidates, best first, by log-odds of the click + `retrieval_weight` x retrieval's score.

    The ranker learned from ads that were shown, so it says how good an ad is once shown; the retriever says how likely
    it is, among all, to be what the user wants next. A weight of 0 orders by the probability of the click alone.

    Args:
        p_click: of each candidate, 0 to 1.
        score: of each candidate, see `retrieval.query.Candidate`.
    """
    return np.argsort(-(log_odds(p_click) + retrieval_weight * np.asarray(score, np.float64)), kind="stable")


def weight_of(given: float | None, fitted: float | None) -> float:
    """What retrieval's score counts: as the caller gave it, else as the model version says, else the default."""
    if given is not None:
        return given
    return DEFAULT_RETRIEVAL_WEIGHT if fitted is None else fitted
