"""Retrieval's scores of ads that somebody was shown, whether it would have brought them or not. Knows no clicks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adcascade.records.errors import InputError
from adcascade.records.users import Context, UserProfile
from retrieval.query import Query, Retrieved
from retrieval.retriever import Retriever
from retrieval.sources import NEIGHBOURS, ScoreBoost, Source, SourceRequest, SourceSettings, sources_of

_REQUESTS_AT_ONCE = 32

Floats = npt.NDArray[np.float64]


def scores_of_shown(
    retriever: Retriever, requests: Sequence[tuple[UserProfile, Context, Sequence[str]]]
) -> list[Floats]:
    """Of each request, the score of each of its ads, float64 [ads]; NaN of one that the index version does not have.

    The score is similarity and what neighbours add to it: that of `retrieval.query.Candidate`, but for the order that
    other sources make there.

    Args:
        requests: user, where and when, and ids of the ads.

    Raises:
        InputError: The index version has no towers, so its similarities are no scores.
    """
    loaded = retriever.index.loaded
    if loaded.towers is None:
        raise InputError("the index version has no towers: p_click alone makes the order there")
    neighbours = sources_of(loaded, SourceSettings()).get(NEIGHBOURS)
    found: list[Floats] = []
    for start in range(0, len(requests), _REQUESTS_AT_ONCE):
        some = requests[start : start + _REQUESTS_AT_ONCE]
        answers = retriever.answer([Query(user, None, 0, context=context) for user, context, _ in some])
        for (user, _, ad_ids), answer in zip(some, answers, strict=True):
            assert isinstance(answer, Retrieved)  # the user tower knows every user
            found.append(_scores(retriever, neighbours, user, answer, ad_ids))
    return found


def _scores(
    retriever: Retriever, neighbours: Source | None, user: UserProfile, answer: Retrieved, ad_ids: Sequence[str]
) -> Floats:
    loaded, interests = retriever.index.loaded, answer.interests.vectors
    rows = np.array([loaded.catalog.row_of.get(ad_id, -1) for ad_id in ad_ids], np.int64)
    known = rows >= 0
    scores = np.full(len(rows), np.nan)
    scores[known] = (interests @ np.asarray(loaded.searched_vectors[rows[known]]).T).max(axis=0)
    if neighbours is not None:
        boost = neighbours.find(SourceRequest(user, interests, 1, loaded.catalog.schedule.everything))
        assert isinstance(boost, ScoreBoost)
        scores[known] += boost.to[rows[known]]
    return scores
