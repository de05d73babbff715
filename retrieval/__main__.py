"""``python -m retrieval --index ROOT --port N``: the retrieval server."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores

require_serve()
share_cores()

from collections.abc import Callable
from functools import partial

from prometheus_client import Counter
from pydantic_settings import CliApp

from adcascade.artifacts.errors import ArtifactError, VersionNotFound
from adcascade.artifacts.hotswap import HotSwap
from adcascade.artifacts.store import VersionStore
from adcascade.records.errors import InputError
from adcascade.serving.errors import ServiceError
from adcascade.serving.logs import set_up_logging
from adcascade.serving.server import Server
from adcascade.serving.settings import MEBIBYTE
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.exits import clean_exit
from adcascade.v1.retrieval_pb2_grpc import add_RetrievalServiceServicer_to_server
from adcascade.vectors.encoder import TextEncoder, load_encoder
from adcascade.vectors.errors import BuildError
from index_builder.artifact import load_version, open_store
from retrieval.index import AdIndex
from retrieval.retriever import Retriever
from retrieval.service import SCOPES, SERVICE_NAME, RetrievalServicer
from retrieval.settings import RetrievalSettings


class RetrieverLoader:
    """Loads index versions; the encoder is loaded once for as long as versions name the same one."""

    def __init__(
        self,
        store: VersionStore,
        settings: RetrievalSettings,
        on_skip: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._sources = settings.sources()
        self._on_skip = on_skip
        self._encoder: TextEncoder | None = None

    def __call__(self, version: str) -> Retriever:
        """A warmed retriever. Raises ArtifactError, or BuildError if the encoder does not fit the index."""
        loaded = load_version(self._store, version)
        name = self._settings.encoder or loaded.manifest.encoder_name
        if self._encoder is None or self._encoder.name != name:
            self._encoder = load_encoder(name)
        index = AdIndex(loaded, self._settings.device)
        settings = self._settings
        retriever = Retriever(
            index,
            self._encoder,
            settings.interests(),
            settings.text_cache_mib * MEBIBYTE,
            self._sources,
            self._on_skip,
            answer_cache_bytes=settings.answer_cache_mib * MEBIBYTE,
        )
        retriever.warm_up()
        return retriever


def serve(settings: RetrievalSettings) -> None:
    """Runs the server until it is told to stop."""
    server = Server(settings, caller_errors=(InputError,), unready_errors=(VersionNotFound,))
    swaps = Counter(
        "adcascade_version_swaps_total", "Versions swapped to, or refused.", ["kind", "event"], registry=server.registry
    )
    skipped = Counter(
        "adcascade_source_skipped_total",
        "Candidate sources left out of an answer, by why: late or failed.",
        ["source", "reason"],
        registry=server.registry,
    )
    store = open_store(settings.index)
    retrievers = HotSwap(
        store,
        RetrieverLoader(store, settings, lambda source, reason: skipped.labels(source, reason).inc()),
        release=Retriever.close,
        poll_seconds=settings.poll_seconds,
        on_event=lambda event: swaps.labels("index", event).inc(),
    )
    servicer = RetrievalServicer(retrievers, settings.batch_vectors, max_message_mib=settings.max_message_mib)
    server.add(SERVICE_NAME, partial(add_RetrievalServiceServicer_to_server, servicer), SCOPES)

    def close() -> None:
        servicer.close()
        retrievers.close()

    server.run(retrievers.start, close)


if __name__ == "__main__":
    switch_off_telemetry()
    with clean_exit(ServiceError, ArtifactError, BuildError, InputError):
        configured = CliApp.run(RetrievalSettings)
        set_up_logging(configured.log_level, quiet=("faiss", "sentence_transformers"))
        serve(configured)
