"""Ids and words as rows of a table of learned vectors (the hashing trick, arXiv 0902.2206). Knows no tables.

Ids share a row where their hashes meet. The ranker and the towers hash in two ways, which versions on disk depend on:
neither may become the other.
"""

import hashlib
from functools import lru_cache
from zlib import crc32

# Texts whose hashes are kept, and how long they may be: of four bytes a character, and some 200 that keep them.
_SHORT_TEXTS, _SHORT_CHARS = 2**15, 64


def blake2b_bucket(text: str, buckets: int) -> int:
    """The ranker's row of an id, 1 to `buckets` - 1; 0, which is never learned, for no id."""
    if not text:
        return 0
    return 1 + blake2b_hash(text) % (buckets - 1)


def crc32_bucket(text: str, buckets: int) -> int:
    """The towers' row of an id or a value, 1 to `buckets` - 1; an empty one has a row like others."""
    return 1 + crc32(text.encode("utf-8", "surrogatepass")) % (buckets - 1)


def blake2b_hash(text: str) -> int:
    """A number of 64 bits that is the same for a text on every machine and for ever.

    Those of short texts, which come again, are kept: some 15 MiB at most, whatever is sent.
    """
    return _hash_of_short(text) if len(text) <= _SHORT_CHARS else _hash(text)


@lru_cache(maxsize=_SHORT_TEXTS)
def _hash_of_short(text: str) -> int:
    return _hash(text)


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
