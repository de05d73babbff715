"""Who goes first: heavy calls wait behind light ones, callers take turns, and what nobody waits for is left off.

Real gRPC servers are asked in the tests of retrieval and ranking; here queries are pairs of a name and slices.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest

from adcascade.serving.batcher import MicroBatcher, name_of
from adcascade.serving.errors import Cancelled, DeadlineExceeded, ResourceExhausted
from adcascade.serving.fair_queue import FairQueue
from adcascade.serving.lanes import Batched
from adcascade.serving.slices import by_cost, pausable, run_through

HELD = "held"
BUDGET = 10


class Query(NamedTuple):
    name: str
    slices: int
    cost: int


class Caller:
    """Waits for an answer, like a gRPC context."""

    def __init__(self, peer="ipv4:10.0.0.1:5000", remaining=None):
        self._peer, self._remaining = peer, remaining
        self.waits = threading.Event()
        self._leave = lambda: None

    def peer(self):
        return self._peer

    def time_remaining(self):
        return self._remaining

    def add_callback(self, callback):
        self._leave = callback
        self.waits.set()
        return True

    def leave(self):
        self._leave()


class Work:
    """Notes each slice; a slice takes a few milliseconds, and those of HELD wait until they may go on."""

    def __init__(self):
        self.log: list[str] = []
        self.closed: list[str] = []
        self.bad: set[str] = set()
        self.held, self.release = threading.Event(), threading.Event()

    def __call__(self, queries: Sequence[Query]):
        names = " ".join(query.name for query in queries)
        try:
            for _ in range(max(query.slices for query in queries)):
                self.log.append(names)
                if names == HELD:
                    self.held.set()
                    assert self.release.wait(20)
                time.sleep(0.002)
                if self.bad & {query.name for query in queries}:
                    raise ValueError(names)
                yield
        except GeneratorExit:
            self.closed.append(names)
            raise
        return [query.name.upper() for query in queries]


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(40) as threads:
        yield threads


@pytest.fixture
def batcher(work):
    found = MicroBatcher(
        "fair", work, cost=lambda query: query.cost, budget=BUDGET, light=5, max_waiting=100, max_heavy=3
    )
    yield found
    work.release.set()
    found.close()


def submit(pool, batcher, name, caller=None, *, slices=1, cost=1) -> "Future[Batched[str]]":
    caller = caller or Caller()
    answer = pool.submit(batcher.submit, Query(name, slices, cost), caller)
    assert caller.waits.wait(10)
    return answer


def hold(pool, batcher, work):
    answer = submit(pool, batcher, HELD)
    assert work.held.wait(10)
    return answer


def test_a_light_call_waits_for_a_slice_of_a_heavy_one_and_not_for_all_of_it(work, pool, batcher):
    heavy = submit(pool, batcher, "heavy", slices=400, cost=1000)
    while len(work.log) < 3:
        time.sleep(0.001)
    for number in range(5):
        before = len(work.log)
        assert submit(pool, batcher, f"light{number}").result(10).value == f"LIGHT{number}"
        after = work.log[before:]
        assert after.index(f"light{number}") <= 2  # a slice that had begun, and one that began meanwhile
    assert not heavy.done()
    assert heavy.result(20).value == "HEAVY"


def test_a_heavy_call_gets_its_share_while_light_ones_never_end(work, pool, batcher):
    stop = threading.Event()

    def keep_asking():
        while not stop.is_set():
            batcher.submit(Query("light", 1, 1), Caller())

    askers = [pool.submit(keep_asking) for _ in range(4)]
    try:
        assert batcher.submit(Query("heavy", 20, 1000), Caller()).value == "HEAVY"
        end = len(work.log)
    finally:
        stop.set()
    for asker in askers:
        asker.result(10)
    during = work.log[work.log.index("heavy") : end]
    light = sum(name != "heavy" for name in during)
    assert 20 <= light <= 200  # three quarters of the time are 60 slices


def test_callers_take_turns_whatever_each_of_them_sends(work, pool, batcher):
    hold(pool, batcher, work)
    loud, quiet = "ipv4:10.0.0.1", "ipv4:10.0.0.2"
    answers = [submit(pool, batcher, f"loud{n}", Caller(f"{loud}:{n}"), cost=5) for n in range(10)]
    answers.append(submit(pool, batcher, "quiet", Caller(f"{quiet}:1"), cost=5))
    work.release.set()
    for answer in answers:
        answer.result(10)
    assert "quiet" in work.log[1].split()  # in the first batch after the one that was under way


def test_heavy_calls_share_no_batch_and_callers_take_turns_in_them_too(work, pool, batcher):
    hold(pool, batcher, work)
    answers = [submit(pool, batcher, f"a{n}", Caller("ipv4:10.0.0.1:1"), cost=100) for n in range(3)]
    answers.append(submit(pool, batcher, "b0", Caller("ipv4:10.0.0.2:1"), cost=100))
    work.release.set()
    for answer in answers:
        answer.result(10)
    assert [name for name in work.log if name != HELD] == ["a0", "b0", "a1", "a2"]


def test_one_caller_cannot_take_all_the_room_for_heavy_calls(work, pool, batcher):
    hold(pool, batcher, work)
    for number in range(3):
        submit(pool, batcher, f"a{number}", Caller("ipv4:10.0.0.1:1"), cost=100)
    with pytest.raises(ResourceExhausted, match="3 calls of yours that cost as much are waiting"):
        batcher.submit(Query("a3", 1, 100), Caller("ipv4:10.0.0.1:2"))
    other = submit(pool, batcher, "b", Caller("ipv4:10.0.0.2:1"), cost=100)
    light = submit(pool, batcher, "c", Caller("ipv4:10.0.0.1:3"))
    work.release.set()
    assert (other.result(10).value, light.result(10).value) == ("B", "C")


def test_a_heavy_call_whose_deadline_passes_is_left_off_at_its_next_slice(work, pool, batcher):
    with pytest.raises(DeadlineExceeded):
        batcher.submit(Query("late", 10_000, 100), Caller(remaining=0.1))
    assert batcher.submit(Query("next", 1, 100), Caller()).value == "NEXT"
    assert work.closed == ["late"]
    assert work.log.count("late") < 200


def test_a_heavy_call_whose_caller_leaves_is_left_off_at_its_next_slice(work, pool, batcher):
    caller = Caller()
    left = submit(pool, batcher, "left", caller, slices=10_000, cost=100)
    while not work.log:
        time.sleep(0.001)
    caller.leave()
    with pytest.raises(Cancelled):
        left.result(10)
    assert batcher.submit(Query("next", 1, 100), Caller()).value == "NEXT"
    assert work.closed == ["left"]


def test_a_batch_goes_on_while_one_of_its_callers_waits(work, pool, batcher):
    hold(pool, batcher, work)
    caller = Caller()
    left, stays = submit(pool, batcher, "left", caller, slices=50), submit(pool, batcher, "stays", slices=50)
    work.release.set()
    while "left stays" not in work.log:
        time.sleep(0.001)
    caller.leave()
    assert stays.result(10).value == "STAYS"
    with pytest.raises(Cancelled):
        left.result(10)


def test_calls_of_a_batch_that_failed_run_alone_once_and_others_go_between(work, pool, batcher):
    work.bad = {"bad"}
    hold(pool, batcher, work)
    batch = [submit(pool, batcher, name, cost=2) for name in ("one", "bad", "two")]
    work.release.set()
    other = submit(pool, batcher, "other", Caller("ipv4:10.0.0.9:1"))
    with pytest.raises(ValueError, match=r"^bad$"):
        batch[1].result(10)
    assert [batch[0].result(10).value, batch[2].result(10).value, other.result(10).value] == ["ONE", "TWO", "OTHER"]
    assert sum("one" in names.split() for names in work.log) == 2  # with the others, and alone


def test_of_a_batch_that_failed_those_whose_callers_left_are_not_run_again(work, pool, batcher):
    work.bad = {"bad"}
    hold(pool, batcher, work)
    bad = submit(pool, batcher, "bad", slices=5)
    late = submit(pool, batcher, "late", Caller(remaining=0.05), slices=5)
    time.sleep(0.1)
    work.release.set()
    with pytest.raises(ValueError, match="bad"):
        bad.result(10)
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    assert "late" not in work.log


def test_close_answers_heavy_calls_and_those_of_a_failed_batch_too(work, pool, batcher):
    work.bad = {"bad"}
    hold(pool, batcher, work)
    heavy = submit(pool, batcher, "heavy", slices=20, cost=100)
    bad, good = submit(pool, batcher, "bad"), submit(pool, batcher, "good")
    closing = pool.submit(batcher.close)
    work.release.set()
    closing.result(20)
    assert (heavy.result(1).value, good.result(1).value) == ("HEAVY", "GOOD")
    with pytest.raises(ValueError, match="bad"):
        bad.result(1)


@pytest.mark.parametrize(
    ("peer", "name"),
    [("ipv4:10.0.0.7:51334", "ipv4:10.0.0.7"), ("ipv6:%5B::1%5D:80", "ipv6:%5B::1%5D"), ("unix:", "unix")],
)
def test_connections_of_one_address_count_as_one_caller(peer, name):
    assert name_of(Caller(peer)) == name


def test_a_caller_who_has_no_address_counts_as_nobody_in_particular():
    class Nameless:
        def time_remaining(self):
            return None

        def add_callback(self, callback):
            return True

    assert name_of(Nameless()) == ""


def test_the_fair_queue_remembers_no_more_callers_than_matter():
    queue = FairQueue()
    queue.push("stays", "stays", 1e9)
    for number in range(5000):
        queue.push(number, f"caller {number}", 1)
        queue.push("again", "stays", 1)
        queue.pop()
    assert len(queue._finish) < 2 * len(queue) + 200


def test_the_fair_queue_is_fifo_for_one_caller_and_fair_by_cost():
    queue = FairQueue()
    for number in range(4):
        queue.push(f"large{number}", "large", 10)
    for number in range(4):
        queue.push(f"small{number}", "small", 1)
    order = [queue.pop() for _ in range(len(queue))]
    assert order[:5] == ["large0", "small0", "small1", "small2", "small3"]
    assert order[5:] == ["large1", "large2", "large3"]


def test_parts_keep_the_order_and_their_budget():
    assert list(by_cost([3, 3, 3, 20, 1, 1], lambda cost: cost, 6)) == [[3, 3], [3], [20], [1, 1]]
    assert list(by_cost([], lambda cost: cost, 6)) == []


def test_slices_can_be_run_through():
    def slices():
        yield
        yield
        return 7

    assert run_through(slices()) == 7


def test_work_of_a_library_is_paused_where_it_says_so_and_left_off_there():
    done, cleaned = [], threading.Event()

    def work(pause):
        try:
            for step in range(3):
                pause()
                done.append(step)
            return sum(done)
        finally:
            cleaned.set()

    with ThreadPoolExecutor(1) as thread:
        slices = pausable(work, thread)
        assert done == []
        for steps in ([], [0], [0, 1]):
            next(slices)
            time.sleep(0.01)
            assert done == steps  # it stands until it may go on
        with pytest.raises(StopIteration) as ended:
            next(slices)
        assert ended.value.value == 3
        done.clear()
        cleaned.clear()
        left = pausable(work, thread)
        next(left)
        next(left)
        left.close()
        assert cleaned.wait(10)
        assert done == [0]
        assert run_through(pausable(lambda pause: "next", thread)) == "next"  # the thread is free
        with pytest.raises(ZeroDivisionError):
            run_through(pausable(lambda pause: 1 // 0, thread))
