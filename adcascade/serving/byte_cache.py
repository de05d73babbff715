"""A cache that is bounded by bytes, whatever callers send as keys. Knows not what it keeps. Not thread-safe."""

import hashlib
import secrets
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")

# What an entry takes beside its value: the digest, and its places in three dictionaries.
ENTRY_BYTES = 512
_DIGEST_BYTES = 16
# Drawn by each process, so that nobody can look for two keys of one digest beforehand.
_SECRET = secrets.token_bytes(16)
# A request asks several times for each of its keys. Digests of short ones are kept: 50 MiB at most, of text that takes
# four bytes a character.
_SHORT_KEYS, _SHORT_CHARS = 2**14, 768


def digest_of(key: str | bytes) -> bytes:
    """16 bytes in place of a key of any length; BLAKE2b, keyed, so that two keys never share them but by chance."""
    return _digest_of_short(key) if len(key) <= _SHORT_CHARS else _digest_of(key)


@lru_cache(maxsize=_SHORT_KEYS)
def _digest_of_short(key: str | bytes) -> bytes:
    return _digest_of(key)


def _digest_of(key: str | bytes) -> bytes:
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES, key=_SECRET).digest()


class ByteBudgetCache(Generic[Value]):
    """Least recently used values, as many as fit.

    Args:
        max_bytes: of values, keys and what keeps them, together; 0 keeps nothing.
        size_of: bytes that a value takes.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._kept: LRUCache[bytes, Value] = LRUCache(max_bytes, lambda value: ENTRY_BYTES + size_of(value))

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str | bytes) -> bool:
        """Whether the value is kept, which does not count as a use; may be asked in any thread."""
        return digest_of(key) in self._kept

    @property
    def used_bytes(self) -> int:
        """What the cache takes now."""
        return int(self._kept.currsize)

    def get(self, key: str | bytes) -> Value | None:
        """The value, which counts as used now; None if it is not kept."""
        return self._kept.get(digest_of(key))

    def put(self, key: str | bytes, value: Value) -> bool:
        """Keeps a value, in place of those that were not used for longest; False if it alone is too large."""
        try:
            self._kept[digest_of(key)] = value
        except ValueError:  # how cachetools says so
            return False
        return True
