"""What happened, as the event store keeps it: frozen values. Knows neither wire nor disk."""

import hashlib
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import NamedTuple

from adcascade.records.users import EventType

# What is counted, in the order of the columns of `CounterState`.
COUNTED = frozenset([EventType.IMPRESSION, EventType.CLICK, EventType.CONVERSION])


class Status(Enum):
    """What became of an event."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"


@dataclass(frozen=True)
class NewEvent:
    """An event that was checked, before it is recorded.

    Attributes:
        event_id: the sender's; it counts once.
        user_id: whose it is; empty for nobody's.
        time_us: microseconds since 1970.
        ad_id, text: what it is about; both empty where the impression says it.
        impression_id: of the impression that it belongs to; may be empty.
        value: of a conversion.
        details: what else its sender said, as the log keeps it.
    """

    event_id: str
    type: EventType
    time_us: int
    user_id: str = ""
    ad_id: str = ""
    text: str = ""
    impression_id: str = ""
    value: float = 0.0
    details: bytes = b""

    @cached_property
    def key(self) -> bytes:
        """Stands for the id, whatever its length: 16 bytes."""
        return hashlib.blake2b(self.event_id.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """An event of the log.

    Attributes:
        offset: its place, from 1, rising.
        received_us: when it was accepted.
    """

    offset: int
    event: NewEvent
    received_us: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event; `reason` says why it was rejected."""

    status: Status
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AdKeys:
    """What else is counted of an ad."""

    advertiser: str = ""
    category: str = ""


class CounterKey(NamedTuple):
    """Of what is counted: a kind of `adcascade.records.counters`, and its id; for kinds of a user, the user's."""

    kind: str
    id: str
    user_id: str = ""
