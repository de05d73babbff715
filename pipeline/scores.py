"""What the stages answered, held against what they were asked. Plain functions of messages."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from adcascade.v1 import ranking_pb2, retrieval_pb2
from pipeline.errors import InvalidAnswer


class Score(NamedTuple):
    """Probabilities of one candidate: of a click, and of a conversion given the click (None if not learned)."""

    p_click: float
    p_conversion: float | None


def check_candidates(reply: retrieval_pb2.RetrieveResponse, k: int) -> None:
    """Raises InvalidAnswer unless there are at most `k` candidates, each once, with numbers for scores."""
    ids = {one.ad_id for one in reply.candidates}
    if len(reply.candidates) > k or len(ids) < len(reply.candidates) or "" in ids:
        raise InvalidAnswer(f"{len(reply.candidates)} candidates with {len(ids)} ids, where {k} were asked for")
    if not all(math.isfinite(one.score) for one in reply.candidates):
        raise InvalidAnswer("a score is no number")


def check_answer(reply: ranking_pb2.RankResponse, asked: Sequence[str]) -> None:
    """Raises InvalidAnswer unless each id that was asked for is scored, unknown or outside its time, exactly once."""
    left = dict.fromkeys(asked)
    for ad in reply.ads:
        if ad.candidate >= len(asked) or asked[ad.candidate] != ad.ad_id:
            raise InvalidAnswer(f"candidate {ad.candidate} is not {ad.ad_id!r:.80}")
        if not _is_probability(ad.p_click):
            raise InvalidAnswer(f"a click probability of {ad.p_click}")
        if ad.HasField("p_conversion") and not _is_probability(ad.p_conversion):
            raise InvalidAnswer(f"a conversion probability of {ad.p_conversion}")
        _take(left, ad.ad_id)
    for ad_id in (*reply.unknown_ad_ids, *reply.ineligible_ad_ids):
        _take(left, ad_id)
    if left:
        raise InvalidAnswer(f"{len(left)} of {len(asked)} candidates are missing")


def _is_probability(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= 1


def _take(left: dict[str, None], ad_id: str) -> None:
    if ad_id not in left:
        raise InvalidAnswer(f"{ad_id!r:.80} was not asked for, or stands twice")
    del left[ad_id]


def scores_of(reply: ranking_pb2.RankResponse) -> dict[str, Score]:
    """Scores by ad id of a checked answer."""
    return {ad.ad_id: Score(ad.p_click, ad.p_conversion if ad.HasField("p_conversion") else None) for ad in reply.ads}
