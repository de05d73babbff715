"""The three files that the owner brings, read together. Knows no models and no splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adcascade.records.ads import Ad, Catalog, read_catalog
from adcascade.records.clicks import ClickLog, LogReport, read_clicks
from adcascade.records.users import UserProfile
from adcascade.records.users_by_id import load_users


@dataclass(frozen=True)
class Joined:
    """A click log, and the ads and users that it speaks of.

    Attributes:
        ads: by id, in the order of the file.
        users: by id; empty without a users file.
    """

    ads: Mapping[str, Ad]
    users: Mapping[str, UserProfile]
    log: ClickLog
    report: LogReport


def read_joined(
    ads: Path,
    clicks: Path,
    users: Path | None,
    *,
    max_rejected: float = 0.01,
    newest: int | None = None,
    timed: bool = False,
    rejected_file: Path | None = None,
) -> Joined:
    """Reads the three files; what was left out of each is in the report.

    Args:
        max_rejected: Share of the log's rows, and of the users, that may be rejected.
        newest, timed, rejected_file: see `adcascade.records.clicks.read_clicks`.

    Raises:
        InputError: A file cannot be read, no ad is usable, or too many rows or users are not.
    """
    catalog = read_catalog(ads)
    known = {ad.ad_id: ad for ad in catalog.ads}
    notes = [_note_of_ads(ads, catalog)] if catalog.rejected else []
    profiles: Mapping[str, UserProfile] = {}
    if users is not None:
        profiles, found = load_users(users, max_rejected)
        notes += found.notes
    log, report = read_clicks(
        clicks,
        known.keys(),
        why_rejected=catalog.why_rejected,
        max_rejected=max_rejected,
        newest=newest,
        timed=timed,
        rejected_file=rejected_file,
    )
    return Joined(known, profiles, log, report.noted(*notes))


def _note_of_ads(path: Path, catalog: Catalog) -> str:
    first = catalog.rejected[0]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in catalog.counts.items())
    return (
        f"{len(catalog.rejected):,} rows of {path} are no usable ads: {reasons}, such as {first.source}, row "
        f"{first.row}: {first.detail}. A build lists them all."
    )
