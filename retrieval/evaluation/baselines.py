"""What retrieval has to beat: popularity, neighbours, linear models, matrix factorisation. Knows no towers and no text.

Each is fitted on the ads that users clicked before the test and scores all ads for each of its users.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from adcascade.records.clicks import Integers
from adcascade.records.popularity import PopularitySnapshot

Scores = npt.NDArray[np.float32]
# Takes the clicks of all users [users, ads] and the rows of those that are asked for; returns scores [asked, ads].
Peer = Callable[[csr_matrix, Integers], Scores]

_RECENT_DAYS = 14.0
# Beyond so many ads a dense matrix of ads by ads does not fit a laptop.
_DENSE_ADS = 20_000
_EASE_PENALTY = 300.0
_ALS_FACTORS, _ALS_ROUNDS = 32, 15


UNPERSONAL = ("popularity", "recent popularity")


def baselines(ads: int, popularity: PopularitySnapshot, ad_ids: list[str]) -> Mapping[str, Peer]:
    """The peers that can be computed here, by name."""
    found: dict[str, Peer] = {
        "popularity": _constant(popularity.clicks(ad_ids, np.inf)),
        "recent popularity": _constant(popularity.clicks(ad_ids, _RECENT_DAYS)),
        "item-kNN": _neighbours,
    }
    if find_spec("implicit") is not None:
        found["ALS"] = _als
    if ads <= _DENSE_ADS:
        found["EASE"] = _ease
    return found


def _constant(clicks: npt.NDArray[np.float64]) -> Peer:
    return lambda _, users: np.broadcast_to(clicks.astype(np.float32), (len(users), len(clicks)))


def _neighbours(clicks: csr_matrix, users: Integers) -> Scores:
    """Sum of the cosines to all ads that the user clicked (Sarwar et al. 2001)."""
    norms = np.sqrt(np.asarray(clicks.multiply(clicks).sum(axis=0)).ravel())
    unit = clicks.multiply(1 / np.maximum(norms, 1e-9)).tocsr()
    likeness = (unit.T @ unit).tolil()
    likeness.setdiag(0)
    return np.asarray((clicks[users] @ likeness.tocsr()).todense(), np.float32)


def _ease(clicks: csr_matrix, users: Integers) -> Scores:
    """A linear model of each ad by all others, in closed form (Steck, arXiv 1905.03375)."""
    gram = np.asarray((clicks.T @ clicks).todense(), np.float64)
    inverse = np.linalg.inv(gram + _EASE_PENALTY * np.eye(len(gram)))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(clicks[users] @ weights, np.float32)


def _als(clicks: csr_matrix, users: Integers) -> Scores:
    """Matrix factorisation of implicit feedback (Hu, Koren and Volinsky 2008), by the package implicit."""
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # the package has threads of its own
        model = AlternatingLeastSquares(factors=_ALS_FACTORS, iterations=_ALS_ROUNDS, random_state=0)
        model.fit(clicks.astype(np.float32), show_progress=False)
    scores: Scores = np.asarray(model.user_factors)[users] @ np.asarray(model.item_factors).T
    return scores
