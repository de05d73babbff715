"""Client channels: size limits, keepalive, retries of what is safe to retry, and health checks."""

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.auth.client import ClientSecurity, SecureChannel
from serving.settings import MEBIBYTE

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


def open_channel(
    address: str,
    *,
    ca_certificate: Path | None = None,
    max_message_mib: int = 8,
    security: ClientSecurity | None = None,
) -> grpc.Channel:
    """A channel to ``host:port``.

    Args:
        ca_certificate: PEM; with it the connection is TLS and the server is verified. Short for `security`.
        security: What is presented to the server, and whom the client believes.

    Raises:
        StartupError: A file of `security` cannot be used, or a token would travel in the clear.
    """
    security = security or ClientSecurity(ca_certificate=ca_certificate)
    security.check(address)
    options = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", max_message_mib * MEBIBYTE),
        ("grpc.max_send_message_length", max_message_mib * MEBIBYTE),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if security.server_name:
        options.append(("grpc.ssl_target_name_override", security.server_name))

    def open_with(credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    return open_with(None) if security == ClientSecurity() else SecureChannel(security, open_with)


def is_serving(channel: grpc.Channel, service: str = "", timeout_seconds: float = 1.0) -> bool:
    """One health check; False too when nobody answers."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(request, timeout=timeout_seconds)  # type: ignore[attr-defined]  # missing in the stubs
    except grpc.RpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
