"""The cache that is bounded by bytes, flooded with what callers might send."""

import tracemalloc

import numpy as np
import pytest

from adcascade.serving import byte_cache
from adcascade.serving.byte_cache import ENTRY_BYTES, ByteBudgetCache, digest_of


def test_the_least_recently_used_gives_way_when_bytes_run_out():
    cache = ByteBudgetCache(3 * (ENTRY_BYTES + 100), len)
    for key in ("a", "b", "c"):
        assert cache.put(key, b"x" * 100)
    assert cache.get("a") == b"x" * 100
    cache.put("d", b"y" * 100)
    assert [cache.get(key) is not None for key in "abcd"] == [True, False, True, True]
    cache.put("e", b"z" * (2 * ENTRY_BYTES))  # as large as several others
    assert cache.get("e") is not None
    assert cache.used_bytes <= 3 * (ENTRY_BYTES + 100)


@pytest.mark.parametrize("max_bytes", [0, ENTRY_BYTES + 10])
def test_what_does_not_fit_is_not_kept_and_puts_nothing_else_out(max_bytes):
    cache = ByteBudgetCache(max_bytes, len)
    cache.put("small", b"")
    assert not cache.put("large", b"x" * 1000)
    assert cache.get("large") is None
    assert (cache.get("small") is not None) == bool(max_bytes)


def test_keys_are_told_apart_by_all_of_them_and_texts_are_the_same_as_their_bytes():
    long = "x" * 100_000
    assert digest_of(long + "a") != digest_of(long + "b")
    assert digest_of("ü") == digest_of("ü".encode())
    assert len(digest_of(long)) == 16
    assert digest_of("\ud800")  # half of a surrogate pair has a digest, too


def test_digests_are_kept_of_short_keys_alone_and_of_a_bounded_number():
    byte_cache._digest_of_short.cache_clear()
    for number in range(byte_cache._SHORT_KEYS + 10):
        digest_of(f"short {number}")
    digest_of("x" * (byte_cache._SHORT_CHARS + 1))
    assert byte_cache._digest_of_short.cache_info().currsize == byte_cache._SHORT_KEYS
    assert byte_cache._digest_of_short.cache_info().misses == byte_cache._SHORT_KEYS + 10
    assert digest_of("short 1") == byte_cache._digest_of("short 1")


def test_a_flood_of_distinct_long_keys_takes_no_more_memory_than_the_budget():
    budget = 2 * 2**20
    tracemalloc.start()
    try:
        cache = ByteBudgetCache(budget, lambda vector: vector.nbytes)
        for number in range(20_000):  # of keys alone 640 MB
            cache.put(f"\U0001f600{number}" + "y" * 8000, np.zeros(64, np.float32))
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(cache) > 1000
    assert cache.used_bytes <= budget
    assert taken <= 1.1 * budget
