"""What is done with a call that was let in: its message arrives and is parsed, a thread or the event loop answers.

Knows nothing of what a request means, nor who calls.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from adcascade.serving.arrivals import Arrivals, OpenStreams
from adcascade.serving.context import CallContext, IncomingCall
from adcascade.serving.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError, Unavailable
from adcascade.serving.exchange import Exchange, Work
from adcascade.serving.metrics import CallMetrics

log = logging.getLogger(__name__)

_INTERNAL_MESSAGE = "internal error; the server's log has the details under this request id"


class Connections(Protocol):
    """Is told which connections are used. See `adcascade.serving.connections`."""

    def using(self, peer: str) -> contextlib.AbstractContextManager[None]:
        """Holds for as long as a call of `peer`, whose message has arrived, is worked on."""


class Handling:
    """Reads messages and has them answered.

    Args:
        metrics: Where calls in flight are counted.
        pool: Threads in which servicers work, as many as `max_concurrent`.
        max_concurrent: Calls beyond this many at once are refused with RESOURCE_EXHAUSTED.
        max_reply_bytes: A longer reply is refused with RESOURCE_EXHAUSTED.
        arrivals: Bounds the calls whose message has not arrived.
        streams: Bounds the streams of health and reflection.
        connections: Is told which connections are used.
        caller_errors: Exception classes, other than ServiceError, that mean the request is wrong.
        unready_errors: Those that mean that something a call needs is not loaded, and become UNAVAILABLE.
    """

    def __init__(
        self,
        metrics: CallMetrics,
        pool: ThreadPoolExecutor,
        *,
        max_concurrent: int,
        max_reply_bytes: int,
        arrivals: Arrivals,
        streams: OpenStreams,
        connections: Connections,
        caller_errors: tuple[type[Exception], ...] = (),
        unready_errors: tuple[type[Exception], ...] = (),
    ) -> None:
        self._metrics = metrics
        self._pool = pool
        self._max_concurrent = max_concurrent
        self._max_reply_bytes = max_reply_bytes
        self._slots = threading.BoundedSemaphore(max_concurrent)
        self._arrivals = arrivals
        self._streams = streams
        self._connections = connections
        self._caller_errors = caller_errors
        self._unready_errors = unready_errors

    def in_thread(self, handler: Any) -> Work:
        """A thread answers, which may block."""

        def start(exchange: Exchange, message: bytes, caller: CallContext) -> "asyncio.Future[bytes]":
            exchange.working = self._start(handler, message, caller)
            return asyncio.wrap_future(exchange.working)

        return self._working(start)

    def in_loop(self, handler: Any) -> Work:
        """The event loop answers with a coroutine, which takes a slot as a thread does and must not block."""

        def start(exchange: Exchange, message: bytes, caller: CallContext) -> "asyncio.Future[bytes]":
            self._take_slot()
            answer = asyncio.ensure_future(self._awaited(handler, message, caller))
            answer.add_done_callback(self._end)
            return answer

        return self._working(start)

    def _working(self, start: "Callable[[Exchange, bytes, CallContext], asyncio.Future[bytes]]") -> Work:
        async def work(exchange: Exchange) -> bytes:
            message = await self._arrivals.message(exchange.context)
            _check_deadline(exchange.call)
            caller = CallContext(exchange.call)
            with self._connections.using(exchange.call.peer):
                answer = start(exchange, message, caller)
                try:
                    await exchange.send_request_id()  # while it is worked on
                    return await answer
                finally:
                    answer.cancel()  # without effect on one that has ended, and on a thread
                    caller.end()
                    if caller.trailing_metadata():
                        exchange.context.set_trailing_metadata(caller.trailing_metadata())

        return work

    def _end(self, answer: "asyncio.Future[bytes]") -> None:
        self._free()
        if not answer.cancelled():
            answer.exception()  # nobody may be left who looks at it

    def _start(self, handler: Any, message: bytes, caller: CallContext) -> "Future[bytes]":
        """Takes a slot and has a thread answer; the slot is free again once that has ended, whoever still waits."""
        self._take_slot()
        try:
            answer = self._pool.submit(copy_context().run, self._answer, handler, message, caller)
        except BaseException:
            self._free()
            raise
        answer.add_done_callback(lambda _: self._free())
        return answer

    def _take_slot(self) -> None:
        if not self._slots.acquire(blocking=False):
            raise ResourceExhausted(f"{self._max_concurrent} calls are in flight already; try again later")
        self._metrics.in_flight.inc()

    def _free(self) -> None:
        self._metrics.in_flight.dec()
        self._slots.release()

    def _answer(self, handler: Any, message: bytes, caller: CallContext) -> bytes:
        """The reply in bytes. Runs in a thread of the pool; raises nothing but ServiceError."""
        with self._told(caller):
            request = _parsed(handler, message)
            reply: bytes = handler.response_serializer(handler.unary_unary(request, caller))
        return self._finished(reply, caller)

    async def _awaited(self, handler: Any, message: bytes, caller: CallContext) -> bytes:
        """As `_answer`, of a coroutine function."""
        with self._told(caller):
            request = _parsed(handler, message)
            reply: bytes = handler.response_serializer(await handler.unary_unary(request, caller))
        return self._finished(reply, caller)

    @contextlib.contextmanager
    def _told(self, caller: CallContext) -> Iterator[None]:
        """Whatever a servicer raises becomes the ServiceError that its caller is told."""
        try:
            yield
        except ServiceError:
            raise
        except self._caller_errors as error:
            raise InvalidArgument(str(error)) from error
        except self._unready_errors as error:
            raise Unavailable(str(error)) from error
        except Exception as error:
            raise reported(error, caller.call.method) from error

    def _finished(self, reply: bytes, caller: CallContext) -> bytes:
        """The reply, unless the servicer chose another status or it is too long."""
        if (chosen := caller.code()) not in (None, grpc.StatusCode.OK):
            caller.abort(chosen, caller.details())
        if len(reply) > self._max_reply_bytes:
            raise ResourceExhausted(
                f"the reply takes {len(reply):,} bytes, more than the {self._max_reply_bytes:,} of the setting "
                "max_message_mib; ask for less, or raise it on both sides"
            )
        return reply

    def inline(self, handler: Any) -> Work:
        """The event loop answers, without a slot."""

        async def work(exchange: Exchange) -> bytes:
            request = _parsed(handler, await self._arrivals.message(exchange.context))
            _check_deadline(exchange.call)
            return bytes(handler.response_serializer(await handler.unary_unary(request, exchange.call)))

        return work

    def streaming(self, handler: Any) -> Work:
        """The event loop answers with a stream, without a slot."""

        async def messages(exchange: Exchange) -> AsyncIterator[Any]:
            while (message := await self._arrivals.message(exchange.context, last=True)) is not None:
                yield _parsed(handler, message)

        async def work(exchange: Exchange) -> None:
            async with self._streams.open(exchange.call.peer):
                if handler.request_streaming:
                    replies = handler.stream_stream(messages(exchange), exchange.call)
                else:
                    request = _parsed(handler, await self._arrivals.message(exchange.context))
                    replies = handler.unary_stream(request, exchange.call)
                await exchange.send_request_id()
                async with contextlib.aclosing(replies):
                    async for reply in replies:
                        await exchange.context.write(handler.response_serializer(reply))

        return work


def _parsed(handler: Any, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError as error:
        raise InvalidArgument(
            f"the message of {len(message):,} bytes cannot be read as the request of this method: it is cut off, of "
            "another type, or holds text that is not UTF-8"
        ) from error


def _check_deadline(call: IncomingCall) -> None:
    if call.time_remaining() == 0:
        raise DeadlineExceeded("the deadline had passed when the call arrived")


def reported(error: Exception, method: str) -> ServiceError:
    """What the caller is told of a bug, which is logged whole."""
    log.error("unexpected error in %s", method, exc_info=error)
    return ServiceError(_INTERNAL_MESSAGE)
