"""Both stages as one call: retrieve, rank, keep to the deadline, fall back to the retrieval order.

Knows the wire, not the servers' insides.
"""

import math
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT, order_of
from protos import ranking_pb2, ranking_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, types_pb2
from protos.convert import ad_from_wire, context_to_wire, user_to_wire
from records.ads import Ad
from records.errors import InputError
from records.users import Context, UserProfile
from serving.auth.client import ClientSecurity
from serving.channel import open_channel
from serving.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from serving.interceptors import REQUEST_ID_KEY

MAX_K = 1000
DEFAULT_CANDIDATES = 100

# Share of the time left that retrieval may take, so that some is left to rank in.
_RETRIEVAL_SHARE = 0.5
# Answers of ranking that mean the request is wrong, which retrieval order would only hide.
_NOBODY_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
_CALLER_FAULTS = (grpc.StatusCode.INVALID_ARGUMENT,)
_ERRORS: dict[grpc.StatusCode, type[ServiceError]] = {
    error.status: error
    for error in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
    )
}


@dataclass(frozen=True)
class Recommendation:
    """An ad, where it came from, and its probabilities: of a click, and of a conversion given the click.

    `similarity` and `retrieval_score` are those of `retrieval.retriever.Candidate`. Both probabilities are None if it
    was not ranked; `p_conversion` also if the model has learned no conversions.
    """

    ad: Ad
    similarity: float
    retrieval_score: float
    retrieval_position: int
    p_click: float | None
    source: str
    p_conversion: float | None = None


@dataclass(frozen=True)
class Recommendations:
    """The answer of both stages; times in milliseconds.

    Attributes:
        degraded_reason: gRPC status name of ranking's failure; "" if it answered.
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


class AdPipeline:
    """A client of a retrieval and a ranking server. Thread-safe; close it when done, or use it in a ``with``.

    Args:
        retrieval, ranking: ``host:port`` of the two servers.
        ca_certificate: PEM file; if given, both connections are TLS. Short for `security`.
        security: What both servers are shown, and whom to believe.
        on_degraded: Told the status name each time the retrieval order is returned instead.
    """

    def __init__(
        self,
        retrieval: str,
        ranking: str,
        *,
        ca_certificate: Path | None = None,
        security: ClientSecurity | None = None,
        on_degraded: Callable[[str], None] = lambda _: None,
    ) -> None:
        security = security or ClientSecurity(ca_certificate=ca_certificate)
        self._channels = [open_channel(address, security=security) for address in (retrieval, ranking)]
        self._retrieval = retrieval_pb2_grpc.RetrievalServiceStub(self._channels[0])
        self._ranking = ranking_pb2_grpc.RankingServiceStub(self._channels[1])
        self._on_degraded = on_degraded

    def __enter__(self) -> "AdPipeline":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both connections."""
        for channel in self._channels:
            channel.close()

    def recommend(
        self,
        user: UserProfile,
        context: Context | None = None,
        k: int = 10,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        include_history: bool = False,
        retrieval_weight: float = DEFAULT_RETRIEVAL_WEIGHT,
        timeout_seconds: float = 5.0,
        request_id: str = "",
    ) -> Recommendations:
        """The `k` ads that the user is most likely to want next, see `order.order_of`.

        Args:
            candidates: How many ads retrieval brings and ranking scores; at least `k`.
            include_history: Also recommend ads the user has in the history.
            retrieval_weight: What retrieval's score counts in the order beside the log-odds of the click; with 0, or
                an index without towers, ads stand by the probability of the click alone.
            timeout_seconds: For both stages together. If ranking fails or is late, the retrieval order is returned.
            request_id: Seen in both servers' logs; made up if empty.

        Raises:
            InputError: `k`, `candidates` or `retrieval_weight` is out of range.
            ServiceError: Retrieval failed, or a server found the request wrong; the class carries the status.
        """
        _check_range(k, candidates, retrieval_weight)
        started = time.perf_counter()
        request_id = request_id or uuid.uuid4().hex[:16]
        wire_user, wire_context = user_to_wire(user), context_to_wire(context or Context())
        retrieve = retrieval_pb2.RetrieveRequest(
            user=wire_user, k=candidates, include_history=include_history, include_ads=True, context=wire_context
        )
        metadata = ((REQUEST_ID_KEY, request_id),)
        try:
            found = self._retrieval.Retrieve(retrieve, timeout=timeout_seconds * _RETRIEVAL_SHARE, metadata=metadata)
        except grpc.RpcError as error:
            raise _as_service_error("retrieval", error) from error
        retrieved = time.perf_counter()
        ranked, reason = self._rank(
            wire_user, wire_context, found.candidates, timeout_seconds - (retrieved - started), metadata
        )
        finished = time.perf_counter()
        return Recommendations(
            items=_merge(found.candidates, ranked, k, retrieval_weight),
            index_version=found.index_version,
            model_version=ranked.model_version if ranked else "",
            degraded_reason=reason,
            retrieval_ms=1000 * (retrieved - started),
            ranking_ms=1000 * (finished - retrieved),
            total_ms=1000 * (finished - started),
            request_id=request_id,
            retrieval_weight=retrieval_weight,
            retrieval=found.timing,
            ranking=ranked.timing if ranked else types_pb2.Timing(),
        )

    def _rank(
        self,
        user: types_pb2.UserProfile,
        context: types_pb2.Context,
        candidates: Sequence[retrieval_pb2.Candidate],
        timeout_seconds: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> tuple[ranking_pb2.RankResponse | None, str]:
        """The ranking, or None and why there is none."""
        request = ranking_pb2.RankRequest(
            user=user,
            context=context,
            candidates=[ranking_pb2.RankCandidate(ad=candidate.ad) for candidate in candidates],
        )
        try:
            return self._ranking.Rank(request, timeout=max(0.0, timeout_seconds), metadata=metadata), ""
        except grpc.RpcError as error:
            status = _status(error)
            if status in _CALLER_FAULTS:
                raise _as_service_error("ranking", error) from error
            self._on_degraded(status.name)
            return None, status.name


def _check_range(k: int, candidates: int, retrieval_weight: float) -> None:
    if not 1 <= k <= MAX_K:
        raise InputError(f"k must be 1 to {MAX_K}, not {k}")
    if not k <= candidates <= MAX_K:
        raise InputError(f"candidates must be k to {MAX_K}, not {candidates}")
    if not 0 <= retrieval_weight < math.inf:
        raise InputError(f"retrieval_weight must be a number from 0 on, not {retrieval_weight}")


def _merge(
    candidates: Sequence[retrieval_pb2.Candidate],
    ranked: ranking_pb2.RankResponse | None,
    k: int,
    retrieval_weight: float,
) -> list[Recommendation]:
    order: list[tuple[int, float | None, float | None]]
    if ranked is None:
        order = [(place, None, None) for place in range(min(k, len(candidates)))]
    else:
        scores = [candidates[ad.candidate].score for ad in ranked.ads]
        best = order_of([ad.p_click for ad in ranked.ads], scores, retrieval_weight)[:k]
        ads = [ranked.ads[place] for place in best.tolist()]
        order = [(ad.candidate, ad.p_click, ad.p_conversion if ad.HasField("p_conversion") else None) for ad in ads]
    return [
        Recommendation(
            ad=ad_from_wire(candidates[place].ad),
            similarity=candidates[place].similarity,
            retrieval_score=candidates[place].score,
            retrieval_position=place,
            p_click=p_click,
            source=candidates[place].source,
            p_conversion=p_conversion,
        )
        for place, p_click, p_conversion in order
    ]


def _status(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN


def _as_service_error(stage: str, error: grpc.RpcError) -> ServiceError:
    status = _status(error)
    details = error.details() if isinstance(error, grpc.Call) else str(error)
    hint = f" Is the {stage} server running at this address?" if status in _NOBODY_THERE else ""
    return _ERRORS.get(status, ServiceError)(f"{stage} answered {status.name}: {details}.{hint}")
