"""A real server on a free port of the loopback interface, driven by real clients."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic_settings import SettingsConfigDict

from adcascade.serving.channel import is_serving, open_channel
from adcascade.serving.errors import StartupError
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.v1.recommend_pb2 import RecommendRequest, RecommendResponse
from adcascade.v1.recommend_pb2_grpc import (
    RecommendServiceServicer,
    RecommendServiceStub,
    add_RecommendServiceServicer_to_server,
)

SERVICE = "adcascade.v1.RecommendService"
METHOD = f"/{SERVICE}/Recommend"
HEALTH = health_pb2.HealthCheckResponse


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="ADCASCADE_TEST_")


class Servicer(RecommendServiceServicer):
    def __init__(self, answer: Callable[[RecommendRequest], RecommendResponse]) -> None:
        self._answer = answer

    def Recommend(self, request, context):  # noqa: N802
        return self._answer(request)


class Blocked:
    """Answers only once released, except for calls whose user is "quick"."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()

    def __call__(self, request: RecommendRequest) -> RecommendResponse:
        if request.user.user_id != "quick":
            self.begun.release()
            assert self.release.wait(20)
        return echo(request)


def echo(request: RecommendRequest) -> RecommendResponse:
    return RecommendResponse(request_id=request.user.user_id)


def make_server(answer: Callable[[RecommendRequest], RecommendResponse] = echo, **settings: Any) -> Server:
    server = Server(Settings(**settings), caller_errors=(ValueError,))
    server.add(SERVICE, partial(add_RecommendServiceServicer_to_server, Servicer(answer)))
    return server


@contextlib.contextmanager
def serve(answer: Callable[[RecommendRequest], RecommendResponse] = echo, **settings: Any) -> Iterator[Server]:
    server = make_server(answer, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


@contextlib.contextmanager
def connect(address: str, **options: Any) -> Iterator[grpc.Channel]:
    with open_channel(address, **options) as channel:
        yield channel


def request(user_id: str = "", k: int = 0) -> RecommendRequest:
    return RecommendRequest(user={"user_id": user_id}, k=k)


def recommend(channel: grpc.Channel, user_id: str = "", k: int = 0) -> str:
    return RecommendServiceStub(channel).Recommend(request(user_id, k), timeout=20).request_id


def code_of(channel: grpc.Channel, user_id: str) -> grpc.StatusCode:
    return RecommendServiceStub(channel).Recommend.future(request(user_id), timeout=20).code()


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def metrics_page(server: Server) -> str:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as reply:
        return reply.read().decode()


def test_health_follows_set_serving_for_the_server_and_for_each_service():
    with serve() as server, connect(server.address) as channel:
        assert not is_serving(channel)
        assert not is_serving(channel, SERVICE)
        server.set_serving(True)
        assert is_serving(channel)
        assert is_serving(channel, SERVICE)
        server.set_serving(False)
        assert not is_serving(channel)
        assert not is_serving(channel, SERVICE)


def test_health_of_a_loading_server_is_an_answer_and_not_a_failure():
    with serve() as server, connect(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == HEALTH.NOT_SERVING
        unknown = stub.Check.future(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert unknown.code() == grpc.StatusCode.NOT_FOUND


def test_a_draining_server_is_not_serving_finishes_calls_in_flight_and_refuses_new_ones():
    blocked = Blocked()
    with serve(blocked) as server, connect(server.address) as channel:
        server.set_serving(True)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=20)
        assert next(watch).status == HEALTH.SERVING
        in_flight = RecommendServiceStub(channel).Recommend.future(request("first"), timeout=20)
        assert blocked.begun.acquire(timeout=10)
        draining = threading.Thread(target=server.stop, args=(20,))
        draining.start()
        assert next(watch).status == HEALTH.NOT_SERVING
        with connect(server.address) as late:
            wait_until(lambda: code_of(late, "quick") == grpc.StatusCode.UNAVAILABLE)
        blocked.release.set()
        assert in_flight.result().request_id == "first"
        watch.cancel()  # an open watch is a call in flight too
        draining.join(10)
        assert not draining.is_alive()


def test_health_is_answered_while_all_slots_are_busy():
    blocked = Blocked()
    with serve(blocked, max_concurrent=3) as server, connect(server.address) as channel:
        server.set_serving(True)
        stub = RecommendServiceStub(channel)
        busy = [stub.Recommend.future(request("busy"), timeout=20) for _ in range(3)]
        for _ in busy:
            assert blocked.begun.acquire(timeout=10)
        assert code_of(channel, "one too many") == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert is_serving(channel, SERVICE)
        blocked.release.set()
        assert [call.result().request_id for call in busy] == ["busy"] * 3


def reflect(channel: grpc.Channel, **question: str) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)])))


def test_reflection_lists_the_services_and_describes_them():
    with serve() as server, connect(server.address) as channel:
        services = reflect(channel, list_services="").list_services_response.service
        assert {service.name for service in services} == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        files = reflect(channel, file_containing_symbol=SERVICE).file_descriptor_response.file_descriptor_proto
        assert any(b"RecommendRequest" in file for file in files)


def test_the_metrics_page_counts_calls_by_method_and_status():
    def refuse_bad(message: RecommendRequest) -> RecommendResponse:
        if message.user.user_id == "bad":
            raise ValueError("bad user")
        return echo(message)

    with serve(refuse_bad, metrics_port=0) as server, connect(server.address) as channel:
        for user_id in ("good", "good", "bad"):
            code_of(channel, user_id)
        is_serving(channel)
        page = metrics_page(server)
        assert f'adcascade_calls_total{{method="{METHOD}",status="OK"}} 2.0' in page
        assert f'adcascade_calls_total{{method="{METHOD}",status="INVALID_ARGUMENT"}} 1.0' in page
        assert f'adcascade_call_seconds_count{{method="{METHOD}"}} 3.0' in page
        assert "adcascade_calls_in_flight 0.0" in page
        assert "process_resident_memory_bytes" in page
        assert "grpc.health" not in page  # probes would drown the calls
        metrics_address = server.metrics_address
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=5)


def test_no_metrics_page_unless_asked_for():
    with serve() as server:
        assert server.metrics_address == ""


def test_two_servers_keep_their_metrics_apart():
    with serve() as busy, serve() as idle, connect(busy.address) as channel:
        recommend(channel)
        labels = {"method": METHOD, "status": "OK"}
        assert busy.registry.get_sample_value("adcascade_calls_total", labels) == 1
        assert idle.registry.get_sample_value("adcascade_calls_total", labels) is None


def test_a_request_above_the_size_limit_is_refused_and_smaller_ones_still_pass():
    with (
        serve(lambda _: RecommendResponse(request_id="ok"), max_message_mib=1) as server,
        connect(server.address) as channel,
    ):
        assert code_of(channel, "x" * (1024 * 1024 + 1)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert recommend(channel, "x" * (1024 * 1024 - 100)) == "ok"


def test_a_reply_above_the_size_limit_is_refused_and_smaller_ones_still_pass():
    def reply_of(message: RecommendRequest) -> RecommendResponse:
        return RecommendResponse(request_id="x" * message.k)

    with serve(reply_of, max_message_mib=1) as server, connect(server.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            recommend(channel, k=1024 * 1024 + 1)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(recommend(channel, k=1024 * 1024 - 100)) == 1024 * 1024 - 100


def test_a_limit_above_the_usual_one_lets_bigger_messages_pass():
    with serve(max_message_mib=12) as server, connect(server.address, max_message_mib=12) as channel:
        assert len(recommend(channel, "x" * (9 * 1024 * 1024))) == 9 * 1024 * 1024


def test_a_port_in_use_is_a_startup_error_that_names_the_option():
    with serve() as first:
        second = make_server(port=int(first.address.rpartition(":")[2]))
        with pytest.raises(StartupError, match=f"{first.address}.*choose another port"):
            second.start()
        with connect(first.address) as channel:
            assert recommend(channel, "first") == "first"


def test_a_metrics_port_in_use_is_a_startup_error_that_names_the_option():
    with serve(metrics_port=0) as first:
        taken = int(first.metrics_address.rpartition(":")[2])
        second = make_server(metrics_port=taken)
        with pytest.raises(StartupError, match=f"{taken}.*--metrics-port"):
            second.start()


def test_a_failed_start_leaves_no_port_bound(tmp_path):
    with serve() as first:
        taken = int(first.address.rpartition(":")[2])
        failed = make_server(port=taken, metrics_port=0)
        with pytest.raises(StartupError):
            failed.start()
    metrics_port = int(failed.metrics_address.rpartition(":")[2])
    unwritable = make_server(address_file=tmp_path / "missing" / "address.json")
    with pytest.raises(StartupError):
        unwritable.start()
    for port in (metrics_port, int(unwritable.address.rpartition(":")[2])):
        with serve(port=port) as server:
            assert server.address == f"127.0.0.1:{port}"


def test_run_with_a_port_in_use_never_loads(signal_handlers):
    loads = []
    with serve() as first:
        second = make_server(port=int(first.address.rpartition(":")[2]))
        with pytest.raises(StartupError, match="choose another port"):
            second.run(lambda: loads.append("load"), lambda: loads.append("close"))
    assert loads == []


def test_the_address_file_holds_the_bound_addresses_and_nothing_lies_beside_it(tmp_path):
    path = tmp_path / "address.json"
    with serve(address_file=path, metrics_port=0) as server:
        assert json.loads(path.read_text()) == {"address": server.address, "metrics": server.metrics_address}
        assert [file.name for file in tmp_path.iterdir()] == ["address.json"]
        assert server.address.startswith("127.0.0.1:")
        with connect(server.address) as channel:
            assert recommend(channel, "found") == "found"
        assert "adcascade_calls_total" in metrics_page(server)


def test_an_address_file_that_cannot_be_written_is_a_startup_error(tmp_path):
    server = make_server(address_file=tmp_path / "missing" / "address.json")
    try:
        with pytest.raises(StartupError, match=r"address_file|missing"):
            server.start()
    finally:
        server.stop(0)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    options = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=adcascade -addext subjectAltName=IP:127.0.0.1"
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run([openssl, *options.split(), *files], check=True, capture_output=True)
    return certificate, key


def test_with_a_certificate_the_port_speaks_tls_and_nothing_else(certificate):
    chain, key = certificate
    with serve(tls_certificate=chain, tls_key=key) as server:
        server.set_serving(True)
        with connect(server.address, ca_certificate=chain) as channel:
            assert recommend(channel, "secret") == "secret"
            assert is_serving(channel, SERVICE)
        with connect(server.address) as plain:
            assert code_of(plain, "plain") == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("given", ["tls_certificate", "tls_key"])
def test_half_of_the_tls_settings_is_a_startup_error(tmp_path, given):
    server = make_server(**{given: tmp_path / "half.pem"})
    with pytest.raises(StartupError, match="both tls_certificate and tls_key"):
        server.start()


def test_a_missing_certificate_is_a_startup_error_that_names_the_file(tmp_path):
    server = make_server(tls_certificate=tmp_path / "nowhere.pem", tls_key=tmp_path / "nowhere.key")
    with pytest.raises(StartupError, match="nowhere"):
        server.start()


def test_a_certificate_that_is_none_is_not_blamed_on_the_port(tmp_path):
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("not a certificate")
    server = make_server(tls_certificate=damaged, tls_key=damaged)
    with pytest.raises(StartupError, match=r"TLS|certificate"):
        server.start()


def wait_until_serving(channel):
    end = time.monotonic() + 10
    while not is_serving(channel):
        assert time.monotonic() < end, "never healthy"
        time.sleep(0.02)


def test_a_health_check_of_the_client_tells_loading_serving_and_gone_apart_from_healthy():
    with serve() as server, connect(server.address) as channel:
        assert not is_serving(channel, SERVICE)
        server.set_serving(True)
        assert is_serving(channel, SERVICE)
        address = server.address
    with connect(address) as nobody:
        assert not is_serving(nobody)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_an_ipv6_address_is_bracketed_and_answers():
    with serve(host="::1", metrics_port=0) as server, connect(server.address) as channel:
        assert server.address.startswith("[::1]:")
        assert server.metrics_address.startswith("[::1]:")
        server.set_serving(True)
        assert is_serving(channel, SERVICE)


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class DamagedModelError(Exception):
    pass


def test_what_load_raises_ends_run_with_that_error(signal_handlers):
    server = make_server()
    seen = []

    def load() -> None:
        with connect(server.address) as channel:  # the port is bound, but not yet healthy, while loading
            seen.append(is_serving(channel))
        raise DamagedModelError("no weights")

    with pytest.raises(DamagedModelError, match="no weights"):
        server.run(load, lambda: None)
    assert seen == [False]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(server.address.rpartition(":")[2]))) != 0
