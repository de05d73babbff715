"""Errors that a gRPC caller is told about, each carrying its status.

Knows nothing of who raises them. One interceptor turns them into a status and a message::

    ServiceError
    ├── InvalidArgument      the request itself is wrong; repeating it will not help
    ├── NotFound             the request names something that does not exist
    ├── FailedPrecondition   the server's state does not allow it; somebody must change that first
    ├── ResourceExhausted    the server is full; try again later, with back-off
    ├── Unavailable          not loaded yet, or shutting down; try another replica
    ├── Unauthenticated      nobody knows who calls
    ├── PermissionDenied     the caller is known, and may not do this
    ├── Unimplemented        there is no such method
    ├── DeadlineExceeded     the caller's time ran out
    ├── Cancelled            the caller left
    ├── StartupError         the server cannot start (never on the wire; exit code 2)
    └── ServersKeepFailing   servers were started again too often (never on the wire; exit code 69)
"""

import grpc


class ServiceError(Exception):
    """Base class. The message is shown to the caller: it says what is wrong and what to do."""

    status: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = ""  # for the access log alone


class InvalidArgument(ServiceError):
    """The request is wrong in itself."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServiceError):
    """Something the request names does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(ServiceError):
    """The server is not in a state that allows the request."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(ServiceError):
    """The server has as much work as it takes."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(ServiceError):
    """The server is loading or draining."""

    status = grpc.StatusCode.UNAVAILABLE


class Unauthenticated(ServiceError):
    """The caller did not say who it is, or not in a way that can be believed."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServiceError):
    """The caller may not do what it asks for."""

    status = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(ServiceError):
    """The server has no such method."""

    status = grpc.StatusCode.UNIMPLEMENTED


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before an answer was ready."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ServiceError):
    """The caller cancelled the call or its connection broke."""

    status = grpc.StatusCode.CANCELLED


class StartupError(ServiceError):
    """The server cannot start with these settings."""


class ServersKeepFailing(ServiceError):
    """A server that is kept running fell too often."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h
