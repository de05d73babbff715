"""How long, and how many, callers may take to send what they have begun, and to take what they are answered.

Knows nothing of what they send.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from adcascade.serving.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable

# A call refused by gRPC itself (too large, compressed in a way that is not known) looks like one that ends without a
# message, until its cancellation arrives a moment later.
_REFUSAL_SECONDS = 0.05


# A message that is sent arrives sooner than this. Calls that have waited for less do not give way, so that many that
# come at once are all read.
_GRACE_SECONDS = 0.1


class _Waiting:
    def __init__(self, timeout: asyncio.Timeout, since: float) -> None:
        self.timeout = timeout
        self.since = since
        self.gives_way = False


class Arrivals:
    """Reads messages; a caller who does not send one is given up, the oldest at once if too many wait.

    So calls without a message can never keep others from being read: a message that is sent arrives within moments,
    and only who waits longest gives way. It bounds the memory of messages on their way, too. Of one event loop.

    Args:
        limit: Calls whose message has not arrived, at most.
        seconds: From the moment at which a message is waited for to its last byte.
    """

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._waiting: dict[_Waiting, None] = {}  # in the order of their arrival
        self._sweeping = False

    async def message(self, context: Any, *, last: bool = False) -> Any:
        """The next message, in bytes; None where the caller has none left, if it may be the `last`.

        Raises:
            InvalidArgument: The caller ended the call without a message.
            DeadlineExceeded: It did not arrive in time.
            ResourceExhausted: It gave way to newer calls.
        """
        waiting: _Waiting | None = None
        try:
            async with asyncio.timeout(self._seconds) as timeout:
                waiting = _Waiting(timeout, time.monotonic())
                self._waiting[waiting] = None
                if len(self._waiting) > self._limit and not self._sweeping:
                    self._sweep()
                message = await context.read()
        except TimeoutError:
            if waiting is not None and waiting.gives_way:
                raise ResourceExhausted(
                    f"more than {self._limit} calls are waiting for their messages; this one waited longest"
                ) from None
            raise DeadlineExceeded(f"the call's message did not arrive within {self._seconds:g} s") from None
        finally:
            if waiting is not None:
                self._waiting.pop(waiting, None)
        if message is not grpc.aio.EOF:
            return message
        if last:
            return None
        await asyncio.sleep(_REFUSAL_SECONDS)
        raise InvalidArgument("the call ended without a message")

    def _sweep(self) -> None:
        """Lets those go that have waited longest, and looks again while there are too many."""
        loop, young = asyncio.get_running_loop(), time.monotonic() - _GRACE_SECONDS
        while len(self._waiting) > self._limit:
            oldest = next(iter(self._waiting))
            if oldest.since > young:
                break
            del self._waiting[oldest]
            oldest.gives_way = True
            oldest.timeout.reschedule(loop.time())
        self._sweeping = len(self._waiting) > self._limit
        if self._sweeping:
            loop.call_later(_GRACE_SECONDS, self._sweep)


class _Reply:
    def __init__(self, peer: str, size: int, since: float) -> None:
        self.peer, self.size, self.since = peer, size, since


class UntakenReplies:
    """Closes the connections of callers who do not take their replies, which would fill the memory. Of one event loop.

    gRPC holds a reply until its caller's window lets it out, and has no way to take it back.

    Args:
        limit_bytes: Replies that wait to be taken, of all connections.
        seconds: How long one may wait.
        close: Closes the connections of peers.
    """

    def __init__(self, limit_bytes: int, seconds: float, close: Callable[[set[str]], None]) -> None:
        self._limit_bytes, self._seconds, self._close = limit_bytes, seconds, close
        self._replies: dict[_Reply, None] = {}  # in their order
        self._bytes = 0
        self._sweeping = False

    def add(self, peer: str, size: int, sending: "asyncio.Task[Any]") -> None:
        """A reply of `size` bytes waits for `peer` until the task `sending` ends."""
        reply = _Reply(peer, size, time.monotonic())
        self._replies[reply] = None
        self._bytes += size
        sending.add_done_callback(lambda _: self._remove(reply))
        if not self._sweeping:
            self._sweep()

    def _remove(self, reply: _Reply) -> None:
        if reply in self._replies:
            del self._replies[reply]
            self._bytes -= reply.size

    def _sweep(self) -> None:
        now = time.monotonic()
        hangers: set[str] = set()
        while self._replies:
            oldest = next(iter(self._replies))
            age = now - oldest.since
            if age < (_GRACE_SECONDS if self._bytes > self._limit_bytes else self._seconds):
                break
            hangers.add(oldest.peer)
            self._remove(oldest)
        if hangers:
            self._close(hangers)
        self._sweeping = bool(self._replies)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._sweep)


class OpenStreams:
    """Bounds the number and the life of streams. Of one event loop.

    Args:
        limit: Streams at once, of all connections.
        per_connection: Of these, of one connection.
        seconds: How long a stream may live.
    """

    def __init__(self, limit: int, per_connection: int, seconds: float) -> None:
        self._limit, self._per_connection, self._seconds = limit, per_connection, seconds
        self._open: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def open(self, peer: str) -> AsyncIterator[None]:
        """Counts a stream of the connection `peer` until the block ends.

        Raises:
            ResourceExhausted: There are too many.
            Unavailable: The stream has lived its time.
        """
        if self._open[peer] >= self._per_connection or self._open.total() >= self._limit:
            raise ResourceExhausted(
                f"too many streams are open: at most {self._per_connection} a connection and {self._limit} in all"
            )
        self._open[peer] += 1
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise Unavailable(f"a stream ends after {self._seconds:g} s; open it again") from None
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
