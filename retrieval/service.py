"""RetrievalService: validate, call, convert. Knows nothing else."""

from collections.abc import Sequence

from artifacts.hotswap import HotSwap
from protos import retrieval_pb2, retrieval_pb2_grpc, types_pb2
from protos.convert import (
    ad_to_wire,
    context_from_wire,
    timestamp_to_wire,
    user_from_wire,
    vectors_from_wire,
    vectors_to_wire,
)
from records.errors import InputError
from retrieval.retriever import MAX_K, Query, Retrieved, Retriever
from retrieval.sources import check_shares
from serving.auth import scopes
from serving.auth.identity import current_identity
from serving.batcher import Batched, Caller, MicroBatcher
from serving.errors import Unavailable

SERVICE_NAME = "adcascade.v1.RetrievalService"
SCOPES = {"Retrieve": scopes.RETRIEVE, "EmbedUser": scopes.RETRIEVE, "GetIndex": scopes.MODELS_READ}


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Answers from the index version that is loaded now."""

    def __init__(self, retrievers: HotSwap[Retriever], batch_vectors: int) -> None:
        self._retrievers = retrievers
        self._batcher: MicroBatcher[Query, Retrieved | InputError] = MicroBatcher(
            "retrieval",
            self._answer,
            cost=lambda query: 1 if query.vectors is None else len(query.vectors),
            budget=batch_vectors,
            max_waiting=1024,
        )

    def close(self) -> None:
        """Answers what waits and stops the index's thread."""
        self._batcher.close()

    def Retrieve(self, request: retrieval_pb2.RetrieveRequest, context: Caller) -> retrieval_pb2.RetrieveResponse:
        """See the proto."""
        answer = self._ask(self._query(request), context)
        response = retrieval_pb2.RetrieveResponse(
            index_version=answer.value.index_version,
            timing=_timing(answer),
            unknown_history=answer.value.interests.unknown_history,
            skipped_sources=answer.value.skipped,
        )
        with_bids = current_identity.get().may(scopes.BIDS_READ)
        for candidate in answer.value.candidates:  # made in their place: a list of them would be copied
            response.candidates.add(
                ad_id=candidate.ad_id,
                similarity=candidate.similarity,
                score=candidate.score,
                interest=candidate.interest,
                source=candidate.source,
                ad=ad_to_wire(candidate.ad, with_bid=with_bids) if candidate.ad is not None else None,
            )
        return response

    def EmbedUser(self, request: retrieval_pb2.EmbedUserRequest, context: Caller) -> retrieval_pb2.EmbedUserResponse:
        """See the proto."""
        user, where = user_from_wire(request.user), context_from_wire(request.context)
        answer = self._ask(Query(user, None, 0, context=where), context)
        interests = answer.value.interests
        return retrieval_pb2.EmbedUserResponse(
            vectors=vectors_to_wire(interests.vectors),
            weights=interests.weights.tolist(),
            index_version=answer.value.index_version,
            timing=_timing(answer),
            unknown_history=interests.unknown_history,
        )

    def GetIndex(self, request: retrieval_pb2.GetIndexRequest, context: Caller) -> retrieval_pb2.GetIndexResponse:
        """See the proto."""
        self._check_loaded()
        with self._retrievers.lease() as retriever:
            loaded, manifest = retriever.index.loaded, retriever.index.loaded.manifest
            return retrieval_pb2.GetIndexResponse(
                index_version=loaded.version,
                ad_count=manifest.ad_count,
                dimension=manifest.dimension,
                metric=manifest.metric,
                factory=manifest.factory,
                encoder=manifest.encoder_name,
                encoder_sha256=manifest.encoder_sha256,
                recall=manifest.recall,
                recall_k=manifest.recall_k,
                created_at=timestamp_to_wire(loaded.created_at),
                timing=types_pb2.Timing(),
            )

    def _query(self, request: retrieval_pb2.RetrieveRequest) -> Query:
        if not 1 <= request.k <= MAX_K:
            raise InputError(f"k must be 1 to {MAX_K}, not {request.k}")
        self._check_loaded()
        if request.HasField("vectors"):
            with self._retrievers.lease() as retriever:
                unit = retriever.index.loaded.towers is None
                vectors = vectors_from_wire(request.vectors, retriever.index.dimension, unit=unit)
            return Query(None, vectors, request.k, with_ads=request.include_ads)
        if not request.HasField("user"):
            raise InputError("the query is missing: set user, or vectors")
        user = user_from_wire(request.user)
        seen = (
            frozenset() if request.include_history else frozenset(event.ad_id for event in user.history if event.ad_id)
        )
        where = context_from_wire(request.context)
        return Query(user, None, request.k, seen, request.include_ads, _shares(request), where)

    def _ask(self, query: Query, context: Caller) -> "_Answered":
        self._check_loaded()
        answer = self._batcher.submit(query, context)
        if isinstance(answer.value, InputError):
            raise answer.value
        return Batched(answer.value, answer.queue_ms)

    def _check_loaded(self) -> None:
        if not self._retrievers.is_loaded:
            raise Unavailable("the index is not loaded yet")

    def _answer(self, queries: Sequence[Query]) -> list[Retrieved | InputError]:
        with self._retrievers.lease() as retriever:
            return retriever.answer(queries)


_Answered = Batched[Retrieved]


def _shares(request: retrieval_pb2.RetrieveRequest) -> dict[str, float]:
    shares = {one.source: one.share for one in request.shares}
    if len(shares) != len(request.shares):
        raise InputError("shares name a candidate source twice")
    check_shares(shares)
    return shares


def _timing(answer: _Answered) -> types_pb2.Timing:
    return types_pb2.Timing(
        queue_ms=answer.queue_ms, tokenize_ms=answer.value.encode_ms, compute_ms=answer.value.search_ms
    )
