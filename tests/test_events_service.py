"""The event store as a server: batches, streams, histories, totals, erasure, and what cannot be."""

import hashlib
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adcascade.artifacts.store import VersionStore
from adcascade.events.messages import MAX_EVENTS
from adcascade.events.published_ads import PublishedAds
from adcascade.events.sqlite_store import SqliteStore
from adcascade.events.values import AdKeys
from adcascade.serving.channel import open_channel
from adcascade.serving.errors import StartupError
from adcascade.v1 import events_pb2, ranking_pb2, types_pb2
from adcascade.v1.events_pb2_grpc import EventServiceStub
from pipeline.processes import running

NOW = datetime.now(UTC)
ACCEPTED, DUPLICATE, REJECTED = (
    events_pb2.RECORD_STATUS_ACCEPTED,
    events_pb2.RECORD_STATUS_DUPLICATE,
    events_pb2.RECORD_STATUS_REJECTED,
)
CLICK, IMPRESSION, SEARCH = types_pb2.EVENT_TYPE_CLICK, types_pb2.EVENT_TYPE_IMPRESSION, types_pb2.EVENT_TYPE_SEARCH


def recorded(event_id, kind=IMPRESSION, ad="ad-1", ago=60.0, text="", user="u-1", consent=True, **more):
    event = types_pb2.Event(type=kind, ad_id=ad) if not text else types_pb2.Event(type=kind, text=text)
    event.timestamp.FromDatetime(NOW - timedelta(seconds=ago))
    return events_pb2.RecordedEvent(event_id=event_id, user_id=user, event=event, consent=consent, **more)


@pytest.fixture
def started(tmp_path):
    flags = ["--data", str(tmp_path / "store"), "--port", "0"]
    with running([("adcascade.events", flags)], tmp_path) as (server,), open_channel(server.address) as channel:
        yield EventServiceStub(channel), server


@pytest.fixture
def stub(started):
    return started[0]


def record(stub, *events):
    return [one.status for one in stub.Record(events_pb2.RecordRequest(events=events)).results]


def history(stub, user, **more):
    return stub.GetUser(events_pb2.GetUserRequest(user_id=user, **more)).history


def test_what_a_user_just_did_is_known_at_once_and_counts_once(stub):
    context = types_pb2.Context(country="DE", attributes={"shelf": "top"})
    events = [
        recorded("e-1", ago=30, impression_id="i-1"),
        recorded("e-2", CLICK, ago=20, impression_id="i-1", context=context),
        recorded("e-3", SEARCH, text="running shoes", ago=40),
    ]
    assert record(stub, *events, events[0]) == [ACCEPTED, ACCEPTED, ACCEPTED, DUPLICATE]
    assert record(stub, events[1]) == [DUPLICATE]
    answer = stub.GetUser(events_pb2.GetUserRequest(user_id="u-1"))
    assert [(one.type, one.ad_id or one.text) for one in answer.history] == [
        (SEARCH, "running shoes"),
        (CLICK, "ad-1"),  # which stands for its impression
    ]
    assert answer.history[0].timestamp.ToDatetime(UTC) == NOW - timedelta(seconds=40)
    assert [(one.impressions, one.clicks) for one in answer.counters] == [(1, 1)]
    assert [one.ad_id for one in history(stub, "u-1", limit=1)] == ["ad-1"]
    key = events_pb2.CounterKey(kind=ranking_pb2.COUNTER_KIND_AD, id="ad-1")
    other = events_pb2.CounterKey(kind=ranking_pb2.COUNTER_KIND_AD, id="ad-2")
    ask = events_pb2.GetCountersRequest(keys=[key, other])
    ask.as_of.FromDatetime(NOW - timedelta(seconds=30) + timedelta(hours=6))
    found, nothing = stub.GetCounters(ask).counters
    assert (found.impressions, found.clicks, found.conversions) == (1, 1, 0)
    assert found.decayed[2] == pytest.approx(0.5, abs=1e-6)
    assert (nothing.id, nothing.impressions, found.last.ToDatetime(UTC)) == ("ad-2", 0, NOW - timedelta(seconds=30))
    logged = list(stub.Tail(events_pb2.TailRequest()))
    assert [one.event.event_id for one in logged] == ["e-1", "e-2", "e-3"]
    assert logged[1].event == events[1]
    assert [one.offset for one in stub.Tail(events_pb2.TailRequest(after=1, limit=1))] == [2]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (recorded(""), "no event_id"),
        (recorded("x" * 257), "event_id has 257 characters"),
        (recorded("e", user="u" * 1_000_000), "user_id has 1000000 characters"),
        (recorded("e", kind=99), "type is not set"),
        (recorded("e", value=float("nan")), "its value is nan"),
        (recorded("e", value=-1), "its value is -1"),
        (recorded("e", ago=-3600), "another unit?"),
        (recorded("e", ago=NOW.timestamp() - 1), "before 2000"),
        (events_pb2.RecordedEvent(event_id="e", event=types_pb2.Event(type=CLICK, ad_id="ad-1")), "no timestamp"),
        (recorded("e", SEARCH, text="shoes", consent=False), "needs consent"),
        (recorded("e", ad="", impression_id="nowhere"), "there is no impression 'nowhere'"),
        (recorded("e", context=types_pb2.Context(utc_offset_minutes=9999)), "no place is that far from UTC"),
    ],
)
def test_an_event_that_cannot_be_is_rejected_alone(stub, bad, reason):
    answer = stub.Record(events_pb2.RecordRequest(events=[recorded("good-1"), bad, recorded("good-2")]))
    assert [one.status for one in answer.results] == [ACCEPTED, REJECTED, ACCEPTED]
    assert reason in answer.results[1].reason
    assert len(list(stub.Tail(events_pb2.TailRequest()))) == 2


def test_a_history_of_long_texts_is_cut_to_what_a_message_holds(stub):
    texts = [recorded(f"s-{n}", SEARCH, text=f"{n:04}" + "x" * 32_000, ago=1000 - n) for n in range(200)]
    for start in range(0, 200, 50):
        assert set(record(stub, *texts[start : start + 50])) == {ACCEPTED}
    found = history(stub, "u-1")
    assert 40 < len(found) < 80
    assert [one.text[:4] for one in found] == [f"{n:04}" for n in range(200 - len(found), 200)]


def test_what_no_field_of_the_contract_says_is_not_kept(stub):
    context = types_pb2.Context(country="DE")
    padded = types_pb2.Context.FromString(context.SerializeToString() + b"\xfa\x07\x80\x08" + b"x" * 1024)  # field 127
    assert len(padded.SerializeToString()) > 1024
    assert record(stub, recorded("e-1", context=padded, user="")) == [ACCEPTED]
    (logged,) = stub.Tail(events_pb2.TailRequest())
    assert logged.event.context.SerializeToString() == context.SerializeToString()
    assert logged.event.consent


def test_without_consent_nothing_personal_is_kept(stub):
    context = types_pb2.Context(country="DE")
    assert record(stub, recorded("e-1", consent=False, context=context)) == [ACCEPTED]
    assert not history(stub, "u-1")
    (logged,) = stub.Tail(events_pb2.TailRequest())
    assert (logged.event.user_id, logged.event.context, logged.event.event.ad_id) == ("", types_pb2.Context(), "ad-1")
    key = events_pb2.CounterKey(kind=ranking_pb2.COUNTER_KIND_AD, id="ad-1")
    assert stub.GetCounters(events_pb2.GetCountersRequest(keys=[key])).counters[0].impressions == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda stub: stub.Record(events_pb2.RecordRequest()),
        lambda stub: stub.Record(events_pb2.RecordRequest(events=[recorded("e")] * (MAX_EVENTS + 1))),
        lambda stub: stub.GetUser(events_pb2.GetUserRequest()),
        lambda stub: stub.GetUser(events_pb2.GetUserRequest(user_id="u", limit=1001)),
        lambda stub: stub.DeleteUser(events_pb2.DeleteUserRequest(user_id="u" * 257)),
        lambda stub: stub.GetCounters(events_pb2.GetCountersRequest(keys=[events_pb2.CounterKey(id="a")])),
        lambda stub: list(stub.ExportUser(events_pb2.ExportUserRequest())),
        lambda stub: list(stub.RecordStream(iter([events_pb2.RecordRequest()]))),
    ],
)
def test_a_request_that_cannot_be_is_refused_whole(stub, ask):
    with pytest.raises(grpc.RpcError) as refused:
        ask(stub)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_answers_batch_by_batch(stub):
    def batches():
        for number in range(30):
            events = [recorded(f"e-{number}-{place}") for place in range(10)]
            yield events_pb2.RecordRequest(events=[*events, events[0]])

    answers = list(stub.RecordStream(batches()))
    assert len(answers) == 30
    assert all([one.status for one in answer.results] == [ACCEPTED] * 10 + [DUPLICATE] for answer in answers)
    assert answers[-1].offset == 300
    assert len(history(stub, "u-1")) == 300


def test_a_sender_that_reads_no_answers_is_not_read_either(stub):
    sent = 0
    rejected = events_pb2.RecordRequest(events=[recorded("")] * 1000)  # quickly answered, at length

    def endless():
        nonlocal sent
        while True:
            sent += 1
            yield rejected

    call = stub.RecordStream(endless(), timeout=60)
    before = -1
    end = time.monotonic() + 30
    while sent != before and time.monotonic() < end:  # until nothing more goes out
        before = sent
        time.sleep(2)
    assert sent == before < 3000
    next(call)
    call.cancel()
    assert record(stub, recorded("after")) == [ACCEPTED]


def test_ads_of_a_version_that_is_published_later_are_known(tmp_path):
    def publish(*ads):
        with store.begin() as draft:
            columns = {name: [f"{ad}-{name}" for ad in ads] for name in ("advertiser", "category")}
            pq.write_table(pa.table({"ad_id": list(ads), **columns}), draft.path / "ads.parquet")
            store.commit(draft, content={})
        store.publish(draft.version)

    store = VersionStore(tmp_path, "index")
    publish("a")
    ads = PublishedAds(tmp_path, poll_seconds=0.0)
    assert (ads("a"), ads("b")) == (AdKeys("a-advertiser", "a-category"), None)
    publish("b")
    time.sleep(0.15)
    assert (ads("b"), ads("a")) == (AdKeys("b-advertiser", "b-category"), None)


def test_an_erased_user_is_gone_and_a_stay_is_said(stub):
    record(stub, *(recorded(f"e-{n}", user="gone") for n in range(5)), recorded("other", user="here"))
    assert [one.event.event_id for one in stub.ExportUser(events_pb2.ExportUserRequest(user_id="gone"))] == [
        f"e-{n}" for n in sorted(range(5), key=lambda n: hashlib.blake2b(f"e-{n}".encode(), digest_size=16).digest())
    ]
    answer = stub.DeleteUser(events_pb2.DeleteUserRequest(user_id="gone"))
    assert (answer.events, answer.counters) == (5, 1)
    assert "totals of the ads" in answer.stays
    assert not list(stub.ExportUser(events_pb2.ExportUserRequest(user_id="gone")))
    assert len(history(stub, "here")) == 1


def test_a_killed_store_starts_again_with_all_that_it_acknowledged(tmp_path):
    flags = ["--data", str(tmp_path / "store"), "--port", "0"]
    with running([("adcascade.events", flags)], tmp_path / "first") as (server,):
        with open_channel(server.address) as channel:
            record(EventServiceStub(channel), *(recorded(f"e-{n}") for n in range(100)))
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with (
        running([("adcascade.events", flags)], tmp_path / "second") as (server,),
        open_channel(server.address) as channel,
    ):
        stub = EventServiceStub(channel)
        assert len(history(stub, "u-1")) == 100
        assert record(stub, *(recorded(f"e-{n}") for n in range(100))) == [DUPLICATE] * 100


def test_with_a_key_the_store_never_holds_an_id_and_with_an_index_it_knows_ads(tmp_path, world):
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    flags = ["--data", str(tmp_path / "store"), "--port", "0", "--pseudonymise", str(key), "--index", str(world.index)]
    with running([("adcascade.events", flags)], tmp_path) as (server,), open_channel(server.address) as channel:
        stub = EventServiceStub(channel)
        known = world.ads.read_text().split('"ad_id": "')[1].split('"')[0]
        assert record(stub, recorded("e-1", ad=known, user="somebody-real"), recorded("e-2", ad="no-such")) == [
            ACCEPTED,
            REJECTED,
        ]
        answer = stub.GetUser(events_pb2.GetUserRequest(user_id="somebody-real"))
        assert [one.ad_id for one in answer.history] == [known]
        assert len(answer.counters) > 1
        for path in (tmp_path / "store").iterdir():
            assert b"somebody-real" not in path.read_bytes()


@pytest.mark.parametrize("what", ["short key", "no index", "empty index", "taken", "another key", "for ever"])
def test_a_store_that_cannot_start_says_why(tmp_path, what, started):
    key = tmp_path / "key"
    key.write_bytes(b"short")
    good = tmp_path / "good"
    good.write_bytes(bytes(range(32)))
    SqliteStore(tmp_path / "begun").close()
    flags, reason = {
        "short key": (["--pseudonymise", str(key)], "has 5 bytes; make one"),
        "no index": (["--index", str(tmp_path / "nowhere")], "nowhere"),
        "empty index": (["--index", str(tmp_path)], "nothing is published"),
        "another key": (["--pseudonymise", str(good)], "was begun with no key"),
        "for ever": (["--retention-days", "inf"], "retention-days|retention_days|finite"),
        "taken": ([], "another process has the event store"),
    }[what]
    folder = {"taken": "store", "another key": "begun"}.get(what, "other")
    data = ["--data", str(tmp_path / folder)]
    with (
        pytest.raises(StartupError, match=reason),
        running([("adcascade.events", [*data, *flags, "--port", "0"])], tmp_path / "second"),
    ):
        pass
