"""The Prometheus page over HTTP, in the event loop: few connections, each for one request and a few seconds.

Not the server of prometheus_client, which gives every connection a thread for as long as it stays open. Knows nothing
of what is measured.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

log = logging.getLogger(__name__)

# Scrapers are few. A connection too many ends the oldest, so that those who are silent keep nobody out.
_MAX_CONNECTIONS = 16
# From the connection to the end of its reply.
_SECONDS = 5.0
_MAX_HEADER_BYTES = 16 * 1024

Headers = Mapping[str, str]


class MetricsPage:
    """Answers ``GET /metrics``.

    Args:
        registry: What it shows.
        tls: With it, the page is HTTPS.
        guard: Decides who may see the page, by the headers of the request (names in lower case), the certificate that
            the handshake verified (PEM; None without one) and the address; returns the status to answer with, OK to
            show it. Runs in the event loop.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        tls: ssl.SSLContext | None = None,
        guard: "Callable[[Headers, bytes | None, str], HTTPStatus]" = lambda *_: HTTPStatus.OK,
    ) -> None:
        self._registry = registry
        self._tls = tls
        self._guard = guard
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], None] = {}  # oldest first
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Binds the port. Raises OSError if that cannot be."""
        self._server = await asyncio.start_server(
            self._serve,
            host,
            port,
            limit=_MAX_HEADER_BYTES,
            ssl=self._tls,
            ssl_handshake_timeout=_SECONDS if self._tls else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port and all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._open) >= _MAX_CONNECTIONS:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[task] = None
        try:
            async with asyncio.timeout(_SECONDS):
                await self._answer(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that does not speak, or says too much
        except asyncio.CancelledError:
            pass  # gives way, or the page is stopped; the task ends either way
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        peer = str((writer.get_extra_info("peername") or ("?",))[0])
        status, kind, body = await self._page(request, headers, _certificate(writer), peer)
        how = "WWW-Authenticate: Bearer\r\n" * (status is HTTPStatus.UNAUTHORIZED)
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            f"{how}Connection: close\r\n\r\n".encode()
        )
        if not request.startswith("HEAD "):
            writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _page(
        self, request: str, headers: Headers, certificate: bytes | None, peer: str
    ) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body of the answer to the request line `request`."""
        plain = "text/plain; charset=utf-8"
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        status = self._guard(headers, certificate, peer)
        if status is not HTTPStatus.OK:
            return status, plain, f"{status.phrase}\n".encode()
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, plain, b"GET /metrics\n"
        if path not in ("/metrics", "/"):
            return HTTPStatus.NOT_FOUND, plain, b"GET /metrics\n"
        encode, kind = choose_encoder(headers.get("accept", ""))
        return HTTPStatus.OK, kind, await asyncio.to_thread(encode, self._registry)


def _certificate(writer: asyncio.StreamWriter) -> bytes | None:
    """The peer's certificate, PEM, if the connection is TLS and there is one."""
    tls = writer.get_extra_info("ssl_object")
    der = tls.getpeercert(binary_form=True) if tls is not None else None
    return ssl.DER_cert_to_PEM_cert(der).encode() if der else None
