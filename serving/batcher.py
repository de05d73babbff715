"""One worker thread that owns the model or the index, and a bounded queue of calls in front of it.

Calls that queue while a batch is computed make up the next batch, so batches grow with load and an idle server adds
no wait. Knows nothing of what a call computes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from serving.errors import Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable

log = logging.getLogger(__name__)

Query = TypeVar("Query")
Answer = TypeVar("Answer")

# Longest wait for an answer when the caller set no deadline, in seconds.
MAX_WAIT_SECONDS = 3600.0
# How often to ask for work between queries, if there was none.
_MEANWHILE_SECONDS = 1.0


class Caller(Protocol):
    """Who waits for an answer. `grpc.ServicerContext` is one."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None or infinity without one."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls `callback` when the caller leaves; False if it has left already."""


@dataclass(frozen=True)
class Batched(Generic[Answer]):
    """An answer and how long its question waited."""

    value: Answer
    queue_ms: float


@dataclass(frozen=True)
class _Waiting(Generic[Query, Answer]):
    query: Query
    cost: int
    arrived: float
    deadline: float
    future: "Future[Batched[Answer]]"


class MicroBatcher(Generic[Query, Answer]):
    """Runs `process` on batches of queries in a thread of its own.

    Args:
        name: Name of the thread, seen in logs and profilers.
        process: Takes the queries of one batch and returns as many answers, in order.
        cost: What a query costs, in the unit of `budget` (rows, tokens). A batch holds at least one query.
        budget: A batch's total cost is at most this, unless a single query exceeds it.
        max_waiting: Queries beyond this many waiting are refused.
        meanwhile: A short piece of work that is done in the same thread as long as no query waits; it returns whether
            there is more of it, and is asked again every second if not.
    """

    def __init__(
        self,
        name: str,
        process: Callable[[Sequence[Query]], Sequence[Answer]],
        *,
        cost: Callable[[Query], int],
        budget: int,
        max_waiting: int,
        meanwhile: Callable[[], bool] | None = None,
    ) -> None:
        self._process = process
        self._cost = cost
        self._budget = budget
        self._max_waiting = max_waiting
        self._meanwhile = meanwhile
        self._waiting: deque[_Waiting[Query, Answer]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, query: Query, caller: Caller) -> Batched[Answer]:
        """Waits for the answer to `query`.

        Raises:
            ResourceExhausted: Too many queries wait already.
            DeadlineExceeded: The caller's deadline passed first; the query is dropped if not yet begun.
            Cancelled: The caller left; the query is dropped if not yet begun.
            Unavailable: The batcher is closed.
        """
        remaining = caller.time_remaining()
        wait = MAX_WAIT_SECONDS if remaining is None else min(remaining, MAX_WAIT_SECONDS)
        future: Future[Batched[Answer]] = Future()
        arrived = time.monotonic()
        self._enqueue(_Waiting(query, self._cost(query), arrived, arrived + wait, future))
        if not caller.add_callback(lambda: _cancel(future)):
            future.cancel()
        try:
            return future.result(timeout=wait)
        except TimeoutError:
            if future.done():  # the computation itself raised a TimeoutError
                raise
            future.cancel()
            raise DeadlineExceeded("the deadline passed while the call waited for its turn or its answer") from None
        except CancelledError:
            if time.monotonic() >= arrived + wait:
                raise DeadlineExceeded("the deadline passed while the call waited for its turn") from None
            raise Cancelled("the caller left before its answer was ready") from None

    def _enqueue(self, waiting: _Waiting[Query, Answer]) -> None:
        with self._changed:
            if self._closed:
                raise Unavailable("the server is shutting down")
            if len(self._waiting) >= self._max_waiting:
                raise ResourceExhausted(f"{len(self._waiting)} calls are waiting already; try again later")
            self._waiting.append(waiting)
            self._changed.notify()

    def close(self) -> None:
        """Answers what waits, then stops the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            alive = [item for item in batch if self._begin(item)]
            if alive:
                self._answer(alive)

    @staticmethod
    def _begin(item: _Waiting[Query, Answer]) -> bool:
        """Whether somebody still waits for `item`; from here on it can no longer be cancelled."""
        if time.monotonic() >= item.deadline:
            item.future.cancel()
        return item.future.set_running_or_notify_cancel()

    def _next_batch(self) -> list[_Waiting[Query, Answer]]:
        """The next queries within the budget; empty only when closed and drained."""
        self._wait_for_queries()
        with self._changed:
            batch: list[_Waiting[Query, Answer]] = []
            cost = 0
            while self._waiting and (not batch or cost + self._waiting[0].cost <= self._budget):
                cost += self._waiting[0].cost
                batch.append(self._waiting.popleft())
            return batch

    def _wait_for_queries(self) -> None:
        """Returns when a query waits, or the batcher is closed."""
        while True:
            with self._changed:
                if self._waiting or self._closed:
                    return
            if self._work_meanwhile():
                continue
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(None if self._meanwhile is None else _MEANWHILE_SECONDS)

    def _work_meanwhile(self) -> bool:
        if self._meanwhile is None:
            return False
        try:
            return self._meanwhile()
        except Exception:  # nobody waits for it, and the queries must go on
            log.exception("the work between queries failed and is given up")
            self._meanwhile = None
            return False

    def _answer(self, batch: Sequence[_Waiting[Query, Answer]]) -> None:
        begun = time.monotonic()
        try:
            answers = self._process([item.query for item in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(batch)} queries got {len(answers)} answers")
        except Exception as error:  # noqa: BLE001 - handed to the caller, whose interceptor reports it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:  # one bad query must not fail its neighbours
                log.warning("a batch of %d calls failed (%s); running them one by one", len(batch), error)
                for item in batch:
                    self._answer([item])
            return
        for item, answer in zip(batch, answers, strict=True):
            item.future.set_result(Batched(answer, 1000 * (begun - item.arrived)))


def _cancel(future: "Future[Batched[Answer]]") -> None:
    future.cancel()
