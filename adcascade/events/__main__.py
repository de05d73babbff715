"""``python -m adcascade.events --data ROOT --port N``: the event store."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores

require_serve()
share_cores()

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from pydantic_settings import CliApp

from adcascade.artifacts.errors import ArtifactError
from adcascade.events.errors import StoreError
from adcascade.events.pseudonyms import Pseudonyms
from adcascade.events.published_ads import PublishedAds
from adcascade.events.recorder import KeysOfAd, Recorder
from adcascade.events.service import SCOPES, SERVICE_NAME, EventServicer
from adcascade.events.settings import EventsSettings
from adcascade.events.sqlite_store import SqliteStore
from adcascade.events.values import AdKeys, Status
from adcascade.events.writer import Work, event_writer
from adcascade.records.errors import InputError
from adcascade.serving.batcher import MicroBatcher
from adcascade.serving.errors import ServiceError, StartupError
from adcascade.serving.logs import set_up_logging
from adcascade.serving.server import Server
from adcascade.serving.settings import MEBIBYTE
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.exits import clean_exit
from adcascade.v1.events_pb2_grpc import add_EventServiceServicer_to_server

log = logging.getLogger(__name__)

# Events that one part of a sweep erases: some milliseconds in which nobody else writes.
_SWEPT_AT_ONCE = 500
_BETWEEN_PARTS = 0.05


class _Nobody:
    """Who waits for the work of the server itself: as long as it takes."""

    def time_remaining(self) -> float | None:
        """None: there is no deadline."""
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """True: it does not leave."""
        return True


_NOBODY = _Nobody()


class Sweeper:
    """Erases what is beyond the retention, in small parts between which others write."""

    def __init__(self, store: SqliteStore, writer: MicroBatcher[Work, Any], settings: EventsSettings) -> None:
        self._store, self._writer = store, writer
        self._retention_us, self._every = settings.rules().retention_us, settings.sweep_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events-sweep", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            try:
                self._sweep()
            except (StoreError, ServiceError) as error:
                log.warning("the sweep is put off: %s", error)
            except Exception:
                log.exception("the sweep failed; it is tried again in %g s", self._every)

    def _sweep(self) -> None:
        swept = 0
        while (part := self._part()) and not self._stop.wait(_BETWEEN_PARTS):
            swept += part
        if swept:
            self._writer.submit(self._store.forget_log, _NOBODY)

    def _part(self) -> int:
        before = time.time_ns() // 1000 - self._retention_us
        return int(self._writer.submit(lambda: self._store.sweep(before, _SWEPT_AT_ONCE), _NOBODY).value)


def serve(settings: EventsSettings) -> None:
    """Runs the store until it is told to stop."""
    server = Server(settings, caller_errors=(InputError,), unready_errors=(StoreError,))
    try:
        pseudonyms = Pseudonyms.from_file(settings.pseudonymise)
        keys_of_ad: KeysOfAd = _of_any if settings.index is None else PublishedAds(settings.index)
        store = SqliteStore(settings.data, pseudonyms.mark)
    except (StoreError, ArtifactError) as error:
        raise StartupError(str(error)) from error
    writer = event_writer(Recorder(store, keys_of_ad, settings.rules()).record)
    servicer = EventServicer(
        store,
        writer,
        pseudonyms=pseudonyms,
        assume_consent=settings.assume_consent,
        history_bytes=settings.max_message_mib * MEBIBYTE // 4,
        on_recorded=_counted(server.registry),
    )
    server.add(SERVICE_NAME, lambda grpc: add_EventServiceServicer_to_server(servicer, grpc), SCOPES)
    sweeper = Sweeper(store, writer, settings)

    def close() -> None:
        sweeper.close()
        writer.close()
        store.close()

    server.run(load=lambda: None, close=close)


def _of_any(ad_id: str) -> AdKeys:
    """Without an index any ad is one, of no known advertiser."""
    return AdKeys()


def _counted(registry: CollectorRegistry) -> Callable[[Status, int], None]:
    events = Counter("adcascade_events_total", "Events by what became of them.", ["status"], registry=registry)
    return lambda status, count: events.labels(status.value).inc(count)


if __name__ == "__main__":
    switch_off_telemetry()
    with clean_exit(ServiceError):
        configured = CliApp.run(EventsSettings)
        set_up_logging(configured.log_level)
        serve(configured)
