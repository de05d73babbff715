"""Between wire and records: what goes in comes out, and every limit is told by the name of its field."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adcascade import wire as convert
from adcascade.records.ads import Ad
from adcascade.records.errors import InputError
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.v1 import ranking_pb2, types_pb2

MEGABYTE = "x" * 1_000_000
VISIBLE = st.text(min_size=1, max_size=50).filter(str.strip)
SHORT = st.text(max_size=30)
ATTRIBUTES = st.dictionaries(SHORT, SHORT, max_size=5)
MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
DIMENSION = 4

quickly = settings(deadline=None)  # a slow moment of the machine is no failure

ADS = st.builds(
    Ad,
    ad_id=st.text(min_size=1, max_size=256),
    title=VISIBLE,
    body=SHORT,
    advertiser=SHORT,
    category=SHORT,
    keywords=st.lists(SHORT, max_size=5).map(tuple),
    language=SHORT,
    landing_url=SHORT,
    image_uri=SHORT,
    bid_micros=st.integers(0, 2**63 - 1),
    attributes=ATTRIBUTES,
    start_time=MOMENTS,
    end_time=MOMENTS,
).filter(lambda ad: ad.start_time is None or ad.end_time is None or ad.start_time < ad.end_time)
EVENTS = st.builds(Event, st.sampled_from(EventType), ad_id=VISIBLE, timestamp=MOMENTS) | st.builds(
    Event, st.sampled_from(EventType), text=VISIBLE, timestamp=MOMENTS
)
USERS = st.builds(
    UserProfile,
    user_id=SHORT,
    interests=SHORT,
    attributes=ATTRIBUTES,
    history=st.lists(EVENTS, max_size=8).map(tuple),
)
CONTEXTS = st.builds(
    Context,
    country=SHORT,
    language=SHORT,
    device=SHORT,
    placement=SHORT,
    page_text=SHORT,
    timestamp=MOMENTS,
    attributes=ATTRIBUTES,
)
VECTORS = st.integers(1, convert.MAX_VECTORS).flatmap(
    lambda rows: arrays(
        np.float32, (rows, DIMENSION), elements=st.floats(-(2.0**58), 2.0**58, width=32, allow_subnormal=False)
    )
)


@quickly
@given(ADS)
def test_an_ad_survives_the_wire(ad):
    sent = convert.ad_to_wire(ad).SerializeToString()
    assert convert.ad_from_wire(types_pb2.Ad.FromString(sent)) == ad


@quickly
@given(USERS)
def test_a_user_survives_the_wire(user):
    sent = convert.user_to_wire(user).SerializeToString()
    assert convert.user_from_wire(types_pb2.UserProfile.FromString(sent)) == user


@quickly
@given(CONTEXTS)
def test_a_context_survives_the_wire(context):
    sent = convert.context_to_wire(context).SerializeToString()
    assert convert.context_from_wire(types_pb2.Context.FromString(sent)) == context


@pytest.mark.parametrize("kind", EventType)
def test_every_type_of_event_has_its_own_number_on_the_wire(kind):
    message = convert.user_to_wire(UserProfile(history=(Event(kind, ad_id="a"),)))
    assert types_pb2.EventType.Name(message.history[0].type) == f"EVENT_TYPE_{kind.name}"


def test_a_time_is_read_as_utc_to_the_microsecond():
    message = types_pb2.Context(timestamp=Timestamp(seconds=1_700_000_000, nanos=123_456_789))
    assert convert.context_from_wire(message).timestamp == datetime(2023, 11, 14, 22, 13, 20, 123_456, UTC)


def test_a_time_that_is_not_known_is_not_1970():
    assert convert.context_from_wire(types_pb2.Context()).timestamp is None
    assert not convert.context_to_wire(Context()).HasField("timestamp")
    assert convert.context_from_wire(types_pb2.Context(timestamp=Timestamp())).timestamp == datetime(
        1970, 1, 1, tzinfo=UTC
    )


def make_ad(**changes: Any) -> types_pb2.Ad:
    return types_pb2.Ad(**{"ad_id": "a", "title": "t", **changes})


def make_user(*events: types_pb2.Event, **fields: Any) -> types_pb2.UserProfile:
    return types_pb2.UserProfile(history=events, **fields)


def click(**fields: Any) -> types_pb2.Event:
    return types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, **fields)


def many(count: int) -> dict[str, str]:
    return {f"name {number}": "value" for number in range(count)}


AD, USER, CONTEXT = convert.ad_from_wire, convert.user_from_wire, convert.context_from_wire
COUNTER = partial(convert.counter_from_wire, name="counters[0]")
FAR = Timestamp(seconds=10**12)
LIMITS = [
    (AD, make_ad(ad_id=""), "ad_id is empty"),
    (AD, make_ad(ad_id="x" * 257), "ad_id has 257 characters"),
    (AD, make_ad(title="", body=""), "title and body are empty"),
    (AD, make_ad(title=" \n"), "title and body are empty"),
    (AD, make_ad(title=MEGABYTE), "title and body have 1000000 characters"),
    (AD, make_ad(body=MEGABYTE), "title and body have 1000001 characters"),
    (AD, make_ad(advertiser="x" * 257), "advertiser has 257 characters"),
    (AD, make_ad(category=MEGABYTE), "category has 1000000 characters"),
    (AD, make_ad(keywords=["short", "x" * 257]), "keyword has 257 characters"),
    (AD, make_ad(keywords=["k"] * 65), "65 keywords"),
    (AD, make_ad(attributes=many(65)), "attributes has 65 entries"),
    (AD, make_ad(attributes={"name": MEGABYTE}), r"attributes has \d+ characters"),
    (AD, make_ad(language="x" * 257), "language has 257 characters"),
    (AD, make_ad(landing_url="x" * 2049), "landing_url has 2049 characters"),
    (AD, make_ad(image_uri="x" * 2049), "image_uri has 2049 characters"),
    (AD, make_ad(bid_micros=-1), "bid_micros"),
    (AD, make_ad(start_time=FAR), "start_time is not a time"),
    (AD, make_ad(start_time=Timestamp(seconds=5), end_time=Timestamp(seconds=5)), "is not after start_time"),
    (AD, make_ad(end_time=FAR), "end_time is not a time"),
    (USER, make_user(interests=MEGABYTE), "interests has 1000000 characters"),
    (USER, make_user(*[click(ad_id="a")] * 1001), "history has 1001 events"),
    (USER, types_pb2.UserProfile(user_id="x" * 257), "user_id has 257 characters"),
    (USER, make_user(click(ad_id="x" * 257)), r"history\[0\].ad_id has 257 characters"),
    (USER, make_user(attributes=many(65)), "user.attributes has 65 entries"),
    (USER, make_user(attributes={"name": MEGABYTE}), r"user.attributes has \d+ characters"),
    (USER, make_user(attributes={MEGABYTE: "value"}), r"user.attributes has \d+ characters"),
    (USER, make_user(click(ad_id="a"), types_pb2.Event(ad_id="a")), r"history\[1\].type"),
    (USER, make_user(types_pb2.Event(type=99, ad_id="a")), r"history\[0\].type"),
    (USER, make_user(click(ad_id="a"), click()), r"history\[1\] needs exactly one of ad_id and text"),
    (USER, make_user(click(text="")), r"history\[0\] needs exactly one of ad_id and text"),
    (USER, make_user(click(text=MEGABYTE)), r"history\[0\].text has 1000000 characters"),
    (USER, make_user(click(ad_id="a", timestamp=FAR)), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(country="x" * 257), "context.country has 257 characters"),
    (CONTEXT, types_pb2.Context(language="x" * 257), "context.language has 257 characters"),
    (CONTEXT, types_pb2.Context(device="x" * 257), "context.device has 257 characters"),
    (CONTEXT, types_pb2.Context(placement="x" * 257), "context.placement has 257 characters"),
    (CONTEXT, types_pb2.Context(page_text=MEGABYTE), "context.page_text has 1000000 characters"),
    (CONTEXT, types_pb2.Context(attributes=many(65)), "context.attributes has 65 entries"),
    (CONTEXT, types_pb2.Context(attributes={"n": MEGABYTE}), r"context.attributes has \d+ characters"),
    (CONTEXT, types_pb2.Context(attributes={MEGABYTE: "v"}), r"context.attributes has \d+ characters"),
    (CONTEXT, types_pb2.Context(timestamp=FAR), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(utc_offset_minutes=1441), "context.utc_offset_minutes is 1441"),
    (CONTEXT, types_pb2.Context(utc_offset_minutes=-1441), "context.utc_offset_minutes is -1441"),
    (CONTEXT, types_pb2.Context(timestamp=Timestamp(nanos=-1)), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(timestamp=Timestamp(nanos=10**9)), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(timestamp=Timestamp(seconds=2**63 - 1)), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(timestamp=Timestamp(seconds=-(2**63))), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(timestamp=Timestamp(seconds=253402300799, nanos=2**31 - 1)), "timestamp is not a time"),
    (CONTEXT, types_pb2.Context(utc_offset_minutes=-(2**31)), "context.utc_offset_minutes is -2147483648"),
    (AD, make_ad(bid_micros=-(2**63)), "bid_micros"),
    (AD, make_ad(start_time=Timestamp(nanos=-(2**31))), "start_time is not a time"),
    (USER, make_user(click(ad_id="a", timestamp=Timestamp(seconds=2**62))), "timestamp is not a time"),
    (COUNTER, ranking_pb2.Counter(kind=1, id="a", impressions=2**53 + 1), "0 clicks on 9007199254740993 impressions"),
    (COUNTER, ranking_pb2.Counter(kind=1, id="a", impressions=1, clicks=2**64 - 1), "18446744073709551615 clicks"),
    (COUNTER, ranking_pb2.Counter(kind=1, id="a", last=Timestamp(seconds=2**62)), "last is not a time"),
]


@pytest.mark.parametrize(("convert_message", "message", "complaint"), LIMITS, ids=[limit[2] for limit in LIMITS])
def test_what_breaks_a_limit_is_refused_by_the_name_of_its_field(convert_message, message, complaint):
    with pytest.raises(InputError, match=complaint) as refused:
        convert_message(message)
    assert len(str(refused.value)) < 500  # a megabyte does not belong in an error message


def test_the_limits_themselves_are_allowed():
    ad = make_ad(
        ad_id="i" * 256,
        title="t" * 20_000,
        body="b" * 12_768,
        advertiser="x" * 256,
        category="x" * 256,
        keywords=["k" * 256] * 64,
        attributes=many(64),
    )
    assert len(convert.ad_from_wire(ad).keywords) == 64
    user = make_user(*[click(text="s" * 32_768)] * 1000, interests="s" * 32_768, attributes=many(64))
    assert len(convert.user_from_wire(user).history) == 1000
    context = types_pb2.Context(page_text="p" * 32_768, attributes=many(64), utc_offset_minutes=-1440)
    read = convert.context_from_wire(context)
    assert (len(read.attributes), read.utc_offset_minutes) == (64, -1440)
    assert convert.context_to_wire(read) == context


@quickly
@given(VECTORS)
def test_vectors_arrive_as_unit_vectors_from_packed_floats_and_raw_bytes_alike(vectors):
    exact = vectors.astype(np.float64)
    assume((np.linalg.norm(exact, axis=1) >= convert.MIN_NORM).all())
    want = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    for raw in (False, True):
        message = convert.vectors_to_wire(vectors, raw=raw)
        assert bool(message.raw) == raw
        assert bool(message.values) != raw
        got = convert.vectors_from_wire(types_pb2.InterestVectors.FromString(message.SerializeToString()), DIMENSION)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=1e-6)


def packed(*values: float, dimension: int = 2) -> types_pb2.InterestVectors:
    return types_pb2.InterestVectors(dimension=dimension, values=values)


def raw(*values: float, dimension: int = 2) -> types_pb2.InterestVectors:
    return types_pb2.InterestVectors(dimension=dimension, raw=np.array(values, "<f4").tobytes())


def test_raw_bytes_are_little_endian_float32_row_after_row():
    message = types_pb2.InterestVectors(dimension=2, raw=bytes.fromhex("00004040 00008040 00000000 000080bf"))
    np.testing.assert_allclose(convert.vectors_from_wire(message, 2), [[0.6, 0.8], [0, -1]], rtol=1e-6)


@pytest.mark.parametrize("make", [packed, raw])
@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((float("nan"), 1.0), "NaN, infinity, or only zeros"),
        ((1.0, 0.0, float("inf"), 1.0), "NaN, infinity, or only zeros"),
        ((float("-inf"), 1.0), "NaN, infinity, or only zeros"),
        ((1.0, 0.0, 0.0, 0.0), "NaN, infinity, or only zeros"),
        ((3e38, 3e38), "overflows in 32 bits"),
        ((1.0, 0.0, 2e18, 0.0), "overflows in 32 bits"),
        ((1e-45, 0.0), "overflows in 32 bits"),
        ((1e-30, -1e-30), "overflows in 32 bits"),
        ((1.0, 2.0, 3.0), "not a multiple of"),
        ((1.0,) * 34, "17 vectors; the limit is 16"),
        ((), "exactly one of values and raw"),
    ],
)
def test_vectors_that_cannot_be_searched_with_are_refused(make: Callable[..., Any], values, complaint):
    with pytest.raises(InputError, match=complaint):
        convert.vectors_from_wire(make(*values), 2)


@pytest.mark.parametrize("make", [packed, raw])
@pytest.mark.parametrize("dimension", [0, 1, 3])
def test_vectors_of_another_dimension_are_refused(make, dimension):
    with pytest.raises(InputError, match=f"vectors have dimension {dimension}; this index has 2"):
        convert.vectors_from_wire(make(3.0, 4.0, dimension=dimension), 2)


def test_vectors_in_both_fields_are_refused():
    message = types_pb2.InterestVectors(dimension=2, values=[1, 0], raw=raw(1.0, 0.0).raw)
    with pytest.raises(InputError, match="exactly one of values and raw"):
        convert.vectors_from_wire(message, 2)


@pytest.mark.parametrize("length", [1, 7, 9, 12])
def test_raw_bytes_that_end_within_a_vector_are_refused(length):
    message = types_pb2.InterestVectors(dimension=2, raw=b"\1" * length)
    with pytest.raises(InputError, match=rf"raw has {length} bytes, not a multiple of 4 x 2"):
        convert.vectors_from_wire(message, 2)


@pytest.mark.parametrize("make", [packed, raw])
def test_16_vectors_are_allowed(make):
    assert convert.vectors_from_wire(make(*(3.0, 4.0) * 16), 2).shape == (16, 2)
