"""What writes to the store: one thread, in which batches that wait are recorded together, with one sync of the disk.

Knows neither how events are counted nor where they go.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adcascade.events.messages import MAX_EVENTS
from adcascade.events.values import NewEvent, Outcome
from adcascade.serving.batcher import MAX_WAITING, MicroBatcher

# Records batches in one transaction, at a time in microseconds since 1970: their outcomes, and the last durable offset.
RecordBatches = Callable[[Sequence[Sequence[NewEvent]], int], tuple[list[list[Outcome]], int]]
# What is asked of the thread that writes: a batch, or other work on the store, which is done alone.
Work = Sequence[NewEvent] | Callable[[], Any]

# Events that are recorded together, at most; work that shares its turn with nobody costs more than any batch.
_MAX_GROUP, _ALONE = 4096, MAX_EVENTS + 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outcomes of a batch, in its order, and the last offset of the log that was durable then."""

    outcomes: list[Outcome]
    offset: int


def event_writer(record: RecordBatches) -> MicroBatcher[Work, Any]:
    """Takes batches and other work from any thread; `submit` waits until they are done. Close it when done.

    Batches are answered with `Recorded`, other work with what it returns. Where a group fails, each of its batches is
    tried alone, so that none fails for another.
    """

    def process(queries: Sequence[Work]) -> Sequence[Any]:
        batches = [one for one in queries if not callable(one)]
        if len(batches) < len(queries):
            return [one() for one in queries if callable(one)]  # one: what is heavy has its turn alone
        outcomes, offset = record(batches, time.time_ns() // 1000)
        return [Recorded(of_batch, offset) for of_batch in outcomes]

    return MicroBatcher(
        "events-writer",
        process,
        cost=lambda one: _ALONE if callable(one) else len(one),
        budget=_MAX_GROUP,
        light=MAX_EVENTS,
        max_waiting=MAX_WAITING,
    )
