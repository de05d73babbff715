"""From profiles to interest vectors, and from several interests to one list."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from adcascade.records.errors import InputError
from adcascade.records.users import Event, EventType, UserProfile
from adcascade.towers.interest_merge import merge
from retrieval.interests import InterestSettings, compute_interests, texts_of

AXES = np.eye(6, dtype=np.float32)
ADS = {f"axis-{axis}": AXES[axis] for axis in range(6)}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ad_vectors(ad_ids):
    places = [place for place, ad_id in enumerate(ad_ids) if ad_id in ADS]
    return places, np.array([ADS[ad_ids[place]] for place in places], np.float32).reshape(len(places), 6)


def interests_of(user, **settings):
    return compute_interests(user, ad_vectors, {"text": AXES[5]}, InterestSettings(**settings))


def event(axis, kind=EventType.CLICK, days_ago=None):
    when = None if days_ago is None else NOW - timedelta(days=days_ago)
    return Event(kind, ad_id=f"axis-{axis}", timestamp=when)


def test_one_click_is_the_vector_of_that_ad():
    found = interests_of(UserProfile(history=(event(2),)))
    np.testing.assert_allclose(found.vectors, AXES[2:3])
    assert found.weights.tolist() == [1.0]


def test_recent_events_weigh_more_and_by_half_after_a_half_life():
    found = interests_of(UserProfile(history=(event(0, days_ago=14), event(1, days_ago=0))), half_life_days=14)
    assert found.vectors[0, 1] / found.vectors[0, 0] == pytest.approx(2.0)


def test_without_times_later_events_weigh_more():
    found = interests_of(UserProfile(history=(event(0), event(1))))
    assert found.vectors[0, 1] > found.vectors[0, 0] > 0


def test_a_conversion_weighs_more_than_a_click_and_an_impression_nothing():
    user = UserProfile(
        history=(event(0, EventType.CONVERSION, 0), event(1, days_ago=0), event(2, EventType.IMPRESSION, 0))
    )
    vector = interests_of(user).vectors[0]
    assert vector[0] > vector[1] > vector[2] == 0


def test_hidden_ads_push_away():
    plain = interests_of(UserProfile(history=(event(0),)))
    pushed = interests_of(UserProfile(history=(event(0), event(1, EventType.HIDE))))
    assert plain.vectors[0, 1] == 0
    assert pushed.vectors[0, 1] < 0


def test_interests_text_alone_is_enough_and_mixes_with_history():
    alone = interests_of(UserProfile(interests=" text "))
    np.testing.assert_allclose(alone.vectors, AXES[5:6])
    mixed = interests_of(UserProfile(interests="text", history=(event(0),))).vectors[0]
    assert mixed[0] > mixed[5] > 0


def test_a_long_history_of_two_tastes_makes_two_interests_heaviest_first():
    history = tuple(event(0, days_ago=0) for _ in range(12)) + tuple(event(3, days_ago=0) for _ in range(6))
    found = interests_of(UserProfile(history=history), max_interests=4, events_per_interest=8)
    assert found.vectors.shape == (2, 6)
    np.testing.assert_allclose(found.vectors, AXES[[0, 3]], atol=1e-6)
    np.testing.assert_allclose(found.weights, [2 / 3, 1 / 3])
    one = interests_of(UserProfile(history=history), max_interests=1)
    assert len(one.vectors) == 1


def test_vectors_have_unit_length():
    history = tuple(event(axis, EventType.HIDE if axis == 4 else EventType.CLICK, axis) for axis in range(5))
    found = interests_of(UserProfile(interests="text", history=history * 8))
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert found.weights.sum() == pytest.approx(1)


def test_unknown_ads_are_skipped_and_counted():
    found = interests_of(UserProfile(history=(event(0), Event(EventType.CLICK, ad_id="gone"))))
    assert found.unknown_history == 1
    np.testing.assert_allclose(found.vectors, AXES[:1])


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ((), "the user is empty"),
        ((Event(EventType.CLICK, ad_id="gone"),), "none of the 1 ads"),
        ((event(0, EventType.HIDE),), "nothing the user liked"),
    ],
)
def test_a_user_of_whom_nothing_is_known_is_told_what_to_send(history, message):
    with pytest.raises(InputError, match=message):
        interests_of(UserProfile(history=history))


def test_texts_to_encode_are_those_of_events_and_interests():
    user = UserProfile(interests=" a ", history=(Event(EventType.SEARCH, text="b"), event(0)))
    assert texts_of(user) == ["b", "a"]


def test_merging_gives_every_interest_its_quota_and_no_ad_twice():
    similarities = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]], np.float32)
    rows = np.array([[1, 2, 3, 4], [2, 5, 6, 7]])
    found = merge(similarities, rows, np.array([0.5, 0.5]), 4, set())
    assert [row for row, _, _ in found] == [1, 2, 5, 6]
    assert [interest for _, _, interest in found] == [0, 0, 1, 1]
    assert [similarity for _, similarity, _ in found] == pytest.approx([0.9, 0.8, 0.4, 0.3])


def test_merging_fills_up_from_whoever_has_more_and_leaves_out_the_excluded():
    similarities = np.array([[0.9, 0.8, 0.7], [0.5, 0.0, 0.0]], np.float32)
    rows = np.array([[1, 2, 3], [9, -1, -1]])
    assert [row for row, _, _ in merge(similarities, rows, np.array([0.5, 0.5]), 4, {2})] == [1, 3, 9]
