"""What surrounds every call: request id, guard, errors to status, metrics, access log.

Knows nothing of what a request means, nor how it is read and answered (`adcascade.serving.handling`). All of it happens
in the event loop, so a call takes a thread of the pool only once its message is there, and holds none while its caller
is slow. In this order::

    headers arrive -> guard (who calls, may they?) -> message arrives -> slot -> thread: parse, servicer, serialize

A servicer's method that is a coroutine function takes its slot, but no thread: it waits for other servers, and computes
little. Health and reflection take neither, so that a full server still says that it is alive.
"""

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

import grpc

from adcascade.serving.arrivals import UntakenReplies
from adcascade.serving.auth.access import Admission
from adcascade.serving.auth.identity import EVERYBODY, current_identity
from adcascade.serving.context import REQUEST_ID_KEY as REQUEST_ID_KEY
from adcascade.serving.context import IncomingCall
from adcascade.serving.errors import Cancelled, DeadlineExceeded, ServiceError, Unavailable, Unimplemented
from adcascade.serving.exchange import Exchange, Work
from adcascade.serving.handling import Handling, reported
from adcascade.serving.metrics import CallMetrics
from adcascade.serving.printable import status_message

log = logging.getLogger(__name__)

request_id: ContextVar[str] = ContextVar("request_id", default="-")

# All that do not exist have one name, or everybody could make up metrics and lines of the log.
UNKNOWN_METHOD = "unknown-method"
_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
# How health checks, and streams that watch, end when nothing is wrong.
_USUAL_ENDS = (grpc.StatusCode.OK, Cancelled.status, Unavailable.status)


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


class CallInterceptor:
    """Wraps the methods of a server.

    Args:
        metrics: Where calls are counted.
        handling: What is done with a call that was let in.
        replies: Bounds the replies that nobody takes.
        guard: Decides who may call.
    """

    def __init__(
        self, metrics: CallMetrics, handling: Handling, *, replies: UntakenReplies, guard: Guard = admit_everybody
    ) -> None:
        self._metrics = metrics
        self._handling = handling
        self._replies = replies
        self._guard = guard

    def intercept(self, method: str, handler: "grpc.RpcMethodHandler[Any, Any]") -> Any:
        """The handler that takes the calls of `method` off the wire, in bytes.

        Servicers of unary methods may block; one that is a coroutine function, and every stream, runs in the event
        loop and must not. A coroutine function is given what a thread is: the call as a `CallContext`.
        """
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._surround(method, self._handling.streaming(handler)))
        if handler.request_streaming:
            raise TypeError(f"{method} takes a stream of messages and answers with one; no service here does")
        if inspect.iscoroutinefunction(handler.unary_unary):
            work = self._handling.inline if method.startswith(_INFRASTRUCTURE) else self._handling.in_loop
            return grpc.stream_unary_rpc_method_handler(self._surround(method, work(handler)))
        return grpc.stream_unary_rpc_method_handler(self._surround(method, self._handling.in_thread(handler)))

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
                status, message = ServiceError.status, str(reported(error, method))
            finally:
                exchange.end_admission()
                self._record(exchange, status, time.perf_counter() - started, reason)
            self._replies.add(exchange.call.peer, len(reply or message), _current_task())
            if status is not grpc.StatusCode.OK:
                await _refuse(exchange, status, message)
            return reply

        return call

    def _record(self, exchange: Exchange, status: grpc.StatusCode, seconds: float, reason: str) -> None:
        call, admission = exchange.call, exchange.admission
        if call.method.startswith(_INFRASTRUCTURE) and status in _USUAL_ENDS:
            return  # probes would drown the calls
        self._metrics.calls.labels(call.method, status.name).inc()
        self._metrics.seconds.labels(call.method).observe(seconds)
        who = str(admission.identity) if admission is not None else "-"
        why = f": {reason}" * bool(reason)
        log.info("%s %s %.1f ms from %s as %s%s", call.method, status.name, 1000 * seconds, call.peer, who, why)


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None  # a call is one
    return task


async def _refuse(exchange: Exchange, status: grpc.StatusCode, message: str) -> None:
    with contextlib.suppress(grpc.aio.InternalError):  # nobody is there to be refused
        await exchange.send_request_id()
    await exchange.context.abort(status, status_message(message))
