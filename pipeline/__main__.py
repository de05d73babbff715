"""``python -m pipeline --retrieval HOST:PORT --ranking HOST:PORT --port N``: the gateway."""

from functools import partial

from prometheus_client import Counter
from pydantic_settings import CliApp

from pipeline.client import AdPipeline
from pipeline.service import SCOPES, SERVICE_NAME, RecommendServicer
from pipeline.settings import GatewaySettings
from protos.recommend_pb2_grpc import add_RecommendServiceServicer_to_server
from records.errors import InputError
from serving.errors import ServiceError
from serving.exits import clean_exit
from serving.logs import set_up_logging
from serving.server import Server


def serve(settings: GatewaySettings) -> None:
    """Runs the gateway until it is told to stop. It serves even while a stage is down: ranking may be missing."""
    server = Server(settings, caller_errors=(InputError,))
    degraded = Counter(
        "adcascade_recommend_degraded_total",
        "Answers in retrieval order, by why.",
        ["reason"],
        registry=server.registry,
    )
    pipeline = AdPipeline(
        settings.retrieval,
        settings.ranking,
        security=settings.security(),
        on_degraded=lambda reason: degraded.labels(reason).inc(),
    )
    server.add(
        SERVICE_NAME, partial(add_RecommendServiceServicer_to_server, RecommendServicer(pipeline, settings)), SCOPES
    )
    server.run(load=lambda: None, close=pipeline.close)


if __name__ == "__main__":
    with clean_exit(ServiceError):
        configured = CliApp.run(GatewaySettings)
        set_up_logging(configured.log_level)
        serve(configured)
