"""What child processes write, in a log file that is appended to and never grows too large. Knows nothing of servers."""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from adcascade.serving.settings import MEBIBYTE

# Longer lines are cut in two, so that output without an end of line takes no memory.
_LINE_BYTES = 64 * 1024
_TAIL_LINES = 15


class ChildLog:
    """The log of one child process after another, through a pipe: a file that a child holds itself cannot be rotated.

    Args:
        path: Is appended to; older parts are beside it as ``path.1`` and so on.
        max_mib: Size at which the next part begins.
        parts: Older parts to keep.
    """

    def __init__(self, path: Path, max_mib: int = 16, parts: int = 4) -> None:
        self.path = path
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._reader: threading.Thread | None = None
        self._file = _Quiet(path, maxBytes=max_mib * MEBIBYTE, backupCount=parts, errors="backslashreplace")
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def follow(self, pipe: IO[bytes], note: str) -> None:
        """Writes what comes through the pipe until it ends, in a thread of its own, below a line with a note."""
        self._tail.clear()
        self._write(f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC {note}")
        self._reader = threading.Thread(target=self._read, args=(pipe,), name=f"log-{self.path.name}", daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            for line in _lines(pipe):
                self._tail.append(line)
                self._write(line)

    def _write(self, line: str) -> None:
        self._file.emit(logging.LogRecord("", logging.INFO, "", 0, line, None, None))

    def tail(self, wait_seconds: float = 1.0) -> str:
        """The last lines of the child that has ended; waits for what is still in the pipe."""
        if self._reader is not None:
            self._reader.join(wait_seconds)
        return "\n".join(self._tail)

    def close(self) -> None:
        """Closes the file, once the last child's output has been read."""
        if self._reader is not None:
            self._reader.join(1.0)
        self._file.close()


class _Quiet(RotatingFileHandler):
    """On a full disk lines are lost, but the pipe is still read, or the child would stand still."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (of the base class)
        """Implements `logging.Handler`."""


def _lines(pipe: IO[bytes]) -> Iterator[str]:
    while line := pipe.readline(_LINE_BYTES):
        yield line.decode(errors="backslashreplace").rstrip("\r\n")
