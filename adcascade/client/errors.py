"""What a call can end with instead of an answer::

AdCascadeError
├── InvalidRequest       the request is wrong; repeating it will not help
├── NotFound             it names something that does not exist, such as an ad id
├── FailedPrecondition   the server is not set up for it, such as ranking ids without an index
├── ResourceExhausted    the server, or a quota, is full, or a message too large; try again later, or ask for less
├── Unavailable          nobody answers, or the server is loading; it was tried several times
├── DeadlineExceeded     the time was over
├── Unauthenticated      the server does not know who calls: a token or a certificate is missing or no longer good
├── PermissionDenied     the server knows who calls, and they may not do this
├── NotOffered           this server has another job; the message says which one to ask
├── Cancelled            the client was closed meanwhile
└── ServerFault          the server failed; its log has the details under the request id
"""

from collections.abc import Mapping

import grpc


class AdCascadeError(Exception):
    """A call that brought no answer.

    Attributes:
        status: gRPC status of the call.
        message: What is wrong, and mostly what to do.
        request_id: The id in the servers' logs; "" if nothing was sent.

    >>> from adcascade import Client, InvalidRequest, User
    >>> with Client("localhost:50050") as client:
    ...     try:
    ...         client.recommend(User(), k=3)
    ...     except InvalidRequest as error:
    ...         print("not worth repeating:", error.message)
    not worth repeating: ...the user is empty...
    """

    status: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, request_id: str = "", status: grpc.StatusCode | None = None) -> None:
        super().__init__(message, request_id)
        self.message = message
        self.request_id = request_id
        if status is not None:
            self.status = status

    def __str__(self) -> str:
        return f"{self.message} (request {self.request_id})" if self.request_id else self.message


class InvalidRequest(AdCascadeError):
    """The request is wrong in itself."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(AdCascadeError):
    """Something that the request names does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(AdCascadeError):
    """The server is not in a state that allows the request."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(AdCascadeError):
    """The server or a quota is full, or a message is too large."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(AdCascadeError):
    """Nobody answers, or the server is loading or draining."""

    status = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(AdCascadeError):
    """No answer came in the time that the call had."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Unauthenticated(AdCascadeError):
    """The server does not know who calls."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(AdCascadeError):
    """The caller may not do this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class NotOffered(AdCascadeError):
    """The server at this address has no such method."""

    status = grpc.StatusCode.UNIMPLEMENTED


class Cancelled(AdCascadeError):
    """The client was closed while the call ran."""

    status = grpc.StatusCode.CANCELLED


class ServerFault(AdCascadeError):
    """The server failed. `status` is what it said of it, mostly INTERNAL."""

    status = grpc.StatusCode.INTERNAL


ERRORS: Mapping[grpc.StatusCode, type[AdCascadeError]] = {
    kind.status: kind
    for kind in (
        InvalidRequest,
        NotFound,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unauthenticated,
        PermissionDenied,
        NotOffered,
        Cancelled,
        ServerFault,
    )
}
