"""A file that is read again when it changes, so that certificates, tokens and keys are renewed without a restart."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import StartupError

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_MAX_BYTES = 4 * 1024 * 1024

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int, int], ...]


class WatchedFiles(Generic[T]):
    """What `parse` makes of files, made anew when one of them changes. Thread-safe; needs no thread of its own.

    Files are looked at when the value is asked for, at most every `poll_seconds`. If a new content cannot be used, the
    last good value stays and the log says why: half of a certificate must not end a server, nor open it.

    Args:
        paths: Read together; a certificate and its key change together.
        parse: From the contents, in the order of `paths`. Its StartupError says what is wrong.
        what: Names the files in messages, such as "TLS certificate and key".

    Raises:
        StartupError: They cannot be read or used the first time.
    """

    def __init__(
        self, paths: tuple[Path, ...], parse: Callable[..., T], what: str, *, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        self._paths, self._parse, self._what = paths, parse, what
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = self._read()
        self._generation = 0
        self._complaint = ""
        self._next_look = time.monotonic() + poll_seconds

    @property
    def generation(self) -> int:
        """Counts changes, so that what was derived from an earlier value can be told from the current."""
        return self._generation

    def get(self) -> T:
        """The value of the files as they are now, or as they last were good."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._reload()
            finally:
                self._next_look = time.monotonic() + self._poll_seconds
                self._lock.release()
        return self._value

    def _reload(self) -> None:
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return
            value = self._read()
            if self._look() != stamp:  # changed while it was read: wait for the rest
                return
        except StartupError as error:
            if str(error) != self._complaint:  # not each second
                self._complaint = str(error)
                log.error("keeping the %s read before: %s", self._what, error)
            return
        self._stamp, self._value, self._complaint = stamp, value, ""
        self._generation += 1
        log.info("read the %s anew", self._what)

    def _look(self) -> _Stamp:
        try:
            found = [os.stat(path) for path in self._paths]
        except OSError as error:
            raise StartupError(f"cannot read the {self._what}: {error.strerror}: {error.filename}") from error
        return tuple((one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino) for one in found)

    def _read(self) -> T:
        contents = [_bytes_of(path, self._what) for path in self._paths]
        return self._parse(*contents)


def _bytes_of(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise StartupError(f"cannot read the {what}: {error.strerror}: {path}") from error
    if len(content) > _MAX_BYTES:
        raise StartupError(f"cannot use the {what}: {path} is larger than {_MAX_BYTES:,} bytes")
    return content


def text_of(content: bytes, what: str) -> str:
    """The content as text. Raises StartupError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StartupError(f"the {what} is not UTF-8 text") from error
