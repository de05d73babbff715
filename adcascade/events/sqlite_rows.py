"""Tables of the event store in SQLite, its events as rows of them, and its errors in words. Opens nothing."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from adcascade.events.values import NewEvent
from adcascade.records.users import EventType

_CODES = {kind: number for number, kind in enumerate(EventType, 1)}
_TYPES = {number: kind for kind, number in _CODES.items()}
# Of an event, but for its offset.
COLUMNS = "time, user, key, event_id, type, ad, text, impression, value, details, received"
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    offset INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, user TEXT NOT NULL, key BLOB NOT NULL,
    event_id TEXT NOT NULL, type INTEGER NOT NULL, ad TEXT NOT NULL, text TEXT NOT NULL, impression TEXT NOT NULL,
    value REAL NOT NULL, details BLOB NOT NULL, received INTEGER NOT NULL
);
CREATE UNIQUE INDEX events_by_key ON events (key);
CREATE INDEX events_by_user ON events (user, time, key) WHERE user <> '';
CREATE INDEX events_by_time ON events (time);
CREATE TABLE old_keys (key BLOB PRIMARY KEY, received INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (
    user TEXT NOT NULL, kind TEXT NOT NULL, id TEXT NOT NULL, newest INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (user, kind, id)
) WITHOUT ROWID;
CREATE INDEX counters_by_newest ON counters (newest) WHERE user <> '';
CREATE TABLE impressions (
    id TEXT PRIMARY KEY, newest INTEGER NOT NULL, user TEXT NOT NULL, state TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX impressions_by_newest ON impressions (newest);
CREATE INDEX impressions_by_user ON impressions (user) WHERE user <> '';
"""


def row_of(event: NewEvent) -> tuple[Any, ...]:
    """The values of `COLUMNS`, but for when it was received."""
    return (
        event.time_us,
        event.user_id,
        event.key,
        event.event_id,
        _CODES[event.type],
        event.ad_id,
        event.text,
        event.impression_id,
        event.value,
        event.details,
    )


def event_of(row: Sequence[Any]) -> NewEvent:
    """The event of a row of `COLUMNS`."""
    time, user, _, event_id, kind, ad, text, impression, value, details, _ = row
    return NewEvent(event_id, _TYPES[kind], time, user, ad, text, impression, value, details)


def explanation(error: sqlite3.Error) -> str:
    """What is wrong, and what to do."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith("SQLITE_FULL"):
        return "the disk is full; nothing of this batch was recorded, and it may be sent again when there is room"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return f"the file is damaged ({error}); restore it from a backup"
    return f"{error} ({name or type(error).__name__})"
