"""The ads of an index version: ``ads.parquet``, streamed or in memory by row and by id. Knows no vectors."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.ad_text import joined_text
from adcascade.catalog.schedule import Schedule
from adcascade.records.ads import Ad

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

    Example:
        >>> from pathlib import Path
        >>> from adcascade.catalog.ads_file import AdCatalog
        >>> from index_builder.artifact import ADS_FILE, open_store
        >>> catalog = AdCatalog(open_store(Path("data/index")).current_path() / ADS_FILE)
        >>> len(catalog), catalog.row_of["ad-002"]
        (60, 1)
        >>> catalog.find(["ad-001", "no such ad"])["ad-001"].title
        'Trail running shoes for muddy mountain paths'
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
