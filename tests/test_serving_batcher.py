"""The batcher with queries that are numbers and answers that are ten times as much."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import grpc
import pytest
from pydantic_settings import SettingsConfigDict

from adcascade.serving.batcher import MicroBatcher
from adcascade.serving.channel import open_channel
from adcascade.serving.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable
from adcascade.serving.lanes import Batched
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.v1.recommend_pb2 import RecommendRequest, RecommendResponse
from adcascade.v1.recommend_pb2_grpc import (
    RecommendServiceServicer,
    RecommendServiceStub,
    add_RecommendServiceServicer_to_server,
)

SERVICE = "adcascade.v1.RecommendService"
HOLD = 0  # the query that keeps the batcher busy


class Caller:
    """Waits for an answer, like a gRPC context."""

    def __init__(self, remaining: float | None = None, *, has_left: bool = False) -> None:
        self._remaining = remaining
        self._has_left = has_left
        self._callbacks: list[Callable[[], None]] = []
        self.waits = threading.Event()

    def time_remaining(self) -> float | None:
        return self._remaining

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        self.waits.set()
        return not self._has_left

    def leave(self) -> None:
        for callback in self._callbacks:
            callback()


class Work:
    """Multiplies by ten; stops at the query HOLD until released, and refuses the queries in `bad`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.bad: dict[int, Exception] = {}
        self.held = threading.Event()
        self.release = threading.Event()

    def __call__(self, queries: Sequence[int]) -> list[int]:
        self.batches.append(list(queries))
        if HOLD in queries:
            self.held.set()
            assert self.release.wait(20)
        for query in queries:
            if query in self.bad:
                raise self.bad[query]
        return [10 * query for query in queries]

    def processed(self) -> list[int]:
        return [query for batch in self.batches for query in batch]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as threads:
        yield threads


@contextlib.contextmanager
def batching(
    process: Callable[[Sequence[int]], Sequence[int]], *, budget: int = 100, max_waiting: int = 100
) -> Iterator[MicroBatcher[int, int]]:
    """A batcher in which a query costs what it is, and HOLD costs 1."""
    batcher = MicroBatcher("test", process, cost=lambda query: query or 1, budget=budget, max_waiting=max_waiting)
    try:
        yield batcher
    finally:
        if isinstance(process, Work):
            process.release.set()
        batcher.close()


def submit(
    pool: ThreadPoolExecutor, batcher: MicroBatcher[int, int], query: int, caller: Caller | None = None
) -> "Future[Batched[int]]":
    """Submits from a thread and returns once the query is in the queue."""
    caller = caller or Caller()
    answer = pool.submit(batcher.submit, query, caller)
    assert caller.waits.wait(10)
    return answer


def hold(pool: ThreadPoolExecutor, batcher: MicroBatcher[int, int], work: Work) -> "Future[Batched[int]]":
    """Keeps the batcher busy until `work.release` is set."""
    answer = submit(pool, batcher, HOLD)
    assert work.held.wait(10)
    return answer


def values(answers: Sequence["Future[Batched[int]]"]) -> list[int]:
    return [answer.result(10).value for answer in answers]


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_idle_batcher_answers_alone_and_at_once(work):
    with batching(work) as batcher:
        answer = batcher.submit(7, Caller())
        assert answer.value == 70
        assert 0 <= answer.queue_ms < 500
        assert work.batches == [[7]]


def test_queries_that_queue_make_up_the_next_batch_and_are_answered_in_order(work, pool):
    with batching(work) as batcher:
        first = hold(pool, batcher, work)
        answers = [submit(pool, batcher, query) for query in (5, 3, 9, 3)]
        work.release.set()
        assert values([first, *answers]) == [0, 50, 30, 90, 30]
        assert work.batches == [[HOLD], [5, 3, 9, 3]]


def test_the_budget_limits_a_batch_and_a_query_above_it_runs_alone(work, pool):
    with batching(work, budget=10) as batcher:
        hold(pool, batcher, work)
        answers = [submit(pool, batcher, query) for query in (4, 6, 4, 12, 1, 9, 1)]
        work.release.set()
        assert values(answers) == [40, 60, 40, 120, 10, 90, 10]
        assert [12] in work.batches
        assert [batch for batch in work.batches if batch != [12]] == [[HOLD], [4, 6], [4, 1], [9, 1]]


def test_one_bad_query_in_a_batch_does_not_fail_its_neighbours(work, pool):
    work.bad = {2: ValueError("two is bad")}
    with batching(work) as batcher:
        hold(pool, batcher, work)
        good, bad, other = (submit(pool, batcher, query) for query in (1, 2, 3))
        work.release.set()
        assert values([good, other]) == [10, 30]
        with pytest.raises(ValueError, match="two is bad"):
            bad.result(10)
        assert batcher.submit(4, Caller()).value == 40


def test_a_timeout_error_of_the_computation_is_not_taken_for_the_callers_deadline(work):
    work.bad = {5: TimeoutError("the index did not answer")}
    with batching(work) as batcher, pytest.raises(TimeoutError, match="the index did not answer"):
        batcher.submit(5, Caller(remaining=10))


def test_a_computation_with_too_few_answers_fails_its_callers_and_the_next_ones_are_served():
    def forget_five(queries: Sequence[int]) -> list[int]:
        return [10 * query for query in queries if query != 5]

    with batching(forget_five) as batcher:
        with pytest.raises(Exception) as failure:  # noqa: PT011 - which error is the batcher's own affair
            batcher.submit(5, Caller(remaining=2))
        assert not isinstance(failure.value, DeadlineExceeded)
        assert batcher.submit(6, Caller(remaining=2)).value == 60


def test_queries_beyond_max_waiting_are_refused_at_once_and_later_ones_are_taken_again(work, pool):
    with batching(work, max_waiting=2) as batcher:
        hold(pool, batcher, work)
        waiting = [submit(pool, batcher, query) for query in (1, 2)]
        with pytest.raises(ResourceExhausted, match="2 calls are waiting already"):
            batcher.submit(3, Caller())
        work.release.set()
        assert values(waiting) == [10, 20]
        assert batcher.submit(4, Caller()).value == 40
        assert 3 not in work.processed()


def test_close_answers_what_waits_then_refuses(work, pool):
    with batching(work) as batcher:
        first = hold(pool, batcher, work)
        waiting = [submit(pool, batcher, query) for query in (1, 2)]
        closing = pool.submit(batcher.close)
        wait_until(lambda: is_closed(batcher))
        assert not closing.done()
        work.release.set()
        closing.result(10)
        assert values([first, *waiting]) == [0, 10, 20]
        with pytest.raises(Unavailable, match="shutting down"):
            batcher.submit(3, Caller())
        assert "test" not in {thread.name for thread in threading.enumerate()}


def is_closed(batcher: MicroBatcher[int, int]) -> bool:
    try:
        batcher.submit(9, Caller(remaining=0.01))
    except Unavailable:
        return True
    except DeadlineExceeded:
        return False
    raise AssertionError("a busy batcher answered")


def test_queue_ms_is_the_time_until_work_began_and_not_the_work_itself(work, pool):
    with batching(work) as batcher:
        first = hold(pool, batcher, work)
        second = submit(pool, batcher, 2)
        time.sleep(0.4)
        work.release.set()
        assert 0 <= first.result(10).queue_ms < 300
        assert 400 <= second.result(10).queue_ms < 5000


def test_a_query_whose_deadline_passes_in_the_queue_is_never_processed(work, pool):
    with batching(work) as batcher:
        hold(pool, batcher, work)
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            batcher.submit(5, Caller(remaining=0.1))
        assert 0.1 <= time.monotonic() - started < 2
        work.release.set()
        assert batcher.submit(6, Caller()).value == 60
        assert work.processed() == [HOLD, 6]


def test_a_deadline_that_passes_during_the_computation_is_told_at_once(work):
    with batching(work) as batcher, pytest.raises(DeadlineExceeded):
        batcher.submit(HOLD, Caller(remaining=0.1))


class Tardy(Caller):
    """Starts to wait a little late, so that the batcher meets the query after its deadline first."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        time.sleep(0.1)
        return super().add_callback(callback)


def test_a_passed_deadline_is_not_reported_as_a_caller_who_left(work):
    with batching(work) as batcher:
        with pytest.raises(DeadlineExceeded):
            batcher.submit(5, Tardy(remaining=0.0))
        assert batcher.submit(6, Caller()).value == 60
        assert work.processed() == [6]


def test_the_query_of_a_caller_who_leaves_is_dropped(work, pool):
    with batching(work) as batcher:
        hold(pool, batcher, work)
        leaver = Caller()
        dropped, kept = submit(pool, batcher, 5, leaver), submit(pool, batcher, 6)
        leaver.leave()
        with pytest.raises(Cancelled):
            dropped.result(10)
        work.release.set()
        assert values([kept]) == [60]
        assert work.processed() == [HOLD, 6]


def test_the_query_of_a_caller_who_has_left_already_is_dropped(work, pool):
    with batching(work) as batcher:
        hold(pool, batcher, work)
        with pytest.raises(Cancelled):
            batcher.submit(5, Caller(has_left=True))
        work.release.set()
        assert batcher.submit(6, Caller()).value == 60
        assert work.processed() == [HOLD, 6]


def test_a_caller_without_a_deadline_waits_as_long_as_it_takes(work, pool):
    with batching(work) as batcher:
        hold(pool, batcher, work)
        answers = [submit(pool, batcher, 5, Caller(remaining)) for remaining in (None, float("inf"))]
        time.sleep(0.2)
        work.release.set()
        assert values(answers) == [50, 50]


@pytest.mark.parametrize("seed", range(3))
def test_32_threads_each_get_their_own_answers_within_the_budget(work, pool, seed):
    budget, choice = 40, random.Random(seed)
    work.bad = {13: ValueError("13"), 31: KeyError("31")}
    queries = [[choice.randint(1, 50) for _ in range(40)] for _ in range(32)]

    def ask_all(batcher: MicroBatcher[int, int], mine: list[int]) -> list[object]:
        answers: list[object] = []
        for query in mine:
            try:
                answers.append(batcher.submit(query, Caller(remaining=20)).value)
            except (ValueError, KeyError) as error:
                answers.append(type(error))
        return answers

    def work_slowly(queries: Sequence[int]) -> list[int]:
        time.sleep(0.001)
        return work(queries)

    with batching(work_slowly, budget=budget) as batcher:
        answers = list(pool.map(partial(ask_all, batcher), queries))
    failures = {13: ValueError, 31: KeyError}
    assert answers == [[failures.get(query, 10 * query) for query in mine] for mine in queries]
    assert all(len(batch) == 1 or sum(batch) <= budget for batch in work.batches)
    assert max(map(len, work.batches)) > 1  # else nothing was batched
    good = [query for batch in work.batches if not work.bad.keys() & set(batch) for query in batch]
    sent = [query for mine in queries for query in mine if query not in work.bad]
    assert sorted(good) == sorted(sent)  # each answered once; batches with a bad query ran again, one by one


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="ADCASCADE_TEST_")


class Servicer(RecommendServiceServicer):
    """Answers k times ten through the batcher."""

    def __init__(self, batcher: MicroBatcher[int, int]) -> None:
        self._batcher = batcher
        self.arrived = threading.Semaphore(0)
        self.departed = threading.Semaphore(0)

    def Recommend(self, request, context):  # noqa: N802
        self.arrived.release()
        try:
            return RecommendResponse(request_id=str(self._batcher.submit(request.k, context).value))
        finally:
            self.departed.release()


@contextlib.contextmanager
def serve(batcher: MicroBatcher[int, int]) -> Iterator[tuple[Server, Servicer, RecommendServiceStub]]:
    server, servicer = Server(Settings()), Servicer(batcher)
    server.add(SERVICE, partial(add_RecommendServiceServicer_to_server, servicer))
    server.start()
    try:
        with open_channel(server.address) as channel:
            yield server, servicer, RecommendServiceStub(channel)
    finally:
        server.stop(0)


def call(stub: RecommendServiceStub, k: int, timeout: float | None = None) -> grpc.Future:
    return stub.Recommend.future(RecommendRequest(k=k), timeout=timeout)


def test_over_the_wire_a_call_whose_deadline_passes_is_never_processed(work):
    with batching(work) as batcher, serve(batcher) as (_, servicer, stub):
        first = call(stub, HOLD)
        assert work.held.wait(10)
        assert servicer.arrived.acquire(timeout=10)
        late = call(stub, 5, timeout=0.5)
        assert servicer.arrived.acquire(timeout=10)
        assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert servicer.departed.acquire(timeout=10)  # the server's clock may be a moment behind the caller's
        work.release.set()
        assert first.result(10).request_id == "0"
        assert call(stub, 6).result(10).request_id == "60"
        assert work.processed() == [HOLD, 6]


def test_over_the_wire_work_for_a_caller_who_cancels_is_dropped(work):
    labels = {"method": f"/{SERVICE}/Recommend", "status": "CANCELLED"}
    with batching(work) as batcher, serve(batcher) as (server, servicer, stub):
        first = call(stub, HOLD)
        assert work.held.wait(10)
        assert servicer.arrived.acquire(timeout=10)
        left = call(stub, 5)
        assert servicer.arrived.acquire(timeout=10)
        left.cancel()
        wait_until(lambda: server.registry.get_sample_value("adcascade_calls_total", labels) == 1)
        work.release.set()
        assert first.result(10).request_id == "0"
        assert call(stub, 6).result(10).request_id == "60"
        assert work.processed() == [HOLD, 6]


def test_work_between_queries_goes_on_until_there_is_none_and_never_before_a_query(work):
    done, left = [], [5]

    def idle_work():
        if not left[0]:
            return False
        left[0] -= 1
        done.append(len(work.processed()))
        return left[0] > 0

    batcher = MicroBatcher("test", work, cost=lambda _: 1, budget=10, max_waiting=10, idle_work=idle_work)
    try:
        assert batcher.submit(3, Caller()).value == 30
        deadline = time.monotonic() + 20
        while left[0] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(done) == 5
        assert batcher.submit(4, Caller()).value == 40
    finally:
        batcher.close()


def test_work_between_queries_that_fails_is_given_up_and_queries_go_on(work, caplog):
    def idle_work():
        raise RuntimeError("broken")

    batcher = MicroBatcher("test", work, cost=lambda _: 1, budget=10, max_waiting=10, idle_work=idle_work)
    try:
        for query in (1, 2):
            assert batcher.submit(query, Caller()).value == 10 * query
    finally:
        batcher.close()
    assert caplog.text.count("is given up") == 1
