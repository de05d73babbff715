"""What several interests of one user found, merged. Plain functions of arrays; knows no index."""

import numpy as np
import numpy.typing as npt

from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import Rows


def quotas(weights: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    """How many of `k` candidates each interest may bring first: its share, and at least one while there is room."""
    wanted: npt.NDArray[np.int64] = np.maximum(1, np.floor(weights * k)).astype(np.int64)
    return wanted


def merge(
    similarities: Vectors, rows: Rows, weights: npt.NDArray[np.float64], k: int, excluded: set[int]
) -> list[tuple[int, float, int]]:
    """Merges what several interests found into `k` candidates.

    Each interest first brings its best up to its quota, so that a small interest is not drowned by a large one; the
    rest goes to the most similar, whoever found them.

    Args:
        similarities, rows: [interests, found], best first; row -1 for none.
        weights: Share of the candidates that each interest brings first, summing to at most 1.
        excluded: Rows that must not come back.

    Returns:
        (row, similarity, interest), most similar first; each row once, with the nearest interest that found it.
    """
    best: dict[int, tuple[float, int]] = {}
    order = np.argsort(-similarities, axis=None, kind="stable")
    by_interest = (order // max(1, rows.shape[1])).tolist()
    for row, similarity, interest in zip(
        rows.ravel()[order].tolist(), similarities.ravel()[order].tolist(), by_interest, strict=True
    ):
        if row >= 0 and row not in excluded:
            best.setdefault(row, (similarity, interest))
    left = quotas(weights, k)
    chosen: list[int] = []
    spare: list[int] = []
    for row, (_, interest) in best.items():
        if left[interest] > 0 and len(chosen) < k:
            left[interest] -= 1
            chosen.append(row)
        else:
            spare.append(row)
    chosen += spare[: k - len(chosen)]
    chosen.sort(key=lambda row: -best[row][0])
    return [(row, *best[row]) for row in chosen]
