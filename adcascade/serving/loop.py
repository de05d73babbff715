"""The one thread of this process in which the event loop of all its servers runs.

One for all, since gRPC's asyncio part polls for the whole process: two loops take each other's events.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """The running loop; started by the first who asks."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="grpc-loop", daemon=True).start()
        return _loop


def run_in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """Runs `work` in the loop and waits for what it returns or raises. Not to be called from the loop itself."""
    return asyncio.run_coroutine_threadsafe(work, event_loop()).result()
