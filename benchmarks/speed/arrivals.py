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


def arrive(start: Start, rate: float, seconds: float, seed: int = 0) -> Answered:
    """Starts calls at random moments, `rate` a second on average (a Poisson process), and waits for all of them.

    A call's time runs from the moment at which it was due, so that a slow caller hides nothing (Tene's "coordinated
    omission").
    """
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, max(1, round(rate * seconds))))
    lock, milliseconds, outcomes = threading.Lock(), [], Counter[str]()
    began = time.perf_counter()

    def finished(future: Any, moment: float) -> None:
        took = 1000 * (time.perf_counter() - began - moment)
        outcome = future.code().name
        if outcome == OK and getattr(future.result(), "degraded_reason", ""):
            outcome = DEGRADED
        with lock:
            outcomes[outcome] += 1
            if outcome in (OK, DEGRADED):
                milliseconds.append(took)

    futures = []
    for moment in due.tolist():
        time.sleep(max(0.0, moment - (time.perf_counter() - began)))
        future = start()
        future.add_done_callback(partial(finished, moment=moment))
        futures.append(future)
    for future in futures:
        _wait(future)
    while sum(outcomes.values()) < len(futures):  # callbacks run in another thread
        time.sleep(0.001)
    return Answered(rate, float(due[-1]), milliseconds, dict(outcomes))


def _wait(future: Any) -> None:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    done.wait()
