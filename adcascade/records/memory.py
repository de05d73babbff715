"""Gives memory that is no longer used back to the system. Knows not what it held."""

import ctypes
import gc
from functools import cache
from typing import Any

import pyarrow as pa


def release_unused() -> None:
    """Gives back what allocators keep of memory that is free; call it where much has just become so."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    """glibc's ``malloc_trim``; None where the C library has none (macOS, musl)."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
