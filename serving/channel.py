"""Client channels: size limits, keepalive, retries of what is safe to retry, and health checks."""

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

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


def open_channel(address: str, *, ca_certificate: Path | None = None, max_message_mib: int = 8) -> grpc.Channel:
    """A channel to ``host:port``. With `ca_certificate` (PEM) the connection is TLS and the server is verified."""
    options = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", max_message_mib * MEBIBYTE),
        ("grpc.max_send_message_length", max_message_mib * MEBIBYTE),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if ca_certificate is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca_certificate.read_bytes()), options=options)


def is_serving(channel: grpc.Channel, service: str = "", timeout_seconds: float = 1.0) -> bool:
    """One health check; False too when nobody answers."""
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(request, timeout=timeout_seconds)  # type: ignore[attr-defined]  # missing in the stubs
    except grpc.RpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
