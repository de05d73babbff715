"""A call as its guard and its servicer see it. Knows nothing of what a call asks for.

The servicer works in a thread while the call itself is awaited in the event loop; `CallContext` stands between them.
"""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc

from adcascade.serving.errors import ServiceError

log = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
_SAFE_ID = re.compile(r"[\w.:/-]{1,128}", re.ASCII)

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class IncomingCall:
    """What is known of a call before its message has arrived.

    Attributes:
        method: Full name, such as ``/adcascade.v1.RankingService/Rank``; of one that does not exist, `UNKNOWN_METHOD`.
        metadata: Headers of the caller.
        peer: Address of the caller, one a connection, such as ``ipv4:10.0.0.7:41234``.
        auth_context: What TLS has verified of the caller, as `grpc.ServicerContext.auth_context` gives it.
        deadline: When the caller stops waiting, in seconds of `time.monotonic`; None without a deadline.
        request_id: The caller's own where it is safe to log, a new one otherwise.
    """

    method: str
    metadata: Metadata
    peer: str
    auth_context: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    deadline: float | None = None
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])

    @classmethod
    def of(cls, method: str, context: "grpc.aio.ServicerContext[Any, Any]") -> "IncomingCall":
        """The call that `context` belongs to."""
        metadata = tuple(context.invocation_metadata() or ())
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        verified = {key: tuple(values) for key, values in (context.auth_context() or {}).items()}
        return cls(method, metadata, context.peer() or "-", verified, deadline, request_id_of(metadata))

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


def request_id_of(metadata: Metadata) -> str:
    """The caller's own request id where it is safe to log, a new one otherwise."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _SAFE_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex[:16]


class CallAbortedError(ServiceError):
    """What `CallContext.abort` raises; carries the status that the servicer chose."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.status = status


class CallContext(grpc.ServicerContext):
    """The `grpc.ServicerContext` of a servicer that works in a thread of its own. Thread-safe.

    Args:
        call: The call.
    """

    def __init__(self, call: IncomingCall) -> None:
        self.call = call
        self._lock = threading.Lock()
        self._ended = False
        self._callbacks: list[Callable[[], None]] = []
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: Metadata = ()

    def end(self) -> None:
        """The caller has left or was answered: tells whoever asked to be told. Called in the event loop."""
        with self._lock:
            self._ended, callbacks = True, self._callbacks
            self._callbacks = []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # one who cannot be told must not keep the next from being told
                log.exception("a callback at the end of a call failed")

    def is_active(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self._ended

    def time_remaining(self) -> float | None:  # type: ignore[override]  # the stubs know no call without a deadline
        """Seconds until the caller's deadline; None without one."""
        return self.call.time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls `callback`, which must be quick, when the call ends; False if it has ended already."""
        with self._lock:
            if not self._ended:
                self._callbacks.append(callback)
            return not self._ended

    def cancel(self) -> NoReturn:
        """Ends the call as cancelled."""
        self.abort(grpc.StatusCode.CANCELLED, "cancelled by the server")

    def invocation_metadata(self) -> Metadata:
        """Headers of the caller."""
        return self.call.metadata

    def peer(self) -> str:
        """Address of the caller."""
        return self.call.peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:  # type: ignore[override]  # the stubs know one value a key
        """What TLS has verified of the caller."""
        return self.call.auth_context

    def peer_identity_key(self) -> str | None:
        """The key of `auth_context` under which TLS names the caller."""
        names = ("x509_subject_alternative_name", "x509_common_name")
        return next((name for name in names if self.call.auth_context.get(name)), None)

    def peer_identities(self) -> Sequence[bytes] | None:
        """The names that TLS has verified."""
        key = self.peer_identity_key()
        return None if key is None else self.call.auth_context[key]

    def send_initial_metadata(self, initial_metadata: Metadata) -> NoReturn:
        """Not possible: the server sends it, with the request id."""
        raise ValueError("the initial metadata holds the request id and is sent by the server")

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """What goes out after the answer."""
        self._trailing = tuple(trailing_metadata)

    def trailing_metadata(self) -> Metadata:
        """What `set_trailing_metadata` was given."""
        return self._trailing

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the call with a status. Raises CallAbortedError, which is not to be caught."""
        raise CallAbortedError(code, details)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """As `abort`, with trailing metadata."""
        self.set_trailing_metadata(status.trailing_metadata or ())
        raise CallAbortedError(status.code, status.details)

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status that goes out with the answer; anything but OK goes out instead of it."""
        self._code = code

    def set_details(self, details: str) -> None:
        """The message of the status."""
        self._details = details

    def code(self) -> grpc.StatusCode | None:
        """What `set_code` was given."""
        return self._code

    def details(self) -> str:
        """What `set_details` was given."""
        return self._details
