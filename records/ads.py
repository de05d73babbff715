"""The catalog: what an ad is, and which ads are usable. Knows no vectors and no wire."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from records.errors import InputError
from records.files import DamagedRow, read_rows
from records.limits import (
    MAX_FIELD_CHARS,
    MAX_ID_CHARS,
    MAX_KEYWORDS,
    MAX_TEXT_CHARS,
    MAX_URL_CHARS,
    check_attributes,
    check_text,
)
from records.values import as_attributes, as_int, as_text, as_texts, as_time

_INVISIBLE = str.maketrans("", "", "\u200b\u200c\u200d\u2060\ufeff")  # zero-width spaces, joiners, byte order mark


@dataclass(frozen=True, slots=True)
class Ad:
    """One ad; the fields are those of the wire message ``adcascade.v1.Ad``."""

    ad_id: str
    title: str = ""
    body: str = ""
    advertiser: str = ""
    category: str = ""
    keywords: tuple[str, ...] = ()
    language: str = ""
    landing_url: str = ""
    image_uri: str = ""
    bid_micros: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)
    start_time: datetime | None = None
    end_time: datetime | None = None


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Any]] = {
    **dict.fromkeys(
        ("ad_id", "title", "body", "advertiser", "category", "language", "landing_url", "image_uri"), as_text
    ),
    "keywords": as_texts,
    "bid_micros": as_int,
    "attributes": lambda row, name: as_attributes(row[name]),
    "start_time": as_time,
    "end_time": as_time,
}
_FIELDS = frozenset(_READERS)


@dataclass(frozen=True, slots=True)
class RejectedAd:
    """A row that cannot become an ad: where it stands (file and row, from 1) and why."""

    source: str
    row: int
    ad_id: str
    reason: str
    detail: str


def read_ads(path: Path) -> Iterator[Ad | RejectedAd]:
    """Streams the ads of a Parquet, JSONL or CSV file, or of all such files in a folder, in order of their names.

    Columns are the fields of `Ad`; only ``ad_id`` and one of ``title`` and ``body`` must be there, other columns become
    attributes. A row is rejected, with one of these reasons, and reading goes on:

    - ``bad_row``: not valid JSON, wrong number of columns, or a value of the wrong type
    - ``bad_utf8``: bytes that are no UTF-8
    - ``missing_id``, ``long_id``: no id, or more than 256 characters
    - ``duplicate_id``: the id was seen before; the first row stands
    - ``empty_text``: neither title nor body has a visible character
    - ``never_shown``: its end is not after its start
    - ``long_text``: title and body exceed 32,768 characters together, or another field its limit

    Raises:
        InputError: No such file, no file of a known format, a file that cannot be read at all, or a table without the
            columns that an ad needs.
    """
    seen: set[str] = set()
    for source, number, row in read_rows(path):
        if number == 1 and not isinstance(row, DamagedRow) and source.endswith((".csv", ".parquet")):
            _check_columns(source, row)
        ad_or_reason = row if isinstance(row, DamagedRow) else _ad_of(row)
        if isinstance(ad_or_reason, DamagedRow):
            given_id = "" if isinstance(row, DamagedRow) else str(row.get("ad_id") or "")[:MAX_ID_CHARS]
            given_id = given_id.encode(errors="replace").decode()
            yield RejectedAd(source, number, given_id, ad_or_reason.reason, ad_or_reason.detail)
        elif ad_or_reason.ad_id in seen:
            yield RejectedAd(source, number, ad_or_reason.ad_id, "duplicate_id", "an earlier row has this ad_id")
        else:
            seen.add(ad_or_reason.ad_id)
            yield ad_or_reason


def _check_columns(source: str, row: Mapping[str, Any]) -> None:
    if "ad_id" not in row or not {"title", "body"} & row.keys():
        raise InputError(f"{source} needs the columns ad_id and title (or body); it has {', '.join(row)}")


def _ad_of(row: Mapping[str, Any]) -> Ad | DamagedRow:
    try:
        ad = ad_from_row(row)
    except InputError as error:
        return DamagedRow("bad_row", str(error))
    problem = problem_with(ad)
    return DamagedRow(*problem) if problem else ad


def ad_from_row(row: Mapping[str, Any]) -> Ad:
    """An ad from named values; unknown names become attributes. Raises InputError for a value of the wrong type."""
    values: dict[str, Any] = {name: read(row, name) for name, read in _READERS.items() if name in row}
    if extra := {name: value for name, value in row.items() if name not in _FIELDS and value not in (None, "")}:
        values["attributes"] = values.get("attributes", {}) | as_attributes(extra)
    return Ad(**{"ad_id": "", **values})


def problem_with(ad: Ad) -> tuple[str, str] | None:
    """Why an ad cannot be used, as (reason, detail); None if it can."""
    if not ad.ad_id:
        return "missing_id", "ad_id is empty"
    if len(ad.ad_id) > MAX_ID_CHARS:
        return "long_id", f"ad_id has {len(ad.ad_id)} characters; the limit is {MAX_ID_CHARS}"
    text = ad.title + ad.body
    if not (text if text.isascii() else text.translate(_INVISIBLE)).strip():
        return "empty_text", "title and body are empty"
    length = len(text)
    if length > MAX_TEXT_CHARS:
        return "long_text", f"title and body have {length} characters; the limit is {MAX_TEXT_CHARS}"
    if ad.bid_micros < 0:
        return "bad_row", f"bid_micros is {ad.bid_micros}; it must be 0 or more"
    if ad.start_time is not None and ad.end_time is not None and ad.end_time <= ad.start_time:
        return "never_shown", f"end_time {ad.end_time} is not after start_time {ad.start_time}"
    if len(ad.keywords) > MAX_KEYWORDS:
        return "long_text", f"{len(ad.keywords)} keywords; the limit is {MAX_KEYWORDS}"
    try:
        for name in ("advertiser", "category", "language"):
            check_text(name, getattr(ad, name), MAX_FIELD_CHARS)
        check_text("keyword", max(ad.keywords, key=len, default=""), MAX_FIELD_CHARS)
        check_text("landing_url", ad.landing_url, MAX_URL_CHARS)
        check_text("image_uri", ad.image_uri, MAX_URL_CHARS)
        check_attributes("attributes", ad.attributes)
    except InputError as error:
        return "long_text", str(error)
    return None
