"""How much recent popularity and freshness of an ad count beside what the towers say. Knows no networks.

The towers learn from a whole log, in which an ad's popularity is a constant. What it counts at the moment of serving
is fitted on later clicks than those: a conditional logit (McFadden 1974) with the towers' scores as offset.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from records.clicks import Integers

_PENALTY = 1e-3
_ROUNDS = 50


def fit_popularity_weights(
    scores: npt.NDArray[np.float32],
    features: npt.NDArray[np.float32],
    clicked: Sequence[Integers],
    seen: Sequence[Integers],
) -> npt.NDArray[np.float32]:
    """Weights of `records.popularity.FEATURES`, float32 [features].

    Args:
        scores: of the towers, [users, ads].
        features: at the moment before the clicks, [ads, features].
        clicked: ads that each user clicked later.
        seen: ads that each user had met before, which could not be clicked any more.
    """
    offset = torch.from_numpy(scores.astype(np.float64))
    share = torch.zeros_like(offset)
    for user, (ads, before) in enumerate(zip(clicked, seen, strict=True)):
        offset[user, before] = -torch.inf
        share[user, ads] = 1 / len(ads)
    shown = torch.from_numpy(features.astype(np.float64))
    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        surprise = torch.log_softmax(offset + shown @ weights, dim=1).masked_fill(share == 0, 0.0)
        value = -(surprise * share).sum(dim=1).mean() + _PENALTY * (weights**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy().astype(np.float32)
