"""The client for asyncio: the same methods, to be awaited."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TypeVar

from grpc import aio

from adcascade.client import calls
from adcascade.client.connection import Base, Exchange, Metadata
from adcascade.client.errors import Cancelled
from adcascade.client.values import Ad, Ads, Candidates, Context, Counter, Ranking, Recommendations, User

Value = TypeVar("Value")


class AsyncClient(Base):
    """`Client` for asyncio, with the same arguments, methods and errors. Belongs to the event loop of its first call.

    Close it when done, or use it in an ``async with``. A task that is cancelled cancels its call on the server.

    >>> import asyncio
    >>> from adcascade import AsyncClient, User
    >>> async def both():
    ...     async with AsyncClient("localhost:50050") as client:
    ...         users = User(interests="trail running"), User(interests="garden seeds")
    ...         return await asyncio.gather(*(client.recommend(user, k=4) for user in users))
    >>> [len(answer) for answer in asyncio.run(both())]
    [4, 4]
    """

    _channel: aio.Channel | None = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that run end as `Cancelled`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def recommend(
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
        """See `Client.recommend`."""
        call = calls.recommend(user, context, k, candidates, include_history, shares, counters)
        return await self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    async def retrieve(
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
        """See `Client.retrieve`."""
        call = calls.retrieve(user, context, k, include_history, include_ads, shares)
        return await self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    async def rank(
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
        """See `Client.rank`."""
        call = calls.rank(user, candidates, context, top_n, skip_unknown, counters, shown)
        return await self._answer(call, self._begin(call.method, timeout_seconds, request_id, metadata))

    async def get_ads(
        self,
        ad_ids: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        request_id: str = "",
        metadata: Metadata = (),
    ) -> Ads:
        """See `Client.get_ads`."""
        exchange, left = self._begin(calls.GET_ADS, timeout_seconds, request_id, metadata), ad_ids
        parts = [await self._answer(calls.get_ads(left), exchange)]
        while left := calls.rest_of(left, parts[-1]):
            parts.append(await self._answer(calls.get_ads(left), exchange))
        return calls.together(parts)

    async def _answer(self, call: calls.Call[Value], exchange: Exchange) -> Value:
        if self._channel is None:  # not before: a channel belongs to the event loop in which it was opened
            self._channel = self._connection.open_aio()
        method = self._channel.unary_unary(
            call.method.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.method.reply.FromString,
        )
        while True:
            running = method(call.request, timeout=exchange.seconds_left, metadata=exchange.metadata)
            try:
                reply = await running
            except aio.AioRpcError as error:
                pause = exchange.pause_or_raise(error.code(), error.details() or "", error.initial_metadata())
                await asyncio.sleep(pause)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closed and task is not None and not task.cancelling():
                    raise Cancelled("the client was closed meanwhile", exchange.request_id) from None
                raise
            else:
                return call.read(reply, exchange.take_id(await running.initial_metadata()))
