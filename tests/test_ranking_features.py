"""What the ranker knows beside the text."""

import numpy as np
import pytest

from adcascade.records.ads import Ad
from adcascade.records.counter_table import HALF_LIVES_H
from adcascade.records.counters import Counts
from adcascade.records.hashing import blake2b_bucket
from adcascade.records.users import EVENT_WEIGHT, EventType
from ranking.inputs.features import (
    COUNTED,
    FEATURES,
    PRIOR_IMPRESSIONS,
    TIME_GAP_BUCKETS,
    UNKNOWN_TIME_GAP,
    FeatureInputs,
    counter_id,
    dense_features,
    event_class,
    features_for,
    keys_of,
    reads_decayed,
    time_gap_buckets,
)


def test_features_of_nothing_known_are_the_prior():
    none = Counts(np.zeros(1), np.zeros(1), np.full(1, np.nan), np.full(1, np.nan))
    columns = dense_features(FeatureInputs(dict.fromkeys(COUNTED, none), 0.25, np.array([1e9])))
    features = dict(zip(FEATURES, columns[0], strict=True))
    assert all(features[name] == 0 for name in FEATURES if name.endswith("impressions_log"))
    assert all(features[name] == pytest.approx(np.log(1 / 3)) for name in FEATURES if name.endswith("ctr_logit"))
    assert all(np.isnan(features[name]) for name in FEATURES if name.endswith(("recency_log", "age_log")))


def test_recency_and_age_are_the_log_of_hours_and_never_negative():
    seen = Counts(np.ones(3), np.zeros(3), np.full(3, 1000.0), np.full(3, 4600.0))
    moments = np.array([4600.0 + 7200.0, 4000.0, np.nan])
    columns = dense_features(FeatureInputs(dict.fromkeys(COUNTED, seen), 0.1, moments))
    recency, age = columns[:, FEATURES.index("user_recency_log")], columns[:, FEATURES.index("ad_age_log")]
    assert recency[:2].tolist() == pytest.approx([np.log(3), 0])
    assert age[:2].tolist() == pytest.approx([np.log(4), np.log(1 + 3000 / 3600)])
    assert np.isnan([recency[2], age[2]]).all()


@pytest.mark.parametrize("key", COUNTED)
def test_a_counter_is_found_under_the_id_that_its_impressions_were_counted_by(key):
    ad = Ad("a1", advertiser="acme", category="shoes")
    name = {"ad": "a1", "advertiser": "acme", "category": "shoes"}.get(key.removeprefix("user_"), "")
    assert counter_id(key, name, "u1") == keys_of(ad, "u1")[key]


def test_a_click_rate_moves_from_the_prior_to_what_was_seen():
    def ctr_logit(clicks, impressions):
        seen = Counts(np.array([float(impressions)]), np.array([float(clicks)]), np.zeros(1), np.zeros(1))
        columns = dense_features(FeatureInputs(dict.fromkeys(COUNTED, seen), 0.1, np.zeros(1)))
        return columns[0, FEATURES.index("ad_ctr_logit")]

    assert ctr_logit(0, 0) < ctr_logit(5, 10) < ctr_logit(500, 1000) < 0.01
    assert ctr_logit(500, 1000) == pytest.approx(0, abs=0.02)


def test_ids_have_fixed_buckets_and_no_id_has_its_own():
    assert blake2b_bucket("", 256) == 0
    buckets = [blake2b_bucket(f"ad-{number}", 256) for number in range(5000)]
    assert (min(buckets), max(buckets)) == (1, 255)
    assert blake2b_bucket("ad-1", 4096) == 3968


def test_gaps_fall_into_classes_that_grow_with_time_and_have_no_sign():
    classes = time_gap_buckets(np.array([np.nan, 0.0, 5.0, 3600.0, -3600.0, 1e5, 1e9]))
    assert classes[0] == UNKNOWN_TIME_GAP
    assert classes[3] == classes[4]
    assert (np.diff(classes[[1, 2, 3, 5, 6]]) > 0).all()
    assert classes.max() == TIME_GAP_BUCKETS - 1


def test_features_are_computed_by_name_and_in_the_order_of_the_names():
    seen = Counts(np.array([3.0]), np.array([1.0]), np.array([0.0]), np.array([3600.0]))
    inputs = FeatureInputs(dict.fromkeys(COUNTED, seen), 0.1, np.array([7200.0]))
    names = ("ad_age_log", "user_impressions_log", "ad_recency_log")
    assert dense_features(inputs, names)[0].tolist() == pytest.approx([np.log(3), np.log(4), np.log(2)])


@pytest.mark.parametrize("kind", EventType)
def test_an_event_counts_as_passed_liked_or_converted(kind):
    assert event_class(kind) == (2 if kind is EventType.CONVERSION else int(EVENT_WEIGHT[kind] > 0))


def seen_by(decayed, last=0.0, rows=1):
    """Counts of every kind that were the same, with impressions and clicks that faded alike under all half-lives."""
    halves = np.tile(np.asarray(decayed, np.float64), (rows, len(HALF_LIVES_H), 1))
    return dict.fromkeys(
        COUNTED, Counts(np.full(rows, 9.0), np.ones(rows), np.zeros(rows), np.full(rows, last), halves)
    )


def feature(inputs, name):
    return dense_features(inputs, (name,))[:, 0]


@pytest.mark.parametrize(("half_life", "hours"), HALF_LIVES_H.items())
def test_counts_fade_from_the_last_impression_on(half_life, hours):
    later = FeatureInputs(seen_by([8.0, 4.0]), 0.1, np.array([3600 * hours]))
    assert feature(later, f"ad_impressions_log_{half_life}") == pytest.approx(np.log1p(4))
    rate = (2 + PRIOR_IMPRESSIONS * 0.1) / (4 + PRIOR_IMPRESSIONS)
    assert feature(later, f"category_ctr_logit_{half_life}") == pytest.approx(np.log(rate / (1 - rate)), rel=1e-6)
    before = FeatureInputs(seen_by([8.0, 4.0], last=100.0), 0.1, np.array([50.0]))
    assert feature(before, f"ad_impressions_log_{half_life}") == pytest.approx(np.log1p(8))


def test_what_never_was_shown_has_the_rate_of_the_log():
    none = Counts(np.zeros(1), np.zeros(1), np.full(1, np.nan), np.full(1, np.nan), np.zeros((1, len(HALF_LIVES_H), 2)))
    inputs = FeatureInputs(dict.fromkeys(COUNTED, none), 0.25, np.array([1e9]))
    assert feature(inputs, "ad_ctr_logit_6h") == pytest.approx(np.log(1 / 3))
    assert feature(inputs, "ad_impressions_log_6h") == 0


def test_a_feature_in_its_request_is_what_it_is_above_the_mean_of_the_known_candidates():
    last = np.array([0.0, 3600.0, np.nan, 0.0])
    counts = dict.fromkeys(COUNTED, Counts(np.array([1.0, 3.0, 0.0, 7.0]), np.zeros(4), last, last))
    inputs = FeatureInputs(counts, 0.1, np.full(4, 7200.0), np.array([1, 1, 1, 0]))
    alone = feature(inputs, "ad_impressions_log")
    assert feature(inputs, "ad_impressions_log_in_request") == pytest.approx([*(alone[:3] - alone[:3].mean()), 0.0])
    recency = feature(inputs, "ad_recency_log_in_request")
    gap = (np.log(3) - np.log(2)) / 2
    assert recency[[0, 1, 3]] == pytest.approx([gap, -gap, 0.0], abs=1e-6)
    assert np.isnan(recency[2])
    one = FeatureInputs(counts, 0.1, np.full(4, 7200.0))
    assert feature(one, "ad_impressions_log_in_request") == pytest.approx(alone - alone.mean())


def test_the_size_of_a_request_is_not_known_unless_told():
    inputs = FeatureInputs(seen_by([0, 0], rows=2), 0.1, np.zeros(2))
    assert np.isnan(feature(inputs, "request_size_log")).all()
    told = FeatureInputs(inputs.counts, 0.1, np.zeros(2), shown=np.array([1.0, 20.0]))
    assert feature(told, "request_size_log") == pytest.approx([0.0, np.log(20)])


def test_a_log_teaches_what_it_can_tell():
    assert features_for(timed=False, request_rows=1.0) == FEATURES
    timed, shown_together = (
        set(features_for(timed=timed, request_rows=rows)) - set(FEATURES) for timed, rows in ((True, 1.0), (False, 5.0))
    )
    assert timed
    assert all(name.endswith(tuple(HALF_LIVES_H)) for name in timed)
    assert shown_together
    assert all(name.endswith("_in_request") or name == "request_size_log" for name in shown_together)
    assert not any(reads_decayed(key, tuple(shown_together)) for key in COUNTED)
    both = features_for(timed=True, request_rows=5.0)
    assert set(both) == set(FEATURES) | timed | shown_together | {
        f"{name}_in_request" for name in timed if name.startswith("ad_")
    }
    assert [key for key in COUNTED if reads_decayed(key, both)] == ["ad", "advertiser", "category"]


def test_what_hardly_any_row_has_is_not_read():
    everything = features_for(timed=True, request_rows=5.0)
    without = features_for(timed=True, request_rows=5.0, counted=("ad", "user", "category", "user_category"))
    assert [name for name in everything if name not in without] == [name for name in everything if "advertiser" in name]
    alone = features_for(timed=True, request_rows=5.0, counted=("ad",))
    assert all(name.startswith(("ad_", "request_")) for name in alone)
    assert not any(name.startswith("advertiser_") for name in alone)
    users = features_for(timed=True, request_rows=5.0, counted=("ad", "user"))
    assert set(users) - set(alone) == {"user_impressions_log", "user_ctr_logit", "user_recency_log"}
