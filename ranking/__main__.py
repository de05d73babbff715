"""``python -m ranking --model ROOT --port N``: the ranking server."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores

require_serve()
share_cores()

import os
from functools import partial
from pathlib import Path

import torch
from prometheus_client import Counter, Gauge
from pydantic_settings import CliApp

from adcascade.artifacts.errors import ArtifactError, VersionNotFound
from adcascade.artifacts.hotswap import HotSwap
from adcascade.artifacts.store import VersionStore
from adcascade.catalog.ads_file import AdCatalog
from adcascade.records.errors import InputError
from adcascade.serving.errors import ServiceError
from adcascade.serving.logs import set_up_logging
from adcascade.serving.server import Server
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.exits import clean_exit
from adcascade.v1.ranking_pb2_grpc import add_RankingServiceServicer_to_server
from adcascade.vectors.errors import BuildError
from index_builder.artifact import ADS_FILE
from index_builder.artifact import open_store as open_index_store
from ranking.artifact import load_version
from ranking.errors import ModelError
from ranking.inputs.prepare import CatalogVersion
from ranking.runtime.backends import OpenVinoBackend
from ranking.runtime.engine import RankingEngine, light_cost
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import SCOPES, SERVICE_NAME, RankingServicer
from ranking.settings import RankingSettings
from ranking.store import open_store

_TORCH_THREADS = torch.get_num_threads()


def serve(settings: RankingSettings) -> None:
    """Runs the server until it is told to stop."""
    _give_way(settings.nice)
    server = Server(settings, caller_errors=(InputError,), unready_errors=(VersionNotFound,))
    swaps = Counter(
        "adcascade_version_swaps_total", "Versions swapped to, or refused.", ["kind", "event"], registry=server.registry
    )
    engines = HotSwap(
        open_store(settings.model),
        partial(_load_engine, open_store(settings.model), settings.engine()),
        poll_seconds=settings.poll_seconds,
        on_event=lambda event: swaps.labels("model", event).inc(),
    )
    catalogs = None
    if settings.index is not None:
        catalogs = HotSwap(
            open_index_store(settings.index),
            partial(_load_catalog, open_index_store(settings.index)),
            poll_seconds=settings.poll_seconds,
            on_event=lambda event: swaps.labels("index", event).inc(),
        )
    counters_end = Gauge(
        "adcascade_ranking_counters_end_seconds",
        "Last impression that the loaded counters know, in seconds since 1970; 0 if they know no times.",
        registry=server.registry,
    )
    counters_end.set_function(lambda: _counters_end(engines))
    servicer = RankingServicer(
        engines,
        catalogs,
        settings.batch_candidates,
        prewarm_ads=settings.prewarm_ads,
        light=light_cost(settings.device),
    )
    server.add(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer), SCOPES)

    def load() -> None:
        engines.start()
        if catalogs is not None:
            catalogs.start()

    def close() -> None:
        servicer.close()
        engines.close()
        if catalogs is not None:
            catalogs.close()

    server.run(load, close)


def _give_way(nice: int) -> None:
    """Lets other processes go first: a pass takes all cores for long, and retrieval needs one for a moment."""
    if hasattr(os, "nice"):  # not on Windows
        os.nice(nice)  # of this thread, and of all that it starts


def _counters_end(engines: HotSwap[RankingEngine]) -> float:
    if not engines.is_loaded:
        return 0.0
    with engines.lease() as engine:
        return engine.loaded.counters.end or 0.0


def _load_engine(store: VersionStore, settings: EngineSettings, version: str) -> RankingEngine:
    engine = RankingEngine(load_version(store, version), settings)
    # Two pools of threads on the same cores wait for each other; what torch then has left to do is small.
    torch.set_num_threads(1 if isinstance(engine.backend, OpenVinoBackend) else _TORCH_THREADS)
    engine.warm_up()
    return engine


def _load_catalog(store: VersionStore, version: str) -> CatalogVersion:
    path: Path = store.path(version)
    return CatalogVersion(version, AdCatalog(path / ADS_FILE))


if __name__ == "__main__":
    switch_off_telemetry()
    with clean_exit(ServiceError, ArtifactError, ModelError, BuildError):
        configured = CliApp.run(RankingSettings)
        set_up_logging(configured.log_level)
        serve(configured)
