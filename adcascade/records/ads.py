"""The catalog: what an ad is, and which ads are usable. Knows no vectors and no wire."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from adcascade.records.batches import DamagedRow, is_table
from adcascade.records.errors import InputError
from adcascade.records.files import read_rows
from adcascade.records.limits import (
    MAX_FIELD_CHARS,
    MAX_ID_CHARS,
    MAX_KEYWORDS,
    MAX_TEXT_CHARS,
    MAX_URL_CHARS,
    check_attributes,
    check_text,
)
from adcascade.records.missing import is_missing
from adcascade.records.near_names import warn_of_near_names
from adcascade.records.values import as_attributes, as_id, as_int, as_text, as_texts, as_time

# The same ad again, word for word: nothing is lost by leaving it out, so no limit of rejected rows counts it.
REPEATED = "repeated_ad"
# What 0 means in the clocks of most programs; earlier moments are what others write for "none".
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
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
    "ad_id": as_id,
    **dict.fromkeys(("title", "body", "advertiser", "category", "language", "landing_url", "image_uri"), as_text),
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


@dataclass(frozen=True)
class Catalog:
    """The usable ads of a file or folder, in their order, and the rows that are none."""

    ads: tuple[Ad, ...]
    rejected: tuple[RejectedAd, ...]

    @cached_property
    def why_rejected(self) -> Mapping[str, str]:
        """Why there is no ad of an id, by the ids that rejected rows have and no usable ad."""
        known = {ad.ad_id for ad in self.ads}
        return {
            one.ad_id: f"{one.reason}: {one.detail}; {one.source}, row {one.row}"
            for one in self.rejected
            if one.ad_id and one.ad_id not in known
        }

    @property
    def counts(self) -> Mapping[str, int]:
        """How many rows were rejected for each reason."""
        return Counter(one.reason for one in self.rejected)


def read_catalog(path: Path) -> Catalog:
    """All ads of a file or folder in memory; see `read_ads`. Raises InputError, also if no ad is usable."""
    found = list(read_ads(path))
    catalog = Catalog(
        tuple(one for one in found if isinstance(one, Ad)), tuple(one for one in found if isinstance(one, RejectedAd))
    )
    if not catalog.ads:
        first = next(iter(catalog.rejected), None)
        why = f" ({first.reason}, {first.source}, row {first.row}: {first.detail})" if first else ""
        raise InputError(f"{path} holds no usable ad{why}: each needs an ad_id, and a title or a body")
    return catalog


def read_ads(path: Path) -> Iterator[Ad | RejectedAd]:
    """Streams the ads of a Parquet, JSONL or CSV file, or of a folder of such (see `adcascade.records.files`).

    Columns are the fields of `Ad`; only ``ad_id`` and one of ``title`` and ``body`` must be there, other columns become
    attributes. A row is rejected, with one of these reasons, and reading goes on:

    - ``bad_row``: not valid JSON, wrong number of columns, or a value of the wrong type
    - ``bad_utf8``: bytes that are no UTF-8
    - ``missing_id``, ``long_id``: no id, or more than 256 characters
    - ``duplicate_id``: the id was seen before, with other values; the first row stands
    - ``repeated_ad``: the same ad, word for word, was seen before
    - ``bad_time``: it starts or ends before 1970
    - ``empty_text``: neither title nor body has a visible character
    - ``never_shown``: its end is not after its start
    - ``long_text``: title and body exceed 32,768 characters together, or another field its limit

    Raises:
        InputError: No such file, no file of a known format, a file that cannot be read at all, or a table without the
            columns that an ad needs.
    """
    seen: dict[str, bytes] = {}
    checked = ""
    told: set[str] = set()
    for source, number, row in read_rows(path):
        if source != checked and not isinstance(row, DamagedRow):
            _check_columns(source, row)
            warn_of_near_names(source, row, _FIELDS, told, "an attribute")
            checked = source
        ad_or_reason = row if isinstance(row, DamagedRow) else _ad_of(row)
        if isinstance(ad_or_reason, Ad):
            digest = hashlib.blake2b(repr(ad_or_reason).encode(), digest_size=16).digest()
            first = seen.setdefault(ad_or_reason.ad_id, digest)
            if first is digest:
                yield ad_or_reason
                continue
            ad_or_reason = (
                DamagedRow(REPEATED, "an earlier row is the same ad")
                if first == digest
                else DamagedRow("duplicate_id", "an earlier row has this ad_id")
            )
        yield RejectedAd(source, number, _given_id(row), ad_or_reason.reason, ad_or_reason.detail)


def _given_id(row: Mapping[str, Any] | DamagedRow) -> str:
    """The id of a row that is no ad, as far as it has one that can be written down."""
    if isinstance(row, DamagedRow):
        return ""
    try:
        return as_id(row, "ad_id")[:MAX_ID_CHARS]
    except InputError:
        return str(row.get("ad_id"))[:MAX_ID_CHARS].encode(errors="replace").decode()


def _check_columns(source: str, row: Mapping[str, Any]) -> None:
    if is_table(source) and not ("ad_id" in row and {"title", "body"} & row.keys()):
        raise InputError(f"{source} needs the columns ad_id and title (or body); it has {', '.join(row)[:1000]}")


def _ad_of(row: Mapping[str, Any]) -> Ad | DamagedRow:
    try:
        ad = ad_from_row(row)
    except InputError as error:
        return DamagedRow("bad_row", str(error))
    problem = _lacking(row) or problem_with(ad) or _problem_with_times(ad)
    return DamagedRow(*problem) if problem else ad


def _lacking(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """That a line of JSON has other names than an ad."""
    for names, reason in ((("ad_id",), "missing_id"), (("title", "body"), "empty_text")):
        if not any(name in row for name in names):
            given = ", ".join(repr(name) for name, value in row.items() if value is not None)
            return reason, f"there is no {' and no '.join(names)}; there is {given[:300] or 'nothing'}"
    return None


def _problem_with_times(ad: Ad) -> tuple[str, str] | None:
    if min(ad.start_time or _EARLIEST, ad.end_time or _EARLIEST) < _EARLIEST:
        return "bad_time", "start_time or end_time is before 1970: leave it empty where there is none"
    return None


def ad_from_row(row: Mapping[str, Any]) -> Ad:
    """An ad from named values; unknown names become attributes. Raises InputError for a value of the wrong type."""
    values: dict[str, Any] = {name: read(row, name) for name, read in _READERS.items() if name in row}
    if extra := {name: value for name, value in row.items() if name not in _FIELDS and not is_missing(value)}:
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
