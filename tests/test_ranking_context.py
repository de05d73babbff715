"""Attributes, context and hour as ids: the same offline and online, stable, bounded."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from conftest import every_context_hash

from adcascade.records.clicks import NO_TIME
from adcascade.records.coded import CodedColumn
from adcascade.records.users import Context, UserProfile
from ranking.data.dataset import load_dataset
from ranking.inputs.context import CONTEXT_BUCKETS, CONTEXT_WORDS, context_buckets, context_hashes

NOON = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)


def buckets(user=None, context=None, moment=None):
    hashes = context_hashes(user or UserProfile(), context or Context(), moment)
    return set(context_buckets(hashes).tolist()) - {0}


def test_nothing_known_is_nothing_said():
    assert context_hashes(UserProfile(), Context(), None) == (0,) * CONTEXT_WORDS
    assert not buckets()


def test_each_value_has_a_word_of_its_own():
    user = UserProfile(attributes={"age": "33", "country": "DE"})
    found = buckets(user, Context(country="DE", device="phone", attributes={"os": "linux"}), NOON)
    assert len(found) == 7  # the user's country is not the context's; hour and weekday count, too
    assert all(0 < bucket < CONTEXT_BUCKETS for bucket in found)


def test_words_have_fixed_ids():
    assert buckets(context=Context(device="phone")) == {3555}


@pytest.mark.parametrize(("one", "other", "same"), [("33", "34", True), ("33", "60", False), ("-33", "33", False)])
def test_numbers_are_read_by_class(one, other, same):
    first, second = (buckets(UserProfile(attributes={"age": value})) for value in (one, other))
    assert (first == second) is same


@pytest.mark.parametrize("value", ["nan", "inf", "", " ", "0", "1", "-1", "1e400"])
def test_odd_values_are_words_like_others(value):
    assert len(buckets(UserProfile(attributes={"odd": value}))) == 1


def test_the_hour_is_that_of_the_clock_on_the_wall():
    utc = buckets(context=Context(), moment=NOON)
    assert buckets(context=Context(utc_offset_minutes=60), moment=NOON.replace(hour=11)) == utc
    assert buckets(context=Context(utc_offset_minutes=120), moment=NOON) != utc


def test_more_values_than_there_are_places_are_cut():
    user = UserProfile(attributes={f"name{number}": str(number) for number in range(60)})
    assert len(context_hashes(user, Context(), NOON)) == CONTEXT_WORDS
    assert len(buckets(user, moment=NOON)) == CONTEXT_WORDS


def test_a_model_with_fewer_learned_vectors_reads_the_same_words_into_fewer():
    hashes = context_hashes(UserProfile(), Context(device="phone", country="DE"), NOON)
    few = context_buckets(hashes, 8)
    assert ((few > 0) == (context_buckets(hashes) > 0)).all()
    assert few.max() < 8


def test_what_a_log_says_of_context_is_what_each_of_its_rows_says(world):
    """Hashes are made once for each combination of context, attributes and local hour, not once a row."""
    data = load_dataset(world.ads, world.clicks, world.users)
    random, log = np.random.default_rng(0), data.log
    time = np.where(random.random(len(log)) < 0.1, NO_TIME, log.time)
    offset = random.choice(np.array([0, 60, -570, 1440], np.int16), len(log))
    rooms = CodedColumn.of([["kitchen", "12", None][number] for number in random.integers(0, 3, len(log))])
    known = {
        user_id: UserProfile(user_id, attributes={"age": user_id[-1]}) for user_id in sorted(set(log.user_id))[::2]
    }
    mixed = replace(log, time=time, utc_offset=offset, context={**log.context, "room": rooms})
    found = every_context_hash(replace(data, log=mixed, users=known))
    for row, user_id in enumerate(log.user_id):
        context = mixed.context_at(row)
        want = context_hashes(known.get(user_id, UserProfile()), context, context.timestamp)
        assert found[row].tolist() == list(want)
