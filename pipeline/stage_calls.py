"""How retrieval and ranking are asked for one recommendation: ids travel, and only those texts that somebody lacks.

Knows neither what is done when ranking fails nor in which order ads are shown.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from adcascade.serving.errors import FailedPrecondition
from adcascade.v1 import ranking_pb2, ranking_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, types_pb2
from pipeline.errors import StageFailed
from pipeline.live_users import LiveUser
from pipeline.scores import Retrieved, Scored, read_candidates, read_scores
from pipeline.stage import Metadata, Stage, Waited

# Share of the time left that retrieval may take, so that some is left to rank in.
_RETRIEVAL_SHARE = 0.5


@dataclass(frozen=True)
class Asked:
    """One recommendation, as both stages read it, and how long they took.

    Attributes:
        k: how many ads are shown.
        ends: when the caller stops waiting, in seconds of `time.monotonic`.
        max_ads_bytes: how large the ads that are shown may be on the wire, together.
    """

    user: LiveUser
    context: types_pb2.Context
    k: int
    shares: Sequence[retrieval_pb2.SourceShare]
    counters: Sequence[ranking_pb2.Counter]
    timeout_seconds: float
    ends: float
    metadata: Metadata
    max_ads_bytes: int | None
    retrieving: Waited = field(default_factory=Waited)
    ranking: Waited = field(default_factory=Waited)
    fetching: Waited = field(default_factory=Waited)


@dataclass
class Ranked:
    """What ranking said so far; probabilities by ad id, and the weight of retrieval's score that its version says."""

    p_click: dict[str, float] = field(default_factory=dict)
    p_conversion: dict[str, float] = field(default_factory=dict)
    model_version: str = ""
    retrieval_weight: float | None = None
    timing: types_pb2.Timing = field(default_factory=types_pb2.Timing)

    def add(self, scored: Scored) -> None:
        """Adds another answer; of an ad that has been scored already, the new score counts, in fuller company."""
        self.p_click |= scored.p_click
        self.p_conversion |= scored.p_conversion
        self.model_version = scored.reply.model_version
        self.retrieval_weight = scored.retrieval_weight
        for name in ("queue_ms", "tokenize_ms", "compute_ms"):
            setattr(self.timing, name, getattr(self.timing, name) + getattr(scored.reply.timing, name))


class StageCalls:
    """Calls of both stages, to be awaited in the loop of `adcascade.serving.loop`. All raise StageFailed.

    Args:
        texts_bytes: How large an answer with texts of ads may be.
    """

    def __init__(self, retrieval: Stage, ranking: Stage, texts_bytes: int) -> None:
        self._retrieval, self._ranking, self._texts_bytes = retrieval, ranking, texts_bytes
        self._retrieval_stub = retrieval_pb2_grpc.RetrievalServiceStub(retrieval.channel)
        self._ranking_stub = ranking_pb2_grpc.RankingServiceStub(ranking.channel)

    async def retrieve(self, asked: Asked, candidates: int, *, include_history: bool) -> Retrieved:
        """The candidates."""
        request = retrieval_pb2.RetrieveRequest(
            user=asked.user.retrieved,
            k=candidates,
            include_history=include_history,
            context=asked.context,
            shares=asked.shares,
        )
        seconds = asked.timeout_seconds * _RETRIEVAL_SHARE
        read = partial(read_candidates, k=candidates)
        return await self._retrieval.call(
            self._retrieval_stub.Retrieve, request, seconds, asked.metadata, asked.retrieving, read
        )

    async def rank(self, ad_ids: Sequence[str], asked: Asked, ends: float) -> Ranked:
        """What ranking says of these ads: it looks them up in its own index version, and is sent those that it lacks.

        `ends` is when it must have answered, in seconds of `time.monotonic`.
        """
        ranked = Ranked()
        missing: Sequence[str]
        known: Sequence[str] = ()
        try:
            request = _rank_request(asked)
            for ad_id in ad_ids:
                request.candidates.add().ad_id = ad_id
            scored = await self._rank(request, ad_ids, asked, ends)
            ranked.add(scored)
            missing = scored.reply.unknown_ad_ids
            known = list(scored.p_click)
        except StageFailed as failed:
            if not isinstance(failed.error, FailedPrecondition):
                raise
            missing = ad_ids  # the server reads no index version
        async for ads in self.ads(missing, asked, ends, asked.ranking):
            request = _rank_request(asked)
            for ad in ads:
                request.candidates.add(ad=ad)
            # What an ad is worth depends on what stands beside it: the ads that are known are scored beside these anew.
            for ad_id in known:
                request.candidates.add().ad_id = ad_id
            ranked.add(await self._rank(request, [*(ad.ad_id for ad in ads), *known], asked, ends))
        return ranked

    async def _rank(self, request: ranking_pb2.RankRequest, ad_ids: Sequence[str], asked: Asked, ends: float) -> Scored:
        seconds = ends - time.monotonic()
        read = partial(read_scores, asked=ad_ids)
        return await self._ranking.call(self._ranking_stub.Rank, request, seconds, asked.metadata, asked.ranking, read)

    async def ads(
        self, ad_ids: Sequence[str], asked: Asked, ends: float, waited: Waited
    ) -> AsyncIterator[Sequence[types_pb2.Ad]]:
        """The ads of these ids, as many at a time as fit into a message; without those that retrieval knows no more."""
        left = list(ad_ids)
        while left:
            request = retrieval_pb2.GetAdsRequest(ad_ids=left, max_bytes=self._texts_bytes)
            seconds = ends - time.monotonic()
            reply = await self._retrieval.call(
                self._retrieval_stub.GetAds, request, seconds, asked.metadata, waited, _ads_as_they_are
            )
            yield reply.ads
            left = left[max(1, len(reply.ads) + len(reply.unknown_ad_ids)) :]


def _ads_as_they_are(reply: retrieval_pb2.GetAdsResponse) -> retrieval_pb2.GetAdsResponse:
    return reply


def _rank_request(asked: Asked) -> ranking_pb2.RankRequest:
    """What ranking is asked, but for the candidates."""
    return ranking_pb2.RankRequest(
        user=asked.user.ranked, context=asked.context, skip_unknown=True, counters=asked.counters, shown=asked.k
    )
