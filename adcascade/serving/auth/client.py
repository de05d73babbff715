"""What a client presents to servers, and whom it believes: TLS, a certificate of its own, a bearer token.

Needs grpcio alone. Files are read again when they change, so a client outlives its certificate and its token.
"""

import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from typing import Any

import grpc

from adcascade.serving.auth.loopback import is_loopback
from adcascade.serving.auth.watched import WatchedFiles, text_of
from adcascade.serving.errors import StartupError

# How long calls on a connection with an earlier certificate may still run, before it is closed.
_RETIRE_SECONDS = 60.0

_Metadata = Iterable[tuple[str, str | bytes]] | None
_Opened = tuple[bytes, bytes | None, bytes | None]


def _file(help_text: str) -> Path | None:
    """A field of `ClientSecurity` that commands have as a flag (`adcascade.terminal.flags`)."""
    return field(default=None, metadata={"help": help_text})


@dataclass(frozen=True)
class ClientSecurity:
    """Files by which a client and a server know each other. Paths, so that no secret is an argument or a setting."""

    ca_certificate: Path | None = _file("PEM of the authorities whose servers are believed; connections are then TLS.")
    certificate: Path | None = _file("PEM of the own certificate, for servers that ask for one (mTLS).")
    key: Path | None = _file("PEM private key of it.")
    token_file: Path | None = _file("File that holds a bearer token and nothing else.")
    server_name: str = field(
        default="", metadata={"help": "Name that the servers' certificates have, where it is not that of the address."}
    )

    def check(self, address: str) -> None:
        """Raises StartupError if these cannot be used together, or would send a token in the clear to `address`."""
        if bool(self.certificate) != bool(self.key):
            raise StartupError("a client certificate needs its key: give certificate and key, or neither")
        if (self.certificate or self.server_name) and self.ca_certificate is None:
            raise StartupError(
                "a client certificate, or the name of the server, needs TLS: give ca_certificate as well"
            )
        if self.token_file and self.ca_certificate is None and not is_loopback(_host_of(address)):
            raise StartupError(
                f"a token would travel in the clear to {address}: give ca_certificate, so that the connection is TLS"
            )


class SecureChannel(grpc.Channel):
    """A channel that presents `security`, and is opened anew when its certificates change.

    Args:
        security: Files; read now and when they change.
        open_with: Opens a channel with the credentials, or a plain one if they are None. One of `grpc.aio` makes calls
            that are awaited; its event loop is then the one in which methods are called.
        close_with: Closes such a channel; may be called in any thread but that of the loop in which it is closed.

    Raises:
        StartupError: A file cannot be used.
    """

    def __init__(
        self,
        security: ClientSecurity,
        open_with: Callable[[grpc.ChannelCredentials | None], Any],
        close_with: Callable[[Any], object] = methodcaller("close"),
    ) -> None:
        self._open_with, self._close_with = open_with, close_with
        self._token = _watch_token(security)
        self._files = _watch_certificates(security)
        self._lock = threading.Lock()
        self._retiring: list[tuple[threading.Timer, Any]] = []
        self._used = self._files.generation if self._files else 0
        self._current = open_with(_credentials(self._files))
        self._closed = False

    def current(self) -> Any:
        """The channel to call on now."""
        if self._files is not None and self._files.generation != self._used:
            self._renew(self._files)
        return self._current

    def _renew(self, files: WatchedFiles[_Opened]) -> None:
        with self._lock:
            if self._closed or files.generation == self._used:
                return
            self._used = files.generation
            before, self._current = self._current, self._open_with(_credentials(files))
            timer = threading.Timer(_RETIRE_SECONDS, self._close_with, [before])
            timer.daemon = True
            timer.start()
            self._retiring = [pair for pair in self._retiring if pair[0].is_alive()] + [(timer, before)]

    def with_token(self, metadata: _Metadata) -> tuple[tuple[str, str | bytes], ...]:
        """The call's metadata, and the token as it is in its file now."""
        own = tuple(metadata or ())
        return own if self._token is None else (*own, ("authorization", f"Bearer {self._token.get()}"))

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """Implements `grpc.Channel`."""
        return _Callable(self, lambda channel: channel.unary_unary(method, *args, **options))

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """Implements `grpc.Channel`."""
        return _Callable(self, lambda channel: channel.unary_stream(method, *args, **options))

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """Implements `grpc.Channel`."""
        return _Callable(self, lambda channel: channel.stream_unary(method, *args, **options))

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """Implements `grpc.Channel`."""
        return _Callable(self, lambda channel: channel.stream_stream(method, *args, **options))

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        """Implements `grpc.Channel`, for the connection that is current now."""
        self._current.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        """Implements `grpc.Channel`."""
        self._current.unsubscribe(callback)

    def close(self) -> None:
        """Closes this connection and those before it."""
        for files in (self._files, self._token):
            if files is not None:
                files.close()
        with self._lock:
            self._closed = True
        for timer, channel in self._retiring:
            timer.cancel()
            self._close_with(channel)
        self._close_with(self._current)

    def __enter__(self) -> "SecureChannel":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Callable:
    """A method of the server, on whichever connection is current."""

    def __init__(self, owner: SecureChannel, make: Callable[[Any], Any]) -> None:
        self._owner, self._make = owner, make
        self._made: tuple[Any, Any] | None = None

    def _now(self) -> Any:
        channel = self._owner.current()
        if self._made is None or self._made[0] is not channel:
            self._made = channel, self._make(channel)
        return self._made[1]

    def __call__(self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **options: Any) -> Any:
        return self._now()(request, timeout=timeout, metadata=self._owner.with_token(metadata), **options)

    def with_call(self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **options: Any) -> Any:
        return self._now().with_call(request, timeout=timeout, metadata=self._owner.with_token(metadata), **options)

    def future(self, request: Any, timeout: float | None = None, metadata: _Metadata = None, **options: Any) -> Any:
        return self._now().future(request, timeout=timeout, metadata=self._owner.with_token(metadata), **options)


def _watch_token(security: ClientSecurity) -> WatchedFiles[str] | None:
    return WatchedFiles((security.token_file,), _token, "token file") if security.token_file else None


def _token(content: bytes) -> str:
    token = text_of(content, "token file").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise StartupError("the token file holds something else than one token")
    return token


def _watch_certificates(security: ClientSecurity) -> WatchedFiles[_Opened] | None:
    if security.ca_certificate is None:
        return None
    own = (security.certificate, security.key) if security.certificate and security.key else ()

    def checked(ca: bytes, certificate: bytes | None = None, key: bytes | None = None) -> _Opened:
        """The same, if they fit each other: gRPC would tell only at the next handshake, and only that it failed."""
        try:
            context = ssl.create_default_context(cadata=ca.decode("ascii"))
            if own:
                context.load_cert_chain(*own, password=lambda: b"")  # without one, it would ask the terminal
        except (OSError, ValueError) as error:
            raise StartupError(
                "the CA certificate, or the client's certificate or key, is damaged, encrypted or not PEM, or the key "
                "is another certificate's"
            ) from error
        return ca, certificate, key

    return WatchedFiles((security.ca_certificate, *own), checked, "CA certificate, or the client's certificate or key")


def _credentials(files: WatchedFiles[_Opened] | None) -> grpc.ChannelCredentials | None:
    if files is None:
        return None
    ca, certificate, key = files.get()
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _host_of(address: str) -> str:
    """The host of ``host:port`` or ``[v6]:port``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]") if port.isdigit() else address
