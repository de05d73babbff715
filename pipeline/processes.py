"""Servers as child processes: started on free ports, waited for until healthy, and never left behind.

A child holds the other end of a pipe to its standard input and drains when that closes, so that it ends even if this
process is killed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.channel import is_serving, open_channel
from adcascade.serving.errors import StartupError
from pipeline.child_log import ChildLog
from pipeline.security import reachable

_LOCK = ".lock"
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_LOG_LINES = 15


@dataclass(frozen=True)
class ServerProcess:
    """A running server of ours."""

    name: str
    process: "subprocess.Popen[bytes]"
    address_file: Path
    log_file: Path
    log: ChildLog | None = None
    security: ClientSecurity = ClientSecurity()

    @classmethod
    def start(
        cls,
        module: str,
        flags: Sequence[str],
        folder: Path,
        log: ChildLog | None = None,
        security: ClientSecurity = ClientSecurity(),
        code: Path | None = None,
    ) -> "ServerProcess":
        """Starts ``python -m module``; what it writes is appended to ``folder/module.log``, or to `log`.

        `security` is what it is asked with. `code` is a checkout to run in place of this program; `folder` and
        paths of `flags` must then be absolute.
        """
        folder.mkdir(parents=True, exist_ok=True)
        address_file, log_file = folder / f"{module}.address.json", folder / f"{module}.log"
        address_file.unlink(missing_ok=True)
        command = [
            sys.executable,
            "-m",
            module,
            *flags,
            "--address-file",
            str(address_file),
            "--exit-with-parent",
            "true",
        ]
        with ExitStack() as stack:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if log else stack.enter_context(log_file.open("ab")),
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches this process alone, which then stops its children in order.
                start_new_session=True,
                # Ours says what went wrong; gRPC's own lines would bury it.
                env={"GRPC_VERBOSITY": "NONE", **os.environ} | ({} if code is None else {"PYTHONPATH": str(code)}),
                cwd=code,  # where -m looks first
            )
        if log is not None and process.stdout is not None:
            log.follow(process.stdout, f"{module} starts as process {process.pid}")
        return cls(module, process, address_file, log_file, log, security)

    @property
    def address(self) -> str:
        """``host:port`` by which this machine finds it, once it listens; else ""."""
        if not self.address_file.exists():
            return ""
        return reachable(str(json.loads(self.address_file.read_bytes())["address"]))

    def wait_until_serving(self, timeout_seconds: float = _START_SECONDS) -> str:
        """The address, once the health check says SERVING. Raises StartupError if the server ends or takes too long."""
        end = time.monotonic() + timeout_seconds
        while not self.address:
            self._check(end)
            time.sleep(0.05)
        with open_channel(self.address, security=self.security) as channel:
            while not is_serving(channel):
                self._check(end)
                time.sleep(0.05)
        return self.address

    def _check(self, end: float) -> None:
        if self.process.poll() is not None:
            raise StartupError(f"the {self.name} server ended with exit code {self.process.returncode}:\n{self.tail()}")
        if time.monotonic() > end:
            raise StartupError(f"the {self.name} server is not healthy yet; see {self.log_file}")

    def tail(self) -> str:
        """The last lines of its log."""
        if self.log is not None:
            return self.log.tail()
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-_LOG_LINES:])

    def kill(self) -> None:
        """Ends it at once, also if it stands still."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Drains the server; kills it if it does not end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes from writing their servers' logs over ours. Raises StartupError if one does so now."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StartupError(f"other servers write their logs to {folder}; choose another folder with --logs") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def running(
    servers: Sequence[tuple[str, Sequence[str]]],
    folder: Path,
    security: ClientSecurity = ClientSecurity(),
    code: Path | None = None,
) -> Iterator[list[ServerProcess]]:
    """Runs servers, given as (module, flags), side by side until the block ends; yields them once all are healthy.

    See `ServerProcess.start` for `code`.
    """
    with ExitStack() as stack:
        started = []
        for module, flags in servers:
            server = ServerProcess.start(module, flags, folder, security=security, code=code)
            stack.callback(server.stop)
            started.append(server)
        for server in started:
            server.wait_until_serving()
        yield started
