"""Neighbours of ads: how much having met one ad speaks for another one. Few numbers per ad, in the unit of similarity.

The towers see an ad through a hundred numbers; that two ads go together for no reason that these can say is kept here,
for the ads that were met often enough. Knows no networks and not how neighbours are found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_matrix, load_npz, save_npz

from adcascade.records.users import EVENT_WEIGHT, EventType, UserProfile

_STRENGTHS_FILE, _ADS_FILE = "neighbours.npz", "neighbour_ads.parquet"


@dataclass(frozen=True)
class ItemToItem:
    """What was learned of the ads that were met most.

    Attributes:
        ad_ids: of these ads.
        strengths: what having met the ad of a row speaks for the ad of a column, float32 [ads, ads], sparse.
        impression_weight: what an impression without a click counts, beside a click's 1.
    """

    ad_ids: Sequence[str]
    strengths: csr_matrix
    impression_weight: float

    def over(self, ids: Sequence[str]) -> csr_matrix:
        """The strengths by row of a catalog with these ids, float32 [catalog, catalog]; other ads are left out."""
        number_of = {ad_id: number for number, ad_id in enumerate(ids)}
        row = np.array([number_of.get(ad_id, -1) for ad_id in self.ad_ids], np.int64)
        found = self.strengths.tocoo()
        rows, columns = row[found.row], row[found.col]
        known = (rows >= 0) & (columns >= 0)
        return csr_matrix((found.data[known], (rows[known], columns[known])), (len(ids), len(ids)))

    def event_weight(self, user: UserProfile, row_of: Mapping[str, int]) -> dict[int, float]:
        """Catalog row -> what it counts that the user met this ad; ads that were hidden or skipped count nothing."""
        found: dict[int, float] = {}
        for event in user.history:
            row = row_of.get(event.ad_id, -1)
            if row >= 0:
                found[row] = max(found.get(row, 0.0), self._event_weight(event.type))
        return found

    def _event_weight(self, kind: EventType) -> float:
        if kind is EventType.IMPRESSION:
            return self.impression_weight
        return 1.0 if EVENT_WEIGHT[kind] > 0 else 0.0

    def save(self, folder: Path) -> None:
        """Writes two files into an existing folder."""
        save_npz(folder / _STRENGTHS_FILE, self.strengths)
        table = pa.table({"ad_id": list(self.ad_ids)}, metadata={"impression_worth": repr(self.impression_weight)})
        pq.write_table(table, folder / _ADS_FILE, compression="zstd")

    @classmethod
    def load(cls, folder: Path) -> "ItemToItem":
        """Reads what `save` wrote."""
        table = pq.read_table(folder / _ADS_FILE)
        event_weight = float(table.schema.metadata[b"impression_worth"])
        return cls(table["ad_id"].to_pylist(), load_npz(folder / _STRENGTHS_FILE).tocsr(), event_weight)
