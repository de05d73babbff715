"""An answer of both stages, as plain values: its ads, where they came from, and in which order they stand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from adcascade.records.ads import Ad
from adcascade.v1 import types_pb2
from adcascade.wire import ad_from_wire
from pipeline.order import order_of
from pipeline.scores import Retrieved


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
        retrieval_weight: that the order was made with; of an answer without ranking, that it would have been made with.
        retrieval_ms, ranking_ms: wall time of the calls, as seen here; without reading what they brought.
        total_ms: of everything, until the ads that are shown are there.
        retrieval, ranking: where the servers spent theirs.
        history_missing_reason: why the user's history in the event store was not read; as `degraded_reason`.
        events_ms: wall time of reading it.
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
    history_missing_reason: str = ""
    events_ms: float = 0.0


def in_order(retrieved: Retrieved, p_click: Mapping[str, float] | None, retrieval_weight: float) -> Sequence[int]:
    """Places of the candidates, best first: of those that are scored, or of all as they came if `p_click` is None."""
    if p_click is None:
        return range(len(retrieved.ad_ids))
    known = [place for place, ad_id in enumerate(retrieved.ad_ids) if ad_id in p_click]
    best = order_of(
        [p_click[retrieved.ad_ids[place]] for place in known],
        [retrieved.scores[place] for place in known],
        retrieval_weight,
    )
    return [known[row] for row in best.tolist()]
