"""An answer of both stages, as plain values: its ads, where they came from, and in which order they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from adcascade.records.ads import Ad
from adcascade.v1 import retrieval_pb2, types_pb2
from adcascade.wire import ad_from_wire
from pipeline.order import order_of
from pipeline.scores import Score


@dataclass(frozen=True)
class Recommendation:
    """An ad, where it came from, and its probabilities: of a click, and of a conversion given the click.

    `similarity` and `retrieval_score` are those of `retrieval.query.Candidate`. Both probabilities are None if it
    was not ranked; `p_conversion` also if the model has learned no conversions. `message` is the ad as it came.
    """

    message: types_pb2.Ad
    similarity: float
    retrieval_score: float
    retrieval_position: int
    p_click: float | None
    source: str
    p_conversion: float | None = None

    @cached_property
    def ad(self) -> Ad:
        """The ad, read from its message when somebody asks for it."""
        return ad_from_wire(self.message)


@dataclass(frozen=True)
class Recommendations:
    """The answer of both stages; times in milliseconds.

    Attributes:
        items: best first; none if no ad is left for the user.
        degraded_reason: gRPC status name of ranking's failure, "CIRCUIT_OPEN" if it failed lately and was not asked, or
            "INVALID_ANSWER"; "" if it answered.
        retrieval_weight: that the order was made with.
        retrieval_ms, ranking_ms, total_ms: wall time as seen here.
        retrieval, ranking: where the servers spent theirs.
    """

    items: list[Recommendation]
    index_version: str
    model_version: str
    degraded_reason: str
    retrieval_ms: float
    ranking_ms: float
    total_ms: float
    request_id: str
    retrieval_weight: float
    retrieval: types_pb2.Timing
    ranking: types_pb2.Timing = field(default_factory=types_pb2.Timing)


class Placed(NamedTuple):
    """A candidate, its place in the retrieval order, and its score if it was ranked."""

    candidate: retrieval_pb2.Candidate
    place: int
    score: Score | None


def in_order(
    candidates: Sequence[retrieval_pb2.Candidate], scores: Mapping[str, Score] | None, retrieval_weight: float
) -> list[Placed]:
    """Candidates, best first: those that are scored, or all in the retrieval order if `scores` is None."""
    if scores is None:
        return [Placed(one, place, None) for place, one in enumerate(candidates)]
    known = [Placed(one, place, scores[one.ad_id]) for place, one in enumerate(candidates) if one.ad_id in scores]
    p_click = [scores[one.candidate.ad_id].p_click for one in known]
    best = order_of(p_click, [one.candidate.score for one in known], retrieval_weight)
    return [known[row] for row in best.tolist()]


def recommendation(placed: Placed, ad: types_pb2.Ad) -> Recommendation:
    """A candidate together with its ad."""
    candidate, place, score = placed
    return Recommendation(
        message=ad,
        similarity=candidate.similarity,
        retrieval_score=candidate.score,
        retrieval_position=place,
        p_click=score.p_click if score else None,
        source=candidate.source,
        p_conversion=score.p_conversion if score else None,
    )
