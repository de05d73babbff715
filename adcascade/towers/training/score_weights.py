"""How much recent popularity, freshness and neighbours count beside what the towers say. Knows no networks.

The towers learn from a whole log, in which an ad's popularity is a constant. What it counts at the moment of serving
is fitted on later clicks than those: a conditional logit (McFadden 1974) with the towers' scores as offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adcascade.records.clicks import Integers

_PENALTY = 1e-3
_ROUNDS = 50


@dataclass(frozen=True)
class ScoreWeights:
    """What is added to a similarity.

    Attributes:
        popularity: of `adcascade.records.popularity.FEATURES`, float32 [features].
        neighbours: of what the neighbours of the ads that a user met add up to; never negative.
    """

    popularity: npt.NDArray[np.float32]
    neighbours: float


def fit_score_weights(
    scores: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    neighbours: npt.NDArray[np.float32],
    clicked: Sequence[Integers],
    seen: Sequence[Integers],
) -> ScoreWeights:
    """Weights that make the later clicks most likely.

    Args:
        scores: of the towers, [users, ads].
        features: at the moment before the clicks, [ads, features].
        neighbours: what the ads that each user met speak for each ad, [users, ads].
        clicked: ads that each user clicked later.
        seen: ads that each user had met before, which could not be clicked any more.
    """
    offset = torch.from_numpy(scores.astype(np.float64))
    share = torch.zeros_like(offset)
    for user, (ads, before) in enumerate(zip(clicked, seen, strict=True)):
        offset[user, before] = -torch.inf
        share[user, ads] = 1 / len(ads)
    shown, item_scores = torch.from_numpy(features.astype(np.float64)), torch.from_numpy(neighbours.astype(np.float64))
    spread = max(float(item_scores.std()), 1e-9)  # so that the penalty means the same for all
    item_scores = item_scores / spread
    weights = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = offset + shown @ weights[:-1] + item_scores * weights[-1].clamp(min=0)
        surprise = torch.log_softmax(logits, dim=1).masked_fill(share == 0, 0.0)
        value = -(surprise * share).sum(dim=1).mean() + _PENALTY * (weights**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.no_grad():
        weights[-1] = 0.1  # at 0 or below the clamp would let it learn nothing
    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = weights.detach().numpy()
    return ScoreWeights(found[:-1].astype(np.float32), max(0.0, float(found[-1])) / spread)
