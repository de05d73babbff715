"""An index version: what lies in its directory, and its manifest as a frozen value. Knows not how vectors are made.

``manifest.json`` (see `IndexManifest`), ``index.faiss``, ``ads.parquet`` (row i is vector i), ``lexical/`` (its words),
``vectors.npy`` (of the texts, float32 [ads, text dimension]). Without towers the text vectors are what is searched.
With them there are also ``towers/`` (see `tower_artifact`), ``ad_vectors.npy`` (what is searched, float32 [ads,
dimension]) and ``event_vectors.npy`` (what the user tower reads of events, float32 [ads, event width]).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.store import VersionStore
from adcascade.catalog.ad_text import joined_text
from adcascade.catalog.schedule import Schedule
from adcascade.records.ads import Ad
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
TEXT_KEY = "text_key"  # first 16 bytes of the SHA-256 of the text that was embedded

ADS_SCHEMA = pa.schema(
    [
        pa.field("ad_id", pa.string()),
        pa.field("title", pa.string()),
        pa.field("body", pa.string()),
        pa.field("advertiser", pa.string()),
        pa.field("category", pa.string()),
        pa.field("keywords", pa.list_(pa.string())),
        pa.field("language", pa.string()),
        pa.field("landing_url", pa.string()),
        pa.field("image_uri", pa.string()),
        pa.field("bid_micros", pa.int64()),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
        pa.field("start_time", pa.timestamp("us", tz="UTC")),
        pa.field("end_time", pa.timestamp("us", tz="UTC")),
        pa.field(TEXT_KEY, pa.binary(16)),
    ]
)
_AD_FIELDS = [field.name for field in fields(Ad)]
# What stands for a column that there is not, where it is not None.
_UNKNOWN: dict[str, list[Any]] = {
    "keywords": [[]],
    "attributes": [[]],
    "bid_micros": [0],
    **{name: [""] for name in ("title", "body", "advertiser", "category", "language", "landing_url", "image_uri")},
}


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


def write_ads(ads: Iterable[tuple[Ad, bytes]], path: Path, rows_per_group: int = 4096) -> int:
    """Streams (ad, text key) pairs to Parquet; returns how many."""
    count = 0
    with pq.ParquetWriter(path, ADS_SCHEMA, compression="zstd") as writer:
        rows: list[dict[str, Any]] = []
        for ad, key in ads:
            row = {name: getattr(ad, name) for name in _AD_FIELDS}  # asdict would copy every field deeply
            rows.append({**row, "attributes": list(ad.attributes.items()), TEXT_KEY: key})
            count += 1
            if len(rows) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(rows, ADS_SCHEMA))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, ADS_SCHEMA))
    return count


class AdBatch:
    """Some rows of an ``ads.parquet``; of these, only what is asked for is made."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @property
    def ids(self) -> list[str]:
        """Of the ads."""
        ids: list[str] = self._rows["ad_id"].to_pylist()
        return ids

    @property
    def keys(self) -> list[bytes]:
        """What stands for the text of each ad."""
        keys: list[bytes] = self._rows[TEXT_KEY].to_pylist()
        return keys

    @property
    def texts(self) -> list[str]:
        """What vectors are made from, and whose words are searched: `embedding_text` of each ad."""
        columns = [self._rows[name].to_pylist() for name in ("title", "body", "keywords", "category", "advertiser")]
        return [joined_text(*fields) for fields in zip(*columns, strict=True)]

    def take(self, places: Sequence[int]) -> "AdBatch":
        """The ads at these places of the batch."""
        return AdBatch(self._rows.take(pa.array(places, pa.int64())))


def iter_ads(path: Path, batch_rows: int = 4096) -> Iterator[AdBatch]:
    """The rows of an ``ads.parquet``, in order."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_rows):
            yield AdBatch(batch)


class AdCatalog:
    """The ads of an index version in memory, by row and by id.

    Attributes:
        ids: of each row.
        row_of: row of each ad id.
        schedule: when each ad may be shown.
    """

    def __init__(self, path: Path) -> None:
        """Reads an ``ads.parquet``. Raises CorruptVersion if it is none."""
        try:
            table = pq.read_table(path, memory_map=False).combine_chunks()
        except (OSError, pa.ArrowException, MemoryError) as error:
            raise CorruptVersion(f"{path} holds no ads that can be read: {error}") from error
        self._table = _with_all_columns(table)
        if not self._table.schema.equals(ADS_SCHEMA):
            raise CorruptVersion(f"{path} holds ads of another shape: build the index again with this program")
        self.ids: list[str] = self._table["ad_id"].to_pylist()
        self.row_of: dict[str, int] = {ad_id: row for row, ad_id in enumerate(self.ids)}
        self.schedule = _schedule_of(self._table)

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ad_ids: Iterable[str]) -> dict[str, Ad]:
        """The ads of the given ids that are in the catalog, by id."""
        rows = [self.row_of[ad_id] for ad_id in dict.fromkeys(ad_ids) if ad_id in self.row_of]
        return {ad.ad_id: ad for ad in self.ads(rows)}

    def ads(self, rows: Sequence[int]) -> list[Ad]:
        """The ads of the given rows, in order."""
        taken = self._table.take(pa.array(rows, pa.int64()))
        # Column by column: twice as fast as row by row.
        columns: dict[str, Iterable[Any]] = {name: taken[name].to_pylist() for name in _AD_FIELDS}
        columns |= {"keywords": map(tuple, columns["keywords"]), "attributes": map(dict, columns["attributes"])}
        return [Ad(*values) for values in zip(*columns.values(), strict=True)]


def _with_all_columns(table: pa.Table) -> pa.Table:
    """The table with the columns that versions of earlier releases lack, which know nothing of them."""
    for field in ADS_SCHEMA:
        if field.name not in table.column_names and field.name != TEXT_KEY:
            table = table.append_column(field, pa.array(_UNKNOWN.get(field.name, [None]) * len(table), field.type))
    return table.select([name for name in ADS_SCHEMA.names if name in table.column_names])


def read_schedule(path: Path) -> Schedule:
    """When the ads of an ``ads.parquet`` may be shown."""
    return _schedule_of(pq.read_table(path, columns=["start_time", "end_time"]))


def _schedule_of(table: pa.Table) -> Schedule:
    starts, ends = Schedule.unscheduled(len(table))
    for name, times in (("start_time", starts), ("end_time", ends)):
        column = table[name].combine_chunks()
        known = column.is_valid().to_numpy(zero_copy_only=False)
        if known.any():
            times[known] = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).drop_null().to_numpy()
    return Schedule(starts, ends)


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
