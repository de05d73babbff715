"""RankingService: validate, call, convert. Knows nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.ads import Ad
from adcascade.records.counter_table import Total
from adcascade.records.errors import InputError
from adcascade.serving.auth import scopes
from adcascade.serving.batcher import MAX_HEAVY, MAX_WAITING, Caller, MicroBatcher
from adcascade.serving.errors import Unavailable
from adcascade.serving.lanes import Batched
from adcascade.serving.slices import Slices
from adcascade.v1 import ranking_pb2, ranking_pb2_grpc, types_pb2
from adcascade.wire import (
    ad_from_wire,
    context_from_wire,
    counters_from_wire,
    moment_to_wire,
    timestamp_to_wire,
    user_from_wire,
)
from ranking.inputs.features import counter_id
from ranking.inputs.prepare import Candidates, CatalogVersion, prepare
from ranking.inputs.query import MAX_CANDIDATES, RankAnswer, RankQuery
from ranking.model.shared_user import SHARED_USER
from ranking.runtime.engine import LIGHT_COST, RankingEngine
from ranking.runtime.prewarm import AdCachePrewarmer

SERVICE_NAME = "adcascade.v1.RankingService"
SCOPES = {"Rank": scopes.RANK, "GetModel": scopes.MODELS_READ}


class RankingServicer(ranking_pb2_grpc.RankingServiceServicer):
    """Answers from the model version that is loaded now; ids are resolved in the index version that is loaded now.

    Args:
        batch_candidates: What the calls of a batch may cost together, see `engine.RankingEngine.cost_of`.
        prewarm_ads: Read the ads of the index between calls.
        light: What a call costs at most that need not wait behind others; see `engine.light_cost`.
    """

    def __init__(
        self,
        engines: HotSwap[RankingEngine],
        catalogs: HotSwap[CatalogVersion] | None,
        batch_candidates: int,
        *,
        prewarm_ads: bool = True,
        light: int = LIGHT_COST,
    ) -> None:
        self._engines = engines
        self._catalogs = catalogs
        self._batcher: MicroBatcher[RankQuery, RankAnswer] = MicroBatcher(
            "ranking",
            self._score,
            cost=lambda query: query.cost,
            budget=batch_candidates,
            light=light,
            max_waiting=MAX_WAITING,
            max_heavy=MAX_HEAVY,
            idle_work=AdCachePrewarmer(engines, catalogs).step if prewarm_ads and catalogs is not None else None,
        )

    def close(self) -> None:
        """Answers what waits and stops the model's thread."""
        self._batcher.close()

    def Rank(self, request: ranking_pb2.RankRequest, context: Caller) -> ranking_pb2.RankResponse:
        """See the proto."""
        self._check_loaded()
        candidates, index_version = self._prepare(request)
        if not candidates.query.ad_ids:
            return self._nothing_to_rank(candidates, index_version)
        with self._engines.lease() as engine:
            query = engine.readable(candidates.query)
            query = replace(query, cost=engine.cost_of(query))
        answer = self._batcher.submit(query, context)
        return _response(request, candidates, answer, index_version)

    def GetModel(self, request: ranking_pb2.GetModelRequest, context: Caller) -> ranking_pb2.GetModelResponse:
        """See the proto."""
        if not self._engines.is_loaded:
            raise Unavailable("the model is not loaded yet")
        with self._engines.lease() as engine:
            loaded, spec = engine.loaded, engine.loaded.spec
            return ranking_pb2.GetModelResponse(
                model_version=loaded.version,
                architecture=spec.architecture,
                layers=spec.layers,
                join_layer=spec.join_layer if spec.architecture == SHARED_USER else 0,
                max_user_tokens=spec.max_user_tokens,
                max_ad_tokens=spec.max_ad_tokens,
                features=spec.features,
                calibration=spec.calibration.method,
                metrics={name: metric.value for name, metric in spec.metrics.items()},
                created_at=timestamp_to_wire(loaded.created_at),
                timing=types_pb2.Timing(),
                counters_end=moment_to_wire(loaded.counters.end),
                backend=engine.backend.name if engine.backend is not None else "",
                retrieval_weight=spec.retrieval_weight,
            )

    def _check_loaded(self) -> None:
        """A call needs both, and the index comes after the model."""
        if not self._engines.is_loaded:
            raise Unavailable("the model is not loaded yet")
        if self._catalogs is not None and not self._catalogs.is_loaded:
            raise Unavailable("the index is not loaded yet")

    def _prepare(self, request: ranking_pb2.RankRequest) -> tuple[Candidates, str]:
        user, context = user_from_wire(request.user), context_from_wire(request.context)
        if request.shown > MAX_CANDIDATES:
            raise InputError(f"shown is {request.shown}; a page shows at most {MAX_CANDIDATES} ads together")
        wanted, counter_overrides = _candidates(request), _counter_overrides(request)
        prepared = partial(
            prepare,
            user,
            context,
            wanted,
            skip_unknown=request.skip_unknown,
            counter_overrides=counter_overrides,
            shown=request.shown,
        )
        if self._catalogs is None:
            return prepared(None), ""
        with self._catalogs.lease() as loaded:
            return prepared(loaded.ads), loaded.version

    def _nothing_to_rank(self, candidates: Candidates, index_version: str) -> ranking_pb2.RankResponse:
        with self._engines.lease() as engine:
            return ranking_pb2.RankResponse(
                model_version=engine.loaded.version,
                index_version=index_version,
                timing=types_pb2.Timing(),
                unknown_ad_ids=candidates.unknown,
                ineligible_ad_ids=candidates.ineligible,
            )

    def _score(self, queries: Sequence[RankQuery]) -> Slices[list[RankAnswer]]:
        with self._engines.lease() as engine:
            return (yield from engine.rank_in_slices(queries))


def _candidates(request: ranking_pb2.RankRequest) -> list[str | Ad]:
    count = len(request.candidates)
    if count > MAX_CANDIDATES:
        raise InputError(
            f"{count} candidates; a request ranks at most {MAX_CANDIDATES}. Retrieve fewer, or split the call"
        )
    return [
        ad_from_wire(candidate.ad) if candidate.HasField("ad") else candidate.ad_id for candidate in request.candidates
    ]


def _counter_overrides(request: ranking_pb2.RankRequest) -> dict[str, dict[str, Total]]:
    """Totals of the request by what is counted and id."""
    totals: dict[str, dict[str, Total]] = {}
    for key, name, total in counters_from_wire(request.counters):
        totals.setdefault(key, {})[counter_id(key, name, request.user.user_id)] = total
    return totals


def _response(
    request: ranking_pb2.RankRequest, candidates: Candidates, answer: Batched[RankAnswer], index_version: str
) -> ranking_pb2.RankResponse:
    order = np.argsort(-answer.value.p_click, kind="stable")[: request.top_n or None]
    p_click, p_conversion = answer.value.p_click.tolist(), answer.value.p_conversion
    conversions = p_conversion.tolist() if p_conversion is not None else [None] * len(p_click)
    return ranking_pb2.RankResponse(
        ads=[
            ranking_pb2.RankedAd(
                ad_id=candidates.query.ad_ids[row],
                p_click=p_click[row],
                candidate=candidates.places[row],
                p_conversion=conversions[row],
            )
            for row in order.tolist()
        ],
        model_version=answer.value.model_version,
        index_version=index_version,
        timing=types_pb2.Timing(
            queue_ms=answer.queue_ms, tokenize_ms=answer.value.tokenize_ms, compute_ms=answer.value.compute_ms
        ),
        unknown_ad_ids=candidates.unknown,
        ineligible_ad_ids=candidates.ineligible,
        cached_ads=answer.value.cached_ads,
        retrieval_weight=answer.value.retrieval_weight,
    )
