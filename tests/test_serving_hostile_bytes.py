"""Bytes that no gRPC client would send, and messages that nobody can read: each ends its own call and nothing else."""

import contextlib
import logging
import threading
import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST_STREAM,
    Connection,
    call_headers,
    frame,
    message,
)
from test_serving_interceptors import access_line, log, raising, returned_id  # noqa: F401
from test_serving_interceptors import serve as serve_answer
from test_serving_server import METHOD, SERVICE, connect, recommend, serve

from adcascade.serving.errors import NotFound
from adcascade.serving.printable import STATUS_BYTES, cut_to_bytes, escaped, status_message
from adcascade.serving.server import Server
from adcascade.v1.recommend_pb2 import RecommendRequest

PATH = METHOD.encode()


def calls(server: Server, status: str, method: str = METHOD) -> float:
    labels = {"method": method, "status": status}
    return server.registry.get_sample_value("adcascade_calls_total", labels) or 0


def send_raw(address: str, body: bytes, *metadata: tuple[str, str]) -> grpc.Future:
    """A call whose message is `body`, as it is."""
    channel = grpc.insecure_channel(address)
    return channel.unary_unary(METHOD).future(body, timeout=20, metadata=metadata)


UNREADABLE = {
    "garbage": b"\xff" * 100,
    "cut off": RecommendRequest(user={"user_id": "u" * 50}).SerializeToString()[:-10],
    "text that is not UTF-8": b"\x0a\x04\x0a\x02\xff\xfe",
    "a group that never ends": b"\x0b" * 1000,
    "nested too deep": b"\x0a\x7f" * 60,
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_message_that_cannot_be_read_is_the_callers_fault(log, body):  # noqa: F811
    with serve() as server:
        ended = send_raw(server.address, body, ("x-request-id", "unreadable-1"))
        assert ended.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "cannot be read" in ended.details()
        assert returned_id(ended) == "unreadable-1"
        assert calls(server, "INVALID_ARGUMENT") == 1
    assert "[unreadable-1]" in access_line(log)
    assert "INVALID_ARGUMENT" in access_line(log)
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"])
def test_so_is_one_of_a_health_check(log, method):  # noqa: F811
    with serve() as server, connect(server.address) as channel:
        ended = channel.unary_unary(method).future(b"\xff" * 9, timeout=20)
        assert ended.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in log.getvalue()


PATHS = {
    "not UTF-8": b"/x\xff\xfe/y",
    "a forged line": b"/x\n2026-01-01 INFO forged\x1b[31m/y",
    "nul": b"/x\0/y",
    "no slash": b"x",
    "empty": b"",
    "long": b"/" + b"y" * 12_000,
    "ours and more": PATH + b"\xff",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_no_name_of_a_method_ends_the_server_or_forges_the_log(log, path):  # noqa: F811
    with serve() as server, connect(server.address) as channel:
        assert recommend(channel, "before") == "before"
        with Connection(server.address).start() as hostile:
            hostile.call(1, path)
            with contextlib.suppress(AssertionError, OSError):  # gRPC may end the connection
                hostile.received(b"grpc-status", 2)
        assert recommend(channel, "after") == "after"
        with connect(server.address) as another:
            assert recommend(another, "too") == "too"
    assert not any(line.startswith("2026-01-01") for line in log.getvalue().splitlines())
    assert "Traceback" not in log.getvalue()


def test_calls_of_methods_that_do_not_exist_are_counted_together_and_logged(log):  # noqa: F811
    with serve() as server, connect(server.address) as channel:
        for number in range(3):
            ended = channel.unary_unary(f"/{SERVICE}/Guess{number}").future(b"", timeout=20)
            assert ended.code() == grpc.StatusCode.UNIMPLEMENTED
            assert returned_id(ended)
        assert calls(server, "UNIMPLEMENTED", "unknown-method") == 3
    assert log.getvalue().count("unknown-method UNIMPLEMENTED") == 3


HEADER_VALUES = {
    "not UTF-8": (b"foo", b"\xff\xfe\n"),
    "an id that is not UTF-8": (b"x-request-id", b"\xff\xfe"),
    "an id with a line": (b"x-request-id", b"one\n2026-01-01 INFO forged"),
    "a deadline that is none": (b"grpc-timeout", b"-5z"),
    "not base64": (b"foo-bin", b"\xff!!"),
    "an encoding that is not known": (b"grpc-encoding", b"br"),
}


@pytest.mark.parametrize("header", HEADER_VALUES.values(), ids=HEADER_VALUES)
def test_headers_that_no_client_would_send_hurt_nobody_else(log, header):  # noqa: F811
    with serve() as server, connect(server.address) as channel, Connection(server.address).start() as hostile:
        hostile.call(1, PATH, header)
        hostile.received(b"grpc-status")
        assert recommend(channel, "fine") == "fine"
    assert not any(line.startswith("2026-01-01") for line in log.getvalue().splitlines())
    assert "Traceback" not in log.getvalue()


def test_headers_above_the_limit_are_refused():
    with serve(max_metadata_kib=4) as server, connect(server.address) as channel:
        stub = channel.unary_unary(METHOD)
        assert stub.future(b"", metadata=(("a", "x" * 3000),), timeout=20).code() == grpc.StatusCode.OK
        refused = stub.future(b"", metadata=(("a", "x" * 5000),), timeout=20)
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert recommend(channel, "fine") == "fine"


def test_a_compressed_message_is_bounded_by_what_it_unpacks_to():
    def size(request: RecommendRequest):
        raise AssertionError("nobody should read it")

    with serve(size, max_message_mib=1) as server, grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(METHOD).future(bytes(50_000_000), timeout=20, compression=grpc.Compression.Gzip)
        assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


FRAMES = {
    "a message longer than the limit is announced": frame(DATA, 0, 1, b"\0\x7f\0\0\0abcd"),
    "the end comes before the message": frame(DATA, END_STREAM, 1, b"\0\0\0\0\x0aabcd"),
    "a compressed message without an encoding": frame(DATA, END_STREAM, 1, b"\1\0\0\0\4abcd"),
    "two messages": frame(DATA, END_STREAM, 1, message(b"") + message(b"")),
    "a stream that was never begun": frame(DATA, END_STREAM, 99, message(b"")),
    "a frame of no kind": frame(77, 255, 1, b"?" * 100),
    "pings": frame(PING, 0, 0, b"12345678") * 1000,
}


@pytest.mark.parametrize("sent", FRAMES.values(), ids=FRAMES)
def test_frames_out_of_order_hurt_nobody_else(sent):
    with serve() as server, connect(server.address) as channel, Connection(server.address).start() as hostile:
        hostile.call(1, PATH, body=None)
        with contextlib.suppress(OSError):
            hostile.send(sent)
        assert recommend(channel, "fine") == "fine"
        with connect(server.address) as another:
            assert recommend(another, "fine") == "fine"


@pytest.mark.parametrize("body", [None, b""], ids=["before the message", "after it"])
def test_thousands_of_calls_that_are_reset_at_once_leave_the_server_answering(body):
    with serve() as server, connect(server.address) as channel:

        def reset_many() -> None:
            with Connection(server.address).start() as hostile, contextlib.suppress(OSError):
                for stream in range(1, 6000, 2):
                    headers = frame(HEADERS, END_HEADERS, stream, call_headers(PATH))
                    data = b"" if body is None else frame(DATA, END_STREAM, stream, message(body))
                    hostile.send(headers + data + frame(RST_STREAM, 0, stream, b"\0\0\0\x08"))

        hostile = threading.Thread(target=reset_many)
        hostile.start()
        answered = 0
        while hostile.is_alive() or answered < 3:
            assert recommend(channel, "fine") == "fine"
            answered += 1
        hostile.join()
        end = time.monotonic() + 10
        while server.registry.get_sample_value("adcascade_calls_in_flight"):
            assert time.monotonic() < end, "slots were not given back"
            time.sleep(0.01)
        assert recommend(channel, "after") == "after"


LONG = {
    "one byte each": "x" * 100_000,
    "two": "é" * 100_000,
    "three": "漢" * 999,
    "four": "\U0001f600" * 5000,
    "control": "\n\x1b[31m\0" * 3000,
    "surrogates": "\ud800" * 4000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_an_error_message_of_any_text_arrives_under_its_own_status_cut_between_characters(text):
    with serve_answer(raising(NotFound("unknown: " + text))) as server:
        ended = send_raw(server.address, b"")
        assert ended.code() == grpc.StatusCode.NOT_FOUND
        assert ended.details().startswith("unknown: ")
        assert ended.details().isprintable()
        assert ended.details().endswith("…")
        assert "\ufffd" not in ended.details()
        assert len(ended.details().encode()) <= STATUS_BYTES


def test_control_characters_are_escaped_in_a_status_and_in_the_log(log):  # noqa: F811
    text = "bad ad 'x\r\n2026-01-01 INFO forged \x1b[2J\u202e'"
    with serve_answer(raising(NotFound(text))) as server:
        ended = send_raw(server.address, b"")
        assert ended.details() == r"bad ad 'x\r\n2026-01-01 INFO forged \x1b[2J\u202e'"
    with serve_answer(raising(KeyError(text))) as server:
        send_raw(server.address, b"").code()
    with serve_answer(raising(RuntimeError(text))) as server:
        send_raw(server.address, b"").code()
    assert "Traceback" in log.getvalue()
    assert "\x1b" not in log.getvalue()
    assert not any(line.startswith("2026-01-01") for line in log.getvalue().splitlines())


@given(st.text(), st.integers(10, 200))
@settings(max_examples=100, deadline=None)
def test_a_cut_is_a_prefix_within_its_bytes(text, limit):
    cut = cut_to_bytes(escaped(text), limit)
    assert len(cut.encode()) <= limit
    assert cut == escaped(text) or (cut.endswith("…") and escaped(text).startswith(cut[:-1]))
    assert status_message(text).isprintable()


def test_what_is_printable_stays_as_it_is():
    for text in ("the ad “é” is gone; ask again", "漢字 – 100 %", ""):
        assert escaped(text) == text == status_message(text)


def test_a_log_line_of_any_length_is_cut(log):  # noqa: F811
    logging.getLogger("x").warning("%s", "y" * 1_000_000)
    assert 8000 < len(log.getvalue()) < 10_000
