"""A circuit breaker: stops asking a server that does not answer, and asks again once it does. Knows no wire.

    closed ──── `failures` calls in a row failed ────► open
      ▲                                                 │ `open_seconds` passed, and the last health check was good
      │                                                 ▼
      └── the trial succeeded ── half-open ── the trial failed ──► open, for twice as long

Half-open lets one call through, the trial, and refuses the others. As long as health checks fail there is no trial, so
no caller waits for a server that is known to be away; and the time between trials doubles only for a server that is
healthy and still fails, so one that comes back after a long outage is used at once.

A class of our own: pybreaker holds its lock for as long as the guarded call runs, so that calls would wait for each
other, reads the clock itself, and knows nothing of health checks.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

_LONGEST_OPEN_SECONDS = 8.0


class Outcome(Enum):
    """How a call ended, as far as the server's health is concerned."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"  # says nothing of the server, such as a caller who left


class State(Enum):
    """See the picture above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True)
class Permit:
    """Leave to make one call; `trial` if it decides whether the breaker closes."""

    trial: bool


class CircuitBreaker:
    """Decides whether a server is asked. Thread-safe.

    Args:
        failures: So many failures in a row open it.
        open_seconds: How long it then stays open at least; doubled with each trial that fails, up to 8 s.
        clock: Seconds that never go back.
        on_open: Called each time it opens, outside the lock.
    """

    def __init__(
        self,
        failures: int = 5,
        open_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self._failures, self._open_seconds, self._clock, self._on_open = failures, open_seconds, clock, on_open
        self._lock = threading.Lock()
        self._failed = 0
        self._failed_trials = 0
        self._open_until: float | None = None
        self._in_trial = False
        self._healthy = True

    @property
    def state(self) -> State:
        """Where it stands now."""
        with self._lock:
            return self._state()

    def _state(self) -> State:
        if self._open_until is None:
            return State.CLOSED
        return State.HALF_OPEN if self._healthy and self._clock() >= self._open_until else State.OPEN

    def permit(self) -> Permit | None:
        """Leave to call now, or None. Whoever has it says with `record` how the call ended, always."""
        with self._lock:
            state = self._state()
            if state is State.CLOSED:
                return Permit(trial=False)
            if state is State.OPEN or self._in_trial:
                return None
            self._in_trial = True
            return Permit(trial=True)

    def record(self, permit: Permit, outcome: Outcome) -> None:
        """How a permitted call ended."""
        with self._lock:
            opened = self._record(permit, outcome)
        if opened:
            self._on_open()

    def _record(self, permit: Permit, outcome: Outcome) -> bool:
        """Whether it opened."""
        if permit.trial:
            self._in_trial = False
        if outcome is Outcome.SUCCESS:
            self._failed = self._failed_trials = 0
            self._open_until = None
        if outcome is not Outcome.FAILURE:
            return False
        if self._open_until is not None and not permit.trial:
            return False  # of a call that began before it opened
        self._failed += 1
        self._failed_trials += permit.trial
        if self._failed < self._failures:
            return False
        wait = min(self._open_seconds * 2**self._failed_trials, _LONGEST_OPEN_SECONDS)
        self._open_until = self._clock() + wait
        return True

    def told(self, *, healthy: bool) -> None:
        """What a health check found; while it is bad, there is no trial."""
        with self._lock:
            self._healthy = healthy
