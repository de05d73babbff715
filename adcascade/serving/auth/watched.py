"""Files that are read again when they change, so that certificates, tokens and keys are renewed without a restart."""

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from adcascade.serving.errors import StartupError

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
_MAX_BYTES = 4 * 1024 * 1024

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int, int], ...]


class WatchedFiles(Generic[T]):
    """What `parse` makes of files, made anew when one of them changes. Thread-safe.

    One thread of the process looks at all such files, so whoever asks for a value never waits for a disk. If a new
    content cannot be used, the last good value stays and the log says why: half of a certificate must not end a server,
    nor open it.

    Args:
        paths: Read together; a certificate and its key change together.
        parse: From the contents, in the order of `paths`. Its StartupError says what is wrong.
        what: Names the files in messages, such as "TLS certificate and key".
        poll_seconds: How often to look; 0 looks whenever the value is asked for, in the thread that asks.

    Raises:
        StartupError: They cannot be read or used the first time.
    """

    def __init__(
        self, paths: tuple[Path, ...], parse: Callable[..., T], what: str, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._paths, self._parse, self._what = paths, parse, what
        self._poll_seconds = poll_seconds
        self._next_look = time.monotonic() + poll_seconds
        self._lock = threading.Lock()
        self._complaint = ""
        self._stamp = self._look()
        self._current = self._read(), 0
        if poll_seconds:
            _watch(self)

    @property
    def generation(self) -> int:
        """Counts changes, so that what was derived from an earlier value can be told from the current."""
        return self._current[1]

    def get(self) -> T:
        """The value of the files as they are now, or as they last were good."""
        return self.value_and_generation()[0]

    def value_and_generation(self) -> tuple[T, int]:
        """Both, of one moment."""
        if not self._poll_seconds:
            self.look_if_due()
        return self._current

    def close(self) -> None:
        """Looks no more; the value stays."""
        with _watched_lock:
            _watched.discard(self)

    def look_if_due(self) -> None:
        """Reads the files anew if they have changed, and it is time to look."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + self._poll_seconds
                self._reload()

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
        self._stamp, self._complaint = stamp, ""
        self._current = value, self._current[1] + 1
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


_watched: "weakref.WeakSet[WatchedFiles[Any]]" = weakref.WeakSet()
_watched_lock = threading.Lock()
_watcher: threading.Thread | None = None


def _watch(files: WatchedFiles[Any]) -> None:
    """Has the one thread look at `files` for as long as somebody holds them."""
    global _watcher
    with _watched_lock:
        _watched.add(files)
        if _watcher is None or not _watcher.is_alive():  # also in a process that was forked off
            _watcher = threading.Thread(target=_keep_looking, name="watched-files", daemon=True)
            _watcher.start()


def _keep_looking() -> None:
    while True:
        time.sleep(POLL_SECONDS / 4)
        with _watched_lock:
            files = list(_watched)
        for one in files:
            try:
                one.look_if_due()
            except Exception:  # one file that breaks its parser must not keep the others from being renewed
                log.exception("a changed file could not be read")
        del files


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
