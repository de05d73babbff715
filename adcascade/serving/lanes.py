"""Calls that wait in a lane, and the batch of it that is under way. Knows no thread, and not which lane goes first."""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adcascade.serving.fair_queue import FairQueue
from adcascade.serving.slices import Slices

Query = TypeVar("Query")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Batched(Generic[Answer]):
    """An answer and how long its question waited."""

    value: Answer
    queue_ms: float


@dataclass(frozen=True)
class Waiting(Generic[Query, Answer]):
    """A call that waits: whom it counts for, when it came, until when it waits.

    Attributes:
        arrived, deadline: Of `time.monotonic`, in seconds.
        alone: It shares no batch, since an earlier one with it failed.
    """

    query: Query
    cost: int
    caller: str
    arrived: float
    deadline: float
    future: "Future[Batched[Answer]]"
    alone: bool = False

    @property
    def is_awaited(self) -> bool:
        """Whether somebody still waits for the answer."""
        if time.monotonic() >= self.deadline:
            self.future.cancel()
        return not self.future.cancelled()


@dataclass(frozen=True)
class Job(Generic[Query, Answer]):
    """A batch that has begun."""

    batch: Sequence[Waiting[Query, Answer]]
    slices: "Slices[Sequence[Answer]]"
    begun: float


@dataclass
class Lane(Generic[Query, Answer]):
    """Calls of a kind, of which one batch at a time is under way.

    Attributes:
        weight: Parts of the time that it gets beside lanes of other weights.
        of_caller: How many calls of each caller wait.
        spent: Seconds that its slices took, over its weight.
    """

    weight: float
    waiting: FairQueue[Waiting[Query, Answer]] = field(default_factory=FairQueue)
    of_caller: "Counter[str]" = field(default_factory=Counter)
    job: Job[Query, Answer] | None = None
    spent: float = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a call waits, or a batch is under way."""
        return self.job is not None or len(self.waiting) > 0

    def push(self, item: Waiting[Query, Answer]) -> None:
        """Lets a call wait in its caller's turn."""
        self.waiting.push(item, item.caller, item.cost)
        self.of_caller[item.caller] += 1

    def pop(self) -> Waiting[Query, Answer]:
        """Takes the call whose turn it is."""
        item = self.waiting.pop()
        self.of_caller[item.caller] -= 1
        if not self.of_caller[item.caller]:
            del self.of_caller[item.caller]
        return item
