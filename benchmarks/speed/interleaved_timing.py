"""Contenders take turns, so that a busy machine slows them alike. Knows nothing of what they do."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Told how many calls of how many are done.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Contender:
    """Something that is timed: `run` does the work of one measurement."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median, least and most of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one or more values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Turns:
    """Seconds of each contender in each round."""

    seconds: Mapping[str, Sequence[float]]

    def milliseconds(self, name: str) -> Spread:
        """Of one call."""
        return Spread.of([1000 * value for value in self.seconds[name]])

    def times_faster(self, name: str, than: str) -> Spread:
        """How many times longer `than` took in the same round."""
        pairs = zip(self.seconds[than], self.seconds[name], strict=True)
        return Spread.of([slower / faster for slower, faster in pairs])


def interleave(
    contenders: Sequence[Contender], rounds: int, *, warm_up: int = 1, progress: Progress = lambda *_: None
) -> Turns:
    """Calls each contender once a round, the first `warm_up` rounds untimed; the order turns from round to round."""
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    done, total = 0, (warm_up + rounds) * len(contenders)
    for number in range(-warm_up, rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            gc.collect()  # nobody pays for what another left behind
            started = time.perf_counter()
            contender.run()
            if number >= 0:
                seconds[contender.name].append(time.perf_counter() - started)
            done += 1
            progress(done, total)
    return Turns(seconds)
