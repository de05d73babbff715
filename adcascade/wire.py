"""Between the wire messages and the values of `records`; the one place that does it.

Knows limits of the wire contract; raises `adcascade.records.errors.InputError` naming the field that breaks one.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from adcascade.records.ads import Ad, problem_with
from adcascade.records.counter_table import Total
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_HISTORY, MAX_ID_CHARS, check_text
from adcascade.records.users import Context, Event, EventType, UserProfile, check_context, check_user
from adcascade.v1 import ranking_pb2, retrieval_pb2, types_pb2

MAX_VECTORS = 16
MAX_IMPRESSIONS = 2**53
# Beyond these the squares of a vector's numbers, and so its inner products, overflow or vanish in 32 bits.
MAX_NORM, MIN_NORM = 1e18, 1e-18
_NANOS = 10**9
MAX_COUNTERS = 4000

# Kinds of events have the same names on the wire.
_WIRE_EVENT_TYPES = {kind: types_pb2.EventType.Value(f"EVENT_TYPE_{kind.name}") for kind in EventType}
_EVENT_TYPES = {number: kind for kind, number in _WIRE_EVENT_TYPES.items()}
COUNTER_KINDS: Mapping[ranking_pb2.CounterKind.ValueType, str] = {
    ranking_pb2.COUNTER_KIND_AD: "ad",
    ranking_pb2.COUNTER_KIND_ADVERTISER: "advertiser",
    ranking_pb2.COUNTER_KIND_CATEGORY: "category",
    ranking_pb2.COUNTER_KIND_USER: "user",
    ranking_pb2.COUNTER_KIND_USER_CATEGORY: "user_category",
    ranking_pb2.COUNTER_KIND_USER_ADVERTISER: "user_advertiser",
}


def ad_from_wire(message: types_pb2.Ad) -> Ad:
    """An ad of the request. Raises InputError if it has no id, no text, or breaks a limit."""
    ad = Ad(
        ad_id=message.ad_id,
        title=message.title,
        body=message.body,
        advertiser=message.advertiser,
        category=message.category,
        keywords=tuple(message.keywords),
        language=message.language,
        landing_url=message.landing_url,
        image_uri=message.image_uri,
        bid_micros=message.bid_micros,
        attributes=dict(message.attributes),
        start_time=_time(message, "start_time", message.start_time),
        end_time=_time(message, "end_time", message.end_time),
    )
    problem = problem_with(ad)
    if problem:
        raise InputError(f"ad {ad.ad_id[:64]!r}: {problem[1]}")
    return ad


def ad_to_wire(ad: Ad, *, with_bid: bool = True) -> types_pb2.Ad:
    """The wire form of an ad; without its bid for those who may not see it."""
    return types_pb2.Ad(
        ad_id=ad.ad_id,
        title=ad.title,
        body=ad.body,
        advertiser=ad.advertiser,
        category=ad.category,
        keywords=ad.keywords,
        language=ad.language,
        landing_url=ad.landing_url,
        image_uri=ad.image_uri,
        bid_micros=ad.bid_micros if with_bid else 0,
        attributes=dict(ad.attributes),
        start_time=_wire_time(ad.start_time),
        end_time=_wire_time(ad.end_time),
    )


def user_from_wire(message: types_pb2.UserProfile) -> UserProfile:
    """The user of a request. Raises InputError if a limit is broken or an event is incomplete."""
    if len(message.history) > MAX_HISTORY:  # before thousands of events are converted in vain
        raise InputError(f"history has {len(message.history)} events; the limit is {MAX_HISTORY}: send the newest")
    user = UserProfile(
        user_id=message.user_id,
        interests=message.interests,
        attributes=dict(message.attributes),
        history=tuple(event_from_wire(f"history[{place}]", event) for place, event in enumerate(message.history)),
    )
    check_user(user)
    return user


def user_to_wire(user: UserProfile) -> types_pb2.UserProfile:
    """The wire form of a user."""
    return types_pb2.UserProfile(
        user_id=user.user_id,
        interests=user.interests,
        attributes=dict(user.attributes),
        history=[event_to_wire(event) for event in user.history],
    )


def context_from_wire(message: types_pb2.Context) -> Context:
    """The context of a request. Raises InputError if a limit is broken."""
    context = Context(
        country=message.country,
        language=message.language,
        device=message.device,
        placement=message.placement,
        page_text=message.page_text,
        timestamp=_time(message, "timestamp", message.timestamp),
        utc_offset_minutes=message.utc_offset_minutes,
        attributes=dict(message.attributes),
    )
    check_context(context)
    return context


def context_to_wire(context: Context) -> types_pb2.Context:
    """The wire form of a context."""
    return types_pb2.Context(
        country=context.country,
        language=context.language,
        device=context.device,
        placement=context.placement,
        page_text=context.page_text,
        timestamp=_wire_time(context.timestamp),
        utc_offset_minutes=context.utc_offset_minutes,
        attributes=dict(context.attributes),
    )


def vectors_from_wire(
    message: types_pb2.InterestVectors, dimension: int, *, unit: bool = True
) -> npt.NDArray[np.float32]:
    """Ready interest vectors, made unit vectors if so asked, float32 [vectors, dimension].

    Raises InputError for another dimension, a number of values that is no multiple of it, NaN or infinity, a vector of
    zeros, one that is too long or too short to reckon with in 32 bits, or more than 16 vectors.
    """
    if message.dimension != dimension:
        raise InputError(f"vectors have dimension {message.dimension}; this index has {dimension}")
    if bool(message.values) == bool(message.raw):
        raise InputError("give the vectors in exactly one of values and raw")
    numbers = len(message.raw) // 4 or len(message.values)
    if numbers > MAX_VECTORS * dimension:  # before millions of them are converted in vain
        raise InputError(f"{-(-numbers // dimension)} vectors; the limit is {MAX_VECTORS}")
    if message.raw:
        if len(message.raw) % (4 * dimension):
            raise InputError(f"raw has {len(message.raw)} bytes, not a multiple of 4 x {dimension}")
        flat = np.frombuffer(message.raw, "<f4").astype(np.float32)
    else:
        flat = np.array(message.values, np.float32)
    if len(flat) % dimension:
        raise InputError(f"values has {len(flat)} numbers, not a multiple of {dimension}")
    vectors = flat.reshape(-1, dimension)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms == 0).any():
        raise InputError("a vector has NaN, infinity, or only zeros")
    if (norms > MAX_NORM).any() or (norms < MIN_NORM).any():
        raise InputError(f"a vector's length is not between {MIN_NORM:g} and {MAX_NORM:g}: it overflows in 32 bits")
    return (vectors / norms).astype(np.float32) if unit else vectors


def vectors_to_wire(vectors: npt.NDArray[np.float32], *, raw: bool = False) -> types_pb2.InterestVectors:
    """The wire form of vectors [vectors, dimension]: packed floats, or little-endian bytes."""
    dimension = vectors.shape[1]
    if raw:
        return types_pb2.InterestVectors(dimension=dimension, raw=vectors.astype("<f4").tobytes())
    return types_pb2.InterestVectors(dimension=dimension, values=vectors.ravel().tolist())


def shares_from_wire(messages: Sequence[retrieval_pb2.SourceShare]) -> dict[str, float]:
    """Share of each candidate source. Raises InputError if one stands twice."""
    shares = {one.source: one.share for one in messages}
    if len(shares) != len(messages):
        raise InputError("shares name a candidate source twice")
    return shares


def counters_from_wire(messages: Sequence[ranking_pb2.Counter]) -> list[tuple[str, str, Total]]:
    """See `counter_from_wire`. Raises InputError also for too many."""
    if len(messages) > MAX_COUNTERS:
        raise InputError(f"{len(messages)} counters; the limit is {MAX_COUNTERS}")
    return [counter_from_wire(message, f"counters[{place}]") for place, message in enumerate(messages)]


def counter_from_wire(message: ranking_pb2.Counter, name: str) -> tuple[str, str, Total]:
    """What is counted ("ad", ...), the id of the request, and the total. Raises InputError naming `name`."""
    key = COUNTER_KINDS.get(message.kind)
    if key is None:
        raise InputError(f"{name}.kind is not set, or is not one this server knows")
    if not message.id and key != "user":
        raise InputError(f"{name} has no id")
    check_text(f"{name}.id", message.id, MAX_ID_CHARS)
    if not message.clicks <= message.impressions <= MAX_IMPRESSIONS:
        raise InputError(f"{name}: {message.clicks} clicks on {message.impressions} impressions")
    first, last = (_time(message, field, getattr(message, field)) for field in ("first", "last"))
    began, ended = (None if at is None else at.timestamp() for at in (first, last))
    return key, message.id, Total(message.impressions, message.clicks, began, ended)


def moment_to_wire(seconds: float | None) -> Timestamp | None:
    """The wire form of seconds since 1970; None stays unset."""
    return None if seconds is None else timestamp_to_wire(datetime.fromtimestamp(seconds, UTC))


def timestamp_to_wire(at: datetime) -> Timestamp:
    """The wire form of a moment."""
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def _wire_time(at: datetime | None) -> Timestamp | None:
    return None if at is None else timestamp_to_wire(at)


def _time(message: Message, name: str, value: Timestamp) -> datetime | None:
    if not message.HasField(name):
        return None
    try:
        if not 0 <= value.nanos < _NANOS:
            raise ValueError(f"{value.nanos} nanoseconds")
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{name} is not a time between the years 1 and 9999") from error


def event_to_wire(event: Event) -> types_pb2.Event:
    """The wire form of an event of a history."""
    number, at = _WIRE_EVENT_TYPES[event.type], _wire_time(event.timestamp)
    if event.ad_id:
        return types_pb2.Event(type=number, ad_id=event.ad_id, timestamp=at)
    return types_pb2.Event(type=number, text=event.text, timestamp=at)


def event_from_wire(name: str, message: types_pb2.Event) -> Event:
    """An event that is `name` in its request; what it is about is not checked. Raises InputError."""
    kind = _EVENT_TYPES.get(message.type)
    if kind is None:
        raise InputError(f"{name}.type is not set, or is not one this server knows")
    return Event(kind, message.ad_id, message.text, _time(message, "timestamp", message.timestamp))
