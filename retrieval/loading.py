"""A published index version as a retriever, outside of a server."""

from pathlib import Path

from adcascade.serving.settings import MEBIBYTE
from adcascade.vectors.encoder import TextEncoder, load_encoder
from index_builder.artifact import load_version, open_store
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.retriever import Retriever
from retrieval.sources import SourceSettings

_TEXT_CACHE_BYTES = 32 * MEBIBYTE
# Nobody waits, so that what is found does not depend on how busy the machine is.
_SOURCES = SourceSettings(timeout_seconds=60.0)


def load_published(root: Path) -> tuple[Retriever, TextEncoder]:
    """The published version under a root, verified, and its encoder.

    Raises:
        ArtifactError: Nothing is published there, or it is damaged.
        BuildError: The encoder cannot be loaded, or has changed.
    """
    store = open_store(root)
    name = store.current_path().name
    store.verify(name)
    loaded = load_version(store, name)
    encoder = load_encoder(loaded.manifest.encoder_name)
    return Retriever(AdIndex(loaded), encoder, InterestSettings(), _TEXT_CACHE_BYTES, _SOURCES), encoder
