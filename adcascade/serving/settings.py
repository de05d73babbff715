"""What every AdCascade server can be told; read once in ``__main__`` and passed down."""

import logging
from pathlib import Path

from pydantic import Field, field_validator

from adcascade.serving.auth.settings import AuthSettings

MEBIBYTE = 1024 * 1024


class ServerSettings(AuthSettings):
    """Settings shared by all servers. Subclasses add their own and an environment prefix."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the Prometheus /metrics page; 0 takes a free one, unset is off.",
    )
    address_file: Path | None = Field(
        None, description="Write the bound addresses here as JSON, for whoever started the server on port 0."
    )
    max_concurrent: int = Field(
        64, ge=1, description="Calls worked on or waiting at once; more are refused with RESOURCE_EXHAUSTED."
    )
    max_message_mib: int = Field(8, ge=1, le=512, description="Largest request or reply, in MiB.")
    max_connections: int | None = Field(
        None,
        ge=8,
        description="Connections at once; those longest without a call give way. By default up to 1000, as far as the "
        "descriptors of the process allow (ulimit -n).",
    )
    max_connection_calls: int = Field(
        256, ge=1, description="Calls at once of one connection; more wait at the caller."
    )
    max_unsent: int = Field(
        64, ge=1, description="Calls whose message has not arrived; one more, and the oldest is refused."
    )
    message_seconds: float = Field(
        10.0,
        gt=0,
        description="From the start of a call to the end of its message, and from its reply to its being taken.",
    )
    handshake_seconds: float = Field(
        5.0, gt=0, description="From a connection to the end of its TLS and HTTP/2 handshakes."
    )
    idle_seconds: float = Field(300.0, gt=0, description="A connection without a call for so long is closed.")
    max_metadata_kib: int = Field(16, ge=1, le=1024, description="Largest headers of a call, in KiB.")
    reflection: bool = Field(True, description="Whether the server tells its services and messages to whoever asks.")
    grace_seconds: float = Field(10.0, ge=0, description="How long SIGTERM waits for calls in flight.")
    exit_with_parent: bool = Field(
        False,
        description="Also drain when standard input closes, so that no server outlives the process that started it.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")

    @field_validator("log_level")
    @classmethod
    def _log_level_exists(cls, name: str) -> str:
        if name.upper() not in logging.getLevelNamesMapping():
            raise ValueError(f"{name!r} is not a log level: DEBUG, INFO, WARNING or ERROR")
        return name.upper()
