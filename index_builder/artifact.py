"""An index version: what lies in its directory, and its manifest as a frozen value. Knows not how vectors are made.

``manifest.json`` (see `IndexManifest`), ``index.faiss``, ``ads.parquet`` (row i is vector i), ``lexical/`` (its words),
``vectors.npy`` (of the texts, float32 [ads, text dimension]). Without towers the text vectors are what is searched.
With them there are also ``towers/`` (see `adcascade.towers.artifact`), ``ad_vectors.npy`` (what is searched, float32
[ads, dimension]) and ``event_vectors.npy`` (what the user tower reads of events, float32 [ads, event width]).
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.store import VersionStore
from adcascade.catalog.ads_file import AdCatalog
from adcascade.vectors.encoder import TextEncoder
from adcascade.vectors.errors import BuildError
from adcascade.vectors.faiss_index import flat_vectors, read_index
from adcascade.vectors.vector_file import StoredVectors, load_vectors

if TYPE_CHECKING:
    from adcascade.catalog.lexical import LexicalIndex
    from adcascade.towers.artifact import TrainedTowers

KIND = "index"
FORMAT_VERSION = 1
INDEX_FILE, ADS_FILE, VECTORS_FILE = "index.faiss", "ads.parquet", "vectors.npy"
AD_VECTORS_FILE, EVENT_VECTORS_FILE, TOWERS_FOLDER = "ad_vectors.npy", "event_vectors.npy", "towers"
LEXICAL_FOLDER = "lexical"


class IndexManifest(BaseModel):
    """What an index version says about itself.

    Attributes:
        dimension: numbers per vector that is searched.
        space_sha256: of the towers that made them; "" if these are text vectors.
        recall: share of what exact search finds that the index finds, in the first `recall_k`.
        recall_curve: the search parameters that were tried, with their recall and the milliseconds of one query.
        popularity_at: the moment whose popularity is in the ads' biases; None without towers.
    """

    model_config = ConfigDict(frozen=True)

    encoder_name: str
    encoder_sha256: str
    dimension: int
    metric: str
    factory: str
    search_parameters: dict[str, int]
    ad_count: int
    content_sha256: str
    recall: float
    recall_k: int
    recall_queries: int
    embedded: int
    reused: int
    index_bytes: int
    build_seconds: float
    space_sha256: str = ""
    popularity_at: datetime | None = None
    recall_curve: list[dict[str, Any]] = []

    @property
    def bytes_per_ad(self) -> float:
        """Size of the FAISS index over its ads."""
        return self.index_bytes / max(1, self.ad_count)


def open_store(root: Path) -> VersionStore:
    """The store of index versions under `root`."""
    return VersionStore(root, KIND, FORMAT_VERSION)


@dataclass(frozen=True)
class IndexVersion:
    """A loaded index version; `vectors` are of the texts, `towers` and `event_vectors` are None without towers."""

    version: str
    created_at: datetime
    manifest: IndexManifest
    catalog: AdCatalog
    vectors: StoredVectors
    faiss_index: Any
    towers: "TrainedTowers | None" = None
    event_vectors: StoredVectors | None = None
    ad_vectors: StoredVectors | None = None
    lexical: "LexicalIndex | None" = None

    @property
    def searched_vectors(self) -> StoredVectors:
        """What the index was built from, float32 [ads, dimension]."""
        return self.vectors if self.ad_vectors is None else self.ad_vectors

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Raises BuildError if `encoder` does not span this version's space, saying which one does."""
        if encoder.sha256 != self.manifest.encoder_sha256:
            raise BuildError(
                f"index version {self.version} was made by the encoder {self.manifest.encoder_name!r} with weights "
                f"{self.manifest.encoder_sha256[:12]}, but {encoder.name!r} has {encoder.sha256[:12]}; "
                "start with the same encoder, or build the index again with this one"
            )


def read_manifest(store: VersionStore, version: str) -> tuple[datetime, IndexManifest]:
    """When a version was made, and what it says about itself. Raises VersionNotFound or CorruptVersion."""
    manifest = store.manifest(version)
    try:
        return manifest.created_at, IndexManifest.model_validate(manifest.content)
    except ValidationError as error:
        raise CorruptVersion(f"index version {version} has a manifest of another shape: {error}") from error


def load_version(store: VersionStore, version: str) -> IndexVersion:
    """Loads a (verified) version; vectors that are many stay on disk. Raises CorruptVersion or BuildError.

    No file of the version stays mapped into memory: one that is cut short later on makes reading it fail, and no more.
    """
    path = store.path(version)
    created_at, manifest = read_manifest(store, version)
    index = read_index(path / INDEX_FILE, manifest.search_parameters)
    vectors = load_vectors(path / VECTORS_FILE)
    catalog = AdCatalog(path / ADS_FILE)
    counts = {index.ntotal, len(vectors), len(catalog), manifest.ad_count}
    if len(counts) != 1 or index.d != manifest.dimension:
        raise CorruptVersion(f"the files of index version {version} do not fit together; build it again")
    lexical = _load_lexical(path)
    if not manifest.space_sha256:
        vectors = _searched(index, vectors)
        return IndexVersion(version, created_at, manifest, catalog, vectors, index, lexical=lexical)
    from adcascade.towers.artifact import load_towers  # loads torch, which many commands do without

    towers = load_towers(path / TOWERS_FOLDER)
    if towers.spec.space_sha256 != manifest.space_sha256:
        raise CorruptVersion(
            f"the ads of index version {version} lie in the space {manifest.space_sha256[:12]}, its user tower spans "
            f"{towers.spec.space_sha256[:12]}; build it again with the towers that belong to it"
        )
    events = load_vectors(path / EVENT_VECTORS_FILE)
    ads = _searched(index, load_vectors(path / AD_VECTORS_FILE))
    if not len(events) == len(ads) == len(catalog):
        raise CorruptVersion(f"the files of index version {version} do not fit together; build it again")
    return IndexVersion(version, created_at, manifest, catalog, vectors, index, towers, events, ads, lexical)


def _searched(index: Any, vectors: StoredVectors) -> StoredVectors:
    """The vectors that `index` searches: its own, where it keeps them as they are; else those of the file."""
    kept = flat_vectors(index)
    if kept is None:
        return vectors
    if kept.shape != vectors.shape:
        raise CorruptVersion(f"the index holds vectors of {kept.shape} numbers, the file beside it {vectors.shape}")
    return kept


def _load_lexical(path: Path) -> "LexicalIndex | None":
    """Of versions that were built before there was one, None."""
    if not (path / LEXICAL_FOLDER).is_dir():
        return None
    from adcascade.catalog.lexical import LexicalIndex  # loads what commands that only list versions do without

    return LexicalIndex.load(path / LEXICAL_FOLDER)
