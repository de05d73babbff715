"""How much of a reply fits into one message. Knows nothing of what it holds."""

from google.protobuf.message import Message

from adcascade.serving.errors import ResourceExhausted
from adcascade.serving.settings import MEBIBYTE

# Beside the part that is counted, a reply has versions, timings and the like.
_KEPT_BYTES = 4096
# Of a field: its number and its length.
_FIELD_BYTES = 8


class ReplyRoom:
    """The room that `max_message_mib` leaves for the part of a reply that grows."""

    def __init__(self, max_message_mib: int) -> None:
        self.max_bytes = max_message_mib * MEBIBYTE - _KEPT_BYTES

    @staticmethod
    def taken_by(part: Message | str) -> int:
        """Bytes of one element of the reply, at most."""
        return _FIELD_BYTES + (len(part.encode()) if isinstance(part, str) else part.ByteSize())

    def check(self, size: int, advice: str) -> None:
        """Raises ResourceExhausted if `size` bytes do not fit; `advice` says what the caller can do."""
        if size > self.max_bytes:
            raise ResourceExhausted(
                f"the answer is larger than {(self.max_bytes + _KEPT_BYTES) // MEBIBYTE} MiB: {advice}, or raise "
                "max_message_mib of this server and of the caller"
            )
