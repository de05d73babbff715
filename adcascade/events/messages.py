"""Between the messages of EventService and the values of the event store. Knows limits, not what is counted."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from adcascade.events.counter_state import CounterState
from adcascade.events.values import CounterKey, LoggedEvent, NewEvent, Outcome, Status
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_ID_CHARS, check_text
from adcascade.records.times import EARLIEST
from adcascade.records.users import Event, EventType
from adcascade.v1 import events_pb2, ranking_pb2, types_pb2
from adcascade.wire import (
    COUNTER_KINDS,
    context_from_wire,
    context_to_wire,
    event_from_wire,
    event_to_wire,
    timestamp_to_wire,
)

MAX_EVENTS, MAX_KEYS = 1000, 4000
_STRENGTH = {EventType.IMPRESSION: 0, EventType.CLICK: 1, EventType.CONVERSION: 2}
# Of an event in a list, beside its own.
_EVENT_BYTES = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_US = int((EARLIEST - _EPOCH).total_seconds()) * 1_000_000
_KINDS = {name: kind for kind, name in COUNTER_KINDS.items()}
_STATUS = {
    Status.ACCEPTED: events_pb2.RECORD_STATUS_ACCEPTED,
    Status.DUPLICATE: events_pb2.RECORD_STATUS_DUPLICATE,
    Status.REJECTED: events_pb2.RECORD_STATUS_REJECTED,
}


def event_of(message: events_pb2.RecordedEvent, *, assume_consent: bool) -> NewEvent:
    """An event to be recorded; without consent it has neither user, text nor context.

    Raises:
        InputError: It cannot be one, or nothing of it may be kept.
    """
    if not message.event_id:
        raise InputError("it has no event_id")
    for name in ("event_id", "user_id", "impression_id"):
        check_text(name, getattr(message, name), MAX_ID_CHARS)
    event = event_from_wire("event", message.event)
    check_text("event.ad_id", event.ad_id, MAX_ID_CHARS)
    check_text("event.text", event.text)
    if event.timestamp is None:
        raise InputError("its event has no timestamp")
    time_us = (event.timestamp - _EPOCH) // _MICROSECOND
    if time_us < _EARLIEST_US:
        raise InputError(f"its time is {event.timestamp:%Y-%m-%d}, before {EARLIEST:%Y}; is it in another unit?")
    if not (math.isfinite(message.value) and message.value >= 0):
        raise InputError(f"its value is {message.value}; it must be a finite number, 0 or more")
    context = context_from_wire(message.context)
    may_keep = message.consent or assume_consent
    if event.text and not may_keep:
        raise InputError("what a user searched or read needs consent to be kept")
    details = context_to_wire(context).SerializeToString(deterministic=True) if may_keep else b""
    user_id = message.user_id if may_keep else ""
    return NewEvent(
        message.event_id,
        event.type,
        time_us,
        user_id,
        event.ad_id,
        event.text,
        message.impression_id,
        message.value,
        details,
    )


_MICROSECOND = datetime.resolution


def moment_of(time_us: int) -> datetime:
    """A moment in microseconds since 1970."""
    return _EPOCH + time_us * _MICROSECOND


def result_of(outcome: Outcome) -> events_pb2.RecordResult:
    """What the sender of an event is told."""
    return events_pb2.RecordResult(status=_STATUS[outcome.status], reason=outcome.reason)


def history_of(events: Sequence[NewEvent]) -> list[types_pb2.Event]:
    """Events of a user as a history of a request, in their order.

    Of the events of one impression the strongest stands for all, as in a click log: a row is clicked, or it is not.
    """
    strongest: dict[str, NewEvent] = {}
    for one in events:
        if one.impression_id and one.type in _STRENGTH:
            known = strongest.setdefault(one.impression_id, one)
            if _STRENGTH[one.type] > _STRENGTH[known.type]:
                strongest[one.impression_id] = one
    return [
        event_to_wire(_event(one))
        for one in events
        if not one.impression_id or one.type not in _STRENGTH or strongest[one.impression_id] is one
    ]


def within(history: Sequence[types_pb2.Event], max_bytes: int) -> Sequence[types_pb2.Event]:
    """The newest events that take so many bytes on the wire together, at most."""
    size = 0
    for count, event in enumerate(reversed(history)):
        size += event.ByteSize() + _EVENT_BYTES
        if size > max_bytes:
            return history[len(history) - count :]
    return history


def _event(one: NewEvent) -> Event:
    return Event(one.type, one.ad_id, "" if one.ad_id else one.text, moment_of(one.time_us))


def logged_of(one: LoggedEvent) -> events_pb2.LoggedEvent:
    """An event of the log; it says that there was consent to keep what is kept."""
    event = one.event
    message = events_pb2.RecordedEvent(
        event_id=event.event_id,
        user_id=event.user_id,
        event=event_to_wire(_event(event)),
        impression_id=event.impression_id,
        value=event.value,
        consent=bool(event.user_id or event.text or event.details),
    )
    if event.details:
        message.context.ParseFromString(event.details)
    received = timestamp_to_wire(moment_of(one.received_us))
    return events_pb2.LoggedEvent(offset=one.offset, event=message, received=received)


def key_of(place: int, message: events_pb2.CounterKey) -> CounterKey:
    """Which total is asked for. Raises InputError for a kind that there is not, or one that lacks its id."""
    kind = COUNTER_KINDS.get(message.kind)
    if kind is None:
        raise InputError(f"keys[{place}].kind is not set, or is not one this server knows")
    of_user = kind.startswith("user")
    if bool(message.user_id) != of_user or bool(message.id) == (kind == "user"):
        raise InputError(f"keys[{place}] must have {'a' if of_user else 'no'} user_id, and an id but for a user")
    for name in ("id", "user_id"):
        check_text(f"keys[{place}].{name}", getattr(message, name), MAX_ID_CHARS)
    return CounterKey(kind, message.id, message.user_id)


def counter_of(key: CounterKey, state: CounterState, time_us: int) -> events_pb2.StoredCounter:
    """A total; what fades as it is at a moment."""
    found = events_pb2.StoredCounter(
        kind=_KINDS.get(key.kind, ranking_pb2.COUNTER_KIND_UNSPECIFIED),
        id=key.id,
        impressions=max(0, state.impressions),
        clicks=max(0, min(state.clicks, state.impressions)),
        conversions=max(0, state.conversions),
        decayed=state.decayed_at(time_us),
    )
    for field, at in (("first", state.first_us), ("last", state.last_us)):
        if at is not None:
            getattr(found, field).CopyFrom(timestamp_to_wire(moment_of(at)))
    return found
