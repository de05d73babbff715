"""RetrievalService: validate, call, convert. Knows nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from adcascade.artifacts.hotswap import HotSwap
from adcascade.catalog.ads_file import AdCatalog
from adcascade.catalog.schedule import Eligibility
from adcascade.records.ads import Ad
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_ID_CHARS, check_text
from adcascade.serving.auth import scopes
from adcascade.serving.auth.identity import current_identity
from adcascade.serving.batcher import MAX_HEAVY, MAX_WAITING, Caller, MicroBatcher
from adcascade.serving.errors import Unavailable
from adcascade.serving.lanes import Batched
from adcascade.serving.messages import ReplyRoom
from adcascade.serving.slices import Slices
from adcascade.v1 import retrieval_pb2, retrieval_pb2_grpc, types_pb2
from adcascade.wire import (
    ad_to_wire,
    context_from_wire,
    shares_from_wire,
    timestamp_to_wire,
    user_from_wire,
    vectors_from_wire,
    vectors_to_wire,
)
from retrieval.query import MAX_K, Query, Retrieved
from retrieval.retriever import LIGHT_COST, Retriever
from retrieval.sources import check_shares

SERVICE_NAME = "adcascade.v1.RetrievalService"
SCOPES = {
    "Retrieve": scopes.RETRIEVE,
    "EmbedUser": scopes.RETRIEVE,
    "GetAds": scopes.RETRIEVE,
    "GetIndex": scopes.MODELS_READ,
}

# Ads that GetAds reads at a time; each may hold 32,768 characters.
_ADS_AT_ONCE = 32


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Answers from the index version that is loaded now."""

    def __init__(self, retrievers: HotSwap[Retriever], batch_vectors: int, *, max_message_mib: int = 8) -> None:
        self._retrievers = retrievers
        self._room = ReplyRoom(max_message_mib)
        self._batcher: MicroBatcher[Query, Retrieved | InputError] = MicroBatcher(
            "retrieval",
            self._answer,
            cost=lambda query: query.cost,
            budget=batch_vectors,
            light=LIGHT_COST,
            max_waiting=MAX_WAITING,
            max_heavy=MAX_HEAVY,
        )

    def close(self) -> None:
        """Answers what waits and stops the index's thread."""
        self._batcher.close()

    def Retrieve(self, request: retrieval_pb2.RetrieveRequest, context: Caller) -> retrieval_pb2.RetrieveResponse:
        """See the proto."""
        question, kept = self._asked_lately(request)
        if kept is not None:
            return retrieval_pb2.RetrieveResponse.FromString(kept)
        answer = self._ask(self._query(request), context)
        response = self._response(answer)
        if question is not None and not answer.value.skipped:
            self._keep(question, request, response)
        response.timing.CopyFrom(_timing(answer))
        return response

    def _asked_lately(self, request: retrieval_pb2.RetrieveRequest) -> "tuple[_Question | None, bytes | None]":
        """The question, None if its answer is not to be kept, and the answer that it got lately, if there is one.

        What was answered once breaks no limit; the context is checked for the moment, which may be another.
        """
        if not request.HasField("user") or request.HasField("vectors") or request.include_ads:
            return None, None
        self._check_loaded()
        with self._retrievers.lease() as retriever:
            if not retriever.answers.takes(request.ByteSize()):  # before a long one is copied
                return None, None
            text = _text_of(request)
            eligible = retriever.eligible_at(context_from_wire(request.context).timestamp)
            return _Question(text, eligible), retriever.answers.get(text, eligible)

    def _keep(
        self, question: "_Question", request: retrieval_pb2.RetrieveRequest, response: retrieval_pb2.RetrieveResponse
    ) -> None:
        """Keeps an answer, unless another index version, or another set of ads, took over while it was made."""
        with self._retrievers.lease() as retriever:
            eligible = retriever.eligible_at(context_from_wire(request.context).timestamp)
            if response.index_version == retriever.index.loaded.version and eligible is question.eligible:
                retriever.answers.put(question.text, eligible, response.SerializeToString())

    def _response(self, answer: "_Answered") -> retrieval_pb2.RetrieveResponse:
        """The answer on the wire, but for how long it took."""
        response = retrieval_pb2.RetrieveResponse(
            index_version=answer.value.index_version,
            timing=types_pb2.Timing(),
            unknown_history=answer.value.interests.unknown_history,
            skipped_sources=answer.value.skipped,
        )
        with_bids = current_identity.get().may(scopes.BIDS_READ)
        size = 0
        for candidate in answer.value.candidates:  # made in their place: a list of them would be copied
            made = response.candidates.add(
                ad_id=candidate.ad_id,
                similarity=candidate.similarity,
                score=candidate.score,
                interest=candidate.interest,
                source=candidate.source,
                ad=ad_to_wire(candidate.ad, with_bid=with_bids) if candidate.ad is not None else None,
            )
            if candidate.ad is not None:  # texts are what grows; ids alone are a megabyte at most
                size += self._room.taken_by(made)
                self._room.check(
                    size, "ask for fewer candidates, or for ids alone and for the ads you need with GetAds"
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

    def GetAds(self, request: retrieval_pb2.GetAdsRequest, context: Caller) -> retrieval_pb2.GetAdsResponse:
        """See the proto."""
        ids = _ad_ids(request)
        self._check_loaded()
        limit = min(request.max_bytes or self._room.max_bytes, self._room.max_bytes)
        with_bids = current_identity.get().may(scopes.BIDS_READ)
        with self._retrievers.lease() as retriever:
            response = retrieval_pb2.GetAdsResponse(index_version=retriever.index.loaded.version)
            size = 0
            for ad_id, ad in _looked_up(retriever.index.loaded.catalog, ids):
                found = ad_id if ad is None else ad_to_wire(ad, with_bid=with_bids)
                size += self._room.taken_by(found)
                if size > limit and (response.ads or response.unknown_ad_ids):
                    break
                if isinstance(found, str):
                    response.unknown_ad_ids.append(found)
                else:
                    response.ads.append(found)
            return response

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
            where = context_from_wire(request.context)
            return Query(None, vectors, request.k, with_ads=request.include_ads, context=where)
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
        with self._retrievers.lease() as retriever:
            if query.user is not None:
                query = replace(query, user=retriever.readable(query.user))
            query = replace(query, cost=retriever.cost_of(query))
        answer = self._batcher.submit(query, context)
        if isinstance(answer.value, InputError):
            raise answer.value
        return Batched(answer.value, answer.queue_ms)

    def _check_loaded(self) -> None:
        if not self._retrievers.is_loaded:
            raise Unavailable("the index is not loaded yet")

    def _answer(self, queries: Sequence[Query]) -> Slices[list[Retrieved | InputError]]:
        with self._retrievers.lease() as retriever:
            return (yield from retriever.answer_in_slices(queries))


_Answered = Batched[Retrieved]


@dataclass(frozen=True)
class _Question:
    """What is asked but for the moment, and the ads that may be found."""

    text: bytes
    eligible: Eligibility


def _text_of(request: retrieval_pb2.RetrieveRequest) -> bytes:
    """The request but for its moment; the same bytes for the same fields."""
    asked = retrieval_pb2.RetrieveRequest()
    asked.CopyFrom(request)
    asked.context.ClearField("timestamp")
    return asked.SerializeToString(deterministic=True)


def _shares(request: retrieval_pb2.RetrieveRequest) -> dict[str, float]:
    shares = shares_from_wire(request.shares)
    check_shares(shares)
    return shares


def _ad_ids(request: retrieval_pb2.GetAdsRequest) -> Sequence[str]:
    if not 1 <= len(request.ad_ids) <= MAX_K:
        raise InputError(f"{len(request.ad_ids)} ad_ids; a request names 1 to {MAX_K}")
    for place, ad_id in enumerate(request.ad_ids):
        check_text(f"ad_ids[{place}]", ad_id, MAX_ID_CHARS)
    return request.ad_ids


def _looked_up(catalog: AdCatalog, ids: Sequence[str]) -> Iterator[tuple[str, Ad | None]]:
    """Each id with its ad, few ads in memory at a time."""
    for begin in range(0, len(ids), _ADS_AT_ONCE):
        part = ids[begin : begin + _ADS_AT_ONCE]
        found = catalog.find(part)
        yield from ((ad_id, found.get(ad_id)) for ad_id in part)


def _timing(answer: _Answered) -> types_pb2.Timing:
    return types_pb2.Timing(
        queue_ms=answer.queue_ms, tokenize_ms=answer.value.encode_ms, compute_ms=answer.value.search_ms
    )
