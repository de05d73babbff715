"""Ads of a catalog that are kept with their texts: the same as the catalog's, each made once, within a bound."""

from datetime import UTC, datetime

import numpy as np
import pytest

from adcascade.catalog.ads_file import AdCatalog, write_ads
from adcascade.records.ads import Ad
from adcascade.records.users import Context, Event, EventType, UserProfile
from ranking.inputs import known_ads
from ranking.inputs.feature_inputs import FeatureInputs, once
from ranking.inputs.keywords import MOST_KEYWORD_CHARS, AdParts, parts_of
from ranking.inputs.known_ads import KnownAd, KnownAds
from ranking.inputs.prepare import CatalogVersion, prepare
from ranking.inputs.text import render_ad

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def catalog(tmp_path):
    return catalog_of(tmp_path / "ads.parquet", "shoes")


def catalog_of(path, word):
    ads = [Ad(f"a{number}", f"{word} {number}", "a body", "maker", "sport") for number in range(50)]
    write_ads(((ad, b"0" * 16) for ad in ads), path)
    return AdCatalog(path)


def test_what_is_found_is_what_the_catalog_has_and_each_is_made_once(catalog):
    known = KnownAds(catalog)
    first = known.find(["a1", "gone", "a2", "a1"])
    texts = {ad_id: (ad, render_ad(ad)) for ad_id, ad in catalog.find(["a1", "a2"]).items()}
    assert first == {ad_id: KnownAd(ad, text) for ad_id, (ad, text) in texts.items()}
    again = known.find(["a3", "a2", "gone"])
    assert again["a2"] is first["a2"]
    assert again.keys() == {"a2", "a3"}
    assert len(known) == 3


def test_what_is_kept_is_bounded_and_the_first_give_way(catalog):
    known = KnownAds(catalog, max_bytes=3 * 2400)
    for number in range(50):
        (found,) = known.find([f"a{number}"]).values()
        assert found.text == f"shoes {number}. a body. sport. maker"
        assert len(known) <= 3
    newest = known.find(["a49"])["a49"]
    assert known.find(["a49"])["a49"] is newest


def test_keywords_are_set_apart_where_they_are_asked_for_alone_and_once(monkeypatch):
    made = []
    monkeypatch.setattr(known_ads, "parts_of", lambda ad, text: made.append(ad.ad_id) or parts_of(ad, text))
    ads = [Ad("a", "lamp", "of brass", keywords=("brass", "age:18")), Ad("b", "cup", keywords=("Age:65",)), Ad("c", "")]
    parts = prepare(UserProfile(), Context(), ads, None, skip_unknown=False).query.parts
    assert not made
    want = [AdParts("lamp. of brass", "brass\nage:18"), AdParts("cup", "Age:65"), AdParts("", "")]
    assert parts[1] == want[1]
    assert made == ["b"]
    for _ in range(2):
        assert list(parts) == want
        assert list(parts[1:]) == want[1:]
    assert sorted(made) == ["a", "b", "c"]


@pytest.mark.parametrize("keyword", ["x" * 200, " x" * 100, "\ufdfa" * 256, "age:18", " "])
@pytest.mark.parametrize("count", [0, 1, 30])
def test_what_an_ad_takes_is_counted_with_its_keywords_in_lines_and_its_text_once(keyword, count):
    ad = Ad("a", "lamp", "b" * 3000, keywords=(keyword,) * count)
    known = KnownAd.of(ad)
    counted, (_, lines) = known_ads._bytes_of(known), known.parts
    assert known_ads._bytes_of(known) == counted
    others = sum(map(len, (ad.ad_id, ad.title, ad.body, *ad.keywords, known.text)))
    assert 4 * (others + len(lines)) <= counted - 2048 <= 4 * (others + MOST_KEYWORD_CHARS + count)


def test_a_request_is_the_same_whether_ads_are_kept_or_not(catalog):
    known = KnownAds(catalog)
    history = tuple(Event(EventType.CLICK, ad_id) for ad_id in ("a7", "gone", "a8"))
    user, context = UserProfile("u", "running", {"age": "30"}, history), Context(timestamp=NOW)
    wanted = ["a1", "gone", Ad("own", "an ad of the caller"), "a2"]
    assert str(prepare(user, context, wanted, known, skip_unknown=True)) == str(
        prepare(user, context, wanted, catalog, skip_unknown=True)
    )
    assert str(prepare(user, context, wanted, known, skip_unknown=True)) == str(
        prepare(user, context, wanted, catalog, skip_unknown=True)
    )


def test_an_ad_that_the_caller_brings_goes_before_the_kept_one_of_its_id(catalog):
    known = KnownAds(catalog)
    known.find(["a1"])
    own = Ad("a1", "another text")
    assert prepare(UserProfile(), Context(), [own], known, skip_unknown=False).query.ad_texts == ["another text"]
    assert known.find(["a1"])["a1"].text == "shoes 1. a body. sport. maker"


def test_each_index_version_keeps_its_own_texts(catalog, tmp_path):
    versions = [CatalogVersion("1", catalog), CatalogVersion("2", catalog_of(tmp_path / "new.parquet", "boots"))]
    texts = [version.ads.find(["a1"])["a1"].text for version in versions]
    assert texts == ["shoes 1. a body. sport. maker", "boots 1. a body. sport. maker"]
    assert versions[0].ads is versions[0].ads


@pytest.mark.parametrize(("rows", "times"), [(10, 1), (5000, 2)])
def test_what_features_share_is_made_once_for_few_rows(rows, times):
    made = []
    inputs = FeatureInputs({}, 0.1, np.zeros(rows))

    def make():
        made.append(1)
        return np.ones(rows)

    assert once(inputs, "ones", make).sum() == once(inputs, "ones", make).sum() == rows
    assert len(made) == times
