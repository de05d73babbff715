"""A queue that serves callers in turns, whatever each of them sends. Knows not what waits in it. Not thread-safe."""

import heapq
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")

# So many more callers than items may be remembered before those that no longer matter are looked for.
_REMEMBERED = 64


class FairQueue(Generic[Item]):
    """Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).

    An item of a caller gets the start tag ``S = max(v, F)``, where F is the finish tag of the caller's item before, and
    the finish tag ``S + cost``. The item of the least start tag is next, and v is the start tag of the one taken last.
    So a caller who sends much waits behind its own items, and one who sends little is served at once; nobody starves,
    since v rises with each item that is taken.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._finish: dict[str, float] = {}
        self._virtual = 0.0
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, item: Item, caller: str, cost: float) -> None:
        """Puts an item of a caller into the queue; among equals the one that came first goes first."""
        start = max(self._virtual, self._finish.get(caller, 0.0))
        self._finish[caller] = start + cost
        heapq.heappush(self._heap, (start, next(self._numbers), item))

    def first(self) -> Item:
        """The item that is next. Raises IndexError if the queue is empty."""
        return self._heap[0][2]

    def pop(self) -> Item:
        """Takes the item that is next. Raises IndexError if the queue is empty."""
        self._virtual, _, item = heapq.heappop(self._heap)
        if len(self._finish) > len(self._heap) + _REMEMBERED:  # a tag that v has passed says nothing any more
            self._finish = {caller: end for caller, end in self._finish.items() if end > self._virtual}
        return item
