"""Users and contexts from files: what is taken, what becomes an attribute, what is refused with file and row."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_HISTORY
from adcascade.records.users import (
    EVENT_WEIGHT,
    Event,
    EventType,
    UserProfile,
    check_user,
    read_users,
)

ANNA = UserProfile(
    "7",
    "trail running",
    {"age": "30", "city": "Köln"},
    (
        Event(EventType.CLICK, ad_id="a1", timestamp=datetime(2024, 5, 1, 12, tzinfo=UTC)),
        Event(EventType.SEARCH, text="red shoes", timestamp=datetime(2024, 5, 1, 12, 0, 5, tzinfo=UTC)),
        Event(EventType.HIDE, ad_id="5"),
    ),
)
ROW = {
    "user_id": 7,
    "interests": "trail running",
    "attributes": {"age": 30},
    "history": [
        {"type": "click", "ad_id": "a1", "timestamp": "2024-05-01T12:00:00Z"},
        {"type": "SEARCH", "text": "red shoes", "timestamp": 1_714_564_805},
        {"type": "hide", "ad_id": 5},
    ],
    "city": "Köln",
    "nothing": None,
}


def read(tmp_path, *rows):
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_users(path))


def test_a_user_is_read_with_history_and_further_columns_as_attributes(tmp_path):
    assert read(tmp_path, ROW, {"user_id": "b"}) == [ANNA, UserProfile("b")]


def test_a_user_reads_alike_from_parquet(tmp_path):
    event = pa.struct([("type", pa.string()), ("ad_id", pa.string()), ("text", pa.string()), ("timestamp", "float64")])
    moments = [1_714_564_800.0, 1_714_564_805.0, None]
    history = [{**entry, "timestamp": time} for entry, time in zip(ROW["history"], moments, strict=True)]
    history[2]["ad_id"] = "5"
    columns = {
        "user_id": ["7", "b"],
        "interests": ["trail running", None],
        "attributes": pa.array([[("age", "30")], None], pa.map_(pa.string(), pa.string())),
        "history": pa.array([history, None], pa.list_(event)),
        "city": ["Köln", None],
    }
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    assert list(read_users(tmp_path / "users.parquet")) == [ANNA, UserProfile("b")]


def test_a_user_without_history_reads_from_csv(tmp_path):
    (tmp_path / "users.csv").write_text('user_id,interests,attributes,age\nb,tea,"{""a"": ""1""}",30\n')
    assert list(read_users(tmp_path / "users.csv")) == [UserProfile("b", "tea", {"a": "1", "age": "30"})]


def with_history(*events):
    return {"user_id": "u", "history": list(events)}


REFUSED = {
    "an unknown event type": (with_history({"type": "purchase", "ad_id": "a"}), "event type 'purchase' is not one of"),
    "an event without a type": (with_history({"ad_id": "a"}), "event type '' is not one of impression"),
    "an event that is a word": (with_history("click"), "an event must be an object, not str"),
    "an event about nothing": (with_history({"type": "click"}), r"history\[0\] needs exactly one of ad_id and text"),
    "an event about two things": (
        with_history({"type": "view", "ad_id": "a", "text": "b"}),
        "exactly one of ad_id and text",
    ),
    "an event at no time": (with_history({"type": "view", "ad_id": "a", "timestamp": "soon"}), "timestamp must be"),
    "a history that is a number": (with_history() | {"history": 5}, "history"),
    "a history that is true": (with_history() | {"history": True}, "history"),
    "1001 events": (with_history(*[{"type": "view", "ad_id": "a"}] * 1001), "1001 events; the limit is 1000"),
    "long interests": ({"user_id": "u", "interests": "x" * 32_769}, "interests has 32769 characters"),
    "a long search": (
        with_history({"type": "search", "text": "x" * 32_769}),
        r"history\[0\].text has 32769 characters",
    ),
    "a long id": ({"user_id": "u" * 257}, "user_id has 257 characters; the limit is 256"),
    "a long ad id": (with_history({"type": "view", "ad_id": "a" * 257}), r"history\[0\].ad_id has 257 characters"),
    "65 attributes": (
        {"user_id": "u"} | {f"a{number}": "x" for number in range(65)},
        "user.attributes has 65 entries; the limit is 64",
    ),
    "a long attribute": ({"user_id": "u", "story": "x" * 32_768}, "user.attributes has 32773 characters"),
    "interests that are a list": ({"user_id": "u", "interests": ["a"]}, "interests must be text, not list"),
    "attributes that are a list": ({"user_id": "u", "attributes": [1]}, "attributes"),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_a_user_that_breaks_a_rule_is_refused_with_file_and_row(tmp_path, row, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, {"user_id": "fine"}, row)
    assert str(caught.value).startswith("users.jsonl, row 2: ")


def test_a_damaged_line_is_refused_with_file_and_row(tmp_path):
    (tmp_path / "users.jsonl").write_text('{"user_id": "a"}\n{"user_id": \n')
    users = read_users(tmp_path / "users.jsonl")
    assert next(users).user_id == "a"
    with pytest.raises(InputError, match=r"users\.jsonl, row 2: not valid JSON"):
        next(users)


def test_a_user_at_the_limits_is_fine(tmp_path):
    row = with_history(*[{"type": "view", "ad_id": "a"}] * MAX_HISTORY) | {"interests": "x" * 32_768}
    (user,) = read(tmp_path, row)
    check_user(user)
    assert len(user.history) == MAX_HISTORY


def test_every_event_type_has_a_weight_and_dislike_weighs_less_than_nothing():
    assert set(EVENT_WEIGHT) == set(EventType)
    assert EVENT_WEIGHT[EventType.HIDE] < EVENT_WEIGHT[EventType.SHORT_VIEW] < EVENT_WEIGHT[EventType.IMPRESSION] == 0
    assert 0 < EVENT_WEIGHT[EventType.VIEW] < EVENT_WEIGHT[EventType.CLICK] < EVENT_WEIGHT[EventType.CONVERSION]
