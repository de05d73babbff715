"""Retrieval with towers: what is served is what was evaluated, and users of whom little is known get something."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from conftest import TOPICS

from adcascade.records.history import Histories
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.towers.evaluation.holdout import held_out
from adcascade.towers.model import attribute_bucket
from adcascade.towers.training.batches import catalog_of
from adcascade.towers.training.tune import interests_of
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.query import Query
from retrieval.retriever import Retriever
from retrieval.sources import SourceSettings

INTERESTS_ALONE = SourceSettings(shares={}, cold_users_popularity=0.0, neighbours=False)


@pytest.fixture(scope="module")
def loaded(tower_index):
    store = open_store(tower_index)
    return load_version(store, store.current())


@pytest.fixture
def retriever(loaded):
    found = Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), 100, INTERESTS_ALONE)
    yield found
    found.close()


def ask(retriever, user, k=10, **options):
    (answer,) = retriever.answer([Query(user, None, k, **options)])
    return answer


def topics(answer):
    return [candidate.ad_id.split("-")[0] for candidate in answer.candidates]


def test_served_interests_are_those_that_training_judged(retriever, loaded, tower_data):
    data, towers = tower_data, loaded.towers
    judged = held_out(data.log, data.split.train, data.split.test, data.number_of)
    catalog = catalog_of(data.ad_ids, towers.known_ads, data.texts, towers.spec.shape)
    evaluated = interests_of(towers.towers, catalog, judged, data.users)
    histories = Histories(data.log.take(data.split.train))
    profiles = [
        UserProfile(user, "", data.users[user].attributes, histories.before(user, np.iinfo(np.int64).max, 1000))
        for user in judged.users
    ]
    queries = [
        Query(profile, None, 5, context=context) for profile, context in zip(profiles, judged.contexts, strict=True)
    ]
    served = retriever.answer(queries)
    vectors = np.concatenate([answer.interests.vectors for answer in served])
    np.testing.assert_allclose(vectors, evaluated, atol=2e-5)
    assert any(profile.attributes for profile in profiles)
    assert {context.device for context in judged.contexts} == {"phone"}
    elsewhere = retriever.answer([replace(query, context=Context()) for query in queries])
    assert not np.allclose(vectors, np.concatenate([answer.interests.vectors for answer in elsewhere]), atol=1e-3)
    assert attribute_bucket("age", "20") != attribute_bucket("age", "21")


def test_candidates_are_the_largest_inner_products(retriever, loaded):
    user = UserProfile(history=(Event(EventType.CLICK, "coffee-1"), Event(EventType.CLICK, "coffee-2")))
    answer = ask(retriever, user, exclude=frozenset({"coffee-1", "coffee-2"}))
    scores = (answer.interests.vectors @ np.asarray(loaded.searched_vectors).T).max(axis=0)
    ids = [loaded.catalog.ids[row] for row in np.argsort(-scores)]
    assert [one.ad_id for one in answer.candidates] == [one for one in ids if one not in ("coffee-1", "coffee-2")][:10]
    rows = [loaded.catalog.row_of[one.ad_id] for one in answer.candidates]
    assert [one.similarity for one in answer.candidates] == pytest.approx(scores[rows].tolist(), rel=1e-4)


@pytest.mark.parametrize(("events", "least"), [(1, 5.5), (2, 6.0)])
def test_one_event_is_already_personal(retriever, events, least):
    hits = []
    for topic in TOPICS:
        for first in range(0, 18, 3):
            clicked = tuple(Event(EventType.CLICK, f"{topic}-{first + number}") for number in range(events))
            answer = ask(retriever, UserProfile(history=clicked), exclude=frozenset(event.ad_id for event in clicked))
            hits.append(topics(answer).count(topic))
    assert np.mean(hits) >= least  # of 10; a third of them would be chance


def test_a_user_of_whom_nothing_is_known_gets_something(retriever):
    answer = ask(retriever, UserProfile())
    assert len(answer.candidates) == 10
    assert np.isfinite(answer.interests.vectors).all()


def test_a_hidden_ad_pushes_its_like_away(retriever):
    liked = (Event(EventType.CLICK, "garden-2"), Event(EventType.CLICK, "coffee-2"))
    plain = ask(retriever, UserProfile(history=liked), k=20)
    pushed = ask(
        retriever, UserProfile(history=(*liked, *(Event(EventType.HIDE, f"coffee-{n}") for n in range(6)))), k=20
    )
    assert topics(pushed).count("coffee") < topics(plain).count("coffee")


def test_events_of_unknown_ads_are_left_out_and_counted(retriever):
    known = (Event(EventType.CLICK, "coffee-1"),)
    with_gone = (Event(EventType.CLICK, "gone"), *known, Event(EventType.CLICK, "gone too"))
    one, other = ask(retriever, UserProfile(history=known)), ask(retriever, UserProfile(history=with_gone))
    assert (one.interests.unknown_history, other.interests.unknown_history) == (0, 2)
    np.testing.assert_array_equal(one.interests.vectors, other.interests.vectors)


def test_texts_are_read_and_times_too(retriever):
    def vectors(*events, interests=""):
        return ask(retriever, UserProfile(interests=interests, history=events)).interests.vectors

    searched = Event(EventType.SEARCH, text="espresso beans roast grinder")
    assert not np.allclose(vectors(searched), vectors())
    assert not np.allclose(vectors(interests="espresso"), vectors())
    hour, day = (datetime(2024, 1, number, tzinfo=UTC) for number in (1, 2))
    untimed, timed = (
        vectors(Event(EventType.CLICK, "coffee-1", "", first), Event(EventType.CLICK, "coffee-2", "", second))
        for first, second in ((None, None), (hour, day))
    )
    assert not np.allclose(untimed, timed)


def test_a_long_history_is_read_from_its_newest_end(retriever, loaded):
    newest = tuple(
        Event(EventType.CLICK, f"garden-{number % 20}") for number in range(loaded.towers.spec.shape.history)
    )
    older = tuple(Event(EventType.CLICK, f"coffee-{number % 20}") for number in range(50))
    np.testing.assert_array_equal(
        ask(retriever, UserProfile(history=newest)).interests.vectors,
        ask(retriever, UserProfile(history=older + newest)).interests.vectors,
    )
