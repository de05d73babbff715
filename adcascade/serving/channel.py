"""Channels between servers: what `adcascade.client.address` settles, retries of what is safe to retry, and health
checks."""

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adcascade.client.address import channel_options
from adcascade.serving.auth.client import ClientSecurity, SecureChannel
from adcascade.serving.loop import run_in_loop

# All calls are pure reads, so a call that no server took may be sent again.
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.02s",
                    "maxBackoff": "0.2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def open_channel(
    address: str,
    *,
    ca_certificate: Path | None = None,
    max_message_mib: int = 8,
    security: ClientSecurity | None = None,
) -> grpc.Channel:
    """A channel to ``host:port``.

    Args:
        address: Without a proxy where it is this machine's, whatever ``http_proxy`` and the like say; other machines
            are reached through it, unless ``no_proxy`` names them.
        ca_certificate: PEM; with it the connection is TLS and the server is verified. Short for `security`.
        max_message_mib: Largest message in either direction; the server has a limit of its own.
        security: What is presented to the server, and whom the client believes.

    Raises:
        StartupError: A file of `security` cannot be used, or a token would travel in the clear.
    """
    security = security or ClientSecurity(ca_certificate=ca_certificate)
    options = _options(address, security, max_message_mib)

    def open_with(credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    return open_with(None) if security == ClientSecurity() else SecureChannel(security, open_with)


def open_channel_in_loop(address: str, *, security: ClientSecurity, max_message_mib: int = 8) -> SecureChannel:
    """The same for calls that are awaited in the loop of `adcascade.serving.loop`; not to be called from there."""
    options = _options(address, security, max_message_mib)

    def open_with(credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

    async def in_loop() -> SecureChannel:
        return SecureChannel(security, open_with, lambda channel: run_in_loop(channel.close()))

    return run_in_loop(in_loop())


def _options(address: str, security: ClientSecurity, max_message_mib: int) -> list[tuple[str, str | int]]:
    """gRPC's options of a channel. Raises StartupError if `security` is none for this address."""
    security.check(address)
    return [
        ("grpc.service_config", _SERVICE_CONFIG),
        *channel_options(address, max_message_mib, security.server_name),
    ]


async def awaited_health_of(channel: SecureChannel, timeout_seconds: float) -> int | None:
    """`health_of` the server as a whole, on a channel of the loop."""
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)  # type: ignore[attr-defined]
    except grpc.aio.AioRpcError as error:
        return int(health_pb2.HealthCheckResponse.UNKNOWN) if error.code() in _REFUSED else None
    return int(reply.status)


def health_of(channel: grpc.Channel, service: str = "", timeout_seconds: float = 1.0) -> int | None:
    """What the server says of itself, a `HealthCheckResponse.ServingStatus`; None if nobody answers in time.

    UNKNOWN where it is there and does not tell us: an identity that is no longer good is no reason to restart it.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(request, timeout=timeout_seconds)  # type: ignore[attr-defined]  # missing in the stubs
    except grpc.RpcError as error:
        refused = isinstance(error, grpc.Call) and error.code() in _REFUSED
        return int(health_pb2.HealthCheckResponse.UNKNOWN) if refused else None
    return int(reply.status)


def is_serving(channel: grpc.Channel, service: str = "", timeout_seconds: float = 1.0) -> bool:
    """One health check; False too when nobody answers."""
    return health_of(channel, service, timeout_seconds) == health_pb2.HealthCheckResponse.SERVING
