"""Keeps servers running: starts the one again that ended or stands still, and gives up when that does not help.

Knows of a server that it has a health check and ends when its standard input does, and nothing else.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.channel import health_of, open_channel
from adcascade.serving.errors import ServersKeepFailing
from pipeline.child_log import ChildLog
from pipeline.processes import ServerProcess

_LOOK_EVERY_SECONDS = 0.2
_CHECK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class RestartLimits:
    """How patient a supervisor is.

    Attributes:
        max_restarts: of one server within `window_seconds`; one more, and all are given up.
        pause_seconds: before the first restart; doubled with each further one in the window, up to `longest_pause`.
        hang_seconds: without an answer to any health check, after which a server counts as standing still.
        start_seconds: within which a server must listen, and serve unless it `may_wait`.
    """

    max_restarts: int = 5
    window_seconds: float = 600.0
    pause_seconds: float = 0.5
    longest_pause: float = 30.0
    hang_seconds: float = 15.0
    start_seconds: float = 180.0


@dataclass(frozen=True)
class ServerSpec:
    """A server to keep running: ``python -m module`` with `flags`.

    Attributes:
        port: That it listens on; 0 takes a free one at the first start, and the same from then on.
        may_wait: It may be NOT_SERVING for as long as it likes, as one that waits for another server is.
    """

    module: str
    flags: Sequence[str]
    port: int
    may_wait: bool = False


@dataclass
class _Run:
    """One process of a server, and what was seen of it; times are on the monotonic clock."""

    server: ServerProcess
    started: float
    heard: float
    checked: float = 0.0
    served: bool = False


class Supervised:
    """A server that is started again when it falls; `say` is told what happens, a line at a time."""

    def __init__(
        self,
        spec: ServerSpec,
        folder: Path,
        limits: RestartLimits,
        say: Callable[[str], None],
        log_mib: int,
        security: ClientSecurity,
    ) -> None:
        self._spec, self._folder, self._limits, self._say, self._security = spec, folder, limits, say, security
        self._log = ChildLog(folder / f"{spec.module}.log", log_mib)
        self._port = spec.port
        self._falls: deque[float] = deque()
        self._run: _Run | None = None
        self._start_at = 0.0
        self._channel: grpc.Channel | None = None
        self.address = ""

    @property
    def name(self) -> str:
        """Of the server."""
        return self._spec.module

    def start(self) -> None:
        """Starts a process, which is not waited for."""
        flags = [*self._spec.flags, "--port", str(self._port)]
        server = ServerProcess.start(self._spec.module, flags, self._folder, self._log, self._security)
        now = time.monotonic()
        self._run = _Run(server, now, now)

    def wait_until_serving(self) -> str:
        """The address, of the first start. Raises StartupError if the server ends or takes too long."""
        assert self._run is not None
        self.address = self._run.server.wait_until_serving(self._limits.start_seconds)
        self._port = int(self.address.rpartition(":")[2])
        self._channel = open_channel(self.address, security=self._security)
        self._run.served, self._run.heard = True, time.monotonic()
        return self.address

    def look(self) -> None:
        """One look: starts the server if its pause is over, and notices that it ended, stands still, or is back.

        Raises:
            ServersKeepFailing: It fell too often.
        """
        now = time.monotonic()
        if self._run is None:
            if now >= self._start_at:
                self.start()
            return
        code = self._run.server.process.poll()
        if code is not None:
            self._fell(f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}")
        elif now >= self._run.checked + _CHECK_EVERY_SECONDS:
            self._run.checked = now
            self._check_health(self._run)

    def _check_health(self, run: _Run) -> None:
        assert self._channel is not None
        status = health_of(self._channel) if run.server.address else None
        now = time.monotonic()
        if status is not None:
            run.heard = now
        if status == health_pb2.HealthCheckResponse.SERVING and not run.served:
            run.served = True
            self._say(f"The {self.name} server is serving again on {self.address}.")
        started = run.served or (self._spec.may_wait and status is not None)
        if not started and now - run.started > self._limits.start_seconds:
            run.server.kill()
            self._fell(f"did not start within {self._limits.start_seconds:g} s")
        elif run.server.address and now - run.heard > self._limits.hang_seconds:
            run.server.kill()
            self._fell(f"answered no health check for {self._limits.hang_seconds:g} s")

    def _fell(self, how: str) -> None:
        limits, now = self._limits, time.monotonic()
        self._run = None
        self._falls.append(now)
        while self._falls[0] < now - limits.window_seconds:
            self._falls.popleft()
        count, minutes = len(self._falls), limits.window_seconds / 60
        if count > limits.max_restarts:
            raise ServersKeepFailing(
                f"the {self.name} server {how}, after {limits.max_restarts} restarts within {minutes:g} minutes; its "
                f"log is {self._log.path}, and ends with:\n{self._log.tail()}"
            )
        pause = min(limits.pause_seconds * 2 ** (count - 1), limits.longest_pause)
        self._start_at = now + pause
        self._say(
            f"The {self.name} server {how}; starting it again in {pause:g} s (restart {count} of at most "
            f"{limits.max_restarts} within {minutes:g} minutes). Its log is {self._log.path}."
        )

    def stop(self) -> None:
        """Drains the server."""
        if self._channel is not None:
            self._channel.close()
        if self._run is not None:
            self._run.server.stop()
        self._log.close()


@dataclass
class Supervisor:
    """Servers that are kept running side by side, and stopped in the reverse order of their start.

    `security` is what they are shown when they are asked for their health.
    """

    folder: Path
    say: Callable[[str], None]
    limits: RestartLimits = field(default_factory=RestartLimits)
    log_mib: int = 16
    security: ClientSecurity = ClientSecurity()
    servers: list[Supervised] = field(default_factory=list)

    def start(self, specs: Sequence[ServerSpec]) -> list[str]:
        """Starts servers side by side; their addresses once all serve.

        Raises:
            StartupError: One ends, or takes too long: whatever is wrong then is wrong with what it was given.
        """
        started = []
        for spec in specs:
            server = Supervised(spec, self.folder, self.limits, self.say, self.log_mib, self.security)
            self.servers.append(server)
            server.start()
            started.append(server)
        return [server.wait_until_serving() for server in started]

    def keep_running(self) -> None:
        """Does not return. Raises ServersKeepFailing when one fell too often."""
        while True:
            for server in self.servers:
                server.look()
            time.sleep(_LOOK_EVERY_SECONDS)

    def stop(self) -> None:
        """Stops all, the last first."""
        while self.servers:
            self.servers.pop().stop()


@contextmanager
def supervised(supervisor: Supervisor) -> Iterator[Supervisor]:
    """Stops the servers at the end of the block, however it ends."""
    try:
        yield supervisor
    finally:
        supervisor.stop()
