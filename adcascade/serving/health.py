"""The health service, answered in the event loop, where no call and no stream can hold it up. Knows no server.

Not the one of grpcio-health-checking: there, one who watches and does not read keeps the status from being changed.
"""

import asyncio
from collections.abc import AsyncIterator

from grpc_health.v1 import health_pb2, health_pb2_grpc

from adcascade.serving.context import IncomingCall
from adcascade.serving.errors import NotFound, Unavailable
from adcascade.serving.loop import event_loop

SERVICE_NAME = "grpc.health.v1.Health"

_Reply = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers by service name; the empty name is the server as a whole."""

    def __init__(self) -> None:
        self._serving: dict[str, bool] = {"": False}
        self._closed = False
        self._changed = asyncio.Event()

    def set(self, service: str, serving: bool) -> None:
        """Sets a service's status, from any thread, and tells those who watch it. Without effect once closed."""
        if not self._closed:
            self._serving[service] = serving
            event_loop().call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Sets all to NOT_SERVING for good, and ends the streams of those who watch once they are told."""
        self._closed = True
        self._serving = dict.fromkeys(self._serving, False)
        event_loop().call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, call: IncomingCall) -> _Reply:  # noqa: N802
        """The status of a service now."""
        if request.service not in self._serving:
            raise NotFound("this server has no service of that name")
        return self._reply(request.service)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, call: IncomingCall
    ) -> AsyncIterator[_Reply]:
        """The status of a service now, and each time it changes."""
        last = None
        while True:
            changed = self._changed
            reply = self._reply(request.service)
            if reply != last:
                yield reply
                last = reply
            if self._closed:
                raise Unavailable("the server is shutting down")
            await changed.wait()

    def _reply(self, service: str) -> _Reply:
        serving = self._serving.get(service)
        if serving is None:
            return _Reply(status=_Reply.SERVICE_UNKNOWN)
        return _Reply(status=_Reply.SERVING if serving else _Reply.NOT_SERVING)
