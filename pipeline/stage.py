"""A server behind the pipeline: its connection, its circuit breaker, and what its health checks say.

Knows how a call ends, not what it asks. Calls are awaited in the loop of `adcascade.serving.loop`: one that is under
way holds no thread, and a task that is cancelled cancels its call on the server.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.channel import awaited_health_of, open_channel_in_loop
from adcascade.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
)
from adcascade.serving.loop import run_in_loop
from pipeline.breaker import CircuitBreaker, Outcome, State
from pipeline.errors import InvalidAnswer, StageFailed

log = logging.getLogger(__name__)

Read = TypeVar("Read")
Metadata = tuple[tuple[str, str], ...]

CIRCUIT_OPEN, INVALID_ANSWER = "CIRCUIT_OPEN", "INVALID_ANSWER"

# How often a server's health is looked at, and for how long an answer is waited for.
_CHECK_EVERY_SECONDS, _CHECK_SECONDS = 0.5, 1.0
# So many checks in a row without a good answer, and the server counts as away.
_BAD_CHECKS = 2
# A call that was given less time than this says nothing of a healthy server when the time is over.
_FAIR_SECONDS = 0.5

_SERVER_FAULTS = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
)
_NOBODY_THERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
# Whoever answers so is there and works.
_CALLER_FAULTS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)
_ERRORS: dict[grpc.StatusCode, type[ServiceError]] = {
    error.status: error
    for error in (
        InvalidArgument,
        NotFound,
        FailedPrecondition,
        Unauthenticated,
        PermissionDenied,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
    )
}


@dataclass
class Waited:
    """How long calls of one kind took so far, as they were seen here, in seconds."""

    seconds: float = 0.0


class Stage:
    """One server behind the pipeline. Thread-safe but for `call`; close it when done.

    Args:
        name: Of the stage, as callers are told.
        address: ``host:port``.
        timeout_seconds: Longest a call may take, whatever time its caller has; None leaves it to the caller.
        security: What the server is shown, and whom to believe.
    """

    def __init__(
        self, name: str, address: str, timeout_seconds: float | None, security: ClientSecurity, max_message_mib: int
    ) -> None:
        self.name = name
        self.channel = open_channel_in_loop(address, security=security, max_message_mib=max_message_mib)
        self.breaker = CircuitBreaker(on_open=self._opened)
        self._timeout_seconds = timeout_seconds
        self._fair_seconds = min(_FAIR_SECONDS, 0.5 * (timeout_seconds or 1.0))
        self._bad_checks = 0
        self._closed = threading.Event()
        self._watching = threading.Lock()
        self._watch: threading.Thread | None = None
        self._on_look: Callable[[bool], None] = lambda _: None

    def close(self) -> None:
        """Ends the connection, and the calls on it."""
        self._closed.set()
        self.channel.close()

    @property
    def answers(self) -> bool:
        """Whether health checks found it serving lately; True before the first."""
        return self._bad_checks < _BAD_CHECKS

    async def call(
        self,
        method: Callable[..., Any],
        request: Any,
        seconds: float,
        metadata: Metadata,
        waited: Waited,
        read: Callable[[Any], Read],
    ) -> Read:
        """What `read` makes of the reply to one call.

        Args:
            method: Of a stub on `channel`.
            seconds: That the caller has for it.
            waited: Is told how long it took, whatever came of it; without `read`.
            read: Raises InvalidAnswer for a reply that cannot be.

        Raises:
            StageFailed: No answer, a bad one, or it was not asked because it failed lately.
            Cancelled: The connection was closed meanwhile.
        """
        permit = self.breaker.permit()
        if permit is None:
            raise StageFailed(CIRCUIT_OPEN, Unavailable(self._not_asked()))
        outcome = Outcome.NEUTRAL
        limit = max(0.0, seconds if self._timeout_seconds is None else min(seconds, self._timeout_seconds))
        try:
            answer = read(await _reply(method, request, limit, metadata, waited))
            outcome = Outcome.SUCCESS
        except grpc.RpcError as error:
            outcome = self._outcome(error, limit)
            raise StageFailed(_status(error).name, self._as_service_error(error, limit, seconds)) from error
        except InvalidAnswer as error:
            outcome = Outcome.FAILURE
            log.warning("%s answered what cannot be: %s", self.name, error)
            told = Unavailable(f"{self.name} answered what cannot be: {error}")
            raise StageFailed(INVALID_ANSWER, told) from error
        finally:
            self.breaker.record(permit, outcome)
        return answer

    def _outcome(self, error: grpc.RpcError, limit: float) -> Outcome:
        status = _status(error)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED and limit < self._fair_seconds:
            self.watch()  # such callers alone cannot tell a server that stands still from one that is a little slow
            return Outcome.NEUTRAL if self.answers else Outcome.FAILURE
        if status in _SERVER_FAULTS or status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Outcome.FAILURE
        return Outcome.SUCCESS if status in _CALLER_FAULTS else Outcome.NEUTRAL

    def _as_service_error(self, error: grpc.RpcError, limit: float, seconds: float) -> ServiceError:
        status = _status(error)
        if status is grpc.StatusCode.DEADLINE_EXCEEDED and limit < seconds:  # the caller has time left
            return Unavailable(f"{self.name} did not answer within {limit:g} s; try again later")
        details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
        hint = f" Is the {self.name} server running at this address?" if status in _NOBODY_THERE else ""
        return _ERRORS.get(status, ServiceError)(f"{self.name} answered {status.name}: {details}.{hint}")

    def _not_asked(self) -> str:
        return (
            f"{self.name} failed several calls in a row and is not asked until it is healthy again. "
            f"Is the {self.name} server running at this address?"
        )

    def watch(self, on_look: Callable[[bool], None] | None = None) -> None:
        """Looks at the server's health from now on, in a thread; `on_look` is told each time whether it answers."""
        with self._watching:
            self._on_look = on_look or self._on_look
            if self._watch is None and not self._closed.is_set():
                self._watch = threading.Thread(target=self._keep_watching, name=f"watch-{self.name}", daemon=True)
                self._watch.start()

    def look(self) -> bool:
        """One look at the server's health: whether it serves."""
        try:
            status = run_in_loop(awaited_health_of(self.channel, _CHECK_SECONDS))
        except (grpc.aio.UsageError, CancelledError):  # the connection was closed meanwhile
            return False
        healthy = status == health_pb2.HealthCheckResponse.SERVING
        self._bad_checks = 0 if healthy else self._bad_checks + 1
        self.breaker.told(healthy=healthy)
        return healthy

    def _opened(self) -> None:
        if self.breaker.state is not State.CLOSED:
            log.warning("%s failed several calls in a row; it is not asked until it is healthy again", self.name)
        self.watch()

    def _keep_watching(self) -> None:
        while not self._closed.wait(_CHECK_EVERY_SECONDS):
            before = self.answers
            self.look()
            self._on_look(self.answers)
            if self.answers != before:
                log.warning("%s %s", self.name, "answers again" if self.answers else "does not answer")


async def _reply(method: Callable[..., Any], request: Any, limit: float, metadata: Metadata, waited: Waited) -> Any:
    """The reply. Raises grpc.RpcError; Cancelled if the connection was closed."""
    started = time.perf_counter()
    try:
        reply = await method(request, timeout=limit, metadata=metadata)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise Cancelled("the connection was closed") from None
    except grpc.aio.UsageError as error:
        raise Cancelled("the connection was closed") from error
    finally:
        waited.seconds += time.perf_counter() - started
    if reply is None:  # bytes that gRPC could not read
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "the reply cannot be read"
        )
    return reply


def _status(error: grpc.RpcError) -> grpc.StatusCode:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
