"""``python -m pipeline --retrieval HOST:PORT --ranking HOST:PORT --port N``: the gateway."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores

require_serve()
share_cores()

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic_settings import CliApp

from adcascade.records.errors import InputError
from adcascade.serving.errors import ServiceError
from adcascade.serving.logs import set_up_logging
from adcascade.serving.server import Server
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.exits import clean_exit
from adcascade.v1.recommend_pb2_grpc import add_RecommendServiceServicer_to_server
from pipeline.breaker import State
from pipeline.client import AdPipeline
from pipeline.service import SCOPES, SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings
from pipeline.stage import Stage

# How often to look whether retrieval serves yet.
_LOOK_EVERY_SECONDS = 0.2


def serve(settings: GatewaySettings) -> None:
    """Runs the gateway until it is told to stop. It serves while ranking is down, and says so while retrieval is."""
    server = Server(settings, caller_errors=(InputError,))
    degraded = Counter(
        "adcascade_recommend_degraded_total",
        "Answers in retrieval order, by why.",
        ["reason"],
        registry=server.registry,
    )
    missing = Counter(
        "adcascade_recommend_history_missing_total",
        "Answers without the user's history in the event store, by why.",
        ["reason"],
        registry=server.registry,
    )
    pipeline = AdPipeline(
        settings.retrieval,
        settings.ranking,
        security=settings.security(),
        on_degraded=lambda reason: degraded.labels(reason).inc(),
        max_message_mib=settings.max_message_mib,
        retrieval_timeout_seconds=settings.retrieval_timeout_ms / 1000,
        ranking_timeout_seconds=settings.ranking_timeout_ms / 1000,
        events=settings.events,
        events_timeout_seconds=settings.events_timeout_ms / 1000,
        on_history_missing=lambda reason: missing.labels(reason).inc(),
    )
    _show_stages(server.registry, pipeline)
    server.add(
        SERVICE_NAME, partial(add_RecommendServiceServicer_to_server, RecommendServicer(pipeline, settings)), SCOPES
    )
    server.run(load=partial(_follow, pipeline, server), close=pipeline.close)


def _follow(pipeline: AdPipeline, server: Server) -> None:
    """Returns once retrieval serves; from then on the gateway is as healthy as retrieval, with or without ranking."""
    for stage in pipeline.stages[1:]:
        stage.watch()
    while not pipeline.retrieval.look():
        time.sleep(_LOOK_EVERY_SECONDS)
    pipeline.retrieval.watch(server.set_serving)


def _show_stages(registry: CollectorRegistry, pipeline: AdPipeline) -> None:
    up = Gauge("adcascade_stage_up", "1 if the stage's health check is good, else 0.", ["stage"], registry=registry)
    open_ = Gauge(
        "adcascade_stage_breaker_open",
        "1 while the stage is not asked because it failed several calls in a row, else 0.",
        ["stage"],
        registry=registry,
    )
    for stage in pipeline.stages:
        up.labels(stage.name).set_function(partial(_is_up, stage))
        open_.labels(stage.name).set_function(partial(_is_open, stage))


def _is_up(stage: Stage) -> float:
    return float(stage.answers)


def _is_open(stage: Stage) -> float:
    return float(stage.breaker.state is not State.CLOSED)


if __name__ == "__main__":
    switch_off_telemetry()
    with clean_exit(ServiceError):
        configured = CliApp.run(GatewaySettings)
        set_up_logging(configured.log_level)
        serve(configured)
