"""How many connections a port may hold, and which of them give way when there are too many.

A connection costs a descriptor, and a process without descriptors can neither accept a caller nor open a file. So the
port has a budget, cut from what the process may open; and since connections that do nothing would use it up, the
guard closes those longest without a call before it is full. Knows nothing of what calls ask for.
"""

import asyncio
import contextlib
import ipaddress
import logging
import math
import os
import re
import socket
import stat
import struct
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adcascade.serving.errors import StartupError

log = logging.getLogger(__name__)

# What else the process opens: versions of index and model while one takes over from another, logs, its own clients.
RESERVED_DESCRIPTORS = 48
# A port that can hold fewer connections than this is of no use.
MIN_CONNECTIONS = 8
# Connections by default where descriptors allow more; an idle one takes some 50 KiB.
DEFAULT_MAX_CONNECTIONS = 1000

# The guard begins to close connections when this share of them is taken. It looks this often, and more so for a while
# after it had to close some: until it looks again, a full port turns everybody away.
_FULL = 0.75
_LOOK_SECONDS = 0.25
_LOOK_SECONDS_UNDER_PRESSURE = 0.05
_PRESSURE_SECONDS = 10.0
_DESCRIPTORS = "/proc/self/fd"
# ipv4:10.0.0.7:41234 or ipv6:%5B::1%5D:41234
# Of struct tcp_info in linux/tcp.h: eight bytes of flags, then numbers of four; tcpi_last_data_recv is the twelfth.
_TCP_INFO_BYTES = 104
_LAST_DATA_RECEIVED = 8 + 4 * 11
_PEER = re.compile(r"ipv[46]:(.*):(\d+)")

Peer = tuple[str, int]


def connection_budget(wanted: int | None) -> int:
    """How many connections a port may hold: `wanted`, or what the descriptors of this process allow.

    Raises the soft limit of descriptors to the hard one first.

    Raises:
        StartupError: The limit does not allow for `wanted`, or for `MIN_CONNECTIONS`.
    """
    limit = _raised_descriptor_limit()
    if limit is None:
        return wanted or DEFAULT_MAX_CONNECTIONS
    allowed = limit - RESERVED_DESCRIPTORS - _open_descriptors()
    if allowed < (wanted or MIN_CONNECTIONS):
        raise StartupError(
            f"this process may open {limit} files and connections, which leaves {max(0, allowed)} for callers and is "
            f"too few for {wanted or MIN_CONNECTIONS}; raise it (ulimit -n)"
            + " or lower max_connections"
            * bool(wanted)
        )
    return wanted or min(allowed, DEFAULT_MAX_CONNECTIONS)


def _raised_descriptor_limit() -> int | None:
    """Descriptors this process may open; None where that has no limit or cannot be told."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS names a hard limit that it does not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return None if soft == resource.RLIM_INFINITY else soft


def _open_descriptors() -> int:
    try:
        return len(os.listdir(_DESCRIPTORS if os.path.isdir(_DESCRIPTORS) else "/dev/fd"))
    except OSError:
        return 0


@dataclass
class _Use:
    calls: int = 0
    last: float = -math.inf  # when a call last ended, in seconds of time.monotonic


@dataclass(frozen=True)
class _Connection:
    descriptor: int
    peer: Peer
    quiet_seconds: float  # since bytes last arrived


class ConnectionGuard:
    """Closes the connections of one port that are longest without a call, before the port is full. Of one event loop.

    On Linux alone, where a process can look at its own connections; elsewhere idle ones end by their age.

    Args:
        limit: Connections it may hold.
        on_closed: Told how many were closed.
    """

    def __init__(self, limit: int, on_closed: Callable[[int], None] = lambda _: None) -> None:
        self._port = 0
        self._most = max(1, int(limit * _FULL))
        self._on_closed = on_closed
        self._uses: OrderedDict[str, _Use] = OrderedDict()  # longest unused first
        self._remembered = 4 * limit
        self._others = 0  # descriptors that are no connections of this port, when last looked

    @contextlib.contextmanager
    def using(self, peer: str) -> Iterator[None]:
        """Holds for as long as a call of the connection `peer` is worked on; it is not closed meanwhile."""
        use = self._uses.setdefault(peer, _Use())
        use.calls += 1
        try:
            yield
        finally:
            use.calls -= 1
            use.last = time.monotonic()
            self._uses[peer] = use  # it may have been forgotten meanwhile
            self._uses.move_to_end(peer)
            if len(self._uses) > self._remembered:
                self._uses.popitem(last=False)

    async def watch(self, port: int) -> None:
        """Looks after the connections of `port` until cancelled."""
        self._port = port
        if not self._can_look():
            return
        pressed = -math.inf
        while True:
            hurry = time.monotonic() < pressed + _PRESSURE_SECONDS
            await asyncio.sleep(_LOOK_SECONDS_UNDER_PRESSURE if hurry else _LOOK_SECONDS)
            try:
                full = len(os.listdir(_DESCRIPTORS)) - self._others > self._most
                closed = await asyncio.to_thread(self._close_idlest, dict(self._uses)) if full else 0
            except OSError as error:  # looking takes a descriptor, too
                log.warning("cannot look at the open connections: %s", error)
                continue
            if closed:
                pressed = time.monotonic()
                log.warning("the port is full: closed the %d connections that were longest without a call", closed)
                self._on_closed(closed)

    def close(self, peers: set[str]) -> None:
        """Closes the connections of `peers`, as gRPC names them, in a thread; on Linux alone."""
        if self._can_look():
            asyncio.get_running_loop().run_in_executor(None, self._close_all, {_peer(name) for name in peers})

    def _close_all(self, peers: set[Peer]) -> None:
        connections = [one for one in map(self._connection, map(int, os.listdir(_DESCRIPTORS))) if one is not None]
        closed = sum(self._close(connection) for connection in connections if connection.peer in peers)
        log.warning("closed %d connections that did not take their replies", closed)
        self._on_closed(closed)

    @staticmethod
    def _can_look() -> bool:
        return os.path.isdir(_DESCRIPTORS) and hasattr(socket, "TCP_INFO")

    def _close_idlest(self, used: dict[str, _Use]) -> int:
        open_now = os.listdir(_DESCRIPTORS)
        connections = [one for one in map(self._connection, map(int, open_now)) if one is not None]
        self._others = len(open_now) - len(connections)
        surplus = len(connections) - self._most
        if surplus <= 0:
            return 0
        uses = {_peer(name): use for name, use in used.items()}
        now = time.monotonic()

        def idleness(connection: _Connection) -> tuple[bool, float]:
            """Those that never made a call come first, then by the time since their last one."""
            use = uses.get(connection.peer)
            return (True, connection.quiet_seconds) if use is None else (False, now - use.last)

        idle = [one for one in connections if one.peer not in uses or not uses[one.peer].calls]
        idle.sort(key=idleness, reverse=True)
        return sum(self._close(connection) for connection in idle[:surplus])

    def _connection(self, descriptor: int) -> _Connection | None:
        """The connection of this port that `descriptor` is, if it is one."""
        duplicate = _duplicate(descriptor)
        if duplicate is None:
            return None
        with duplicate, contextlib.suppress(OSError):  # it has ended meanwhile
            if self._is_ours(duplicate):
                info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
                (quiet_ms,) = struct.unpack_from("I", info, _LAST_DATA_RECEIVED)
                return _Connection(descriptor, _address(duplicate), quiet_ms / 1000)
        return None

    def _close(self, connection: _Connection) -> bool:
        """Shuts a connection down, which gRPC takes as its peer's leaving; False if it has ended meanwhile."""
        duplicate = _duplicate(connection.descriptor)
        if duplicate is None:
            return False
        with duplicate, contextlib.suppress(OSError):
            if self._is_ours(duplicate) and _address(duplicate) == connection.peer:
                duplicate.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _is_ours(self, duplicate: socket.socket) -> bool:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6) or duplicate.type != socket.SOCK_STREAM:
            return False
        return bool(duplicate.getsockname()[1] == self._port)


def _duplicate(descriptor: int) -> socket.socket | None:
    """A socket of its own for the connection behind `descriptor`; None if it is no connection, or is gone."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            return None
        duplicate = socket.socket(fileno=os.dup(descriptor))
    except OSError:
        return None
    try:
        duplicate.getpeername()
    except OSError:  # it has ended, or is a listening socket
        duplicate.close()
        return None
    return duplicate


def _address(connection: socket.socket) -> Peer:
    host, port = connection.getpeername()[:2]
    return _plain(host), port


def _peer(name: str) -> Peer:
    """Host and port of what gRPC calls a peer, such as ``ipv6:%5B::1%5D:41234``."""
    found = _PEER.fullmatch(urllib.parse.unquote(name))
    return (_plain(found[1].strip("[]")), int(found[2])) if found else (name, 0)


def _plain(host: str) -> str:
    """IPv4 addresses in IPv6 clothes as such."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        return str(getattr(address, "ipv4_mapped", None) or address)
    return host
