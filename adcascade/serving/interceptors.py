"""What surrounds every call: request id, guard, time to the message, limit on calls at once, deadline, errors to
status, metrics, access log.

Knows nothing of what a request means. All of it happens in the event loop, so a call takes a thread of the pool only
once its message is there, and holds none while its caller is slow. In this order::

    headers arrive -> guard (who calls, may they?) -> message arrives -> slot -> thread: parse, servicer, serialize

A servicer's method that is a coroutine function takes its slot, but no thread: it waits for other servers, and computes
little. Health and reflection take neither, so that a full server still says that it is alive.
"""

import asyncio
import contextlib
import inspect
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from adcascade.serving.arrivals import Arrivals, OpenStreams, UntakenReplies
from adcascade.serving.auth.access import Admission
from adcascade.serving.auth.identity import EVERYBODY, current_identity
from adcascade.serving.context import REQUEST_ID_KEY as REQUEST_ID_KEY
from adcascade.serving.context import CallContext, IncomingCall
from adcascade.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Unimplemented,
)
from adcascade.serving.metrics import CallMetrics
from adcascade.serving.printable import status_message

log = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# All that do not exist have one name, or everybody could make up metrics and lines of the log.
UNKNOWN_METHOD = "unknown-method"
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
# How health checks, and streams that watch, end when nothing is wrong.
_USUAL_ENDS = (grpc.StatusCode.OK, Cancelled.status, Unavailable.status)
_INTERNAL_MESSAGE = "internal error; the server's log has the details under this request id"


class Exchange:
    """One call on the wire, in the event loop.

    Attributes:
        call: What is known of it.
        context: gRPC's own.
        admission: Who calls, once the guard has let them in.
        working: What a thread does for the call; it may go on after the caller has left.
    """

    def __init__(self, call: IncomingCall, context: Any) -> None:
        self.call = call
        self.context = context
        self.admission: Admission | None = None
        self.working: Future[bytes] | None = None
        self._has_id = False

    def end_admission(self) -> None:
        """Tells the guard that the call is over, or will once the thread is done."""
        admission = self.admission
        if admission is None:
            return
        if self.working is None:
            admission.end()
        else:
            self.working.add_done_callback(lambda _: admission.end())

    async def send_request_id(self) -> None:
        """Sends the initial metadata, once. Raises grpc.aio.InternalError if the caller is gone."""
        if not self._has_id:
            self._has_id = True
            await self.context.send_initial_metadata(((REQUEST_ID_KEY, self.call.request_id),))


# What a handler does once its call is let in; returns the reply.
Work = Callable[[Exchange], Awaitable[bytes | None]]


class Guard(Protocol):
    """Decides who may call. Asked for every call, of any method, before its message is read."""

    def __call__(self, call: IncomingCall, *, exists: bool) -> Admission:
        """Who calls, as `current_identity` is in the servicer and the access log names it; `exists`: the method does.

        Runs in the event loop, so it must not wait for anything. Raises ServiceError with the status that the caller
        gets; a `reason` that it has is for the log alone.
        """


def admit_everybody(call: IncomingCall, *, exists: bool) -> Admission:
    """The guard of a server that asks nobody who they are."""
    return Admission(EVERYBODY)


class Connections(Protocol):
    """Is told which connections are used. See `adcascade.serving.connections`."""

    def using(self, peer: str) -> contextlib.AbstractContextManager[None]:
        """Holds for as long as a call of `peer`, whose message has arrived, is worked on."""


class CallInterceptor:
    """Wraps the methods of a server.

    Args:
        metrics: Where calls are counted.
        pool: Threads in which servicers work, as many as `max_concurrent`.
        max_concurrent: Calls beyond this many at once are refused with RESOURCE_EXHAUSTED.
        max_reply_bytes: A longer reply is refused with RESOURCE_EXHAUSTED.
        arrivals: Bounds the calls whose message has not arrived.
        streams: Bounds the streams of health and reflection.
        replies: Bounds the replies that nobody takes.
        caller_errors: Exception classes, other than ServiceError, that mean the request is wrong.
        unready_errors: Those that mean that something a call needs is not loaded, and become UNAVAILABLE.
        guard: Decides who may call.
        connections: Is told which connections are used.
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
        replies: UntakenReplies,
        connections: Connections,
        caller_errors: tuple[type[Exception], ...] = (),
        unready_errors: tuple[type[Exception], ...] = (),
        guard: Guard = admit_everybody,
    ) -> None:
        self._metrics = metrics
        self._pool = pool
        self._max_concurrent = max_concurrent
        self._max_reply_bytes = max_reply_bytes
        self._slots = threading.BoundedSemaphore(max_concurrent)
        self._arrivals = arrivals
        self._streams = streams
        self._replies = replies
        self._connections = connections
        self._caller_errors = caller_errors
        self._unready_errors = unready_errors
        self._guard = guard

    def intercept(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> Any:
        """The handler that takes the calls of `method` off the wire, in bytes.

        Servicers of unary methods may block; one that is a coroutine function, and every stream, runs in the event
        loop and must not. A coroutine function is given what a thread is: the call as a `CallContext`.
        """
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._surround(method, self._streaming(handler)))
        if handler.request_streaming:
            raise TypeError(f"{method} takes a stream of messages and answers with one; no service here does")
        if inspect.iscoroutinefunction(handler.unary_unary):
            work = self._inline(handler) if method.startswith(_INFRASTRUCTURE) else self._in_loop(handler)
            return grpc.stream_unary_rpc_method_handler(self._surround(method, work))
        return grpc.stream_unary_rpc_method_handler(self._surround(method, self._in_thread(handler)))

    async def refuse_unknown(self, messages: Any, context: Any) -> None:
        """Answers the call of a method that no handler is for."""

        async def refuse(exchange: Exchange) -> None:
            raise Unimplemented("this server has no such method; its reflection and the protos name those it has")

        await self._surround(UNKNOWN_METHOD, refuse)(messages, context)

    def _surround(self, method: str, work: Work) -> Callable[[Any, Any], Any]:
        async def call(_messages: Any, context: Any) -> bytes | None:
            started = time.perf_counter()
            exchange = Exchange(IncomingCall.of(method, context), context)
            request_id.set(exchange.call.request_id)  # of this call's task alone
            status, message, reason, reply = grpc.StatusCode.OK, "", "", None
            try:
                exchange.admission = self._guard(exchange.call, exists=method != UNKNOWN_METHOD)
                current_identity.set(exchange.admission.identity)  # as well
                reply = await work(exchange)
            except ServiceError as error:
                status, message, reason = error.status, str(error), error.reason
            except asyncio.CancelledError:
                status = DeadlineExceeded.status if exchange.call.time_remaining() == 0 else Cancelled.status
                raise
            except grpc.aio.InternalError:  # what was sent reached nobody
                status, message = Cancelled.status, "the caller left before its answer was ready"
            except Exception as error:  # noqa: BLE001 - the one place that answers for bugs
                status, message = ServiceError.status, str(_reported(error, method))
            finally:
                exchange.end_admission()
                self._record(exchange, status, time.perf_counter() - started, reason)
            self._replies.add(exchange.call.peer, len(reply or message), _current_task())
            if status is not grpc.StatusCode.OK:
                await _refuse(exchange, status, message)
            return reply

        return call

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

    def _in_thread(self, handler: Any) -> Work:
        def start(exchange: Exchange, message: bytes, caller: CallContext) -> "asyncio.Future[bytes]":
            exchange.working = self._start(handler, message, caller)
            return asyncio.wrap_future(exchange.working)

        return self._working(start)

    def _in_loop(self, handler: Any) -> Work:
        def start(exchange: Exchange, message: bytes, caller: CallContext) -> "asyncio.Future[bytes]":
            self._take_slot()
            answer = asyncio.ensure_future(self._awaited(handler, message, caller))
            answer.add_done_callback(self._end)
            return answer

        return self._working(start)

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
            raise _reported(error, caller.call.method) from error

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

    def _inline(self, handler: Any) -> Work:
        async def work(exchange: Exchange) -> bytes:
            request = _parsed(handler, await self._arrivals.message(exchange.context))
            _check_deadline(exchange.call)
            return bytes(handler.response_serializer(await handler.unary_unary(request, exchange.call)))

        return work

    def _streaming(self, handler: Any) -> Work:
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

    def _record(self, exchange: Exchange, status: grpc.StatusCode, seconds: float, reason: str) -> None:
        call, admission = exchange.call, exchange.admission
        if call.method.startswith(_INFRASTRUCTURE) and status in _USUAL_ENDS:
            return  # probes would drown the calls
        self._metrics.calls.labels(call.method, status.name).inc()
        self._metrics.seconds.labels(call.method).observe(seconds)
        who = str(admission.identity) if admission is not None else "-"
        why = f": {reason}" * bool(reason)
        log.info("%s %s %.1f ms from %s as %s%s", call.method, status.name, 1000 * seconds, call.peer, who, why)


def _parsed(handler: Any, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError as error:
        raise InvalidArgument(
            f"the message of {len(message):,} bytes cannot be read as the request of this method: it is cut off, of "
            "another type, or holds text that is not UTF-8"
        ) from error


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None  # a call is one
    return task


def _check_deadline(call: IncomingCall) -> None:
    if call.time_remaining() == 0:
        raise DeadlineExceeded("the deadline had passed when the call arrived")


def _reported(error: Exception, method: str) -> ServiceError:
    """What the caller is told of a bug, which is logged whole."""
    log.error("unexpected error in %s", method, exc_info=error)
    return ServiceError(_INTERNAL_MESSAGE)


async def _refuse(exchange: Exchange, status: grpc.StatusCode, message: str) -> None:
    with contextlib.suppress(grpc.aio.InternalError):  # nobody is there to be refused
        await exchange.send_request_id()
    await exchange.context.abort(status, status_message(message))
