"""The client and the servers write the same messages of the same values, each from values of its own."""

from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest

import adcascade
from adcascade.client.messages import candidate_message, context_message, counter_message, user_message
from adcascade.records import ads, users
from adcascade.v1 import ranking_pb2, types_pb2
from adcascade.wire import ad_to_wire, context_to_wire, user_to_wire

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
AD = {
    "ad_id": "a1",
    "title": "Shoes",
    "body": "Light.",
    "advertiser": "Run Ltd",
    "category": "sport",
    "keywords": ("trail", "road"),
    "language": "en",
    "landing_url": "https://run.example/shoes",
    "image_uri": "https://run.example/shoes.png",
    "bid_micros": 5,
    "attributes": {"size": "L"},
    "start_time": NOON,
    "end_time": NOON + timedelta(days=1),
}
CONTEXT = {
    "country": "DE",
    "language": "de",
    "device": "phone",
    "placement": "top",
    "page_text": "News",
    "timestamp": NOON,
    "utc_offset_minutes": 60,
    "attributes": {"a": "b"},
}


def all_fields_set(message):
    return {field.name for field, _ in message.ListFields()} == set(message.DESCRIPTOR.fields_by_name)


def test_an_ad_is_the_same_message_with_every_field():
    message = candidate_message(adcascade.Ad(**AD)).ad
    assert message == ad_to_wire(ads.Ad(**AD))
    assert all_fields_set(message)


def test_a_context_is_the_same_message_with_every_field():
    message = context_message(adcascade.Context(**CONTEXT))
    assert message == context_to_wire(users.Context(**CONTEXT))
    assert all_fields_set(message)


@pytest.mark.parametrize("kind", users.EventType)
def test_a_user_is_the_same_message_with_every_field_and_kind_of_event(kind):
    about = [{"ad_id": "a1", "timestamp": NOON}, {"text": "shoes"}]
    given = {"user_id": "u1", "interests": "running", "attributes": {"age": "40"}}
    message = user_message(adcascade.User(**given, history=[adcascade.Event(kind.value, **one) for one in about]))
    history = tuple(users.Event(kind, **one) for one in about)
    assert message == user_to_wire(users.UserProfile(**given, history=history))
    assert all_fields_set(message)
    assert types_pb2.EventType.Name(message.history[0].type) == f"EVENT_TYPE_{kind.value.upper()}"


def test_every_kind_of_the_contract_is_one_of_the_client():
    kinds = [counter_message(adcascade.Counter(kind, "x", 9, 2)).kind for kind in adcascade.CounterKind]
    assert sorted([0, *kinds]) == sorted(ranking_pb2.CounterKind.values())
    assert len(adcascade.EventType) == len(users.EventType) == len(types_pb2.EventType.values()) - 1


def test_the_values_of_both_have_the_same_fields():
    for ours, theirs in (
        (adcascade.Ad, ads.Ad),
        (adcascade.Context, users.Context),
        (adcascade.User, users.UserProfile),
    ):
        assert {one.name for one in fields(ours)} == {one.name for one in fields(theirs)}
