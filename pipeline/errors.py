"""What can come back from a server behind the pipeline instead of an answer."""

from adcascade.serving.errors import ServiceError


class StageFailed(Exception):
    """A call to a stage did not bring an answer.

    Attributes:
        reason: gRPC status name, `CIRCUIT_OPEN` or `INVALID_ANSWER`.
        error: the same as what the caller is told.
    """

    def __init__(self, reason: str, error: ServiceError) -> None:
        super().__init__(str(error))
        self.reason = reason
        self.error = error


class InvalidAnswer(ValueError):
    """A server answered what cannot be; the message says what."""
