"""What surrounds every unary call: request id, limit on calls at once, deadline, errors to status, metrics, access log.

Knows nothing of what a request means. Health checks and reflection pass through untouched, so that a full server can
still say that it is alive.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, NoReturn

import grpc

from serving.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError
from serving.metrics import CallMetrics

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
request_id: ContextVar[str] = ContextVar("request_id", default="-")

_INFRASTRUCTURE = ("/grpc.health.", "/grpc.reflection.")
_SAFE_ID = re.compile(r"[\w.:/-]{1,128}", re.ASCII)
# gRPC sends a status message as metadata, whose size it limits; a longer one would hide the status itself.
_MAX_MESSAGE_CHARS = 1000
_INTERNAL_MESSAGE = "internal error; the server's log has the details under this request id"

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


class CallInterceptor(grpc.ServerInterceptor):
    """Wraps every unary call of the application.

    Args:
        metrics: Where calls are counted.
        max_concurrent: Calls beyond this many at once are refused with RESOURCE_EXHAUSTED.
        caller_errors: Exception classes, other than ServiceError, that mean the request is wrong.
    """

    def __init__(
        self, metrics: CallMetrics, max_concurrent: int, caller_errors: tuple[type[Exception], ...] = ()
    ) -> None:
        self._metrics = metrics
        self._max_concurrent = max_concurrent
        self._slots = threading.BoundedSemaphore(max_concurrent)
        self._caller_errors = caller_errors

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Implements `grpc.ServerInterceptor`."""
        handler = continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or handler.unary_unary is None or method.startswith(_INFRASTRUCTURE):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._surround(method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _surround(self, method: str, behaviour: Behaviour) -> Behaviour:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            token = request_id.set(_request_id(context))
            started = time.perf_counter()
            status = grpc.StatusCode.OK
            try:
                context.send_initial_metadata(((REQUEST_ID_KEY, request_id.get()),))
                with self._slot():
                    return self._answer(behaviour, request, context)
            except ServiceError as error:
                status = error.status
                _abort(context, status, str(error))
            except Exception:  # the one place that answers for bugs: logged whole, told in a fixed text
                status = grpc.StatusCode.INTERNAL
                log.exception("unexpected error in %s", method)
                _abort(context, status, _INTERNAL_MESSAGE)
            finally:
                self._record(method, status, time.perf_counter() - started)
                request_id.reset(token)

        return call

    def _answer(self, behaviour: Behaviour, request: Any, context: grpc.ServicerContext) -> Any:
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        try:
            return behaviour(request, context)
        except self._caller_errors as error:
            raise InvalidArgument(str(error)) from error

    def _slot(self) -> AbstractContextManager[None]:
        if not self._slots.acquire(blocking=False):
            raise ResourceExhausted(f"{self._max_concurrent} calls are in flight already; try again later")
        self._metrics.in_flight.inc()
        return _Release(self._slots, self._metrics)

    def _record(self, method: str, status: grpc.StatusCode, seconds: float) -> None:
        self._metrics.calls.labels(method, status.name).inc()
        self._metrics.seconds.labels(method).observe(seconds)
        log.info("%s %s %.1f ms", method, status.name, 1000 * seconds)


class _Release(nullcontext[None]):
    def __init__(self, slots: threading.BoundedSemaphore, metrics: CallMetrics) -> None:
        super().__init__()
        self._slots, self._metrics = slots, metrics

    def __exit__(self, *exc_info: object) -> None:
        self._slots.release()
        self._metrics.in_flight.dec()


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's own request id where it is safe to log, a new one otherwise."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SAFE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex[:16]


def _abort(context: grpc.ServicerContext, status: grpc.StatusCode, message: str) -> NoReturn:
    context.abort(status, message[:_MAX_MESSAGE_CHARS])
    raise AssertionError("abort always raises")
