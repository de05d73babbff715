"""MovieLens-100k as a stand-in for an ad platform, written out in the product's own formats.

Titles with year and genres are the ads, a rating of 4 or more is a click, one of 5 a conversion. The files come from an
installed `recbole` wheel (never imported) or from any folder with its ``ml-100k.inter/.item/.user`` files.

Times are 887 weeks (17 years) later than in the original, which is of 1997 and 1998: times before 2000 are refused in a
click log. Days of the week, dates and the order of all rows stay.

Source: Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 2015. Licence: free for research,
no commercial use without permission, no redistribution; see https://grouplens.org/datasets/movielens/100k/.
"""

import csv
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.errors import InputError

LICENCE = (
    "MovieLens-100k, GroupLens Research (Harper and Konstan 2015): research use only, no commercial use "
    "without permission, no redistribution"
)
CLICK_RATING, CONVERSION_RATING = 4, 5
_LATER_SECONDS = 887 * 7 * 86_400
_SESSION_GAP_SECONDS = 30 * 60
_REQUEST_ROWS = 20
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")


@dataclass(frozen=True)
class DatasetFiles:
    """Where the three files of the product's formats lie."""

    ads: Path
    clicks: Path
    users: Path


def find_movielens() -> Path:
    """The folder inside the installed recbole wheel. Raises InputError if it is not installed."""
    spec = importlib.util.find_spec("recbole")
    for place in (spec.submodule_search_locations if spec else None) or ():
        folder = Path(place) / "dataset_example" / "ml-100k"
        if (folder / "ml-100k.inter").is_file():
            return folder
    raise InputError(
        "MovieLens-100k was not found; install the wheel that carries it: pip install --no-deps recbole==1.2.1"
    )


def export_movielens(source: Path, target: Path, max_users: int | None = None) -> DatasetFiles:
    """Writes ``ads.parquet``, ``clicks.parquet`` and ``users.parquet`` under `target`.

    Args:
        source: Folder with the ``ml-100k.*`` files.
        target: Folder to write to; made if missing.
        max_users: Keep only this many users, those with the smallest ids, and their ratings; all if None.

    Raises:
        InputError: `source` lacks one of the three files.
    """
    missing = [name for name in _FILES if not (source / name).is_file()]
    if missing:
        raise InputError(f"{source} is not a MovieLens-100k folder: it lacks {', '.join(missing)}")
    target.mkdir(parents=True, exist_ok=True)
    files = DatasetFiles(target / "ads.parquet", target / "clicks.parquet", target / "users.parquet")
    users = sorted(_read(source / "ml-100k.user"), key=lambda row: int(row["user_id"]))[:max_users]
    kept = {row["user_id"] for row in users}
    pq.write_table(_ads(source), files.ads)
    pq.write_table(_users(users), files.users)
    pq.write_table(_clicks(source, kept), files.clicks)
    return files


def _read(path: Path) -> Iterator[dict[str, str]]:
    """Rows of an atomic file: tab-separated, the header names column:type."""
    with path.open(encoding="utf-8", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [name.split(":")[0] for name in next(reader)]
        for values in reader:
            yield dict(zip(names, values, strict=True))


def _ads(source: Path) -> pa.Table:
    rows = [
        {
            "ad_id": row["item_id"],
            "title": f"{row['movie_title']} ({row['release_year']})" if row["release_year"] else row["movie_title"],
            "body": row["class"].replace(" ", ", "),
            "category": row["class"].split(" ")[0],
            "language": "en",
        }
        for row in _read(source / "ml-100k.item")
    ]
    return pa.Table.from_pylist(rows)


def _users(rows: list[dict[str, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{name: row[name] for name in ("user_id", "age", "gender", "occupation")} for row in rows]
    )


def _clicks(source: Path, users: set[str]) -> pa.Table:
    """Ratings as impressions; up to 20 of a user's consecutive ratings, without a pause, make one request."""
    ratings = [row for row in _read(source / "ml-100k.inter") if row["user_id"] in users]
    ratings.sort(key=lambda row: (int(row["user_id"]), float(row["timestamp"])))
    requests: list[str] = []
    user, last, rows_in_request, number = "", 0.0, 0, 0
    for row in ratings:
        time = float(row["timestamp"])
        if row["user_id"] != user or time - last > _SESSION_GAP_SECONDS or rows_in_request == _REQUEST_ROWS:
            number, rows_in_request = (number + 1 if row["user_id"] == user else 1), 0
        user, last, rows_in_request = row["user_id"], time, rows_in_request + 1
        requests.append(f"{user}-{number}")
    seconds = pa.array([int(float(row["timestamp"])) + _LATER_SECONDS for row in ratings], pa.int64())
    return pa.table(
        {
            "request_id": requests,
            "user_id": [row["user_id"] for row in ratings],
            "ad_id": [row["item_id"] for row in ratings],
            "timestamp": seconds.cast(pa.timestamp("s", tz="UTC")),
            "clicks": pa.array([int(float(row["rating"]) >= CLICK_RATING) for row in ratings], pa.int64()),
            "conversions": pa.array([int(float(row["rating"]) >= CONVERSION_RATING) for row in ratings], pa.int64()),
            "impressions": pa.array([1] * len(ratings), pa.int64()),
        }
    )
