"""gRPC's asyncio server, but for one thing: a call of a method that it does not know cannot end it.

gRPC decodes the name of such a method in the loop that takes all calls; a name that is not UTF-8 raises there, and the
server shuts down (grpcio 1.85, `AioServer._server_main_loop`). So that loop is given no such call: known methods are
registered in gRPC's core, which compares their names in bytes, and all others are answered here. Knows nothing of what
they are answered.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio import _server

from adcascade.serving.errors import StartupError

_NEEDED = ("_request_call", "_request_registered_call", "add_registered_method_handlers")


class _Core(cygrpc.AioServer):  # type: ignore[misc]  # Cython has no types
    """Hands out calls of registered methods alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: Sequence[tuple[str, int]], refuse: Any) -> None:
        super().__init__(loop, None, (), (), tuple(options), None)
        self._own_loop = loop
        self._refuse = refuse
        self._refusing: set[asyncio.Task[None]] = set()

    async def _request_call(self) -> Any:
        """Overrides the wait for a call of an unknown method, which so never returns but when the server stops."""
        while True:
            state = await super()._request_call()
            task = self._own_loop.create_task(self._answer(state))
            self._refusing.add(task)  # the loop itself does not keep it
            task.add_done_callback(self._refusing.discard)

    async def _answer(self, state: Any) -> None:
        with contextlib.suppress(grpc.aio.AbortError, grpc.aio.BaseError):  # it is refused, or its caller is gone
            await self._refuse(None, cygrpc._ServicerContext(state, None, None, self._own_loop))


class AioServer(_server.Server):
    """A `grpc.aio.Server` with registered methods alone. To be made in the running event loop.

    Args:
        options: gRPC's channel arguments.
        refuse: Answers a call of any other method: takes None and the call's `grpc.aio.ServicerContext`.

    Raises:
        StartupError: This version of grpcio cannot be told to.
    """

    def __init__(self, options: Sequence[tuple[str, int]], refuse: "Callable[[Any, Any], Awaitable[Any]]") -> None:
        if missing := [name for name in _NEEDED if not hasattr(cygrpc.AioServer, name)]:
            raise StartupError(
                f"grpcio {grpc.__version__} is not known to this server ({', '.join(missing)} missing); install the "
                "version that constraints.txt names"
            )
        self._loop = cygrpc.get_working_loop()
        self._server = _Core(self._loop, options, refuse)

    def add_methods(self, handlers: Mapping[str, Any]) -> None:
        """Registers handlers by the full name of their method."""
        self._server.add_registered_method_handlers(dict(handlers))
