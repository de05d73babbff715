"""One thread that writes: batches that wait are recorded together, so that they share one sync of the disk.

Knows neither events nor where they go: a function that records batches does.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from adcascade.events.errors import StoreFull
from adcascade.events.values import NewEvent, Outcome

RecordBatches = Callable[[Sequence[Sequence[NewEvent]], int], tuple[list[list[Outcome]], int]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outcomes of a batch, in its order, and the last offset of the log that was durable then."""

    outcomes: list[Outcome]
    offset: int


class GroupWriter:
    """Takes batches from any thread; each caller waits until its own is durable. Close it when done.

    Args:
        record: Records batches in one transaction; called in the thread that writes, with the time in microseconds.
        max_group: Events that are recorded together, at most (but a whole batch at least).
        max_waiting: Events that may wait; more are refused.

    Example:
        >>> from adcascade.events.values import Status
        >>> from adcascade.records.users import EventType
        >>> def record(batches, now_us):
        ...     return [[Outcome(Status.ACCEPTED) for _ in batch] for batch in batches], 7
        >>> writer = GroupWriter(record)
        >>> writer.submit([NewEvent("e1", EventType.CLICK, 0, ad_id="a")]).result().offset
        7
        >>> writer.close()
    """

    def __init__(self, record: RecordBatches, *, max_group: int = 4096, max_waiting: int = 65_536) -> None:
        self._record, self._max_group, self._max_waiting = record, max_group, max_waiting
        self._waiting: deque[_Batch | _Task] = deque()
        self._count = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="events-writer", daemon=True)
        self._thread.start()

    def submit(self, batch: Sequence[NewEvent]) -> "Future[Recorded]":
        """What becomes of a batch, once it is durable; its future raises what recording it raised.

        Raises:
            StoreFull: Too many events wait already; nothing of this batch was recorded.
        """
        one = _Batch(batch)
        self._wait_in_line(one, len(batch))
        return one.future

    def do(self, work: Callable[[], Any]) -> "Future[Any]":
        """What `work` returns, which is called in the thread that writes, between two groups. Raises StoreFull."""
        one = _Task(work)
        self._wait_in_line(one, 1)
        return one.future

    def _wait_in_line(self, one: "_Batch | _Task", events: int) -> None:
        with self._changed:
            if self._closed:
                raise StoreFull("the event store is closing; send it again later")
            if self._count and self._count + events > self._max_waiting:
                raise StoreFull(f"{self._count:,} events wait to be written already; send it again later")
            self._waiting.append(one)
            self._count += events
            self._changed.notify()

    def close(self) -> None:
        """Writes what waits, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (group := self._next()) is not None:
            if isinstance(group, _Task):
                group.run()
            elif group:
                self._write(group)

    def _write(self, group: "list[_Batch]") -> None:
        try:
            outcomes, offset = self._record([one.events for one in group], time.time_ns() // 1000)
        except BaseException as error:  # noqa: BLE001 - told to all who wait
            for one in group:
                one.future.set_exception(error)
        else:
            for one, of_batch in zip(group, outcomes, strict=True):
                one.future.set_result(Recorded(of_batch, offset))

    def _next(self) -> "list[_Batch] | _Task | None":
        """Batches that are recorded together, or a task; None once the writer is closed and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            if not self._waiting:
                return None
            group: list[_Batch] = []
            size = 0
            while self._waiting:
                first = self._waiting[0]
                if isinstance(first, _Task):
                    if group:
                        break
                    self._count -= 1
                    self._waiting.popleft()
                    return first
                if group and size + len(first.events) > self._max_group:
                    break
                self._waiting.popleft()
                group.append(first)
                size += len(first.events)
            self._count -= size
            return [one for one in group if one.future.set_running_or_notify_cancel()]


@dataclass(frozen=True)
class _Batch:
    events: Sequence[NewEvent]
    future: "Future[Recorded]" = field(default_factory=Future)


@dataclass(frozen=True)
class _Task:
    work: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.work())
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self.future.set_exception(error)
