"""What a caller sees of errors, limits and request ids, through a real server."""

import asyncio
import contextlib
import inspect
import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic_settings import SettingsConfigDict

from adcascade.serving.arrivals import Arrivals, OpenStreams, UntakenReplies
from adcascade.serving.channel import is_serving, open_channel
from adcascade.serving.connections import ConnectionGuard
from adcascade.serving.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)
from adcascade.serving.handling import Handling
from adcascade.serving.interceptors import CallInterceptor, request_id
from adcascade.serving.logs import set_up_logging
from adcascade.serving.loop import event_loop
from adcascade.serving.metrics import CallMetrics
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
NEW_ID = re.compile(r"[0-9a-f]{16}")
UNSAFE_IDS = ["", "x" * 1000, "x" * 129, "two words", 'quo"te', "semi;colon", "{brace}"]


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="ADCASCADE_TEST_")


class BadUserError(Exception):
    pass


class Servicer(RecommendServiceServicer):
    def __init__(self, answer: Callable[[], RecommendResponse]) -> None:
        self._answer = answer

    def Recommend(self, request, context):  # noqa: N802
        return self._answer()


class AwaitedServicer(Servicer):
    async def Recommend(self, request, context):  # noqa: N802
        answer = self._answer()
        return await answer if inspect.isawaitable(answer) else answer


@contextlib.contextmanager
def serve(
    answer: Callable[[], Any] = RecommendResponse, servicer: type[Servicer] = Servicer, **settings: Any
) -> Iterator[Server]:
    server = Server(Settings(**settings), caller_errors=(BadUserError,))
    server.add(SERVICE, partial(add_RecommendServiceServicer_to_server, servicer(answer)))
    server.start()
    try:
        yield server
    finally:
        server.stop(0)


def raising(error: Exception) -> Callable[[], RecommendResponse]:
    def answer() -> RecommendResponse:
        raise error

    return answer


@contextlib.contextmanager
def client(server: Server) -> Iterator[RecommendServiceStub]:
    with open_channel(server.address) as channel:
        yield RecommendServiceStub(channel)


def call(stub: RecommendServiceStub, sent_id: str | None = None) -> grpc.Future:
    metadata = () if sent_id is None else (("x-request-id", sent_id),)
    return stub.Recommend.future(RecommendRequest(), timeout=20, metadata=metadata)


def outcome(answer: Callable[[], RecommendResponse]) -> tuple[grpc.StatusCode, str]:
    with serve(answer) as server, client(server) as stub:
        ended = call(stub)
        return ended.code(), ended.details()


def returned_id(ended: grpc.Future) -> str:
    return dict(ended.initial_metadata())["x-request-id"]


def calls(server: Server, status: str) -> float | None:
    return server.registry.get_sample_value("adcascade_calls_total", {"method": METHOD, "status": status})


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the log says, in the format of the servers."""
    root, text = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # else set_up_logging would close those of pytest
    with contextlib.redirect_stderr(text):
        set_up_logging("INFO")
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


def access_line(log: io.StringIO) -> str:
    (line,) = [line for line in log.getvalue().splitlines() if METHOD in line and " ms" in line]
    return line


@pytest.mark.parametrize("sent_id", ["7f3a", "trace-1:span/2.3_4", "x" * 128])
def test_the_callers_request_id_comes_back_and_is_in_the_log(log, sent_id):
    with serve() as server, client(server) as stub:
        ended = call(stub, sent_id)
        assert ended.code() == grpc.StatusCode.OK
        assert returned_id(ended) == sent_id
        assert re.search(rf"INFO \S+ \[{re.escape(sent_id)}\] {METHOD} OK \d+\.\d ms", access_line(log))


@pytest.mark.parametrize("sent_id", [None, *UNSAFE_IDS], ids=lambda sent_id: repr(sent_id)[:12])
def test_a_missing_or_unsafe_request_id_is_replaced(log, sent_id):
    with serve() as server, client(server) as stub:
        new_id = returned_id(call(stub, sent_id))
        assert NEW_ID.fullmatch(new_id)
        assert f"[{new_id}]" in access_line(log)
        assert not sent_id or sent_id not in log.getvalue()


def test_every_call_without_a_request_id_gets_another_one():
    with serve() as server, client(server) as stub:
        assert len({returned_id(call(stub)) for _ in range(20)}) == 20


def test_a_failed_call_brings_its_request_id_too():
    with serve(raising(NotFound("no such ad"))) as server, client(server) as stub:
        assert returned_id(call(stub, "failing-1")) == "failing-1"


class Caller:
    """gRPC's context of a call with metadata that gRPC clients refuse to send, or a deadline that has just passed."""

    def __init__(self, sent_id: str = "fine", remaining: float | None = None) -> None:
        self._sent_id, self._remaining = sent_id, remaining
        self.returned_id = ""
        self.status: grpc.StatusCode | None = None

    def invocation_metadata(self):
        return (("x-request-id", self._sent_id),)

    def peer(self):
        return "ipv4:127.0.0.1:1"

    def auth_context(self):
        return {}

    def time_remaining(self):
        return self._remaining

    async def read(self):
        return b"question"

    async def send_initial_metadata(self, metadata):
        self.returned_id = dict(metadata)["x-request-id"]

    async def abort(self, status, message):
        self.status = status
        raise RuntimeError(message)


def call_directly(behaviour: Callable[[Any, Any], Any], caller: Caller) -> Any:
    handler = grpc.unary_unary_rpc_method_handler(behaviour, bytes.decode, str.encode)
    with ThreadPoolExecutor(1) as pool:
        metrics = CallMetrics(CollectorRegistry())
        handling = Handling(
            metrics,
            pool,
            max_concurrent=1,
            max_reply_bytes=1000,
            arrivals=Arrivals(1, 10),
            streams=OpenStreams(1, 1, 10),
            connections=ConnectionGuard(1),
        )
        interceptor = CallInterceptor(metrics, handling, replies=UntakenReplies(1000, 10, lambda _: None))
        return asyncio.run(interceptor.intercept(METHOD, handler).stream_unary(None, caller)).decode()


@pytest.mark.parametrize("sent_id", ["forged\nINFO line", "end\n", "nul\0", "ümlaut"])
def test_a_request_id_that_could_forge_a_log_line_is_replaced(log, sent_id):
    caller = Caller(sent_id)
    assert call_directly(lambda question, _: f"answer to {question}", caller) == "answer to question"
    assert NEW_ID.fullmatch(caller.returned_id)
    assert sent_id not in log.getvalue()


def test_the_request_id_holds_during_the_call_and_no_longer():
    assert call_directly(lambda *_: request_id.get(), Caller("mine")) == "mine"
    assert request_id.get() == "-"


def test_a_call_that_arrives_after_its_deadline_is_not_worked_on():
    worked, caller = [], Caller(remaining=0.0)
    with pytest.raises(RuntimeError, match="deadline had passed"):
        call_directly(lambda *_: worked.append("worked") or "worked", caller)
    assert caller.status == grpc.StatusCode.DEADLINE_EXCEEDED
    assert worked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgument, grpc.StatusCode.INVALID_ARGUMENT),
        (NotFound, grpc.StatusCode.NOT_FOUND),
        (FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
        (ResourceExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unavailable, grpc.StatusCode.UNAVAILABLE),
        (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
        (Cancelled, grpc.StatusCode.CANCELLED),
        (ServiceError, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_service_error_becomes_its_status_with_its_message(error, status):
    with serve(raising(error("the ad “é” is gone; ask again"))) as server, client(server) as stub:
        ended = call(stub)
        assert (ended.code(), ended.details()) == (status, "the ad “é” is gone; ask again")
        assert calls(server, status.name) == 1
        assert calls(server, "OK") is None


def test_a_caller_error_becomes_invalid_argument_with_its_message():
    status, details = outcome(raising(BadUserError("history[3] has no type")))
    assert (status, details) == (grpc.StatusCode.INVALID_ARGUMENT, "history[3] has no type")


def test_an_error_that_means_not_loaded_becomes_unavailable_with_its_message():
    server = Server(Settings(), unready_errors=(LookupError,))
    servicer = Servicer(raising(LookupError("no index version is loaded yet")))
    server.add(SERVICE, partial(add_RecommendServiceServicer_to_server, servicer))
    server.start()
    try:
        with client(server) as stub:
            ended = call(stub)
            assert (ended.code(), ended.details()) == (
                grpc.StatusCode.UNAVAILABLE,
                "no index version is loaded yet",
            )
    finally:
        server.stop(0)


def test_an_unknown_error_is_told_in_a_fixed_text_and_logged_whole(log):
    with serve(raising(KeyError("secret-path"))) as server, client(server) as stub:
        ended = call(stub, "broken-7")
        assert ended.code() == grpc.StatusCode.INTERNAL
        assert "internal error" in ended.details()
        assert "secret" not in ended.details()
        assert calls(server, "INTERNAL") == 1
    text = log.getvalue()
    assert f"[broken-7] unexpected error in {METHOD}" in text
    assert "Traceback (most recent call last)" in text
    assert "KeyError: 'secret-path'" in text
    assert "[broken-7]" in access_line(log)


def test_an_error_the_server_expects_is_logged_without_a_traceback(log):
    outcome(raising(NotFound("no such ad")))
    assert "NOT_FOUND" in access_line(log)
    assert "Traceback" not in log.getvalue()


def test_an_error_message_too_long_for_the_wire_still_arrives_under_its_own_status():
    status, details = outcome(raising(NotFound("unknown ads: " + "x" * 100_000)))
    assert status == grpc.StatusCode.NOT_FOUND
    assert details.startswith("unknown ads: xxx")


def test_a_server_goes_on_after_errors():
    answers = iter([KeyError("bug"), NotFound("none"), BadUserError("bad"), None])

    def answer() -> RecommendResponse:
        error = next(answers)
        if error is not None:
            raise error
        return RecommendResponse()

    with serve(answer, max_concurrent=1) as server, client(server) as stub:
        assert [call(stub).code().name for _ in range(4)] == ["INTERNAL", "NOT_FOUND", "INVALID_ARGUMENT", "OK"]


def test_calls_beyond_the_limit_are_refused_and_later_ones_succeed_again():
    begun, release = threading.Semaphore(0), threading.Event()

    def answer() -> RecommendResponse:
        begun.release()
        assert release.wait(20)
        return RecommendResponse()

    with serve(answer, max_concurrent=2) as server, client(server) as stub:
        taken = [call(stub) for _ in range(2)]
        for _ in taken:
            assert begun.acquire(timeout=10)
        assert server.registry.get_sample_value("adcascade_calls_in_flight") == 2
        refused = [call(stub) for _ in range(5)]
        assert {ended.code() for ended in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refused[0].details() == "2 calls are in flight already; try again later"
        release.set()
        assert {ended.code() for ended in taken} == {grpc.StatusCode.OK}
        assert [call(stub).code() for _ in range(5)] == [grpc.StatusCode.OK] * 5
        assert calls(server, "RESOURCE_EXHAUSTED") == 5
        assert calls(server, "OK") == 7
        assert server.registry.get_sample_value("adcascade_calls_in_flight") == 0


@pytest.mark.parametrize(
    ("error", "status", "details"),
    [
        (NotFound("the ad is gone"), "NOT_FOUND", "the ad is gone"),
        (BadUserError("history[3] has no type"), "INVALID_ARGUMENT", "history[3] has no type"),
        (RuntimeError("secret"), "INTERNAL", "internal error; the server's log has the details under this request id"),
    ],
)
def test_what_a_coroutine_raises_is_told_like_what_a_thread_raises(error, status, details):
    with serve(raising(error), AwaitedServicer) as server, client(server) as stub:
        ended = call(stub, "one-of-mine")
        assert (ended.code().name, ended.details()) == (status, details)
        assert returned_id(ended) == "one-of-mine"
        assert calls(server, status) == 1


def test_a_coroutine_s_reply_that_is_too_long_is_refused():
    long = RecommendResponse(index_version="x" * 2**20)
    with serve(lambda: long, AwaitedServicer, max_message_mib=1) as server, client(server) as stub:
        ended = call(stub)
        assert ended.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_message_mib" in ended.details()


class Held:
    """Coroutines that wait until they are let go."""

    def __init__(self) -> None:
        self.begun, self.left = threading.Semaphore(0), threading.Event()
        self.threads: set[str] = set()
        self._waiting: list[asyncio.Event] = []

    async def answer(self) -> RecommendResponse:
        self.threads.add(threading.current_thread().name)
        release = asyncio.Event()
        self._waiting.append(release)
        self.begun.release()
        try:
            await release.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return RecommendResponse(request_id=request_id.get())

    def let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for release in waiting:
            event_loop().call_soon_threadsafe(release.set)


def test_coroutines_take_slots_but_no_threads():
    held = Held()
    with serve(held.answer, AwaitedServicer, max_concurrent=2) as server, client(server) as stub:
        server.set_serving(True)
        taken = [call(stub, f"call-{number}") for number in range(2)]
        for _ in taken:
            assert held.begun.acquire(timeout=10)
        assert server.registry.get_sample_value("adcascade_calls_in_flight") == 2
        refused = call(stub)
        assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details() == "2 calls are in flight already; try again later"
        with open_channel(server.address) as another:
            assert is_serving(another)
        held.let_go()
        assert [ended.result().request_id for ended in taken] == ["call-0", "call-1"]
        assert held.threads == {"grpc-loop"}
        assert server.registry.get_sample_value("adcascade_calls_in_flight") == 0


def test_a_coroutine_whose_caller_leaves_is_cancelled_and_gives_its_slot_back():
    held = Held()
    with serve(held.answer, AwaitedServicer, max_concurrent=1) as server, client(server) as stub:
        first = call(stub)
        assert held.begun.acquire(timeout=10)
        first.cancel()
        assert held.left.wait(10)
        second = call(stub)
        assert held.begun.acquire(timeout=10)
        held.let_go()
        assert second.code() is grpc.StatusCode.OK
        assert calls(server, "CANCELLED") == 1


def test_calls_to_methods_that_do_not_exist_leave_no_metrics():
    with serve() as server, open_channel(server.address) as channel:
        ended = channel.unary_unary(f"/{SERVICE}/Guess").future(b"", timeout=20)
        assert ended.code() == grpc.StatusCode.UNIMPLEMENTED
        assert call(RecommendServiceStub(channel)).code() == grpc.StatusCode.OK
        page = generate_latest(server.registry).decode()
        assert METHOD in page
        assert "Guess" not in page
