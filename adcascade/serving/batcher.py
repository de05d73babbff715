"""One worker thread that owns the model or the index, and queues of calls in front of it.

Calls that queue while a batch is computed make up the next batch, so batches grow with load and an idle server adds
no wait. What is computed is bounded by its cost, not by the number of calls, and runs in slices: between two of them
the thread looks whether anybody still waits for the answer, and whether somebody else should go first.

Who goes first: calls that cost little have a lane of their own, and those that cost much another. Within a lane callers
take turns (see `fair_queue`), and between the lanes time is shared as in class-based queueing (Floyd and Jacobson,
1995): while both have work, three quarters of the time are those of the light lane. So a heavy call waits behind light
ones, a light one waits for a slice of a heavy one at most, and no heavy call starves.

Knows nothing of what a call computes.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

from adcascade.serving.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable
from adcascade.serving.lanes import Batched, Job, Lane, Waiting
from adcascade.serving.slices import Slices

log = logging.getLogger(__name__)

Query = TypeVar("Query")
Answer = TypeVar("Answer")

# Longest wait for an answer when the caller set no deadline, in seconds.
MAX_WAIT_SECONDS = 3600.0
# What servers let wait: of all calls, and of the heavy ones of one caller.
MAX_WAITING, MAX_HEAVY = 1024, 16
# How often to ask for work between queries, if there was none.
_IDLE_WORK_SECONDS = 1.0
# Parts of the time that light calls get while heavy ones wait, too, for each part of those.
_LIGHT_WEIGHT = 3.0


class Caller(Protocol):
    """Who waits for an answer. `grpc.ServicerContext` is one."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None or infinity without one."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls `callback` when the caller leaves; False if it has left already."""


@runtime_checkable
class Peer(Protocol):
    """A caller of whom is known where it calls from. `grpc.ServicerContext` is one."""

    def peer(self) -> str:
        """Such as ``ipv4:10.0.0.7:51334``."""


def name_of(caller: Caller) -> str:
    """Whom a call counts for: the caller's address without its port, so that connections share what one has."""
    if not isinstance(caller, Peer):
        return ""
    return caller.peer().rpartition(":")[0]


class MicroBatcher(Generic[Query, Answer]):
    """Runs `process` on batches of queries in a thread of its own.

    Args:
        name: Name of the thread, seen in logs and profilers.
        process: Takes the queries of one batch and returns as many answers, in order; or a generator that yields
            between slices and returns them. A generator is closed, unfinished, when nobody waits for its answers.
        cost: What a query costs at most, in the unit of `budget` (rows, tokens).
        budget: A batch's total cost is at most this, unless a single query exceeds it.
        light: A query that costs more is heavy: it waits behind light ones, and shares no batch. `budget` if not given.
        max_waiting: Queries beyond this many waiting are refused.
        max_heavy: So are heavy ones beyond this many waiting of one caller, who would take the room of the others;
            `max_waiting` if not given.
        idle_work: A short piece of work that is done in the same thread as long as no query waits; it returns whether
            there is more of it, and is asked again every second if not.
    """

    def __init__(
        self,
        name: str,
        process: "Callable[[Sequence[Query]], Sequence[Answer] | Slices[Sequence[Answer]]]",
        *,
        cost: Callable[[Query], int],
        budget: int,
        max_waiting: int,
        light: int | None = None,
        max_heavy: int | None = None,
        idle_work: Callable[[], bool] | None = None,
    ) -> None:
        self._process = process
        self._cost = cost
        self._budget = budget
        self._light_cost = budget if light is None else min(light, budget)
        self._max_waiting = max_waiting
        self._max_heavy = max_waiting if max_heavy is None else max_heavy
        self._idle_work = idle_work
        self._light: Lane[Query, Answer] = Lane(_LIGHT_WEIGHT)
        self._heavy: Lane[Query, Answer] = Lane(1.0)
        self._lanes = (self._light, self._heavy)  # of equals, the first goes first
        self._spent = 0.0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, query: Query, caller: Caller) -> Batched[Answer]:
        """Waits for the answer to `query`.

        Raises:
            ResourceExhausted: Too many queries wait already.
            DeadlineExceeded: The caller's deadline passed first; the query is dropped, or left off at its next slice.
            Cancelled: The caller left; the query is dropped, or left off at its next slice.
            Unavailable: The batcher is closed.
        """
        remaining = caller.time_remaining()
        wait = MAX_WAIT_SECONDS if remaining is None else min(remaining, MAX_WAIT_SECONDS)
        future: Future[Batched[Answer]] = Future()
        arrived = time.monotonic()
        self._enqueue(Waiting(query, self._cost(query), name_of(caller), arrived, arrived + wait, future))
        if not caller.add_callback(lambda: _cancel(future)):
            future.cancel()
        try:
            return future.result(timeout=wait)
        except TimeoutError:
            if future.done() and not future.cancelled():  # the computation itself raised a TimeoutError
                raise
            future.cancel()
            raise DeadlineExceeded("the deadline passed while the call waited for its turn or its answer") from None
        except CancelledError:
            if time.monotonic() >= arrived + wait:
                raise DeadlineExceeded("the deadline passed while the call waited for its turn") from None
            raise Cancelled("the caller left before its answer was ready") from None

    def _enqueue(self, item: Waiting[Query, Answer]) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the server is shutting down")
            waiting = sum(len(lane.waiting) for lane in self._lanes)
            if waiting >= self._max_waiting:
                raise ResourceExhausted(f"{waiting} calls are waiting already; try again later")
            lane = self._lane_of(item)
            if lane is self._heavy:
                self._check_heavy(item.caller)
            if not lane.has_work:
                lane.spent = max(lane.spent, self._spent)  # time without work is not saved up
            lane.push(item)
            self._changed.notify()

    def _lane_of(self, item: Waiting[Query, Answer]) -> Lane[Query, Answer]:
        return self._light if item.cost <= self._light_cost else self._heavy

    def _check_heavy(self, caller: str) -> None:
        waiting = self._heavy.of_caller[caller]
        if waiting >= self._max_heavy:
            raise ResourceExhausted(
                f"{waiting} calls of yours that cost as much are waiting already; send fewer texts or candidates in a "
                "call, or try again later"
            )

    def close(self) -> None:
        """Answers what waits, then stops the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (lane := self._next_lane()) is not None:
            started = time.monotonic()
            self._step(lane)
            lane.spent += (time.monotonic() - started) / lane.weight

    def _next_lane(self) -> Lane[Query, Answer] | None:
        """The lane whose turn it is; None only when closed and drained."""
        while True:
            with self._changed:
                busy = [lane for lane in self._lanes if lane.has_work]
                if busy:
                    lane = min(busy, key=lambda one: one.spent)
                    self._spent = lane.spent
                    return lane
                if self._closed:
                    return None
            if self._do_idle_work():
                continue
            with self._changed:
                if not any(lane.has_work for lane in self._lanes) and not self._closed:
                    self._changed.wait(None if self._idle_work is None else _IDLE_WORK_SECONDS)

    def _do_idle_work(self) -> bool:
        if self._idle_work is None:
            return False
        try:
            return self._idle_work()
        except Exception:  # nobody waits for it, and the queries must go on
            log.exception("the work between queries failed and is given up")
            self._idle_work = None
            return False

    def _step(self, lane: Lane[Query, Answer]) -> None:
        """Runs the next slice of a lane: of the batch that is under way, or the first of the next one."""
        if lane.job is None:
            batch = [item for item in self._next_batch(lane) if item.is_awaited]
            if not batch:
                return
            lane.job = Job(batch, self._slices([item.query for item in batch]), time.monotonic())
        job = lane.job
        if not any(item.is_awaited for item in job.batch):
            lane.job = None
            job.slices.close()
            return
        try:
            next(job.slices)
        except StopIteration as done:
            lane.job = None
            _answer(job, done.value)
        except Exception as error:  # noqa: BLE001 - handed to the caller, whose interceptor reports it
            lane.job = None
            self._fail(lane, job, error)

    def _next_batch(self, lane: Lane[Query, Answer]) -> list[Waiting[Query, Answer]]:
        """The next queries of a lane within the budget; a heavy one, or one of a batch that failed, is alone."""
        with self._changed:
            batch: list[Waiting[Query, Answer]] = []
            cost = 0
            while len(lane.waiting):
                item = lane.waiting.first()
                if batch and (lane is self._heavy or item.alone or cost + item.cost > self._budget):
                    break
                batch.append(lane.pop())
                cost += item.cost
                if item.alone:
                    break
            return batch

    def _slices(self, queries: Sequence[Query]) -> "Slices[Sequence[Answer]]":
        found = self._process(queries)
        answers = (yield from found) if isinstance(found, Generator) else found
        if len(answers) != len(queries):
            raise RuntimeError(f"{len(queries)} queries got {len(answers)} answers")
        return answers

    def _fail(self, lane: Lane[Query, Answer], job: Job[Query, Answer], error: Exception) -> None:
        """Hands the error to the caller; of several, each gets a turn alone, so that one does not fail the others."""
        if len(job.batch) == 1:
            if job.batch[0].future.set_running_or_notify_cancel():
                job.batch[0].future.set_exception(error)
            return
        log.warning("a batch of %d calls failed (%s); each will run alone", len(job.batch), error)
        with self._changed:
            for item in job.batch:
                lane.push(replace(item, alone=True))


def _answer(job: Job[Query, Answer], answers: Sequence[Answer]) -> None:
    for item, answer in zip(job.batch, answers, strict=True):
        if item.future.set_running_or_notify_cancel():
            item.future.set_result(Batched(answer, 1000 * (job.begun - item.arrived)))


def _cancel(future: "Future[Batched[Answer]]") -> None:
    future.cancel()
