"""EventService: validate, call, convert. Knows neither disk nor counting."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from adcascade.events.counter_state import CounterState
from adcascade.events.errors import StoreError
from adcascade.events.messages import (
    MAX_EVENTS,
    MAX_KEYS,
    counter_of,
    event_of,
    history_of,
    key_of,
    logged_of,
    result_of,
    within,
)
from adcascade.events.pseudonyms import Pseudonyms
from adcascade.events.recorder import Backend
from adcascade.events.values import NewEvent, Outcome, Status
from adcascade.events.writer import Recorded, Work
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_ID_CHARS, check_text
from adcascade.serving.auth import scopes
from adcascade.serving.batcher import Caller, MicroBatcher
from adcascade.serving.context import CallContext
from adcascade.serving.errors import InvalidArgument, Unavailable
from adcascade.serving.settings import MEBIBYTE
from adcascade.v1 import events_pb2, events_pb2_grpc

SERVICE_NAME = "adcascade.v1.EventService"
SCOPES = {
    "Record": scopes.EVENTS_WRITE,
    "RecordStream": scopes.EVENTS_WRITE,
    "GetUser": scopes.EVENTS_READ,
    "ExportUser": scopes.EVENTS_READ,
    "GetCounters": scopes.EVENTS_READ,
    "Tail": scopes.EVENTS_READ,
    "DeleteUser": scopes.EVENTS_ERASE,
}
# Events of one answer of a stream's page, and of a history.
_PAGE, _TAIL, _MAX_HISTORY = 100, 10_000, 1000
_STAYS = "totals of the ads, advertisers and categories that were shown, and digests of event ids, which name nobody"

Counted = Callable[[Status, int], None]


class EventServicer(events_pb2_grpc.EventServiceServicer):
    """Answers from a store.

    Args:
        store: what is read.
        writer: what records.
        pseudonyms: what stands for ids of users.
        assume_consent: keep what is personal without the sender saying that its user agreed.
        history_bytes: of a history on the wire, at most; then the oldest events are left out.
        on_recorded: told how many events had which outcome.
    """

    def __init__(
        self,
        store: Backend,
        writer: MicroBatcher[Work, Any],
        *,
        pseudonyms: Pseudonyms,
        assume_consent: bool,
        history_bytes: int = MEBIBYTE,
        on_recorded: Counted = lambda *_: None,
    ) -> None:
        self._store, self._writer, self._pseudonyms = store, writer, pseudonyms
        self._assume_consent, self._history_bytes, self._on_recorded = assume_consent, history_bytes, on_recorded

    def Record(self, request: events_pb2.RecordRequest, context: Caller) -> events_pb2.RecordResponse:
        """See the proto."""
        if not 1 <= len(request.events) <= MAX_EVENTS:
            raise InputError(f"{len(request.events)} events; a batch has 1 to {MAX_EVENTS:,}")
        checked = [self._checked(message) for message in request.events]
        events = [one for one in checked if isinstance(one, NewEvent)]
        return self._answer(checked, self._writer.submit(events, context).value)

    async def RecordStream(
        self, requests: AsyncIterator[events_pb2.RecordRequest], context: Any
    ) -> AsyncIterator[events_pb2.RecordResponse]:
        """See the proto. A batch is read once the one before is durable, so a sender that reads no answers waits."""
        async for request in requests:
            yield await _told(asyncio.to_thread(self.Record, request, CallContext(context)))

    def _checked(self, message: events_pb2.RecordedEvent) -> NewEvent | Outcome:
        try:
            event = event_of(message, assume_consent=self._assume_consent)
        except InputError as error:
            return Outcome(Status.REJECTED, str(error))
        return self._pseudonyms.in_event(event)

    def _answer(self, checked: Sequence[NewEvent | Outcome], recorded: Recorded) -> events_pb2.RecordResponse:
        of_valid = iter(recorded.outcomes)
        outcomes = [one if isinstance(one, Outcome) else next(of_valid) for one in checked]
        for status in Status:
            self._on_recorded(status, sum(one.status is status for one in outcomes))
        return events_pb2.RecordResponse(results=map(result_of, outcomes), offset=recorded.offset)

    def GetUser(self, request: events_pb2.GetUserRequest, context: Caller) -> events_pb2.GetUserResponse:
        """See the proto."""
        user = self._user(request.user_id)
        limit = request.limit or _MAX_HISTORY
        if limit > _MAX_HISTORY:
            raise InputError(f"limit is {limit:,}; at most {_MAX_HISTORY:,}")
        counters = {} if request.history_only else self._store.counters_of_user(user)
        now = time.time_ns() // 1000
        return events_pb2.GetUserResponse(
            history=within(history_of(self._store.history(user, limit, self._history_bytes)), self._history_bytes),
            counters=[counter_of(key, state, now) for key, state in counters.items()],
        )

    def GetCounters(self, request: events_pb2.GetCountersRequest, context: Caller) -> events_pb2.GetCountersResponse:
        """See the proto."""
        if len(request.keys) > MAX_KEYS:
            raise InputError(f"{len(request.keys):,} keys; at most {MAX_KEYS:,}")
        asked = [key_of(place, message) for place, message in enumerate(request.keys)]
        keys = [self._pseudonyms.in_key(key) for key in asked]
        try:
            at = request.as_of.ToDatetime(UTC) if request.HasField("as_of") else datetime.now(UTC)
        except (ValueError, OverflowError) as error:
            raise InputError("as_of is not a time between the years 1 and 9999") from error
        time_us = int(at.timestamp() * 1_000_000)
        found = self._store.read_counters(keys)
        states = [found.get(key, CounterState.empty(key.kind)) for key in keys]
        return events_pb2.GetCountersResponse(
            counters=[counter_of(key, state, time_us) for key, state in zip(asked, states, strict=True)]
        )

    def DeleteUser(self, request: events_pb2.DeleteUserRequest, context: Caller) -> events_pb2.DeleteUserResponse:
        """See the proto."""
        user = self._user(request.user_id)
        erased = self._writer.submit(lambda: self._store.erase_user(user), context).value
        return events_pb2.DeleteUserResponse(events=erased.events, counters=erased.counters, stays=_STAYS)

    async def ExportUser(
        self, request: events_pb2.ExportUserRequest, context: Any
    ) -> AsyncIterator[events_pb2.LoggedEvent]:
        """See the proto."""
        after = (-(1 << 62), b"")
        user = await _told(asyncio.to_thread(self._user, request.user_id))
        while page := await _told(asyncio.to_thread(self._store.log_of_user, user, after, _PAGE)):
            for one in page:
                yield logged_of(one)
            after = (page[-1].event.time_us, page[-1].event.key)

    async def Tail(self, request: events_pb2.TailRequest, context: Any) -> AsyncIterator[events_pb2.LoggedEvent]:
        """See the proto."""
        left, after = request.limit or _TAIL, request.after
        while left and (page := await _told(asyncio.to_thread(self._store.log_after, after, min(left, _PAGE)))):
            for one in page:
                yield logged_of(one)
            after, left = page[-1].offset, left - len(page)

    def _user(self, user_id: str) -> str:
        if not user_id:
            raise InputError("there is no user_id")
        check_text("user_id", user_id, MAX_ID_CHARS)
        return self._pseudonyms.of(user_id)


async def _told(work: Any) -> Any:
    """What is awaited in a stream, whose errors no thread turns into a status."""
    try:
        return await work
    except InputError as error:
        raise InvalidArgument(str(error)) from error
    except StoreError as error:
        raise Unavailable(str(error)) from error
