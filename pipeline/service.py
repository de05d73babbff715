"""RecommendService: both stages as one RPC. Validate, call, convert."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from adcascade.serving.auth import scopes
from adcascade.serving.auth.identity import current_identity
from adcascade.serving.batcher import Caller
from adcascade.serving.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from adcascade.serving.interceptors import request_id
from adcascade.serving.messages import ReplyRoom
from adcascade.v1 import recommend_pb2, recommend_pb2_grpc
from adcascade.wire import counters_from_wire, shares_from_wire
from pipeline.answers import Recommendation, Recommendations
from pipeline.client import AdPipeline
from pipeline.settings import GatewaySettings

SERVICE_NAME = "adcascade.v1.RecommendService"
SCOPES = {"Recommend": scopes.RECOMMEND}

# Part of the caller's remaining time that is kept back to send the answer, in seconds.
_REPLY_SECONDS = 0.02
# Of a Recommendation beside its ad: five numbers and the name of a source.
_ITEM_BYTES = 128


@dataclass(frozen=True)
class RecommendServicer(recommend_pb2_grpc.RecommendServiceServicer):
    """Answers through a pipeline client."""

    pipeline: AdPipeline
    settings: GatewaySettings

    async def Recommend(
        self, request: recommend_pb2.RecommendRequest, context: Caller
    ) -> recommend_pb2.RecommendResponse:
        """See the proto. Awaits the calls to both stages, so that no thread is held while they work."""
        started = time.perf_counter()
        counters_from_wire(request.counters)  # refused here, too: ranking may not be asked
        shares_from_wire(request.shares)
        remaining = context.time_remaining()
        timeout = self.settings.timeout_seconds
        with _own_identity():
            answer = await self.pipeline.recommend_message(
                request.user,
                request.context,
                request.k,
                candidates=request.candidates or max(self.settings.candidates, request.k),
                include_history=request.include_history,
                retrieval_weight=self.settings.retrieval_weight,
                timeout_seconds=timeout if remaining is None else min(timeout, max(0.0, remaining - _REPLY_SECONDS)),
                shares=request.shares,
                counters=request.counters,
                request_id=request_id.get(),
                max_ads_bytes=ReplyRoom(self.settings.max_message_mib).max_bytes - _ITEM_BYTES * request.k,
            )
        response = _response(answer)
        response.timings.total_ms = 1000 * (time.perf_counter() - started)
        return response


@contextmanager
def _own_identity() -> Iterator[None]:
    """What a server behind says of the gateway's identity is not said of the caller's."""
    try:
        yield
    except (Unauthenticated, PermissionDenied) as error:
        raise FailedPrecondition(
            f"a server behind the gateway does not let it in; its owner must give it another identity: {error}"
        ) from error


def _response(answer: Recommendations) -> recommend_pb2.RecommendResponse:
    with_bids = current_identity.get().may(scopes.BIDS_READ)
    return recommend_pb2.RecommendResponse(
        recommendations=[_item(item, with_bids) for item in answer.items],
        index_version=answer.index_version,
        model_version=answer.model_version,
        degraded=bool(answer.degraded_reason),
        degraded_reason=answer.degraded_reason,
        timings=recommend_pb2.StageTimings(
            retrieval_ms=answer.retrieval_ms,
            ranking_ms=answer.ranking_ms,
            retrieval=answer.retrieval,
            ranking=answer.ranking if answer.model_version else None,
            events_ms=answer.events_ms,
        ),
        request_id=answer.request_id,
        history_missing_reason=answer.history_missing_reason,
    )


def _item(item: Recommendation, with_bid: bool) -> recommend_pb2.Recommendation:
    if not with_bid:
        item.message.ClearField("bid_micros")
    return recommend_pb2.Recommendation(
        ad=item.message,
        similarity=item.similarity,
        retrieval_score=item.retrieval_score,
        retrieval_position=item.retrieval_position,
        p_click=item.p_click,
        source=item.source,
        p_conversion=item.p_conversion,
    )
