"""Clients that open what they never use: calls without a message, connections without a call; in a process of its own.

``python -m benchmarks.speed.silent HOST:PORT METHOD CONNECTIONS CALLS`` holds so many calls of a method ("/a.B/C") on
each of so many connections until standard input ends; with 0 calls, connections that have greeted and say no more. What
the server closes is opened anew. Once all were opened, it writes a line.
"""

import asyncio
import contextlib
import resource
import sys
from typing import Any

import grpc

# How an HTTP/2 client greets: the preface, and settings without any.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
_AGAIN_SECONDS = 0.05
# Connections that are opened at once: a listener's queue is short.
_OPENED_AT_ONCE = 50


async def _hold_calls(address: str, method: str, calls: int, opened: asyncio.Semaphore) -> None:
    """Calls on a connection of their own, none of which sends its message."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        start: Any = channel.stream_unary(method)
        await channel.channel_ready()

        async def hold(first: bool) -> None:
            call = start()
            if first:
                opened.release()
            with contextlib.suppress(grpc.RpcError):
                await call
            await asyncio.sleep(_AGAIN_SECONDS)

        async def keep_holding() -> None:
            first = True
            while True:
                await hold(first)
                first = False

        await asyncio.gather(*(keep_holding() for _ in range(calls)))


async def _hold_connection(address: str, opened: asyncio.Semaphore, at_once: asyncio.Semaphore) -> None:
    host, _, port = address.rpartition(":")
    greeted = False
    while True:
        with contextlib.suppress(OSError):
            async with at_once:
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(_GREETING)
            while await reader.read(4096):  # the server greets first
                if not greeted:
                    greeted = True
                    opened.release()
            writer.close()
        await asyncio.sleep(_AGAIN_SECONDS)


async def _hold(address: str, method: str, connections: int, calls: int) -> None:
    opened, at_once = asyncio.Semaphore(0), asyncio.Semaphore(_OPENED_AT_ONCE)
    held = asyncio.gather(
        *(
            _hold_calls(address, method, calls, opened) if calls else _hold_connection(address, opened, at_once)
            for _ in range(connections)
        )
    )
    for _ in range(connections * max(1, calls)):
        await opened.acquire()
    print("open", flush=True)  # noqa: T201
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    held.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await held


def main() -> None:
    """See the module."""
    address, method, connections, calls = sys.argv[1:]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_hold(address, method, int(connections), int(calls)))


if __name__ == "__main__":
    main()
