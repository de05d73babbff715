"""Computations that can be left off: generators that yield wherever they may be paused or ended.

A slice is what runs between two yields; who runs it decides whether there is another. Knows not what is computed.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Yields between slices, and returns the answer.
Slices = Generator[None, None, Answer]


def run_through(slices: "Slices[Answer]") -> Answer:
    """Runs all slices, one after the other, and returns the answer."""
    while True:
        try:
            next(slices)
        except StopIteration as done:
            answer: Answer = done.value
            return answer


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
