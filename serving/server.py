"""A gRPC server with health, reflection, metrics, TLS and an orderly end; knows nothing of ads or models.

A thread pool, not asyncio: a call is one wait for a batcher's thread, which releases the GIL inside FAISS and torch.
So plain blocking code serves, the client library and the servers share one style, and no call pays for an event loop.
"""

import gc
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from serving.errors import StartupError
from serving.interceptors import CallInterceptor
from serving.metrics import CallMetrics, new_registry
from serving.settings import MEBIBYTE, ServerSettings

log = logging.getLogger(__name__)

# Threads beyond `max_concurrent`, so that health checks are answered while every slot is taken.
_SPARE_THREADS = 8
# How long idle threads may take to end.
_THREAD_END_SECONDS = 0.5


class Server:
    """A gRPC server that is NOT_SERVING until told otherwise.

    Args:
        settings: Address, limits, TLS.
        caller_errors: Exception classes that mean the request is wrong and become INVALID_ARGUMENT.
        registry: Prometheus registry that /metrics shows.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        caller_errors: tuple[type[Exception], ...] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._settings = settings
        self.registry = registry or new_registry()
        threads = settings.max_concurrent + _SPARE_THREADS
        self._thread_names = f"rpc-{id(self):x}_"  # not those of another server in this process
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=self._thread_names)
        self._grpc = grpc.server(
            self._threads,
            interceptors=[CallInterceptor(CallMetrics(self.registry), settings.max_concurrent, caller_errors)],
            options=[
                ("grpc.so_reuseport", 0),  # two servers must not share a port unseen
                ("grpc.max_receive_message_length", settings.max_message_mib * MEBIBYTE),
                ("grpc.max_send_message_length", settings.max_message_mib * MEBIBYTE),
            ],
            maximum_concurrent_rpcs=2 * threads,
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        self._services: list[str] = []
        self._metrics_server: Any = None
        self._stop = threading.Event()
        self.address = ""
        self.metrics_address = ""

    def add(self, service_name: str, register: Callable[[grpc.Server], None]) -> None:
        """Adds a service by its full name, such as ``adcascade.v1.RankingService``."""
        register(self._grpc)
        self._services.append(service_name)
        self._health.set(service_name, health_pb2.HealthCheckResponse.NOT_SERVING)

    def start(self) -> None:
        """Binds the ports and answers calls; health stays NOT_SERVING. Raises StartupError if a port is taken."""
        settings = self._settings
        self._health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        names = (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        try:
            self._start_metrics()
            self.address = _address(settings.host, self._bind(_address(settings.host, settings.port)))
            self._grpc.start()
            self._write_address_file()
        except StartupError:
            self.stop(0)
            raise
        log.info(
            "listening on %s%s",
            self.address,
            f", metrics on {self.metrics_address}" * bool(self.metrics_address),
        )

    def _bind(self, wanted: str) -> int:
        settings = self._settings
        if not settings.tls_certificate and not settings.tls_key:
            return self._add_port(wanted, None)
        if not settings.tls_certificate or not settings.tls_key:
            raise StartupError("TLS needs both tls_certificate and tls_key")
        try:
            pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
        except OSError as error:
            raise StartupError(f"cannot read the TLS certificate or key: {error}") from error
        return self._add_port(wanted, grpc.ssl_server_credentials([pair]))

    def _add_port(self, wanted: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self._grpc.add_insecure_port(wanted)
            return self._grpc.add_secure_port(wanted, credentials)
        except RuntimeError as error:
            tls = "the TLS certificate or key cannot be used, or " if credentials else ""
            raise StartupError(
                f"cannot listen on {wanted}: {tls}the port is in use or the address is not this machine's; "
                "choose another port (0 takes a free one)"
            ) from error

    def _start_metrics(self) -> None:
        settings = self._settings
        if settings.metrics_port is None:
            return
        try:
            self._metrics_server, _ = start_http_server(settings.metrics_port, settings.host, self.registry)
        except OSError as error:
            raise StartupError(
                f"cannot serve metrics on {_address(settings.host, settings.metrics_port)} ({error}); "
                "choose another port with --metrics-port"
            ) from error
        self.metrics_address = _address(settings.host, self._metrics_server.server_port)

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
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *self._services):
            self._health.set(service, status)

    def stop(self, grace_seconds: float | None = None) -> None:
        """Refuses new calls, waits for those in flight up to the grace period, and closes the ports."""
        grace = self._settings.grace_seconds if grace_seconds is None else grace_seconds
        self._health.enter_graceful_shutdown()
        self._grpc.stop(grace).wait()
        if self._metrics_server is not None:
            self._metrics_server.shutdown()
            self._metrics_server.server_close()

    def run(self, load: Callable[[], None], close: Callable[[], None]) -> None:
        """Serves until SIGTERM, SIGINT, or (if so set) the end of standard input.

        Args:
            load: Makes the services ready; runs beside the already bound port, which is NOT_SERVING until it returns.
            close: Frees what `load` took, after the last call.

        Raises:
            StartupError: A port is taken. Whatever `load` raises is raised as it is.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        if self._settings.exit_with_parent:
            threading.Thread(target=self._stop_at_end_of_input, daemon=True).start()
        self.start()
        failures: list[Exception] = []
        loader = threading.Thread(target=self._load, args=(load, failures), name="load", daemon=True)
        loader.start()
        self._stop.wait()
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
            self._stop.set()
        else:
            # What was loaded stays: no collection of garbage has to look at it again while a call waits.
            gc.collect()
            gc.freeze()
            self.set_serving(True)
            log.info("serving")

    def _stop_at_end_of_input(self) -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock a thread must not hold when the interpreter ends
            pass
        self._stop.set()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"  # an IPv6 address has colons of its own
