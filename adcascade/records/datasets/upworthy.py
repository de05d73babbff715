"""The Upworthy Research Archive in AdCascade's formats: real headline tests with their click counts.

Source: Matias, Munger, Aubin Le Quere, Ebersole, "The Upworthy Research Archive", Scientific Data 2021; osf.io/jd64p;
CC BY 4.0. A test becomes a request, an arm an ad whose title is its headline. There are no users. Knows no models.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.batches import DamagedRow
from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.errors import InputError
from adcascade.records.files import read_rows
from adcascade.records.values import as_int, as_text

log = logging.getLogger(__name__)

_NEEDED = ("clickability_test_id", "headline", "impressions", "clicks")


def export_upworthy(source: Path, target: Path) -> DatasetFiles:
    """Writes ``ads.parquet`` and ``clicks.parquet`` under `target` (and an empty ``users.parquet``).

    Arms of one test with the same headline are added up: they differ in image or excerpt alone. Arms without a headline
    or with impossible counts are left out, counted in a warning.

    Args:
        source: The archive's own CSV, or a Parquet file with the same columns.
        target: Folder to write to; made if missing.

    Raises:
        InputError: `source` lacks a column, or no row can be used.
    """
    arms: dict[tuple[str, str], list[int]] = {}
    left_out: Counter[str] = Counter()
    for _, number, row in read_rows(source):
        if isinstance(row, DamagedRow):
            left_out[row.reason] += 1
            continue
        missing = [name for name in _NEEDED if name not in row]
        if missing:
            raise InputError(f"{source} is not the archive: it lacks {', '.join(missing)}")
        try:
            _add(arms, row, number)
        except InputError as error:
            left_out[str(error)] += 1
    if left_out:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in left_out.most_common(5))
        log.warning("%s: %d arms left out: %s", source, left_out.total(), reasons)
    if not arms:
        raise InputError(f"{source} has no arm with impressions")
    target.mkdir(parents=True, exist_ok=True)
    files = DatasetFiles(target / "ads.parquet", target / "clicks.parquet", target / "users.parquet")
    ids = [f"arm-{number}" for number in range(len(arms))]
    tests, headlines = zip(*arms, strict=True)
    impressions, clicks = zip(*arms.values(), strict=True)
    pq.write_table(pa.table({"ad_id": ids, "title": headlines}), files.ads)
    pq.write_table(
        pa.table({"request_id": tests, "ad_id": ids, "clicks": clicks, "impressions": impressions}), files.clicks
    )
    pq.write_table(pa.table({"user_id": pa.array([], pa.string())}), files.users)
    return files


def _add(arms: dict[tuple[str, str], list[int]], row: Mapping[str, Any], number: int) -> None:
    headline = plain_text(as_text(row, "headline"))
    impressions, clicks = as_int(row, "impressions"), as_int(row, "clicks")
    if not headline:
        raise InputError("no headline")
    if impressions < 1 or not 0 <= clicks <= impressions:
        raise InputError("clicks above impressions, or no impressions")
    test = as_text(row, "clickability_test_id") or f"row-{number}"
    counted = arms.setdefault((test, headline), [0, 0])
    counted[0] += impressions
    counted[1] += clicks


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        """Collects text between tags."""
        self.parts.append(data)


def plain_text(html: str) -> str:
    """Text without HTML tags and entities, with single spaces."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return re.sub(r"\s+", " ", " ".join(parser.parts)).strip()
