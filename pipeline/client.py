"""Both stages as one call: retrieve ids, rank them, fetch the ads that are shown. Keeps to the deadline, and falls back
to the retrieval order.

Texts travel once, and only those of the ads that are shown: ranking looks ads up in its own index version, and is sent
the texts of those alone that it does not have.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from adcascade.records.errors import InputError
from adcascade.records.users import Context, UserProfile
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.batcher import Caller
from adcascade.serving.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from adcascade.serving.interceptors import REQUEST_ID_KEY
from adcascade.serving.settings import MEBIBYTE
from adcascade.v1 import ranking_pb2, ranking_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, types_pb2
from adcascade.wire import context_to_wire, user_to_wire
from pipeline.answers import Placed, Recommendation, Recommendations, in_order, recommendation
from pipeline.errors import StageFailed
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT
from pipeline.scores import Score, check_answer, check_candidates, scores_of
from pipeline.stage import Calls, Metadata, Stage

MAX_K = 1000
DEFAULT_CANDIDATES = 100

# Share of the time left that retrieval may take, so that some is left to rank in.
_RETRIEVAL_SHARE = 0.5
# What ranking leaves to fetch the ads in: this share of the whole time, at most so many seconds.
_FETCH_SHARE, _FETCH_SECONDS = 0.1, 0.2
# Left of a message for what is not texts of ads: a user is at most as large as a request.
_TEXT_SHARE = 0.5


@dataclass(frozen=True)
class _Asked:
    """One call, as both stages read it; `ends` is on the monotonic clock."""

    user: types_pb2.UserProfile
    context: types_pb2.Context
    shares: Sequence[retrieval_pb2.SourceShare]
    counters: Sequence[ranking_pb2.Counter]
    timeout_seconds: float
    ends: float
    metadata: Metadata
    calls: Calls
    max_ads_bytes: int | None


@dataclass
class _Ranked:
    """What ranking said so far."""

    scores: dict[str, Score] = field(default_factory=dict)
    model_version: str = ""
    timing: types_pb2.Timing = field(default_factory=types_pb2.Timing)

    def add(self, reply: ranking_pb2.RankResponse) -> None:
        self.scores |= scores_of(reply)
        self.model_version = reply.model_version
        for name in ("queue_ms", "tokenize_ms", "compute_ms"):
            setattr(self.timing, name, getattr(self.timing, name) + getattr(reply.timing, name))


class AdPipeline:
    """A client of a retrieval and a ranking server. Thread-safe; close it when done, or use it in a ``with``.

    A server that fails several calls in a row is not asked until its health check is good again: retrieval's calls fail
    at once, and without ranking the retrieval order goes out at once.

    Args:
        retrieval, ranking: ``host:port`` of the two servers.
        ca_certificate: PEM file; if given, both connections are TLS. Short for `security`.
        security: What both servers are shown, and whom to believe.
        on_degraded: Told the reason each time the retrieval order is returned instead.
        max_message_mib: Largest message to and from the servers.
        retrieval_timeout_seconds, ranking_timeout_seconds: Longest that each may take, whatever time a call has.

    Example:
        >>> from adcascade.records.users import Context, UserProfile
        >>> from pipeline.client import AdPipeline
        >>> with AdPipeline("localhost:50051", "localhost:50052") as both:
        ...     answer = both.recommend(UserProfile(interests="trail running"), Context(device="phone"), k=3)
        >>> len(answer.items), answer.degraded_reason
        (3, '')
        >>> [0 < one.p_click < 1 for one in answer.items]
        [True, True, True]
    """

    def __init__(
        self,
        retrieval: str,
        ranking: str,
        *,
        ca_certificate: Path | None = None,
        security: ClientSecurity | None = None,
        on_degraded: Callable[[str], None] = lambda _: None,
        max_message_mib: int = 8,
        retrieval_timeout_seconds: float | None = None,
        ranking_timeout_seconds: float | None = None,
    ) -> None:
        security = security or ClientSecurity(ca_certificate=ca_certificate)
        self.retrieval = Stage("retrieval", retrieval, retrieval_timeout_seconds, security, max_message_mib)
        self.ranking = Stage("ranking", ranking, ranking_timeout_seconds, security, max_message_mib)
        self._retrieval = retrieval_pb2_grpc.RetrievalServiceStub(self.retrieval.channel)
        self._ranking = ranking_pb2_grpc.RankingServiceStub(self.ranking.channel)
        self._on_degraded = on_degraded
        self._texts_bytes = int(_TEXT_SHARE * max_message_mib * MEBIBYTE)

    def __enter__(self) -> "AdPipeline":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both connections."""
        self.retrieval.close()
        self.ranking.close()

    def recommend(
        self,
        user: UserProfile,
        context: Context | None = None,
        k: int = 10,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        include_history: bool = False,
        retrieval_weight: float = DEFAULT_RETRIEVAL_WEIGHT,
        shares: Mapping[str, float] = MappingProxyType({}),
        counters: Sequence[ranking_pb2.Counter] = (),
        timeout_seconds: float = 5.0,
        request_id: str = "",
        caller: Caller | None = None,
        max_ads_bytes: int | None = None,
    ) -> Recommendations:
        """The `k` ads that the user is most likely to want next, see `order.order_of`; fewer if no more are left.

        Args:
            candidates: How many ads retrieval brings and ranking scores; at least `k`.
            include_history: Also recommend ads the user has in the history.
            retrieval_weight: What retrieval's score counts in the order beside the log-odds of the click; with 0, or
                an index without towers, ads stand by the probability of the click alone.
            shares: Candidate source to its share of the candidates, in place of retrieval's settings.
            counters: Fresher totals than the model version's, see `RankRequest.counters`.
            timeout_seconds: For both stages together. If ranking fails or is late, the retrieval order is returned.
            request_id: Seen in both servers' logs; made up if empty.
            caller: Whoever waits; when they leave, the calls to both stages are cancelled.
            max_ads_bytes: How large the ads of the answer may be on the wire, together.

        Raises:
            InputError: `k`, `candidates` or `retrieval_weight` is out of range.
            ServiceError: Retrieval failed, or a server found the request wrong, or the ads are larger than
                `max_ads_bytes`, or the caller left; the class carries the status.
        """
        return self.recommend_message(
            user_to_wire(user),
            context_to_wire(context or Context()),
            k,
            candidates=candidates,
            include_history=include_history,
            retrieval_weight=retrieval_weight,
            shares=[retrieval_pb2.SourceShare(source=source, share=share) for source, share in shares.items()],
            counters=counters,
            timeout_seconds=timeout_seconds,
            request_id=request_id,
            caller=caller,
            max_ads_bytes=max_ads_bytes,
        )

    def recommend_message(
        self,
        user: types_pb2.UserProfile,
        context: types_pb2.Context,
        k: int,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        include_history: bool = False,
        retrieval_weight: float = DEFAULT_RETRIEVAL_WEIGHT,
        shares: Sequence[retrieval_pb2.SourceShare] = (),
        counters: Sequence[ranking_pb2.Counter] = (),
        timeout_seconds: float = 5.0,
        request_id: str = "",
        caller: Caller | None = None,
        max_ads_bytes: int | None = None,
    ) -> Recommendations:
        """The same for a user and a context that came as messages: they are passed on unopened, and read by the stages.

        See `recommend`.
        """
        _check_range(k, candidates, retrieval_weight)
        started = time.perf_counter()
        request_id = request_id or uuid.uuid4().hex[:16]
        asked = _Asked(
            user,
            context,
            shares,
            counters,
            timeout_seconds,
            time.monotonic() + timeout_seconds,
            ((REQUEST_ID_KEY, request_id),),
            Calls(caller),
            max_ads_bytes,
        )
        found = self._retrieve(asked, candidates, include_history=include_history)
        retrieved = time.perf_counter()
        ranked, reason = self._rank([one.ad_id for one in found.candidates], asked)
        finished = time.perf_counter()
        order = in_order(found.candidates, ranked.scores if ranked else None, retrieval_weight)
        try:
            items = self._shown(order, k, asked)
        except StageFailed as failed:
            raise failed.error from failed
        return Recommendations(
            items=items,
            index_version=found.index_version,
            model_version=ranked.model_version if ranked else "",
            degraded_reason=reason,
            retrieval_ms=1000 * (retrieved - started),
            ranking_ms=1000 * (finished - retrieved),
            total_ms=1000 * (time.perf_counter() - started),
            request_id=request_id,
            retrieval_weight=retrieval_weight,
            retrieval=found.timing,
            ranking=ranked.timing if ranked else types_pb2.Timing(),
        )

    def _retrieve(self, asked: _Asked, candidates: int, *, include_history: bool) -> retrieval_pb2.RetrieveResponse:
        request = retrieval_pb2.RetrieveRequest(
            user=asked.user,
            k=candidates,
            include_history=include_history,
            context=asked.context,
            shares=asked.shares,
        )
        seconds = asked.timeout_seconds * _RETRIEVAL_SHARE
        check = partial(check_candidates, k=candidates)
        try:
            found: retrieval_pb2.RetrieveResponse = self.retrieval.call(
                self._retrieval.Retrieve, request, seconds, asked.metadata, asked.calls, check
            )
        except StageFailed as failed:
            raise failed.error from failed
        return found

    def _rank(self, ad_ids: Sequence[str], asked: _Asked) -> tuple[_Ranked | None, str]:
        """What ranking says of these ads, or None and why there is nothing; nobody is asked about no ads."""
        if not ad_ids:
            return None, ""
        ends = asked.ends - min(_FETCH_SECONDS, _FETCH_SHARE * asked.timeout_seconds)
        try:
            return self._scores(ad_ids, asked, ends), ""
        except StageFailed as failed:
            if isinstance(failed.error, InvalidArgument):  # which the retrieval order would only hide
                raise failed.error from failed
            self._on_degraded(failed.reason)
            return None, failed.reason

    def _scores(self, ad_ids: Sequence[str], asked: _Asked, ends: float) -> _Ranked:
        ranked = _Ranked()
        missing: Sequence[str]
        try:
            by_id = [ranking_pb2.RankCandidate(ad_id=ad_id) for ad_id in ad_ids]
            reply = self._ask_ranking(by_id, ad_ids, asked, ends)
            ranked.add(reply)
            missing = reply.unknown_ad_ids
        except StageFailed as failed:
            if not isinstance(failed.error, FailedPrecondition):
                raise
            missing = ad_ids  # the server reads no index version
        for ads in self._ads(missing, asked, ends):
            inline = [ranking_pb2.RankCandidate(ad=ad) for ad in ads]
            ranked.add(self._ask_ranking(inline, [ad.ad_id for ad in ads], asked, ends))
        return ranked

    def _ask_ranking(
        self, candidates: Sequence[ranking_pb2.RankCandidate], ad_ids: Sequence[str], asked: _Asked, ends: float
    ) -> ranking_pb2.RankResponse:
        request = ranking_pb2.RankRequest(
            user=asked.user,
            context=asked.context,
            candidates=candidates,
            skip_unknown=True,
            counters=asked.counters,
        )
        seconds = ends - time.monotonic()
        check = partial(check_answer, asked=ad_ids)
        answer: ranking_pb2.RankResponse = self.ranking.call(
            self._ranking.Rank, request, seconds, asked.metadata, asked.calls, check
        )
        return answer

    def _ads(self, ad_ids: Sequence[str], asked: _Asked, ends: float) -> "Iterator[Sequence[types_pb2.Ad]]":
        """The ads of these ids, as many at a time as fit into a message; without those that retrieval knows no more."""
        left = list(ad_ids)
        while left:
            request = retrieval_pb2.GetAdsRequest(ad_ids=left, max_bytes=self._texts_bytes)
            seconds = ends - time.monotonic()
            reply = self.retrieval.call(self._retrieval.GetAds, request, seconds, asked.metadata, asked.calls)
            yield reply.ads
            left = left[max(1, len(reply.ads) + len(reply.unknown_ad_ids)) :]

    def _shown(self, order: Sequence[Placed], k: int, asked: _Asked) -> list[Recommendation]:
        """The first `k` of this order that retrieval still knows: it may have swapped to another version meanwhile."""
        items: list[Recommendation] = []
        first, size = 0, 0
        while len(items) < k and first < len(order):
            part = order[first : first + k - len(items)]
            first += len(part)
            ads: dict[str, types_pb2.Ad] = {}
            for some in self._ads([one.candidate.ad_id for one in part], asked, asked.ends):
                ads |= {ad.ad_id: ad for ad in some}
                size += sum(ad.ByteSize() for ad in some)
                _check_size(size, asked.max_ads_bytes)
            items += [recommendation(one, ads[one.candidate.ad_id]) for one in part if one.candidate.ad_id in ads]
        return items


def _check_range(k: int, candidates: int, retrieval_weight: float) -> None:
    if not 1 <= k <= MAX_K:
        raise InputError(f"k must be 1 to {MAX_K}, not {k}")
    if not k <= candidates <= MAX_K:
        raise InputError(f"candidates must be k to {MAX_K}, not {candidates}")
    if not 0 <= retrieval_weight < math.inf:
        raise InputError(f"retrieval_weight must be a number from 0 on, not {retrieval_weight}")


def _check_size(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ResourceExhausted(
            f"the ads of the answer are larger than {limit / MEBIBYTE:.1f} MiB: ask for fewer, or raise "
            "max_message_mib of this server and of the caller"
        )
