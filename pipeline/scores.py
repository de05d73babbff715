"""What the stages answered, held against what they were asked. Plain functions of messages.

Each message is read once, into columns: reading a field of a message costs more than all that is done with it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adcascade.v1 import ranking_pb2, retrieval_pb2
from pipeline.errors import InvalidAnswer


@dataclass(frozen=True)
class Retrieved:
    """An answer of retrieval, and of its candidates, best first, the ids and the scores."""

    reply: retrieval_pb2.RetrieveResponse
    ad_ids: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class Scored:
    """An answer of ranking, and its probabilities by ad id: of a click, and of a conversion where it was learned.

    `retrieval_weight` is what its model version says of the order; None if that was not fitted.
    """

    reply: ranking_pb2.RankResponse
    p_click: Mapping[str, float]
    p_conversion: Mapping[str, float]
    retrieval_weight: float | None


def read_candidates(reply: retrieval_pb2.RetrieveResponse, k: int) -> Retrieved:
    """Raises InvalidAnswer unless there are at most `k` candidates, each once, with numbers for scores."""
    columns = [(one.ad_id, one.score) for one in reply.candidates]
    ad_ids, scores = [ad_id for ad_id, _ in columns], [score for _, score in columns]
    ids = set(ad_ids)
    if len(ad_ids) > k or len(ids) < len(ad_ids) or "" in ids:
        raise InvalidAnswer(f"{len(ad_ids)} candidates with {len(ids)} ids, where {k} were asked for")
    if not all(map(math.isfinite, scores)):
        raise InvalidAnswer("a score is no number")
    return Retrieved(reply, ad_ids, scores)


def read_scores(reply: ranking_pb2.RankResponse, asked: Sequence[str]) -> Scored:
    """What was answered of the ids that were asked for.

    Raises InvalidAnswer unless each is scored with probabilities, unknown or outside its time, exactly once, and the
    weight, if there is one, is a number from 0.
    """
    clicks: dict[str, float] = {}
    conversions: dict[str, float] = {}
    for ad in reply.ads:
        place, ad_id, p_click, p_conversion = ad.candidate, ad.ad_id, ad.p_click, ad.p_conversion
        if place >= len(asked) or asked[place] != ad_id:
            raise InvalidAnswer(f"candidate {place} is not {ad_id!r:.80}")
        if not 0 <= p_click <= 1:  # nor is NaN
            raise InvalidAnswer(f"a click probability of {p_click}")
        if not 0 <= p_conversion <= 1:  # 0 if it is unset
            raise InvalidAnswer(f"a conversion probability of {p_conversion}")
        if ad_id in clicks:
            raise _unexpected(ad_id)
        clicks[ad_id] = p_click
        if p_conversion > 0 or ad.HasField("p_conversion"):
            conversions[ad_id] = p_conversion
    left = set(asked).difference(clicks)
    for ad_id in (*reply.unknown_ad_ids, *reply.ineligible_ad_ids):
        if ad_id not in left:
            raise _unexpected(ad_id)
        left.remove(ad_id)
    if left:
        raise InvalidAnswer(f"{len(left)} of {len(asked)} candidates are missing")
    return Scored(reply, clicks, conversions, _weight(reply))


def _weight(reply: ranking_pb2.RankResponse) -> float | None:
    if not reply.HasField("retrieval_weight"):
        return None
    if not 0 <= reply.retrieval_weight < math.inf:  # nor is NaN
        raise InvalidAnswer(f"a weight of retrieval's score of {reply.retrieval_weight}")
    return reply.retrieval_weight


def _unexpected(ad_id: str) -> InvalidAnswer:
    return InvalidAnswer(f"{ad_id!r:.80} was not asked for, or stands twice")
