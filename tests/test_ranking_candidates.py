"""From a user and candidates to a query: what is resolved, skipped, counted, and how long ago things were."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from adcascade.catalog.ads_file import AdCatalog
from adcascade.records.ads import Ad
from adcascade.records.users import Context, Event, EventType, UserProfile
from index_builder.artifact import ADS_FILE, open_store
from ranking.inputs.features import COUNTED
from ranking.inputs.prepare import prepare

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def catalog(world):
    return AdCatalog(open_store(world.index).current_path() / ADS_FILE)


def query_of(user, catalog, *candidates):
    wanted = candidates or ("coffee-1",)
    return prepare(user, Context(timestamp=NOW), wanted, catalog, skip_unknown=False).query


def test_past_events_carry_what_how_and_how_long_ago(catalog):
    events = (
        Event(EventType.HIDE, ad_id="garden-1", timestamp=NOW - timedelta(days=1)),
        Event(EventType.CLICK, ad_id="gone", timestamp=NOW),
        Event(EventType.SEARCH, text="pour over"),
        Event(EventType.CONVERSION, ad_id="coffee-2", timestamp=NOW - timedelta(seconds=5)),
    )
    query = query_of(UserProfile("u1", interests=" coffee ", history=events), catalog)
    hidden, searched, converted = query.past
    assert (hidden.ad_id, hidden.event_class, hidden.seconds) == ("garden-1", 0, 86_400)
    assert "garden" in hidden.text
    assert (searched.ad_id, searched.text, searched.event_class) == ("", "pour over", 1)
    assert math.isnan(searched.seconds)
    assert (converted.event_class, converted.seconds) == (2, 5)
    assert query.interests == "coffee"


def test_only_the_newest_200_events_are_read(catalog):
    user = UserProfile("u", history=tuple(Event(EventType.VIEW, text=f"page {n}") for n in range(300)))
    assert [event.text for event in query_of(user, catalog).past] == [f"page {n}" for n in range(100, 300)]


def test_counters_are_looked_up_by_what_the_ad_says_of_itself(catalog):
    inline = Ad("new", "A new ad", advertiser="acme", category="coffee")
    query = query_of(UserProfile("u1"), catalog, inline, "garden-3")
    assert set(query.keys) == set(COUNTED)
    assert query.keys["ad"] == ["new", "garden-3"]
    assert query.keys["advertiser"] == ["acme", ""]
    assert query.keys["category"] == ["coffee", "garden"]
    assert query.keys["user"] == ["u1", "u1"]
    assert query.keys["user_advertiser"][1] == ""
    assert query.keys["user_category"][0] not in ("", query.keys["user_category"][1])


def test_nobody_has_no_counters_of_a_user(catalog):
    keys = query_of(UserProfile(), catalog).keys
    assert keys["user"] == keys["user_category"] == [""]
