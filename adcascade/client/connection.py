"""A client's connection: whom it believes, who it says it is, how long it waits, and when it tries again.

Knows nothing of what is asked. Both clients, blocking and asyncio, stand on it.
"""

import math
import os
import random
import ssl
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from adcascade.client.address import channel_options, is_this_machine
from adcascade.client.calls import Method
from adcascade.client.errors import (
    ERRORS,
    AdCascadeError,
    DeadlineExceeded,
    InvalidRequest,
    NotOffered,
    ServerFault,
    Unavailable,
)

Metadata = Iterable[tuple[str, str]]

REQUEST_ID_KEY = "x-request-id"
# Pauses before another attempt: the first, and the longest. Each is drawn from this much less to this much more, so
# that clients of a server that was away do not come back in step.
_FIRST_PAUSE, _LONGEST_PAUSE, _JITTER = 0.1, 1.0, 0.2


class Connection:
    """What all calls of a client have in common. See `adcascade.client.blocking.Client` for the arguments.

    Raises:
        ValueError: The arguments do not fit each other, or would send a token in the clear.
        OSError: A file cannot be read.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float,
        attempts: int,
        tls: bool,
        ca_file: str | os.PathLike[str] | None,
        certificate_file: str | os.PathLike[str] | None,
        key_file: str | os.PathLike[str] | None,
        server_name: str,
        token: str,
        token_file: str | os.PathLike[str] | None,
        metadata: Metadata,
        max_message_mib: int,
    ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be 1 or more, not {attempts}")
        if token and token_file is not None:
            raise ValueError("give token or token_file, not both")
        tls = tls or ca_file is not None
        if not tls and (certificate_file or key_file or server_name):
            raise ValueError("a certificate, or the name of the server, needs TLS: give ca_file, or tls=True")
        if not tls and (token or token_file) and not is_this_machine(address):
            raise ValueError(f"a token would travel in the clear to {address}: give ca_file, or tls=True")
        self.address = address
        self.timeout_seconds = timeout_seconds
        self.attempts = attempts
        self._credentials = _credentials(ca_file, certificate_file, key_file) if tls else None
        self._options = channel_options(address, max_message_mib, server_name)
        self._metadata = tuple(metadata)
        self._token_file = None if token_file is None else Path(token_file)
        self._token = _checked(token) if token else ""
        if self._token_file is not None:
            self._token = _checked(self._token_file.read_text())

    def open(self) -> grpc.Channel:
        """A channel for threads. It connects when it is first used."""
        if self._credentials is None:
            return grpc.insecure_channel(self.address, self._options)
        return grpc.secure_channel(self.address, self._credentials, self._options)

    def open_aio(self) -> aio.Channel:
        """A channel for the event loop that runs now."""
        if self._credentials is None:
            return aio.insecure_channel(self.address, self._options)
        return aio.secure_channel(self.address, self._credentials, self._options)

    def headers(self, request_id: str, more: Metadata) -> tuple[tuple[str, str], ...]:
        """The metadata of a call, with the token as it is in its file now."""
        if self._token_file is not None:
            with suppress(OSError, ValueError):  # while it is replaced: the server says if the last is no longer good
                self._token = _checked(self._token_file.read_text())
        token = (("authorization", f"Bearer {self._token}"),) if self._token else ()
        return (*self._metadata, *more, *token, (REQUEST_ID_KEY, request_id))


def _checked(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("the token is not one word of ASCII")
    return token


def _credentials(
    ca_file: str | os.PathLike[str] | None,
    certificate_file: str | os.PathLike[str] | None,
    key_file: str | os.PathLike[str] | None,
) -> grpc.ChannelCredentials:
    if (certificate_file is None) != (key_file is None):
        raise ValueError("a client's certificate needs its key: give certificate_file and key_file, or neither")
    try:  # gRPC would tell only at the first call, and only that the handshake failed
        context = ssl.create_default_context(cafile=ca_file)
        if certificate_file is not None:
            context.load_cert_chain(certificate_file, key_file, password=lambda: b"")  # else it would ask the terminal
    except ssl.SSLError as error:
        raise ValueError(
            "ca_file, certificate_file or key_file is damaged, encrypted or not PEM, or the two do not fit each other"
        ) from error
    contents = [None if file is None else Path(file).read_bytes() for file in (ca_file, key_file, certificate_file)]
    return grpc.ssl_channel_credentials(*contents)


class Exchange:
    """One call from its first attempt to its end: its id, its time, and whether it may be tried again.

    Args:
        timeout_seconds: For all attempts together; None takes the connection's.
        request_id: Seen in the servers' logs; made up if empty.

    Raises:
        InvalidRequest: The time is not a positive number of seconds.
    """

    def __init__(
        self,
        connection: Connection,
        method: Method,
        timeout_seconds: float | None,
        request_id: str,
        metadata: Metadata,
    ) -> None:
        seconds = connection.timeout_seconds if timeout_seconds is None else timeout_seconds
        if not 0 < seconds < math.inf:
            raise InvalidRequest(f"timeout_seconds must be a positive number, not {seconds}")
        self._connection = connection
        self._method = method
        self._ends = time.monotonic() + seconds
        self._seconds = seconds
        self._pauses = _pauses(connection.attempts)
        self.request_id = request_id or uuid.uuid4().hex
        self.metadata = connection.headers(self.request_id, metadata)

    @property
    def seconds_left(self) -> float:
        """Of the call's time; 0 when it is over."""
        return max(0.0, self._ends - time.monotonic())

    def take_id(self, initial_metadata: "Iterable[tuple[str, Any]] | None") -> str:
        """The id in the server's log: ours, unless the server found it unfit and made its own."""
        self.request_id = dict(initial_metadata or ()).get(REQUEST_ID_KEY, self.request_id)
        return self.request_id

    def pause_or_raise(self, code: grpc.StatusCode, details: str, initial_metadata: Any) -> float:
        """Seconds to wait before the next attempt. Raises AdCascadeError where there is none."""
        answered = REQUEST_ID_KEY in dict(initial_metadata or ())
        self.take_id(initial_metadata)
        if code is grpc.StatusCode.UNAVAILABLE:
            pause = next(self._pauses, math.inf)
            if pause < self.seconds_left:
                return pause
        raise self._error(code, details, answered)

    def _error(self, code: grpc.StatusCode, details: str, answered: bool) -> AdCascadeError:
        kind = ERRORS.get(code, ServerFault)
        address = self._connection.address
        if kind is NotOffered:
            details = f"the server at {address} does not offer {self._method.name}: ask {self._method.offered_by}"
        elif kind is Unavailable and not answered:
            details = f"{details}. Is {self._method.offered_by} running at {address}?"
        elif kind is DeadlineExceeded and not answered:
            details = f"no answer of {address} within {self._seconds:g} s"
        return kind(details, self.request_id, code)


def _pauses(attempts: int) -> Iterator[float]:
    for number in range(attempts - 1):
        yield random.uniform(1 - _JITTER, 1 + _JITTER) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number)


class Base:
    """What both clients are made from. See `adcascade.client.blocking.Client`."""

    def __init__(
        self,
        address: str,
        *,
        timeout_seconds: float = 5.0,
        attempts: int = 5,
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        certificate_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        server_name: str = "",
        token: str = "",
        token_file: str | os.PathLike[str] | None = None,
        metadata: Metadata = (),
        max_message_mib: int = 8,
    ) -> None:
        self._connection = Connection(
            address,
            timeout_seconds=timeout_seconds,
            attempts=attempts,
            tls=tls,
            ca_file=ca_file,
            certificate_file=certificate_file,
            key_file=key_file,
            server_name=server_name,
            token=token,
            token_file=token_file,
            metadata=metadata,
            max_message_mib=max_message_mib,
        )
        self._closed = False
        self._start()

    def _start(self) -> None:
        """What is opened at once."""

    def _begin(self, method: Method, timeout_seconds: float | None, request_id: str, metadata: Metadata) -> Exchange:
        if self._closed:
            raise RuntimeError("this client is closed")
        return Exchange(self._connection, method, timeout_seconds, request_id, metadata)
