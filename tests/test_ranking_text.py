"""What the model reads of users and ads."""

from datetime import UTC, datetime

from adcascade.records.ads import Ad
from adcascade.records.users import Context, Event, EventType, UserProfile
from ranking.inputs.text import render_ad, render_user

ADS = {f"a{number}": Ad(f"a{number}", title=f"Title {number}", body="body") for number in range(300)}


def click(ad_id: str) -> Event:
    return Event(EventType.CLICK, ad_id=ad_id, timestamp=datetime(2026, 1, 1, tzinfo=UTC))


def test_an_ad_reads_title_first_and_repeats_nothing():
    ad = Ad(
        "x", title="Trail shoes", body="For mud. Shoes", category="shoes", advertiser="Acme", keywords=("grip", "mud")
    )
    assert render_ad(ad) == "Trail shoes. For mud. Shoes. Acme. grip, mud"


def test_a_user_reads_attributes_context_interests_then_the_newest_events():
    user = UserProfile(
        "u",
        interests="running",
        attributes={"b": "2", "a": "1"},
        history=(click("a1"), Event(EventType.HIDE, ad_id="a2"), Event(EventType.SEARCH, text="socks"), click("a3")),
    )
    text = render_user(user, Context(device="phone", page_text="news"), ADS.get)
    assert text.split(" | ") == [
        "a 1, b 2",
        "device phone",
        "interests: running",
        "liked: Title 3; socks; Title 1",
        "passed: Title 2",
        "page: news",
    ]


def test_ads_that_are_not_known_are_skipped():
    user = UserProfile("u", history=(click("gone"), click("a1")))
    assert render_user(user, Context(), ADS.get) == "liked: Title 1"


def test_only_the_newest_events_of_a_long_history_are_read():
    user = UserProfile("u", history=tuple(click(f"a{number}") for number in range(300)))
    text = render_user(user, Context(), ADS.get)
    assert text.startswith("liked: Title 299; Title 298;")
    assert text.count("Title") == 24


def test_an_empty_user_reads_as_nothing():
    assert render_user(UserProfile(), Context(), ADS.get) == ""
