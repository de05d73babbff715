"""What a client holds open without asking for anything: it costs the others nothing."""

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from raw_http2 import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, Connection, call_headers, frame, message
from test_serving_server import METHOD, SERVICE, certificate, connect, recommend, serve, wait_until  # noqa: F401

from adcascade.serving.channel import is_serving
from adcascade.serving.connections import _peer
from adcascade.serving.errors import StartupError
from adcascade.serving.server import Server
from adcascade.v1.recommend_pb2 import RecommendRequest, RecommendResponse
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub

ROOT = Path(__file__).parent.parent
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at its connections through /proc")


@contextlib.contextmanager
def another_client(address: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address, OWN_CONNECTION) as channel:
        yield channel


def seconds_to_answer(address: str) -> float:
    """How long another client waits for a health check and a call."""
    started = time.monotonic()
    with another_client(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
        RecommendServiceStub(channel).Recommend(RecommendRequest(), timeout=20, wait_for_ready=True)
    return time.monotonic() - started


def calls(server: Server, status: str, method: str = METHOD) -> float:
    labels = {"method": method, "status": status}
    return server.registry.get_sample_value("adcascade_calls_total", labels) or 0


@contextlib.contextmanager
def calls_without_a_message(address: str, method: str, count: int) -> Iterator[list[grpc.Future]]:
    """Begins calls on one connection and sends nothing more until the block ends."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with another_client(address) as channel:
        yield [channel.stream_unary(method).future(nothing()) for _ in range(count)]
        over.set()


@pytest.mark.parametrize("method", [METHOD, CHECK, WATCH, REFLECT, "/no.such.Service/Method"])
def test_calls_whose_message_is_never_sent_hold_up_nobody(method):
    with serve(max_concurrent=4) as server, calls_without_a_message(server.address, method, 100):
        time.sleep(0.3)
        assert seconds_to_answer(server.address) < 5


def test_a_call_without_a_message_ends_after_a_while_and_is_counted():
    with (
        serve(message_seconds=0.2, max_concurrent=1) as server,
        calls_without_a_message(server.address, METHOD, 3) as held,
    ):
        assert {call.code() for call in held} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert held[0].details() == "the call's message did not arrive within 0.2 s"
        assert calls(server, "DEADLINE_EXCEEDED") == 3


def test_beyond_max_unsent_those_that_waited_longest_give_way_and_who_sends_is_answered():
    with serve(max_unsent=3) as server, calls_without_a_message(server.address, METHOD, 3) as older:
        time.sleep(0.3)
        with calls_without_a_message(server.address, METHOD, 2) as newer:
            wait_until(lambda: sum(call.done() for call in older) == 2)
            assert calls(server, "RESOURCE_EXHAUSTED") == 2
            assert seconds_to_answer(server.address) < 5
            assert not any(call.done() for call in newer[1:])


def test_many_calls_at_once_are_all_read():
    with serve(max_unsent=1, max_concurrent=200) as server, connect(server.address) as channel:
        stub = RecommendServiceStub(channel)
        sent = [stub.Recommend.future(RecommendRequest(), timeout=20) for _ in range(100)]
        assert {call.code() for call in sent} == {grpc.StatusCode.OK}


def test_a_message_sent_byte_by_byte_is_read_within_its_time_and_given_up_after_it():
    body = message(RecommendRequest(user={"user_id": "slow"}).SerializeToString())
    with serve(message_seconds=1) as server, Connection(server.address).start() as patient:
        patient.call(1, METHOD.encode(), body=None)
        for place, byte in enumerate(body):
            patient.send(frame(DATA, int(place == len(body) - 1), 1, bytes([byte])))
        patient.received(b"slow")
        begun = time.monotonic()
        patient.call(3, METHOD.encode(), body=None)
        patient.send(frame(DATA, 0, 3, message(b"x" * 1000)[:5]))
        with contextlib.suppress(OSError):
            while time.monotonic() < begun + 10 and not calls(server, "DEADLINE_EXCEEDED"):
                patient.send(frame(DATA, 0, 3, b"x"))
                time.sleep(0.02)
        assert calls(server, "DEADLINE_EXCEEDED") == 1


def test_a_call_that_ends_without_a_message_is_told_so():
    with serve() as server, connect(server.address) as channel:
        ended = channel.stream_unary(METHOD).future(iter(()), timeout=20)
        assert (ended.code(), ended.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "the call ended without a message",
        )
        assert calls(server, "INVALID_ARGUMENT") == 1


def test_a_slot_is_taken_only_once_the_message_is_there():
    with serve(max_concurrent=1) as server, calls_without_a_message(server.address, METHOD, 5):
        time.sleep(0.2)
        assert server.registry.get_sample_value("adcascade_calls_in_flight") == 0
        with connect(server.address) as channel:
            assert recommend(channel, "through") == "through"


def test_streams_that_watch_are_few_a_connection_and_end_when_the_server_drains():
    with serve() as server, another_client(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        for watch in watching:
            next(watch)
        fifth = stub.Watch(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError) as refused:
            next(fifth)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        watching[0].cancel()
        wait_until(lambda: next(iter_status(stub)) == health_pb2.HealthCheckResponse.NOT_SERVING)
        started = time.monotonic()
        server.stop(20)
        assert time.monotonic() - started < 5
        with pytest.raises(grpc.RpcError) as ended:
            next(watching[1])
        assert ended.value.code() == grpc.StatusCode.UNAVAILABLE


def iter_status(stub: health_pb2_grpc.HealthStub) -> Iterator[int]:
    with contextlib.suppress(grpc.RpcError):
        for reply in stub.Watch(health_pb2.HealthCheckRequest(), timeout=5):
            yield reply.status
            return
    yield -1


def test_one_who_watches_and_does_not_read_keeps_nobody_from_being_told():
    with serve() as server, Connection(server.address) as deaf:
        deaf.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))  # a window of no bytes
        deaf.call(1, WATCH.encode())
        time.sleep(0.2)
        started = time.monotonic()
        for serving in (True, False, True):
            server.set_serving(serving)
        with another_client(server.address) as channel:
            assert is_serving(channel)
        server.stop(0)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("told", [True, False])
def test_reflection_is_a_setting(told):
    with serve(reflection=told) as server, connect(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = stub.ServerReflectionInfo(iter([question]), timeout=20)
        if told:
            assert SERVICE in str(next(answers))
            return
        with pytest.raises(grpc.RpcError) as refused:
            next(answers)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@linux_only
def test_replies_that_nobody_takes_end_their_connection_and_free_the_memory():
    def big(request: RecommendRequest) -> RecommendResponse:
        return RecommendResponse(request_id="x" * 1_000_000)

    with (
        serve(big, message_seconds=30, max_message_mib=1, max_concurrent=8) as server,
        Connection(server.address) as deaf,
        another_client(server.address) as channel,
    ):
        deaf.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        for stream in range(1, 80, 2):  # 40 MB, of 16 that may wait
            with contextlib.suppress(OSError):  # closed already
                deaf.call(stream, METHOD.encode())
            time.sleep(0.01)
        assert deaf.is_closed_within(10)
        assert len(RecommendServiceStub(channel).Recommend(RecommendRequest(), timeout=20).request_id) == 1_000_000


@linux_only
def test_one_reply_that_nobody_takes_ends_its_connection_after_a_while():
    with serve(message_seconds=0.3) as server, Connection(server.address) as deaf:
        deaf.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        deaf.call(1, METHOD.encode(), body=RecommendRequest(user={"user_id": "x"}).SerializeToString())
        assert deaf.is_closed_within(10)


# Serves with few descriptors until standard input closes.
SMALL_SERVER = """
import resource, sys
from functools import partial
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
sys.path.insert(0, {tests!r})
from test_serving_server import make_server
server = make_server(**{settings!r})
server.start()
print(server.address, server.metrics_address, flush=True)
sys.stdin.read()
server.stop(0)
"""


@contextlib.contextmanager
def server_of_128_descriptors(**settings: object) -> Iterator[tuple[str, str]]:
    code = SMALL_SERVER.format(tests=str(ROOT / "tests"), settings=settings)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "GRPC_VERBOSITY": "NONE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        address, _, metrics = process.stdout.readline().strip().partition(" ")
        yield address, metrics
        process.stdin.close()
        assert process.wait(10) == 0


@contextlib.contextmanager
def connections(count: int, address: str, said: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that say `said` and then nothing."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            held.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=10)))
            with contextlib.suppress(OSError):  # it had to give way already
                held[-1].sendall(said)
        yield held


WHOLE_HANDSHAKE = PREFACE + frame(SETTINGS, 0, 0)
HELD_CALL = WHOLE_HANDSHAKE + frame(HEADERS, END_HEADERS, 1, call_headers(METHOD.encode()))


@linux_only
@pytest.mark.parametrize(
    "said",
    [b"", PREFACE[:5], b"GET / HTTP/1.1\r\nHost: x\r\n", WHOLE_HANDSHAKE, HELD_CALL],
    ids=["silent", "part of a preface", "http 1", "idle", "a call without a message"],
)
def test_200_connections_do_not_stop_a_server_of_128_descriptors(said):
    with server_of_128_descriptors() as (address, _), connections(200, address, said):
        assert seconds_to_answer(address) < 5
        assert seconds_to_answer(address) < 5


@linux_only
def test_a_connection_that_is_used_outlives_those_that_are_not():
    with server_of_128_descriptors() as (address, _), Connection(address).start() as used:
        for number in range(5):
            with connections(100, address, WHOLE_HANDSHAKE):
                name = f"beat-{number}"
                body = RecommendRequest(user={"user_id": name}).SerializeToString()
                used.call(2 * number + 1, METHOD.encode(), body=body)
                assert name.encode() in used.received(name.encode())
                time.sleep(0.3)


@linux_only
def test_tls_handshakes_that_never_end_do_not_stop_a_server(certificate):  # noqa: F811
    chain, key = certificate
    with (
        server_of_128_descriptors(tls_certificate=str(chain), tls_key=str(key)) as (address, _),
        connections(200, address, b"\x16\x03\x01\x02\x00\x01"),
    ):
        started = time.monotonic()
        with connect(address, ca_certificate=chain) as channel:
            stub = RecommendServiceStub(channel)
            stub.Recommend(RecommendRequest(), timeout=20, wait_for_ready=True)
        assert time.monotonic() - started < 8


@pytest.mark.parametrize("said", [b"", PREFACE[:5], PREFACE])
def test_a_handshake_that_never_ends_is_given_up(said):
    with serve(handshake_seconds=0.3) as server, connections(1, server.address, said) as (held,):
        held.settimeout(10)
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while held.recv(1000):
                pass
        assert time.monotonic() - started < 5


def test_an_idle_connection_ends_and_its_client_is_served_again():
    with serve(idle_seconds=0.3) as server, connect(server.address) as channel:
        assert recommend(channel, "first") == "first"
        with connections(1, server.address, WHOLE_HANDSHAKE) as (held,):
            held.settimeout(10)
            with contextlib.suppress(ConnectionError):
                while held.recv(1000):
                    pass
        assert recommend(channel, "again") == "again"


@linux_only
def test_connections_that_say_nothing_do_not_hold_the_metrics_page():
    with server_of_128_descriptors(metrics_port=0) as (address, metrics):
        for said in (b"", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\n\r\n"):
            with connections(200, metrics, said):
                with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as page:
                    assert b"adcascade_calls_in_flight" in page.read()
                assert seconds_to_answer(address) < 5


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", b"200"),
        ("GET /metrics?name=x HTTP/1.0", b"200"),
        ("HEAD /metrics HTTP/1.1", b"200"),
        ("POST /metrics HTTP/1.1", b"405"),
        ("GET /etc/passwd HTTP/1.1", b"404"),
        ("nonsense", b"405"),
    ],
)
def test_the_metrics_page_answers_what_it_knows_and_closes(request_line, status):
    with serve(metrics_port=0) as server, Connection(server.metrics_address) as page:
        page.send(request_line.encode() + b"\r\nHost: x\r\n\r\n")
        page.socket.settimeout(10)
        seen = b""
        while more := page.socket.recv(65536):
            seen += more
        assert seen.startswith(b"HTTP/1.1 " + status)


def test_headers_of_the_metrics_page_are_bounded():
    with serve(metrics_port=0) as server, Connection(server.metrics_address) as page:
        with contextlib.suppress(OSError):
            for _ in range(100):
                page.send(b"x: " + b"y" * 1000 + b"\r\n")
        assert page.is_closed_within(4)


def test_more_connections_than_descriptors_is_a_startup_error():
    code = SMALL_SERVER.format(tests=str(ROOT / "tests"), settings={"max_connections": 500})
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{StartupError.__name__}: this process may open 128 files" in ended.stderr
    assert "ulimit -n" in ended.stderr
    assert "max_connections" in ended.stderr


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ipv4:10.0.0.7:41234", ("10.0.0.7", 41234)),
        ("ipv6:%5B::1%5D:41234", ("::1", 41234)),
        ("ipv6:[fe80::1%25eth0]:7", ("fe80::1", 7)),
        ("ipv6:%5B::ffff:10.0.0.7%5D:7", ("10.0.0.7", 7)),
        ("unix:/run/socket", ("unix:/run/socket", 0)),
    ],
)
def test_peers_of_grpc_are_found_among_sockets(name, peer):
    assert _peer(name) == peer
