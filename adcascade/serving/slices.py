"""Computations that can be left off: generators that yield wherever they may be paused or ended.

A slice is what runs between two yields; who runs it decides whether there is another. Knows not what is computed.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Yields between slices, and returns the answer.
Slices = Generator[None, None, Answer]
# What the newest slice counts in the average.
_NEWEST = 0.2


def run_through(slices: "Slices[Answer]") -> Answer:
    """Runs all slices, one after the other, and returns the answer."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            answer: Answer = done.value
            return answer


class LeftOff(BaseException):
    """Ends work that is paused and not wanted any more. No Exception, which a library might take for its own."""


def pausable(work: Callable[[Callable[[], None]], Answer], threads: Executor) -> "Slices[Answer]":
    """Slices of work that is no generator, such as a library's: it calls what it is given wherever it may be paused.

    Args:
        work: Takes the function to call; `LeftOff` is raised there if the generator is closed meanwhile.
        threads: Where it runs, while whoever runs the slices waits, so that never both do. There must be one for each
            work that is paused, or the next would wait for it forever.
    """
    go, left = threading.Semaphore(0), threading.Event()
    pauses: SimpleQueue[bool] = SimpleQueue()  # False for the end

    def pause() -> None:
        if not left.is_set():
            pauses.put(True)
            go.acquire()
        if left.is_set():
            raise LeftOff

    def run() -> Answer:
        try:
            return work(pause)
        finally:
            pauses.put(False)

    answer = threads.submit(run)
    try:
        while pauses.get():
            yield
            go.release()
        return answer.result()
    finally:
        left.set()
        go.release()


def by_cost(items: Sequence[Item], cost: Callable[[Item], int], budget: int) -> Iterator[list[Item]]:
    """`items` in order, in parts whose cost is at most `budget` together; one that costs more is a part of its own."""
    part: list[Item] = []
    total = 0
    for item in items:
        of_item = cost(item)
        if part and total + of_item > budget:
            yield part
            part, total = [], 0
        part.append(item)
        total += of_item
    if part:
        yield part


class SliceBudget:
    """How much to do in one slice, so that each takes about as long, however fast this machine is.

    Learns from the slices before: a moving average of the cost that a second pays for. Belongs to one thread.

    Args:
        seconds: that a slice should take.
        first: cost of the first slices, of which nothing is known yet.
        least, most: bounds of what is answered.
    """

    def __init__(self, seconds: float, first: int, *, least: int, most: int) -> None:
        self._seconds, self._first, self._least, self._most = seconds, first, least, most
        self._rate: float | None = None

    @property
    def cost(self) -> int:
        """Of the next slice, at most."""
        wanted = self._first if self._rate is None else round(self._rate * self._seconds)
        return min(max(wanted, self._least), self._most)

    def took(self, cost: int, seconds: float) -> None:
        """Tells how long a slice of some cost took."""
        rate = cost / max(seconds, 1e-6)
        self._rate = rate if self._rate is None else _NEWEST * rate + (1 - _NEWEST) * self._rate
