"""Calls that arrive whether or not the ones before are answered, so that queueing shows. Knows not what is called."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

# Starts a call, and returns its gRPC future.
Start = Callable[[], Any]

OK, DEGRADED = "OK", "DEGRADED"


@dataclass(frozen=True)
class Answered:
    """What became of calls at one rate.

    Attributes:
        rate: calls a second that arrived.
        seconds: how long they arrived.
        milliseconds: of each call that was answered, from when it was due to arrive.
        outcomes: calls by outcome: OK, DEGRADED (answered without ranking), or the name of a gRPC status.
    """

    rate: float
    seconds: float
    milliseconds: Sequence[float]
    outcomes: dict[str, int]

    def percentile(self, q: float) -> float:
        """Of the milliseconds, q from 0 to 100; infinity if nothing was answered."""
        return float(np.percentile(self.milliseconds, q)) if self.milliseconds else float("inf")

    @property
    def refused(self) -> float:
        """Share of the calls that got no answer, 0 to 1."""
        return 1 - len(self.milliseconds) / max(1, sum(self.outcomes.values()))

    @property
    def shed(self) -> float:
        """Share of the calls that got no answer, or one without ranking, 0 to 1."""
        return 1 - self.outcomes.get(OK, 0) / max(1, sum(self.outcomes.values()))


def arrive(start: Start, rate: float, seconds: float, seed: int = 0) -> Answered:
    """Starts calls at random moments, `rate` a second (a Poisson process, given how many), and waits for all of them.

    A call's time runs from the moment at which it was due, so that a slow caller hides nothing (Tene's "coordinated
    omission").
    """
    due = np.sort(np.random.default_rng(seed).uniform(0, seconds, max(1, round(rate * seconds))))
    tally, began = _Tally(), time.perf_counter()
    for due_s in due.tolist():
        time.sleep(max(0.0, due_s - (time.perf_counter() - began)))
        tally.add(start(), began + due_s)
    tally.wait()
    return Answered(rate, float(due[-1]), tally.milliseconds, dict(tally.outcomes))


def one_by_one(start: Start, calls: int) -> Answered:
    """Starts each call when the one before has ended, so that none waits for another."""
    tally, began = _Tally(), time.perf_counter()
    for _ in range(calls):
        tally.add(start(), time.perf_counter())
        tally.wait()
    seconds = time.perf_counter() - began
    return Answered(calls / seconds, seconds, tally.milliseconds, dict(tally.outcomes))


class _Tally:
    """What became of calls; they end in other threads."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.outcomes: Counter[str] = Counter()
        self._started = 0
        self._ended = threading.Condition()

    def add(self, future: Any, due: float) -> None:
        """A call that was due at a moment of `time.perf_counter`."""
        self._started += 1
        future.add_done_callback(partial(self._end, due=due))

    def wait(self) -> None:
        """Until every call has ended."""
        with self._ended:
            self._ended.wait_for(lambda: sum(self.outcomes.values()) == self._started)

    def _end(self, future: Any, due: float) -> None:
        took = 1000 * (time.perf_counter() - due)
        outcome = future.code().name
        if outcome == OK and getattr(future.result(), "degraded_reason", ""):
            outcome = DEGRADED
        with self._ended:
            self.outcomes[outcome] += 1
            if outcome in (OK, DEGRADED):
                self.milliseconds.append(took)
            self._ended.notify_all()
