"""From a user and candidates to what the model reads; ids are resolved in an index version. Knows no wire."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType

from adcascade.catalog.ads_file import AdCatalog
from adcascade.catalog.schedule import may_be_shown
from adcascade.records.ads import Ad
from adcascade.records.counter_table import Total
from adcascade.records.errors import InputError
from adcascade.records.users import Context, UserProfile
from adcascade.serving.errors import FailedPrecondition, NotFound
from ranking.inputs.context import MAX_CONTEXT_WORDS, context_hashes
from ranking.inputs.features import COUNTED, event_class, keys_of
from ranking.inputs.known_ads import KnownAd, KnownAds, PartsOf
from ranking.inputs.query import PastEvent, RankQuery
from ranking.inputs.text import HISTORY_EVENTS, render_user

_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class CatalogVersion:
    """The ads of an index version."""

    version: str
    catalog: AdCatalog

    @cached_property
    def ads(self) -> KnownAds:
        """The same as they are ranked, each with its text."""
        return KnownAds(self.catalog)


@dataclass(frozen=True)
class Candidates:
    """A query for the engine, and how its ads stand in the request.

    Attributes:
        places: place in the request of each ad of the query.
        unknown: ids that could not be resolved.
        ineligible: ids of ads that may not be shown at the context's time.
    """

    query: RankQuery
    places: tuple[int, ...]
    unknown: tuple[str, ...]
    ineligible: tuple[str, ...]


def prepare(
    user: UserProfile,
    context: Context,
    candidates: Sequence[str | Ad],
    catalog: AdCatalog | KnownAds | None,
    *,
    skip_unknown: bool,
    counter_overrides: Mapping[str, Mapping[str, Total]] = MappingProxyType({}),
    shown: int = 0,
) -> Candidates:
    """Resolves ids, leaves out ads that may not be shown at the context's time (or now), and renders texts.

    Args:
        candidates: Ads, or ids of ads in `catalog`.
        catalog: Where ids are looked up; `KnownAds` keep what was looked up lately. None if the server has no index
            version.
        skip_unknown: Leave out ids that are not in the catalog instead of failing.
        counter_overrides, shown: See `RankQuery`.

    Raises:
        InputError: An id stands twice.
        NotFound: An id is unknown and `skip_unknown` is off.
        FailedPrecondition: Ids were given, but there is no catalog.
    """
    ids = [candidate.ad_id if isinstance(candidate, Ad) else candidate for candidate in candidates]
    _check_ids(ids)
    wanted = [candidate for candidate in candidates if isinstance(candidate, str)]
    if wanted and catalog is None:
        raise FailedPrecondition("this server resolves no ad ids: start it with --index, or send the ads inline")
    history = [event.ad_id for event in user.history[-HISTORY_EVENTS:] if event.ad_id]
    known = _find(catalog, [*wanted, *history])
    ads = [KnownAd.of(candidate) if isinstance(candidate, Ad) else known.get(candidate) for candidate in candidates]
    unknown = tuple(ad_id for ad_id, ad in zip(ids, ads, strict=True) if ad is None)
    if unknown and not skip_unknown:
        named = ", ".join(unknown[:_NAMED_IN_ERRORS])
        raise NotFound(f"{len(unknown)} ads are not in this index version: {named}; set skip_unknown to leave them out")
    at = context.timestamp or datetime.now(UTC)
    found = [(place, one) for place, one in enumerate(ads) if one is not None]
    eligible = [(place, one) for place, one in found if may_be_shown(one.ad.start_time, one.ad.end_time, at)]
    query = _query(user, context, at, [one for _, one in eligible], known, counter_overrides)
    query = replace(query, shown=shown)
    ineligible = {one.ad.ad_id for _, one in found} - {one.ad.ad_id for _, one in eligible}
    left_out = tuple(ad_id for ad_id in ids if ad_id in ineligible)
    return Candidates(query, tuple(place for place, _ in eligible), unknown, left_out)


def _find(catalog: AdCatalog | KnownAds | None, ad_ids: Sequence[str]) -> Mapping[str, KnownAd]:
    if catalog is None:
        return {}
    if isinstance(catalog, KnownAds):
        return catalog.find(ad_ids)
    return {ad_id: KnownAd.of(ad) for ad_id, ad in catalog.find(ad_ids).items()}


def _query(
    user: UserProfile,
    context: Context,
    at: datetime,
    ads: Sequence[KnownAd],
    known: Mapping[str, KnownAd],
    counter_overrides: Mapping[str, Mapping[str, Total]],
) -> RankQuery:
    keys = [keys_of(one.ad, user.user_id) for one in ads]

    def lookup(ad_id: str) -> Ad | None:
        found = known.get(ad_id)
        return found.ad if found is not None else None

    return RankQuery(
        user_text=render_user(user, context, lookup),
        interests=user.interests.strip(),
        past=_past_events(user, known, at),
        ad_ids=[one.ad.ad_id for one in ads],
        ad_texts=[one.text for one in ads],
        keys={name: [ids[name] for ids in keys] for name in COUNTED},
        context=context_hashes(user, context, at, MAX_CONTEXT_WORDS),
        timestamp_s=at.timestamp(),
        counter_overrides=counter_overrides,
        parts=PartsOf(ads) if any(one.ad.keywords for one in ads) else (),
    )


def _past_events(user: UserProfile, known: Mapping[str, KnownAd], at: datetime) -> list[PastEvent]:
    """The newest events, oldest first, seen from `at`; ads that are not known are skipped."""
    events = []
    for event in user.history[-HISTORY_EVENTS:]:
        about = known.get(event.ad_id) if event.ad_id else None
        if event.text or about is not None:
            seconds = (at - event.timestamp).total_seconds() if event.timestamp else math.nan
            text = about.text if about is not None else event.text
            events.append(PastEvent(event.ad_id, text, event_class(event.type), seconds))
    return events


def _check_ids(ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for ad_id in ids:
        if not ad_id:
            raise InputError("a candidate has no ad_id")
        if ad_id in seen:
            raise InputError(f"candidate {ad_id!r} stands twice")
        seen.add(ad_id)
