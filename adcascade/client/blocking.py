"""The client for threads: every method returns when the answer is there."""

import time
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import grpc

from adcascade.client import calls
from adcascade.client.connection import Base, Exchange, Metadata
from adcascade.client.values import Ad, Ads, Candidates, Context, Counter, Ranking, Recommendations, User

Value = TypeVar("Value")


class Client(Base):
    """Asks one server. Thread-safe; close it when done, or use it in a ``with``.

    A gateway answers `recommend`, a retrieval server `retrieve` and `get_ads`, a ranking server `rank`; ``adcascade
    serve`` starts all three. A server that is asked for what another one does says so (`NotOffered`).

    A call to a server that is away, or still loading, is sent again after pauses of 0.1, 0.2, 0.4 s and so on, as long
    as its time lasts. Addresses of this machine are never reached through an http proxy.

    Args:
        address: ``host:port``.
        timeout_seconds: For a call with all its attempts; each call may have its own.
        attempts: How often a call is sent at most while the server is UNAVAILABLE; 1 never tries again.
        tls: Encrypt, and believe servers that the authorities known to gRPC vouch for.
        ca_file: PEM of the authorities whose servers are believed instead; implies `tls`.
        certificate_file, key_file: PEM of the own certificate and its key, for servers that ask for one (mTLS).
        server_name: Name in the server's certificate, where it is not that of the address.
        token: Bearer token.
        token_file: File that holds it instead, read again for each call. Certificates are read once.
        metadata: Sent with every call, as pairs of a key in small letters and a value.
        max_message_mib: Largest message to and from the server.

    Raises:
        ValueError: The arguments do not fit each other, or would send a token in the clear.
        OSError: A file cannot be read.

    All methods raise `AdCascadeError` (see `adcascade.client.errors`), and take ``timeout_seconds``, a ``request_id``
    that the servers log (made up if empty) and further ``metadata``.

    >>> from adcascade import Client, Context, Event, User
    >>> user = User("u7", interests="trail running", history=[Event("click", ad_id="running-3")])
    >>> with Client("localhost:50050") as client:
    ...     answer = client.recommend(user, Context(device="phone"), k=3)
    >>> for one in answer:
    ...     print(f"{one.p_click:.3f}  {one.ad.title}")
    0...  ... offer ...
    0...  ... offer ...
    0...  ... offer ...
    """

    def _start(self) -> None:
        self._channel = self._connection.open()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that run end as `Cancelled`."""
        self._closed = True
        self._channel.close()

    def recommend(
        self,
        user: User,
        context: Context | None = None,
        *,
        k: int = 10,
        candidates: int = 0,
        include_history: bool = False,
        shares: Mapping[str, float] = calls.NO_SHARES,
        counters: Sequence[Counter] = (),
        timeout_seconds: float | None = None,
        request_id: str = "",
        metadata: Metadata = (),
    ) -> Recommendations:
        """Both stages: the `k` ads the user is most likely to want next, best first; fewer if no more are left.

        Args:
            candidates: How many ads are retrieved and ranked, `k` to 1,000; 0 leaves it to the server.
            include_history: Also recommend ads that are in the user's history.
            shares: Candidate source ("interests", "lexical", "popularity", "fresh") to its share, 0 to 1, in place of
                the server's settings.
            counters: Totals that are fresher than the model version's.

        >>> from adcascade import Client, User
        >>> client = Client("localhost:50050")
        >>> answer = client.recommend(User(interests="espresso beans"), k=5, request_id="page-17")
        >>> len(answer), answer.degraded, answer.request_id
        (5, False, 'page-17')
        >>> client.close()
        """
        call = calls.recommend(user, context, k, candidates, include_history, shares, counters)
        return self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    def retrieve(
        self,
        user: User,
        context: Context | None = None,
        *,
        k: int = 100,
        include_history: bool = False,
        include_ads: bool = False,
        shares: Mapping[str, float] = calls.NO_SHARES,
        timeout_seconds: float | None = None,
        request_id: str = "",
        metadata: Metadata = (),
    ) -> Candidates:
        """Stage one: the `k` ads nearest to the user's interests.

        Args:
            include_ads: Also bring the ads themselves; by default ids alone come.

        >>> from adcascade import Client, User
        >>> with Client("localhost:50051") as retrieval:
        ...     found = retrieval.retrieve(User(interests="espresso beans"), k=20)
        ...     ads = retrieval.get_ads([one.ad_id for one in found][:2])
        >>> len(found), len(ads)
        (20, 2)
        """
        call = calls.retrieve(user, context, k, include_history, include_ads, shares)
        return self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    def rank(
        self,
        user: User,
        candidates: Sequence[str | Ad],
        context: Context | None = None,
        *,
        top_n: int = 0,
        skip_unknown: bool = False,
        counters: Sequence[Counter] = (),
        shown: int = 0,
        timeout_seconds: float | None = None,
        request_id: str = "",
        metadata: Metadata = (),
    ) -> Ranking:
        """Stage two: calibrated click probabilities of ads, best first.

        Args:
            candidates: Ids in the server's index version, or ads with their texts; at most 1,000, no id twice.
            top_n: Bring only so many of the best; 0 brings all.
            skip_unknown: Leave out ids that the server does not know, instead of failing with `NotFound`.
            shown: How many of them the page will show together, at most 1,000; 0 if that is not known.

        >>> from adcascade import Ad, Client, User
        >>> with Client("localhost:50052") as ranking:
        ...     ranked = ranking.rank(User("u7"), ["running-1", Ad("new-1", title="Trail shoes, half price")])
        >>> sorted(one.ad_id for one in ranked)
        ['new-1', 'running-1']
        >>> all(0 < one.p_click < 1 for one in ranked)
        True
        """
        call = calls.rank(user, candidates, context, top_n, skip_unknown, counters, shown)
        return self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    def get_ads(
        self,
        ad_ids: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        request_id: str = "",
        metadata: Metadata = (),
    ) -> Ads:
        """The ads of 1 to 1,000 ids, in as many messages as they need; ids that are not in the catalog are listed.

        >>> from adcascade import Client
        >>> with Client("localhost:50051") as retrieval:
        ...     ads = retrieval.get_ads(["coffee-1", "moon-1"])
        >>> [ad.category for ad in ads], ads.unknown_ad_ids
        (['coffee'], ('moon-1',))
        """
        exchange, left = self._begin(calls.GET_ADS, timeout_seconds, request_id, metadata), ad_ids
        parts = [self._answer(calls.get_ads(left), exchange)]
        while left := calls.rest_of(left, parts[-1]):
            parts.append(self._answer(calls.get_ads(left), exchange))
        return calls.together(parts)

    def _answer(self, call: calls.Call[Value], exchange: Exchange) -> Value:
        method = self._channel.unary_unary(
            call.method.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.method.reply.FromString,
        )
        while True:
            try:
                reply, done = method.with_call(call.request, timeout=exchange.seconds_left, metadata=exchange.metadata)
            except grpc.RpcError as error:
                ended = cast(grpc.Call, error)  # as all are that a unary call raises
                time.sleep(exchange.pause_or_raise(ended.code(), ended.details() or "", ended.initial_metadata()))
            else:
                return call.read(reply, exchange.take_id(done.initial_metadata()))
