"""The event store in one SQLite file: a write-ahead log, synced before anything is acknowledged.

One process owns a folder; in it one thread writes, others read. Knows no wire, and no rule of what is counted.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adcascade.events.counter_state import CounterState
from adcascade.events.errors import StoreError
from adcascade.events.impressions import ImpressionState
from adcascade.events.recorder import Changes, Erased
from adcascade.events.sqlite_rows import COLUMNS, SCHEMA, event_of, explanation, row_of
from adcascade.events.values import CounterKey, LoggedEvent, NewEvent

FILE, LOCK = "events.sqlite", ".lock"
FORMAT = 1
# Characters and bytes of rows that are read at once.
_PAGE_SIZE = 4 << 20
# How long to wait for another program that reads the file.
_BUSY_SECONDS = 0.2
# Of one user that are told at once; each has an advertiser or a category that the user met.
_MOST_COUNTERS = 4000
# Values of one statement.
_CHUNK = 1000
# Read by the indexes of rows that have a user.
_OF_USER = "user = ? AND user <> ''"


class SqliteStore:
    """A folder with the log, the counters and the impressions; a `Backend` of `adcascade.events.recorder`.

    Args:
        folder: is made if it is not there.
        written_with: stands for the key of its pseudonyms; a store that was begun with another one is refused.

    Raises:
        StoreError: Another process has it, a newer release wrote it, it is of another key, or it is damaged.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> store = SqliteStore(Path(mkdtemp()))
        >>> store.log_after(0, 10)
        []
        >>> store.close()
    """

    def __init__(self, folder: Path, written_with: str = "") -> None:
        self._path, self._written_with = folder / FILE, written_with
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {folder} of the event store: {error.strerror}") from error
        self._lock = FileLock(folder / LOCK, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise StoreError(
                f"another process has the event store {folder}; stop it, or choose another folder"
            ) from None
        except OSError as error:
            raise StoreError(f"cannot write to the folder {folder} of the event store: {error.strerror}") from error
        try:
            self._writer = self._connect()
            self._reader = self._connect()
            self._reading = threading.Lock()
            self._prepare()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Closes the file, and lets others have the folder."""
        with self._reading:
            self._reader.close()
        self._writer.close()
        self._lock.release()

    def _connect(self) -> sqlite3.Connection:
        with self._explained():
            connection = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # the write-ahead log is synced at each commit
            connection.execute("PRAGMA secure_delete=ON")  # what is erased is overwritten
            connection.execute("PRAGMA cache_size=-65536")  # KiB
            return connection
        raise AssertionError("unreachable")

    def _prepare(self) -> None:
        with self._explained():
            tables = {name for (name,) in self._writer.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "meta" not in tables:
                if tables:
                    raise StoreError(f"{self._path} is an SQLite file of something else; choose another folder")
                begin = f"INSERT INTO meta VALUES ('format', '{FORMAT}'), ('written_with', '{self._written_with}')"
                self._writer.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {begin}; COMMIT;")
            meta = dict(self._writer.execute("SELECT name, value FROM meta"))
        found = meta.get("format", "0")
        if int(found) > FORMAT:
            raise StoreError(
                f"{self._path} has format {found}, of a newer release; this one reads {FORMAT}: update AdCascade"
            )
        if meta.get("written_with") != self._written_with:
            raise StoreError(
                f"{self._path} was begun with {'another key' if meta.get('written_with') else 'no key'} for its "
                "pseudonyms, so that nobody's events would be found; give the one that it was begun with"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"the event store {self._path}: {explanation(error)}") from error

    def _read(self, statement: str, values: Sequence[Any] = (), max_size: int = _PAGE_SIZE) -> list[Any]:
        """Rows until their texts and bytes have that size together, whatever is left; the first one in any case."""
        rows: list[Any] = []
        size = 0
        with self._explained(), self._reading:
            for row in self._reader.execute(statement, values):
                size += sum(len(one) for one in row if isinstance(one, str | bytes))
                if rows and size > max_size:
                    break
                rows.append(row)
        return rows

    # ---- what the recorder asks for, in the thread that writes

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """See `Backend`."""
        found: set[bytes] = set()
        for some in _chunks(keys):
            marks = ",".join("?" * len(some))
            for table in ("events", "old_keys"):
                found.update(key for (key,) in self._own(f"SELECT key FROM {table} WHERE key IN ({marks})", some))
        return found

    def impressions(self, ids: Sequence[str]) -> Mapping[str, ImpressionState]:
        """See `Backend`."""
        found: dict[str, ImpressionState] = {}
        for some in _chunks(ids):
            rows = self._own(f"SELECT id, state FROM impressions WHERE id IN ({','.join('?' * len(some))})", some)
            found |= {name: ImpressionState.from_json(state) for name, state in rows}
        return found

    def counters(self, keys: Iterable[CounterKey]) -> Mapping[CounterKey, CounterState]:
        """See `Backend`."""
        with self._explained():
            return _counters(self._writer, keys)

    def read_counters(self, keys: Iterable[CounterKey]) -> Mapping[CounterKey, CounterState]:
        """The same for any thread."""
        with self._explained(), self._reading:
            return _counters(self._reader, keys)

    def _own(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._explained():
            return self._writer.execute(statement, values).fetchall()

    def commit(self, changes: Changes) -> int:
        """See `Backend`."""
        with self._transaction():
            self._write(changes)
            found = self._own("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(found[0][0]) if found else 0

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """What is written in the block is durable after it, or undone."""
        with self._explained():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _write(self, changes: Changes) -> None:
        write, received = self._writer.executemany, changes.received_us
        marks = ",".join("?" * len(COLUMNS.split(",")))
        write(
            f"INSERT INTO events ({COLUMNS}) VALUES ({marks})",
            [(*row_of(event), received) for event in changes.events],
        )
        write("INSERT INTO old_keys VALUES (?, ?)", [(key, received) for key in changes.keys])
        kept = [((key.user_id, key.kind, key.id), state) for key, state in changes.counters.items()]
        write(
            "INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)",
            [(*key, max(state.newest_us or 0, received), state.to_bytes()) for key, state in kept if state is not None],
        )
        write(
            "DELETE FROM counters WHERE user = ? AND kind = ? AND id = ?", [key for key, state in kept if state is None]
        )
        write(
            "INSERT OR REPLACE INTO impressions VALUES (?, ?, ?, ?)",
            [
                (name, max(state.newest_us, received), state.user_id, state.to_json())
                for name, state in changes.impressions.items()
            ],
        )

    def erase_user(self, user_id: str) -> Erased:
        """See `Backend`. It takes as long as writing the whole store anew: pages that were split keep old copies."""
        with self._transaction():
            keep_keys = f"INSERT OR IGNORE INTO old_keys SELECT key, received FROM events WHERE {_OF_USER}"
            self._writer.execute(keep_keys, (user_id,))  # digests of ids, so that an event sent again counts nothing
            events = self._writer.execute(f"DELETE FROM events WHERE {_OF_USER}", (user_id,)).rowcount
            counters = self._writer.execute(f"DELETE FROM counters WHERE {_OF_USER}", (user_id,)).rowcount
            states = self._own(f"SELECT id, state FROM impressions WHERE {_OF_USER}", (user_id,))
            self._writer.executemany(
                "UPDATE impressions SET user = '', state = ? WHERE id = ?",
                [(ImpressionState.from_json(state).without_user().to_json(), name) for name, state in states],
            )
        with self._explained():
            self._writer.execute("VACUUM")
        self.forget_log()
        return Erased(events, counters)

    def forget_log(self) -> None:
        """See `Backend`."""
        with self._explained(), self._reading:
            (is_busy, *_) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise StoreError(f"{self._path} is being read by another program; erase the user again when it has ended")

    def sweep(self, older_than_us: int, most: int) -> int:
        """See `Backend`."""
        with self._transaction():
            old = "SELECT offset FROM events WHERE time < ? ORDER BY time LIMIT ?"
            limits = (older_than_us, most)
            self._writer.execute(
                f"INSERT OR IGNORE INTO old_keys SELECT key, received FROM events WHERE offset IN ({old})", limits
            )
            swept = self._writer.execute(f"DELETE FROM events WHERE offset IN ({old})", limits).rowcount
            for table, names in (("impressions", "id"), ("counters", "user, kind, id")):
                which = "user <> '' AND newest < ?" if table == "counters" else "newest < ?"
                swept += self._writer.execute(
                    f"DELETE FROM {table} WHERE ({names}) IN (SELECT {names} FROM {table} WHERE {which} LIMIT ?)",
                    limits,
                ).rowcount
        return swept

    # ---- what others read

    def history(self, user_id: str, limit: int, max_chars: int = _PAGE_SIZE) -> list[NewEvent]:
        """See `Backend`."""
        columns = COLUMNS.replace("details", "x''")  # contexts are large, and in no history
        rows = self._read(
            f"SELECT {columns} FROM events WHERE {_OF_USER} ORDER BY time DESC, key DESC LIMIT ?",
            (user_id, limit),
            max_chars,
        )
        return [event_of(row) for row in reversed(rows)]

    def counters_of_user(self, user_id: str) -> Mapping[CounterKey, CounterState]:
        """See `Backend`."""
        rows = self._read(f"SELECT kind, id, state FROM counters WHERE {_OF_USER} LIMIT ?", (user_id, _MOST_COUNTERS))
        return {CounterKey(kind, name, user_id): CounterState.from_bytes(state) for kind, name, state in rows}

    def log_of_user(self, user_id: str, after: tuple[int, bytes], limit: int) -> list[LoggedEvent]:
        """See `Backend`."""
        rows = self._read(
            f"SELECT offset, {COLUMNS} FROM events WHERE {_OF_USER} AND (time, key) > (?, ?)"
            " ORDER BY time, key LIMIT ?",
            (user_id, *after, limit),
        )
        return [LoggedEvent(row[0], event_of(row[1:]), row[-1]) for row in rows]

    def log_after(self, offset: int, limit: int) -> list[LoggedEvent]:
        """See `Backend`."""
        rows = self._read(
            f"SELECT offset, {COLUMNS} FROM events WHERE offset > ? ORDER BY offset LIMIT ?", (offset, limit)
        )
        return [LoggedEvent(row[0], event_of(row[1:]), row[-1]) for row in rows]


def _counters(connection: sqlite3.Connection, keys: Iterable[CounterKey]) -> Mapping[CounterKey, CounterState]:
    # Key by key: a list in JSON would end at a NUL character of an id, and one of values would not use the index.
    found = {}
    for key in keys:
        row = connection.execute(
            "SELECT state FROM counters WHERE user = ? AND kind = ? AND id = ?", (key.user_id, key.kind, key.id)
        ).fetchone()
        if row is not None:
            found[key] = CounterState.from_bytes(row[0])
    return found


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
