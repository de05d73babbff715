"""HTTP/2 by hand, for what no gRPC client would send: frames and headers of any bytes, in any order, at any pace."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame: 24 bits of length, kind, flags, stream, payload."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header(name: bytes, value: bytes) -> bytes:
    """A header field, literal and never indexed (RFC 7541, 6.2.3), without Huffman codes."""
    return b"\x10" + _string(name) + _string(value)


def _string(value: bytes) -> bytes:
    """Length in 7 bits and a continuation (RFC 7541, 5.1), then the bytes."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    length, rest = b"\x7f", len(value) - 127
    while rest >= 128:
        length, rest = length + bytes([rest % 128 + 128]), rest // 128
    return length + bytes([rest]) + value


def call_headers(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a gRPC call."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"test"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]
    return b"".join(header(name, value) for name, value in [*fields, *more])


def message(payload: bytes) -> bytes:
    """A gRPC message: not compressed, length, payload."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


class Connection:
    """A connection over which anything may be sent."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def start(self) -> "Connection":
        """Speaks HTTP/2."""
        self.send(PREFACE + frame(SETTINGS, 0, 0))
        return self

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def call(self, stream: int, path: bytes, *more: tuple[bytes, bytes], body: bytes | None = b"") -> None:
        """Begins a call, and with a `body` ends it."""
        self.send(frame(HEADERS, END_HEADERS, stream, call_headers(path, *more)))
        if body is not None:
            self.send(frame(DATA, END_STREAM, stream, message(body)))

    def is_closed_within(self, seconds: float) -> bool:
        """Whether the server ends the connection; reads and forgets what it says before."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def received(self, until: bytes, seconds: float = 10) -> bytes:
        """What the server says, up to and with `until`."""
        self.socket.settimeout(seconds)
        seen = b""
        while until not in seen:
            more = self.socket.recv(65536)
            assert more, f"the connection ended: {seen!r}"
            seen += more
        return seen
