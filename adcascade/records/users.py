"""Users, what they did, and where an ad would be shown. Knows not where they are stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from adcascade.records.batches import DamagedRow
from adcascade.records.errors import InputError
from adcascade.records.files import read_rows
from adcascade.records.limits import (
    MAX_FIELD_CHARS,
    MAX_HISTORY,
    MAX_ID_CHARS,
    MAX_UTC_OFFSET_MINUTES,
    check_attributes,
    check_text,
)
from adcascade.records.missing import is_missing
from adcascade.records.near_names import warn_of_near_names
from adcascade.records.times import check_happened
from adcascade.records.values import as_attributes, as_id, as_objects, as_text, as_time


class EventType(Enum):
    """What a user did; the value is the name used in files."""

    IMPRESSION = "impression"
    VIEW = "view"
    CLICK = "click"
    CONVERSION = "conversion"
    SEARCH = "search"
    SHORT_VIEW = "short_view"
    HIDE = "hide"


# How strongly an event speaks for (or against) what it is about. An impression alone says nothing.
EVENT_WEIGHT: Mapping[EventType, float] = {
    EventType.IMPRESSION: 0.0,
    EventType.VIEW: 0.5,
    EventType.CLICK: 1.0,
    EventType.CONVERSION: 1.5,
    EventType.SEARCH: 1.0,
    EventType.SHORT_VIEW: -0.25,
    EventType.HIDE: -0.5,
}

_COLUMNS = ("user_id", "interests", "attributes", "history")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did with an ad (`ad_id`) or with a text; exactly one of the two is set."""

    type: EventType
    ad_id: str = ""
    text: str = ""
    timestamp: datetime | None = None


@dataclass(frozen=True, slots=True)
class UserProfile:
    """What is known of a user; `history` is oldest first."""

    user_id: str = ""
    interests: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when ads would be shown; `utc_offset_minutes` is how far the user's clock is ahead of UTC."""

    country: str = ""
    language: str = ""
    device: str = ""
    placement: str = ""
    page_text: str = ""
    timestamp: datetime | None = None
    utc_offset_minutes: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, str]:
        """The short values by name, unset ones left out."""
        named = {
            "country": self.country,
            "language": self.language,
            "device": self.device,
            "placement": self.placement,
            **self.attributes,
        }
        return {name: value for name, value in named.items() if value}


def check_user(user: UserProfile) -> None:
    """Raises InputError if a text, the history or an event breaks its limit."""
    if len(user.history) > MAX_HISTORY:
        raise InputError(f"history has {len(user.history)} events; the limit is {MAX_HISTORY}: send the newest")
    check_text("user_id", user.user_id, MAX_ID_CHARS)
    check_text("interests", user.interests)
    check_attributes("user.attributes", user.attributes)
    for position, event in enumerate(user.history):
        if bool(event.ad_id) == bool(event.text):
            raise InputError(f"history[{position}] needs exactly one of ad_id and text")
        check_text(f"history[{position}].ad_id", event.ad_id, MAX_ID_CHARS)
        check_text(f"history[{position}].text", event.text)


def check_context(context: Context) -> None:
    """Raises InputError if a text or the attributes break their limit."""
    for name in ("country", "language", "device", "placement"):
        check_text(f"context.{name}", getattr(context, name), MAX_FIELD_CHARS)
    check_text("context.page_text", context.page_text)
    if abs(context.utc_offset_minutes) > MAX_UTC_OFFSET_MINUTES:
        raise InputError(f"context.utc_offset_minutes is {context.utc_offset_minutes}; no place is that far from UTC")
    check_attributes("context.attributes", context.attributes)


def read_users(path: Path) -> Iterator[UserProfile]:
    """Streams users from Parquet, JSONL or CSV, or a folder of such files.

    Columns: ``user_id``, and optionally ``interests``, ``attributes``, ``history`` (a list of objects with ``type``,
    ``ad_id`` or ``text``, ``timestamp``; in CSV, as JSON). Any other column becomes an attribute.

    Raises:
        InputError: A row cannot be used; the message names file and row.
    """
    for user in users_or_errors(path):
        if isinstance(user, InputError):
            raise user
        yield user


def users_or_errors(path: Path) -> Iterator[UserProfile | InputError]:
    """The same with an error in place of each row that cannot be used."""
    now = datetime.now(UTC)
    checked = ""
    told: set[str] = set()
    for source, number, row in read_rows(path):
        if isinstance(row, DamagedRow):
            yield InputError(f"{source}, row {number}: {row.detail}")
            continue
        if source != checked:
            warn_of_near_names(source, row, _COLUMNS, told, "an attribute")
            checked = source
        try:
            user = user_from_row(row)
            if not user.user_id:
                raise InputError(f"there is no user_id; the columns are {', '.join(row)[:1000]}")
            for position, event in enumerate(user.history):
                if event.timestamp is not None:
                    check_happened(event.timestamp, f"history[{position}].timestamp", now)
            yield user
        except InputError as error:
            yield InputError(f"{source}, row {number}: {error}")


def user_from_row(row: Mapping[str, Any]) -> UserProfile:
    """A user from named values. Raises InputError."""
    extra = {name: value for name, value in row.items() if name not in _COLUMNS and not is_missing(value)}
    user = UserProfile(
        user_id=as_id(row, "user_id"),
        interests=as_text(row, "interests"),
        attributes={**as_attributes(row.get("attributes")), **as_attributes(extra)},
        history=tuple(_event_from_row(event) for event in as_objects(row, "history")),
    )
    check_user(user)
    return user


def _event_from_row(row: Any) -> Event:
    if not isinstance(row, Mapping):
        raise InputError(f"an event must be an object, not {type(row).__name__}")
    name = as_text(row, "type").lower()
    try:
        kind = EventType(name)
    except ValueError:
        raise InputError(f"event type {name!r} is not one of {', '.join(kind.value for kind in EventType)}") from None
    return Event(kind, as_id(row, "ad_id"), as_text(row, "text"), as_time(row, "timestamp"))
