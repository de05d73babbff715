"""What stands for ids of users in the store: a keyed hash of them, or they themselves."""

import hmac
from dataclasses import replace
from pathlib import Path

from adcascade.events.errors import StoreError
from adcascade.events.values import CounterKey, NewEvent

_LEAST_BYTES = 16


class Pseudonyms:
    """HMAC-SHA256 (RFC 2104) of user ids, in hexadecimal; without a key the ids themselves.

    Whoever has the store alone cannot tell whose events they are, nor try ids out; who has the key, too, can.

    Example:
        >>> Pseudonyms(b"").of("user-1")
        'user-1'
        >>> len(Pseudonyms(bytes(32)).of("user-1"))
        64
    """

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    @classmethod
    def from_file(cls, path: Path | None) -> "Pseudonyms":
        """With the bytes of a file as the key. Raises StoreError if it cannot be read, or is too short to be secret."""
        if path is None:
            return cls()
        try:
            key = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read the key {path}: {error.strerror}") from error
        if len(key) < _LEAST_BYTES:
            raise StoreError(f"the key {path} has {len(key)} bytes; make one: head -c 32 /dev/urandom > {path}")
        return cls(key)

    @property
    def mark(self) -> str:
        """Stands for the key, and does not tell it; empty without one."""
        return hmac.digest(self._key, b"adcascade event store", "sha256").hex() if self._key else ""

    def of(self, user_id: str) -> str:
        """What stands for an id; nothing for none."""
        if not self._key or not user_id:
            return user_id
        return hmac.digest(self._key, user_id.encode(), "sha256").hex()

    def in_event(self, event: NewEvent) -> NewEvent:
        """The event with its user's pseudonym."""
        return replace(event, user_id=self.of(event.user_id)) if self._key and event.user_id else event

    def in_key(self, key: CounterKey) -> CounterKey:
        """The key with its user's pseudonym."""
        return key._replace(user_id=self.of(key.user_id))
