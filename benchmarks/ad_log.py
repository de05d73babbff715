"""A made-up log shaped like a real ad platform's: many users with few rows, few ads with many. Knows no models.

Requests show several ads each; ads are drawn by Zipf's law, and some 3 % of impressions are clicked, those of ads that
are good and of users who like to click more often. It is for measuring speed: texts are short and say nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adcascade.records.datasets.movielens import DatasetFiles

_START, _SECONDS = 1_767_225_600, 30 * 86_400  # January 2026
_ROWS_AT_ONCE = 1 << 19
_ZIPF = 1.1  # the ad of rank r is shown in proportion to r^-1.1
_CLICK_LOGIT = -4.0  # with the deviations below, a mean of about 3 %
_OF_ADS, _OF_USERS = 0.8, 0.6
_COUNTRIES = ("DE", "FR", "US", "GB", "IT", "ES", "PL", "BR")
_DEVICES = ("phone", "desktop", "tablet")
_PLACEMENTS = ("feed", "sidebar", "article", "search", "video")
_CATEGORIES, _ADVERTISERS = 50, 1000


@dataclass(frozen=True)
class AdLogOptions:
    """How large the log is.

    Attributes:
        rows_per_request: on average; at least one.
    """

    rows: int = 1_000_000
    users: int = 200_000
    ads: int = 20_000
    rows_per_request: float = 4.0
    seed: int = 0


def make_ad_log(folder: Path, options: AdLogOptions) -> DatasetFiles:
    """Writes ads, clicks and users as Parquet; the log in the order of time, some half a million rows a row group."""
    folder.mkdir(parents=True, exist_ok=True)
    files = DatasetFiles(folder / "ads.parquet", folder / "clicks.parquet", folder / "users.parquet")
    pq.write_table(_ads(options.ads), files.ads)
    pq.write_table(pa.table({"user_id": _names("user-", np.arange(options.users))}), files.users)
    tables = _tables(options)
    first = next(tables)
    with pq.ParquetWriter(files.clicks, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    return files


def _ads(count: int) -> pa.Table:
    numbers = np.arange(count)
    return pa.table(
        {
            "ad_id": _names("ad-", numbers),
            "title": _names("offer ", numbers),
            "body": _names("what is offered here has the number ", numbers),
            "advertiser": _names("shop ", numbers % _ADVERTISERS),
            "category": _names("topic ", numbers % _CATEGORIES),
        }
    )


def _tables(options: AdLogOptions) -> Iterator[pa.Table]:
    """The rows of the log, in the order of time."""
    random = np.random.default_rng(options.seed)
    weights = np.arange(1, options.ads + 1) ** -_ZIPF
    of_ad = np.cumsum(weights / weights.sum())
    quality = random.normal(0, _OF_ADS, options.ads)
    habit = random.normal(0, _OF_USERS, options.users)
    request = 0
    for start in range(0, options.rows, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, options.rows - start)
        numbers = np.cumsum(random.random(rows) < 1 / options.rows_per_request) + request  # of the request of each row
        request = int(numbers[-1]) + 1
        of_row = numbers - numbers[0]
        user = random.integers(0, options.users, of_row[-1] + 1)[of_row]
        ad = np.minimum(np.searchsorted(of_ad, random.random(rows)), options.ads - 1)  # the sum may be below 1
        p_click = 1 / (1 + np.exp(-(_CLICK_LOGIT + quality[ad] + habit[user])))
        yield _table(random, options, start, numbers, user, ad, p_click)


def _table(
    random: np.random.Generator,
    options: AdLogOptions,
    start: int,
    request: npt.NDArray[np.int64],
    user: npt.NDArray[np.int64],
    ad: npt.NDArray[np.int64],
    p_click: npt.NDArray[np.float64],
) -> pa.Table:
    rows, of_row = len(request), request - request[0]
    shown = np.linspace(start, start + rows, of_row[-1] + 1) / options.rows * _SECONDS  # seconds of each request
    first = np.searchsorted(of_row, of_row, side="left")
    return pa.table(
        {
            "request_id": _names("r", request),
            "ad_id": _names("ad-", ad),
            "user_id": _names("user-", user),
            "timestamp": pa.array(((_START + shown[of_row]) * 1000).astype(np.int64), pa.timestamp("ms", "UTC")),
            "clicks": (random.random(rows) < p_click).astype(np.int64),
            "impressions": np.ones(rows, np.int64),
            "position": 1 + np.arange(rows) - first,
            "country": _chosen(random, _COUNTRIES, of_row),
            "device": _chosen(random, _DEVICES, of_row),
            "placement": _chosen(random, _PLACEMENTS, of_row),
        }
    )


def _names(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _chosen(random: np.random.Generator, words: tuple[str, ...], of_row: npt.NDArray[np.int64]) -> pa.Array:
    """A word for each request, as each of its rows has it."""
    return pa.array(words).take(pa.array(random.integers(0, len(words), of_row[-1] + 1)[of_row]))
