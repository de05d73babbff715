"""Client channels: size limits, keepalive, reconnecting, retries of what is safe to retry, and health checks."""

import ipaddress
import json
import socket
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adcascade.serving.auth.client import ClientSecurity, SecureChannel
from adcascade.serving.settings import MEBIBYTE

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

# A server that is back after however long an outage is connected to again within this time; gRPC's own limits let the
# pauses between attempts grow to two minutes, and an attempt that nobody answers take twenty seconds.
_RECONNECTING = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # of an attempt to connect, whatever the name says
)
# A connection on which nothing comes back is given up a few seconds after something was sent on it, with all calls that
# wait there. A ping that measures the connection is often under way already, and has a limit of its own (a minute).
_KEEPALIVE = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_LOCAL_SCHEMES = ("unix:", "unix-abstract:", "vsock:")


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
    security.check(address)
    options = [
        ("grpc.service_config", _SERVICE_CONFIG),
        ("grpc.max_receive_message_length", max_message_mib * MEBIBYTE),
        ("grpc.max_send_message_length", max_message_mib * MEBIBYTE),
        ("grpc.enable_http_proxy", int(not is_this_machine(address))),
        *_RECONNECTING,
        *_KEEPALIVE,
    ]
    if security.server_name:
        options.append(("grpc.ssl_target_name_override", security.server_name))

    def open_with(credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, credentials, options=options)

    return open_with(None) if security == ClientSecurity() else SecureChannel(security, open_with)


def is_this_machine(address: str) -> bool:
    """Whether ``host:port`` is on this machine: loopback, any of its own addresses, or a socket file."""
    if address.startswith(_LOCAL_SCHEMES):
        return True
    host = _host(address)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False  # a name that only a resolver knows
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback or ip.is_unspecified or _has_address(ip)


def _host(address: str) -> str:
    """Of ``host:port``, ``[host]:port``, and these behind a scheme such as ``dns:///``, in small letters."""
    for scheme in _SCHEMES:
        if address.startswith(scheme):
            address = address.removeprefix(scheme).rpartition("/")[2]
    if address.startswith("["):
        return address[1:].partition("]")[0].partition("%")[0].lower()
    host, colon, _ = address.rpartition(":")
    return (host if colon and ":" not in host else address).rstrip(".").lower()


def _has_address(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(ip), 0))  # only to an address of this machine
    except OSError:
        return False
    return True


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
