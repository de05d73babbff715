"""One call on the wire, from its headers to its end. Knows neither its message nor who works on it."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from adcascade.serving.auth.access import Admission
from adcascade.serving.context import REQUEST_ID_KEY, IncomingCall


class Exchange:
    """One call on the wire, in the event loop.

    Attributes:
        call: What is known of it.
        context: gRPC's own.
        admission: Who calls, once the guard has let them in.
        working: What a thread does for the call; it may go on after the caller has left.
    """

    def __init__(self, call: IncomingCall, context: Any) -> None:
        self.call = call
        self.context = context
        self.admission: Admission | None = None
        self.working: Future[bytes] | None = None
        self._has_id = False

    def end_admission(self) -> None:
        """Tells the guard that the call is over, or will once the thread is done."""
        admission = self.admission
        if admission is None:
            return
        if self.working is None:
            admission.end()
        else:
            self.working.add_done_callback(lambda _: admission.end())

    async def send_request_id(self) -> None:
        """Sends the initial metadata, once. Raises grpc.aio.InternalError if the caller is gone."""
        if not self._has_id:
            self._has_id = True
            await self.context.send_initial_metadata(((REQUEST_ID_KEY, self.call.request_id),))


# What is done once a call is let in; returns the reply.
Work = Callable[[Exchange], Awaitable[bytes | None]]
