"""A gRPC server with health, reflection, metrics, TLS and an orderly end; knows nothing of ads or models.

Calls arrive in the event loop of `adcascade.serving.loop` and are worked on in threads. A servicer is plain blocking
code: its call is one wait for a batcher's thread, which releases the GIL inside FAISS and torch. But it gets a thread
only once its message is there (`adcascade.serving.handling`); in gRPC's own threads-only server a call takes one
from its first byte, and whoever sends nothing more keeps it. A servicer that does nothing but ask other servers, as the
gateway does, is a coroutine instead: a thread would only be woken to wait again.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from adcascade.serving import health
from adcascade.serving.aio_server import AioServer
from adcascade.serving.arrivals import Arrivals, OpenStreams, UntakenReplies
from adcascade.serving.auth.access import AccessControl
from adcascade.serving.auth.guard import CallGuard, PageGuard
from adcascade.serving.auth.settings import access_control
from adcascade.serving.auth.tls import grpc_credentials, http_context
from adcascade.serving.connections import ConnectionGuard, connection_budget
from adcascade.serving.errors import StartupError
from adcascade.serving.handling import Handling
from adcascade.serving.interceptors import CallInterceptor
from adcascade.serving.loop import run_in_loop
from adcascade.serving.metrics import CallMetrics, new_registry
from adcascade.serving.metrics_page import MetricsPage
from adcascade.serving.settings import MEBIBYTE, ServerSettings

log = logging.getLogger(__name__)

# Streams of health checks and of reflection: of all connections, of one, and how long one may last.
_MAX_STREAMS = 256
_MAX_STREAMS_PER_CONNECTION = 4
_STREAM_SECONDS = 600.0
# Replies that wait to be taken by their callers may fill as much memory as so many of the longest.
_MAX_REPLIES = 16
# How long idle threads may take to end.
_THREAD_END_SECONDS = 0.5


class _Methods:
    """Handlers by full name of their method. `register` functions of generated code take it for a server."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Nothing: generated code gives the same methods to `add_registered_method_handlers`, by name."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        """Adds the methods of a service."""
        self.handlers |= {f"/{service_name}/{method}": handler for method, handler in method_handlers.items()}


class Server:
    """A gRPC server that is NOT_SERVING until told otherwise.

    Args:
        settings: Address, limits, TLS.
        caller_errors: Exception classes that mean the request is wrong and become INVALID_ARGUMENT.
        unready_errors: Those that mean that something a call needs is not loaded, and become UNAVAILABLE.
        registry: Prometheus registry that /metrics shows.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        caller_errors: tuple[type[Exception], ...] = (),
        unready_errors: tuple[type[Exception], ...] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._settings = settings
        self.registry = registry or new_registry()
        self._metrics = CallMetrics(self.registry)
        self._caller_errors = caller_errors
        self._unready_errors = unready_errors
        self._thread_names = f"rpc-{id(self):x}_"  # not those of another server in this process
        self._threads = ThreadPoolExecutor(settings.max_concurrent, thread_name_prefix=self._thread_names)
        self._methods = _Methods()
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._methods)  # type: ignore[arg-type]
        self._scopes: dict[str, Mapping[str, str]] = {}  # of each service
        self._grpc: Any = None
        self._watching: Any = None
        self._page: MetricsPage | None = None
        # Not an Event: its lock may be held by the very thread that a signal interrupts, which then waits for itself.
        self._stop: SimpleQueue[None] = SimpleQueue()
        self.address = ""
        self.metrics_address = ""

    def add(
        self,
        service_name: str,
        register: Callable[[grpc.Server], None],
        scopes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Adds a service.

        Args:
            service_name: Full name, such as ``adcascade.v1.RankingService``.
            register: Function of the generated code that adds the methods to a server.
            scopes: What each method needs (`adcascade.serving.auth.scopes`). Where callers are asked who they are, one
                that is missing here is closed to everybody.
        """
        register(self._methods)  # type: ignore[arg-type]  # all that generated code asks of a server
        self._scopes[service_name] = scopes
        self._health.set(service_name, False)

    def start(self) -> None:
        """Binds the ports and answers calls; health stays NOT_SERVING.

        Raises:
            StartupError: A port is taken, TLS cannot be set up, the process may open too few descriptors, or the server
                would be open to other machines without knowing who calls.
        """
        settings = self._settings
        access = access_control(settings, settings.host)
        for service, scopes in self._scopes.items():
            access.add(service, scopes)
        if settings.reflection:
            names = (*self._scopes, health.SERVICE_NAME, reflection.SERVICE_NAME)
            servicer = reflection.aio.ReflectionServicer(names)
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._methods)  # type: ignore[no-untyped-call]
        try:
            connections = connection_budget(settings.max_connections)
            self._start_metrics(access)
            run_in_loop(self._start_grpc(connections, access))
            self._write_address_file()
        except StartupError:
            self.stop(0)
            raise
        log.info(
            "listening on %s%s, for up to %d connections",
            self.address,
            f", metrics on {self.metrics_address}" * bool(self.metrics_address),
            connections,
        )

    async def _start_grpc(self, connections: int, access: AccessControl) -> None:
        settings = self._settings
        uses = ConnectionGuard(connections, self._metrics.connections_closed.inc)
        handling = Handling(
            self._metrics,
            self._threads,
            max_concurrent=settings.max_concurrent,
            max_reply_bytes=settings.max_message_mib * MEBIBYTE,
            arrivals=Arrivals(settings.max_unsent, settings.message_seconds),
            streams=OpenStreams(_MAX_STREAMS, _MAX_STREAMS_PER_CONNECTION, _STREAM_SECONDS),
            connections=uses,
            caller_errors=self._caller_errors,
            unready_errors=self._unready_errors,
        )
        most = _MAX_REPLIES * settings.max_message_mib * MEBIBYTE
        replies = UntakenReplies(most, settings.message_seconds, uses.close)
        interceptor = CallInterceptor(self._metrics, handling, replies=replies, guard=CallGuard(access))
        self._grpc = AioServer(_options(settings, connections), interceptor.refuse_unknown)
        self._grpc.add_methods(
            {method: interceptor.intercept(method, handler) for method, handler in self._methods.handlers.items()}
        )
        port = self._bind(_address(settings.host, settings.port))
        self.address = _address(settings.host, port)
        await self._grpc.start()
        self._watching = asyncio.ensure_future(uses.watch(port))

    def _bind(self, wanted: str) -> int:
        return self._add_port(wanted, grpc_credentials(self._settings))

    def _add_port(self, wanted: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return int(self._grpc.add_insecure_port(wanted))
            return int(self._grpc.add_secure_port(wanted, credentials))
        except RuntimeError as error:
            tls = "the TLS certificate or key cannot be used, or " if credentials else ""
            raise StartupError(
                f"cannot listen on {wanted}: {tls}the port is in use or the address is not this machine's; "
                "choose another port (0 takes a free one)"
            ) from error

    def _start_metrics(self, access: AccessControl) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        self._page = MetricsPage(self.registry, tls=http_context(settings), guard=PageGuard(access))
        try:
            run_in_loop(self._page.start(settings.host, settings.metrics_port))
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {_address(settings.host, settings.metrics_port)} ({error}); "
                "choose another port with --metrics-port"
            ) from error
        self.metrics_address = _address(settings.host, self._page.port)

    def _write_address_file(self) -> None:
        path = self._settings.address_file
        if path is None:
            return
        beside = path.with_name(path.name + ".tmp")
        try:
            beside.write_text(json.dumps({"address": self.address, "metrics": self.metrics_address}))
            os.replace(beside, path)
        except OSError as error:
            raise StartupError(f"cannot write the address file {path}: {error}") from error

    def set_serving(self, serving: bool) -> None:
        """Tells health checks whether this server should get traffic."""
        for service in ("", *self._scopes):
            self._health.set(service, serving)

    def stop(self, grace_seconds: float | None = None) -> None:
        """Refuses new calls, waits for those in flight up to the grace period, and closes the ports."""
        self._health.close()
        run_in_loop(self._stop_ports(self._settings.grace_seconds if grace_seconds is None else grace_seconds))

    async def _stop_ports(self, grace_seconds: float) -> None:
        if self._watching is not None:
            self._watching.cancel()
        if self._grpc is not None:
            await self._grpc.stop(grace_seconds)
        if self._page is not None:
            await self._page.stop()

    def run(self, load: Callable[[], None], close: Callable[[], None]) -> None:
        """Serves until SIGTERM, SIGINT, or (if so set) the end of standard input.

        Args:
            load: Makes the services ready; runs beside the already bound port, which is NOT_SERVING until it returns.
            close: Frees what `load` took, after the last call.

        Raises:
            StartupError: A port is taken. Whatever `load` raises is raised as it is.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.put(None))
        if self._settings.exit_with_parent:
            threading.Thread(target=self._stop_at_end_of_input, daemon=True).start()
        self.start()
        failures: list[Exception] = []
        loader = threading.Thread(target=self._load, args=(load, failures), name="load", daemon=True)
        loader.start()
        self._stop.get()
        log.info("draining for up to %.0f s", self._settings.grace_seconds)
        self.stop()
        if failures:
            close()
            raise failures[0]
        self._abandon_stuck_calls()
        if not loader.is_alive():
            close()

    def _abandon_stuck_calls(self) -> None:
        """Ends the process if a call outlived the grace period: Python itself would wait for its thread."""
        self._threads.shutdown(wait=False)
        end = time.monotonic() + _THREAD_END_SECONDS
        while any(thread.name.startswith(self._thread_names) for thread in threading.enumerate()):
            if time.monotonic() > end:
                log.warning("a call is still running after the grace period; leaving it")
                logging.shutdown()
                os._exit(0)
            time.sleep(0.01)

    def _load(self, load: Callable[[], None], failures: list[Exception]) -> None:
        try:
            load()
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            failures.append(error)
            self._stop.put(None)
        else:
            # What was loaded stays: no collection of garbage has to look at it again while a call waits.
            gc.collect()
            gc.freeze()
            self.set_serving(True)
            log.info("serving")

    def _stop_at_end_of_input(self) -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
            pass
        self._stop.put(None)


def _options(settings: ServerSettings, connections: int) -> list[tuple[str, int]]:
    """What gRPC itself bounds. Of a connection that answers no ping for ten seconds, nobody is left."""
    message_bytes, metadata_bytes = settings.max_message_mib * MEBIBYTE, settings.max_metadata_kib * 1024
    return [
        ("grpc.so_reuseport", 0),  # two servers must not share a port unseen
        ("grpc.max_receive_message_length", message_bytes),  # counted after decompression as well
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_metadata_size", metadata_bytes),
        ("grpc.absolute_max_metadata_size", metadata_bytes),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", settings.max_connection_calls),
        ("grpc.server_handshake_timeout_ms", int(1000 * settings.handshake_seconds)),
        ("grpc.max_connection_idle_ms", int(1000 * settings.idle_seconds)),
        ("grpc.max_connection_age_ms", int(1000 * settings.connection_age_seconds)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # an IPv6 address has colons of its own
