"""Recommend by user id: what the event store knows of a user joins what the request brings."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from adcascade import Client, User
from adcascade.serving.channel import open_channel
from adcascade.v1 import events_pb2, recommend_pb2, types_pb2
from adcascade.v1.events_pb2_grpc import EventServiceStub
from adcascade.v1.recommend_pb2_grpc import RecommendServiceStub
from pipeline.live_users import merged
from pipeline.processes import running

NOW = datetime.now(UTC).replace(microsecond=123_456)
CLICK, VIEW = types_pb2.EVENT_TYPE_CLICK, types_pb2.EVENT_TYPE_VIEW


def event(ad, ago=None, kind=CLICK):
    found = types_pb2.Event(type=kind, ad_id=ad)
    if ago is not None:
        found.timestamp.FromDatetime(NOW - timedelta(seconds=ago))
    return found


def ads_of(events):
    return [one.ad_id for one in events]


def test_two_histories_become_one_in_order_of_time_without_an_event_twice():
    stored = [event("a", 50), event("b", 30), event("c", 10)]
    sent = [event("x", 40), event("b", 30), event("b", 30, VIEW), event("b", 29)]
    nanos = event("c", 10)
    nanos.timestamp.nanos += 789  # of a microsecond, which the store does not keep
    assert ads_of(merged(stored, [*sent, nanos])) == ["a", "x", "b", "b", "b", "c"]
    assert ads_of(merged([], sent)) == ads_of(sent)
    assert merged(stored, []) == stored


def test_events_without_a_time_stay_in_their_order_behind_those_of_the_store():
    assert ads_of(merged([event("a", 50), event("b", 1)], [event("y"), event("x", 100), event("y")])) == list("abyxy")


def test_of_many_events_the_newest_thousand_are_kept():
    stored = [event(f"s-{n}", 5000 - n) for n in range(1000)]
    both = merged(stored, [event("new", 1), event("old", 9000)])
    assert (len(both), both[-1].ad_id, both[0].ad_id) == (1000, "new", "s-1")


@pytest.fixture(scope="module")
def cascade(world, tmp_path_factory):
    """Addresses of a gateway and of an event store behind it, and the store's process."""
    folder = tmp_path_factory.mktemp("live")
    stages = [
        ("retrieval", ["--index", str(world.index), "--port", "0"]),
        ("ranking", ["--model", str(world.model), "--index", str(world.index), "--port", "0"]),
        ("adcascade.events", ["--data", str(folder / "store"), "--index", str(world.index), "--port", "0"]),
    ]
    with running(stages, folder) as (retrieval, ranking, events):
        flags = ["--retrieval", retrieval.address, "--ranking", ranking.address, "--events", events.address]
        with running([("pipeline", [*flags, "--port", "0"])], folder) as (gateway,):
            yield gateway.address, events


def test_a_click_is_known_to_the_next_call_by_id_alone(cascade):
    gateway, events = cascade
    with open_channel(events.address) as channel, Client(gateway) as client:
        store = EventServiceStub(channel)
        user = User(user_id="reader-1", interests="espresso beans")
        before = client.recommend(user, k=5)
        assert before.history_missing_reason == ""
        clicked = before[0].ad_id
        message = events_pb2.RecordedEvent(event_id="c-1", user_id="reader-1", event=event(clicked, 0), consent=True)
        assert store.Record(events_pb2.RecordRequest(events=[message])).results[0].status == 1
        after = client.recommend(user, k=5)
        assert clicked not in [one.ad_id for one in after]  # it is in the history now
        by_id = client.recommend(User(user_id="reader-1"), k=5)  # with nothing else
        assert len(by_id) == 5
        assert clicked not in [one.ad_id for one in by_id]
        assert 0 < after.timings.events_ms < 1000
        assert clicked in [
            one.ad_id for one in client.recommend(User(user_id="reader-2", interests="espresso beans"), k=5)
        ]


def test_the_same_call_answers_as_with_the_history_inline(cascade):
    gateway, events = cascade
    with open_channel(events.address) as channel, open_channel(gateway) as to_gateway:
        store, recommend = EventServiceStub(channel), RecommendServiceStub(to_gateway).Recommend
        first = recommend(recommend_pb2.RecommendRequest(user=types_pb2.UserProfile(interests="espresso"), k=6))
        history = [event(one.ad.ad_id, 60 - place) for place, one in enumerate(first.recommendations[:3])]
        records = [
            events_pb2.RecordedEvent(event_id=f"h-{place}", user_id="reader-3", event=one, consent=True)
            for place, one in enumerate(reversed(history))
        ]
        store.Record(events_pb2.RecordRequest(events=records))
        at = types_pb2.Context()
        at.timestamp.FromDatetime(NOW)
        inline = types_pb2.UserProfile(user_id="reader-3-inline", history=history)
        answers = [
            recommend(recommend_pb2.RecommendRequest(user=user, context=at, k=6)).recommendations
            for user in (types_pb2.UserProfile(user_id="reader-3"), inline)
        ]
        assert [one.ad.ad_id for one in answers[0]] == [one.ad.ad_id for one in answers[1]]
        assert [one.p_click for one in answers[0]] == pytest.approx([one.p_click for one in answers[1]], abs=1e-6)


def test_an_ad_that_was_merely_shown_may_be_shown_again(cascade):
    gateway, events = cascade
    with open_channel(events.address) as channel, Client(gateway) as client:
        user = User(user_id="reader-4", interests="espresso beans")
        shown = [one.ad_id for one in client.recommend(user, k=3)]
        records = [
            events_pb2.RecordedEvent(
                event_id=f"shown-{ad_id}",
                user_id="reader-4",
                event=event(ad_id, 5, types_pb2.EVENT_TYPE_IMPRESSION),
                consent=True,
            )
            for ad_id in shown
        ]
        EventServiceStub(channel).Record(events_pb2.RecordRequest(events=records))
        assert set(shown) <= {one.ad_id for one in client.recommend(user, k=60)}


def test_a_store_that_is_gone_costs_the_history_and_not_the_answer(cascade):
    gateway, events = cascade
    os.kill(events.process.pid, signal.SIGSTOP)
    try:
        with Client(gateway) as client:
            started = time.monotonic()
            answer = client.recommend(User(user_id="reader-1", interests="espresso beans"), k=3)
            assert (len(answer), answer.degraded) == (3, False)
            assert answer.history_missing_reason == "DEADLINE_EXCEEDED"
            assert time.monotonic() - started < 2
            assert client.recommend(User(interests="espresso beans"), k=3).history_missing_reason == ""  # of nobody
    finally:
        os.kill(events.process.pid, signal.SIGCONT)
    end = time.monotonic() + 20
    with Client(gateway) as client:
        while client.recommend(User(user_id="reader-1", interests="espresso beans"), k=3).history_missing_reason:
            assert time.monotonic() < end
            time.sleep(0.1)
