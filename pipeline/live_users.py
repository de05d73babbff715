"""What the event store knows of the user who asks, joined with what the request brings. Knows neither stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adcascade.records.limits import MAX_HISTORY
from adcascade.serving.errors import InvalidArgument
from adcascade.v1 import events_pb2, events_pb2_grpc, types_pb2
from pipeline.errors import StageFailed
from pipeline.stage import Metadata, Stage, Waited


class LiveUsers:
    """Histories by user id, to be awaited in the loop of `adcascade.serving.loop`.

    Args:
        store: The event store.
        on_missing: Told the reason each time an answer is made without what the store knows; must not wait.
    """

    def __init__(self, store: Stage, on_missing: Callable[[str], None] = lambda _: None) -> None:
        self._store, self._on_missing = store, on_missing
        self._stub = events_pb2_grpc.EventServiceStub(store.channel)

    async def with_history(
        self, user: types_pb2.UserProfile, seconds: float, metadata: Metadata, waited: Waited
    ) -> tuple["LiveUser", str]:
        """The user with the events of the store among those of the request, and why there are none: "" if they are.

        A user without an id is nobody's; a store that does not answer costs the history, not the answer.

        Raises:
            StageFailed: The store finds the user's id wrong.
        """
        if not user.user_id:
            return LiveUser(user, user), ""
        request = events_pb2.GetUserRequest(user_id=user.user_id, history_only=True)
        try:
            stored = await self._store.call(self._stub.GetUser, request, seconds, metadata, waited, _history)
        except StageFailed as failed:
            if isinstance(failed.error, InvalidArgument):
                raise
            self._on_missing(failed.reason)
            return LiveUser(user, user), failed.reason
        acted = [event for event in stored if event.type != types_pb2.EVENT_TYPE_IMPRESSION]
        retrieved, ranked = (_with(user, merged(events, user.history)) for events in (acted, stored))
        return LiveUser(retrieved, ranked), ""


@dataclass(frozen=True)
class LiveUser:
    """A user as each stage reads it.

    Attributes:
        retrieved: without impressions of the store: retrieval leaves out what stands in the history, and an ad that was
            merely shown may be shown again.
        ranked: with all events.
    """

    retrieved: types_pb2.UserProfile
    ranked: types_pb2.UserProfile


def _with(user: types_pb2.UserProfile, history: Sequence[types_pb2.Event]) -> types_pb2.UserProfile:
    return types_pb2.UserProfile(
        user_id=user.user_id, interests=user.interests, attributes=user.attributes, history=history
    )


def _history(reply: events_pb2.GetUserResponse) -> Sequence[types_pb2.Event]:
    return reply.history


def merged(stored: Sequence[types_pb2.Event], sent: Sequence[types_pb2.Event]) -> list[types_pb2.Event]:
    """Both histories as one, oldest first, the newest `MAX_HISTORY`; what the store has, too, is not taken twice.

    Where the request gives an event no time, its events stay in their order, behind those of the store.
    """
    if len(sent) > MAX_HISTORY:  # which the stages refuse
        return [*sent]
    known = {_what(event) for event in stored}
    new = [event for event in sent if not event.HasField("timestamp") or _what(event) not in known]
    both = [*stored, *new]
    if all(event.HasField("timestamp") for event in new):
        both.sort(key=_when)
    return both[-MAX_HISTORY:]


def _what(event: types_pb2.Event) -> tuple[object, ...]:
    return event.type, event.ad_id, event.text, _when(event)


def _when(event: types_pb2.Event) -> tuple[int, int]:
    """Seconds and microseconds, which is all that the store keeps."""
    return event.timestamp.seconds, event.timestamp.nanos // 1000
