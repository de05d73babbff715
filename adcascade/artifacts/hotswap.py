"""Keeps the published version loaded and swaps to a new one without dropping a call. Knows nothing of what it loads."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from adcascade.artifacts.errors import ArtifactError, VersionNotFound
from adcascade.artifacts.fallback import load_newest
from adcascade.artifacts.store import VersionStore

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


@dataclass
class _Generation(Generic[Loaded]):
    version: str
    value: Loaded
    users: int = 0
    retired: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class HotSwap(Generic[Loaded]):
    """The loaded form of a store's published version.

    Args:
        store: Where versions are published.
        load: Takes a version's name (already verified) and returns its loaded and warmed form.
        release: Frees a loaded form, once its last user is done.
        poll_seconds: How often CURRENT is looked at.
        retry_seconds: How long a published version that could not be loaded is left alone before it is tried again.
        on_event: Told of "swapped" and "refused", for metrics.
    """

    def __init__(
        self,
        store: VersionStore,
        load: Callable[[str], Loaded],
        *,
        release: Callable[[Loaded], None] = lambda _: None,
        poll_seconds: float = 1.0,
        retry_seconds: float = 60.0,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._load = load
        self._release = release
        self._poll_seconds = poll_seconds
        self._retry_seconds = retry_seconds
        self._on_event = on_event
        self._generation: _Generation[Loaded] | None = None
        self._refused: str | None = None
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{store.kind}", daemon=True)

    def start(self) -> None:
        """Loads the published version and watches for the next.

        One that cannot be loaded is refused as it would be later on: the newest one published before it that can be
        loaded answers in its place, until another is published or this one is mended.

        Raises ArtifactError, or what `load` raises, if there is none.
        """
        refused: list[str] = []
        self._put(_Generation(*load_newest(self._store, self._load, refused.append)))
        for version in refused[-1:]:
            self._refuse(version)
        self._watcher.start()

    @property
    def is_loaded(self) -> bool:
        """Whether `lease` would succeed."""
        return self._generation is not None

    @contextmanager
    def lease(self) -> Iterator[Loaded]:
        """The loaded value, which stays loaded until the block ends even if a newer one takes over.

        Raises VersionNotFound while nothing is loaded.
        """
        generation = self._acquire()
        try:
            yield generation.value
        finally:
            self._return(generation)

    def close(self) -> None:
        """Stops watching and releases the value once nobody uses it."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        generation, self._generation = self._generation, None
        if generation is not None:
            self._retire(generation)

    def refresh(self) -> None:
        """Swaps if another version is published; a version that cannot be loaded is logged and the old one stays."""
        version = None
        try:
            version = self._store.current()
            loaded = self._generation.version if self._generation else None
            if version is None or version == loaded:
                return
            if version == self._refused and time.monotonic() < self._retry_at:
                return
            self._swap_to(version)
        except Exception as error:  # whatever is wrong with the new version, the old one must go on answering
            self._refuse(version)
            log.error("keeping the old version: %s", error, exc_info=not isinstance(error, ArtifactError))
        else:
            self._on_event("swapped")

    def _swap_to(self, version: str) -> None:
        self._store.verify(version)
        self._put(_Generation(version, self._load(version)))

    def _refuse(self, version: str | None) -> None:
        self._refused, self._retry_at = version, time.monotonic() + self._retry_seconds
        self._on_event("refused")

    def _put(self, fresh: _Generation[Loaded]) -> None:
        old, self._generation = self._generation, fresh
        self._refused = None
        log.info("%s version %s is loaded", self._store.kind, fresh.version)
        if old is not None:
            self._retire(old)

    def _acquire(self) -> _Generation[Loaded]:
        while generation := self._generation:
            with generation.lock:
                if not generation.retired:
                    generation.users += 1
                    return generation
        raise VersionNotFound(f"no {self._store.kind} version is loaded yet")

    def _return(self, generation: _Generation[Loaded]) -> None:
        with generation.lock:
            generation.users -= 1
            last = generation.retired and generation.users == 0
        if last:
            self._release(generation.value)

    def _retire(self, generation: _Generation[Loaded]) -> None:
        with generation.lock:
            generation.retired = True
            unused = generation.users == 0
        if unused:
            self._release(generation.value)

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.refresh()
