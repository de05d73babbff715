"""Both stages as one call: retrieve ids, rank them, fetch the ads that are shown. Keeps to the deadline, and falls back
to the retrieval order.

Texts travel once, and only those of the ads that are shown: ranking looks ads up in its own index version, and is sent
the texts of those alone that it does not have.
"""

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from adcascade.records.errors import InputError
from adcascade.records.users import Context, UserProfile
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.context import REQUEST_ID_KEY
from adcascade.serving.errors import InvalidArgument, ResourceExhausted
from adcascade.serving.loop import run_in_loop
from adcascade.serving.settings import MEBIBYTE
from adcascade.v1 import ranking_pb2, retrieval_pb2, types_pb2
from adcascade.wire import context_to_wire, user_to_wire
from pipeline.answers import Recommendation, Recommendations, in_order
from pipeline.errors import StageFailed
from pipeline.live_users import LiveUser, LiveUsers
from pipeline.order import weight_of
from pipeline.scores import Retrieved
from pipeline.stage import Stage, Waited
from pipeline.stage_calls import Asked, Ranked, StageCalls

MAX_K = 1000
DEFAULT_CANDIDATES = 100

# What ranking leaves to fetch the ads in: this share of the whole time, at most so many seconds.
_FETCH_SHARE, _FETCH_SECONDS = 0.1, 0.2
# Left of a message for what is not texts of ads: a user is at most as large as a request.
_TEXT_SHARE = 0.5


class AdPipeline:
    """A client of a retrieval and a ranking server. Thread-safe; close it when done, or use it in a ``with``.

    A server that fails several calls in a row is not asked until its health check is good again: retrieval's calls fail
    at once, and without ranking the retrieval order goes out at once.

    Args:
        retrieval, ranking: ``host:port`` of the two servers.
        ca_certificate: PEM file; if given, both connections are TLS. Short for `security`.
        security: What both servers are shown, and whom to believe.
        on_degraded: Told the reason each time the retrieval order is returned instead; in the loop of
            `adcascade.serving.loop`, so it must not wait.
        max_message_mib: Largest message to and from the servers.
        retrieval_timeout_seconds, ranking_timeout_seconds: Longest that each may take, whatever time a call has.
        events: ``host:port`` of the event store, whose histories join those that requests bring; empty for none.
        events_timeout_seconds: Longest that it may take; then an answer is made without.
        on_history_missing: Told the reason each time it is; see `on_degraded`.

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
        events: str = "",
        events_timeout_seconds: float = 0.1,
        on_history_missing: Callable[[str], None] = lambda _: None,
    ) -> None:
        security = security or ClientSecurity(ca_certificate=ca_certificate)
        self.retrieval = Stage("retrieval", retrieval, retrieval_timeout_seconds, security, max_message_mib)
        self.ranking = Stage("ranking", ranking, ranking_timeout_seconds, security, max_message_mib)
        self._calls = StageCalls(self.retrieval, self.ranking, int(_TEXT_SHARE * max_message_mib * MEBIBYTE))
        self._on_degraded = on_degraded
        self.events = Stage("events", events, events_timeout_seconds, security, max_message_mib) if events else None
        self._users = LiveUsers(self.events, on_history_missing) if self.events else None

    def __enter__(self) -> "AdPipeline":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        for stage in self.stages:
            stage.close()

    @property
    def stages(self) -> Sequence[Stage]:
        """The servers behind it."""
        return [stage for stage in (self.retrieval, self.ranking, self.events) if stage is not None]

    def recommend(
        self,
        user: UserProfile,
        context: Context | None = None,
        k: int = 10,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        include_history: bool = False,
        retrieval_weight: float | None = None,
        shares: Mapping[str, float] = MappingProxyType({}),
        counters: Sequence[ranking_pb2.Counter] = (),
        timeout_seconds: float = 5.0,
        request_id: str = "",
        max_ads_bytes: int | None = None,
    ) -> Recommendations:
        """The `k` ads that the user is most likely to want next, see `order.order_of`; fewer if no more are left.

        Args:
            candidates: How many ads retrieval brings and ranking scores; at least `k`.
            include_history: Also recommend ads the user has in the history.
            retrieval_weight: What retrieval's score counts in the order beside the log-odds of the click; with 0, or
                an index without towers, ads stand by the probability of the click alone. None: what the model version
                says that answers, see `order.weight_of`.
            shares: Candidate source to its share of the candidates, in place of retrieval's settings.
            counters: Fresher totals than the model version's, see `RankRequest.counters`.
            timeout_seconds: For both stages together. If ranking fails or is late, the retrieval order is returned.
            request_id: Seen in both servers' logs; made up if empty.
            max_ads_bytes: How large the ads of the answer may be on the wire, together.

        Raises:
            InputError: `k`, `candidates` or `retrieval_weight` is out of range.
            ServiceError: Retrieval failed, or a server found the request wrong, or the ads are larger than
                `max_ads_bytes`; the class carries the status.
        """
        asking = self.recommend_message(
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
            max_ads_bytes=max_ads_bytes,
        )
        return run_in_loop(asking)

    async def recommend_message(
        self,
        user: types_pb2.UserProfile,
        context: types_pb2.Context,
        k: int,
        *,
        candidates: int = DEFAULT_CANDIDATES,
        include_history: bool = False,
        retrieval_weight: float | None = None,
        shares: Sequence[retrieval_pb2.SourceShare] = (),
        counters: Sequence[ranking_pb2.Counter] = (),
        timeout_seconds: float = 5.0,
        request_id: str = "",
        max_ads_bytes: int | None = None,
    ) -> Recommendations:
        """The same for a user and a context that came as messages: they are passed on unopened, and read by the stages.

        To be awaited in the loop of `adcascade.serving.loop`; a task that is cancelled cancels the call that it waits
        for. See `recommend`.
        """
        _check_range(k, candidates, retrieval_weight)
        started = time.perf_counter()
        ends = time.monotonic() + timeout_seconds
        request_id = request_id or uuid.uuid4().hex[:16]
        metadata, reading, missing = ((REQUEST_ID_KEY, request_id),), Waited(), ""
        try:
            live = LiveUser(user, user)
            if self._users is not None:
                live, missing = await self._users.with_history(user, timeout_seconds, metadata, reading)
            seconds = max(0.0, ends - time.monotonic())
            asked = Asked(live, context, k, shares, counters, seconds, ends, metadata, max_ads_bytes)
            found = await self._calls.retrieve(asked, candidates, include_history=include_history)
            ranked, reason = await self._rank(found.ad_ids, asked)
            weight = weight_of(retrieval_weight, ranked.retrieval_weight if ranked else None)
            items = await self._shown(found, ranked, k, asked, weight)
        except StageFailed as failed:
            raise failed.error from failed
        return Recommendations(
            items=items,
            index_version=found.reply.index_version,
            model_version=ranked.model_version if ranked else "",
            degraded_reason=reason,
            retrieval_ms=1000 * asked.retrieving.seconds,
            ranking_ms=1000 * asked.ranking.seconds,
            total_ms=1000 * (time.perf_counter() - started),
            request_id=request_id,
            retrieval_weight=weight,
            retrieval=found.reply.timing,
            ranking=ranked.timing if ranked else types_pb2.Timing(),
            history_missing_reason=missing,
            events_ms=1000 * reading.seconds,
        )

    async def _rank(self, ad_ids: Sequence[str], asked: Asked) -> tuple[Ranked | None, str]:
        """What ranking says of these ads, or None and why there is nothing; nobody is asked about no ads."""
        if not ad_ids:
            return None, ""
        ends = asked.ends - min(_FETCH_SECONDS, _FETCH_SHARE * asked.timeout_seconds)
        try:
            return await self._calls.rank(ad_ids, asked, ends), ""
        except StageFailed as failed:
            if isinstance(failed.error, InvalidArgument):  # which the retrieval order would only hide
                raise
            self._on_degraded(failed.reason)
            return None, failed.reason

    async def _shown(
        self, found: Retrieved, ranked: Ranked | None, k: int, asked: Asked, retrieval_weight: float
    ) -> list[Recommendation]:
        """The `k` best that retrieval still knows: it may have swapped to another version meanwhile."""
        order = in_order(found, ranked.p_click if ranked else None, retrieval_weight)
        items: list[Recommendation] = []
        first, size = 0, 0
        while len(items) < k and first < len(order):
            part = order[first : first + k - len(items)]
            first += len(part)
            ad_ids = [found.ad_ids[place] for place in part]
            ads: dict[str, types_pb2.Ad] = {}
            async for some in self._calls.ads(ad_ids, asked, asked.ends, asked.fetching):
                ads |= {ad.ad_id: ad for ad in some}
                size += sum(ad.ByteSize() for ad in some)
                _check_size(size, asked.max_ads_bytes)
            known = zip(part, ad_ids, strict=True)
            items += [_item(found, place, ads[ad_id], ranked) for place, ad_id in known if ad_id in ads]
        return items


def _item(found: Retrieved, place: int, ad: types_pb2.Ad, ranked: Ranked | None) -> Recommendation:
    """The candidate of this place, with its probabilities if it was ranked."""
    candidate, ad_id = found.reply.candidates[place], found.ad_ids[place]
    return Recommendation(
        message=ad,
        similarity=candidate.similarity,
        retrieval_score=candidate.score,
        retrieval_position=place,
        p_click=ranked.p_click[ad_id] if ranked else None,
        source=candidate.source,
        p_conversion=ranked.p_conversion.get(ad_id) if ranked else None,
    )


def _check_range(k: int, candidates: int, retrieval_weight: float | None) -> None:
    if not 1 <= k <= MAX_K:
        raise InputError(f"k must be 1 to {MAX_K}, not {k}")
    if not k <= candidates <= MAX_K:
        raise InputError(f"candidates must be k to {MAX_K}, not {candidates}")
    if retrieval_weight is not None and not 0 <= retrieval_weight < math.inf:
        raise InputError(f"retrieval_weight must be a number from 0 on, not {retrieval_weight}")


def _check_size(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise ResourceExhausted(
            f"the ads of the answer are larger than {limit / MEBIBYTE:.1f} MiB: ask for fewer, or raise "
            "max_message_mib of this server and of the caller"
        )
