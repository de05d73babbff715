"""How a connection to ``host:port`` is made: limits, reconnecting, keepalive, and no proxy to this machine itself.

Knows neither credentials nor calls; the servers' own channels (`adcascade.serving.channel`) use it, too.
"""

import ipaddress
import socket

MEBIBYTE = 2**20

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
_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_LOCAL_SCHEMES = ("unix:", "unix-abstract:", "vsock:")


def channel_options(address: str, max_message_mib: int, server_name: str = "") -> list[tuple[str, str | int]]:
    """gRPC's options of a channel to `address`.

    Args:
        address: Without a proxy where it is this machine's, whatever ``http_proxy`` and the like say; other machines
            are reached through it, unless ``no_proxy`` names them.
        max_message_mib: Largest message in either direction; the server has a limit of its own.
        server_name: That the server's certificate has, where it is not that of the address.
    """
    options: list[tuple[str, str | int]] = [
        ("grpc.max_receive_message_length", max_message_mib * MEBIBYTE),
        ("grpc.max_send_message_length", max_message_mib * MEBIBYTE),
        ("grpc.enable_http_proxy", int(not is_this_machine(address))),
        *_RECONNECTING,
        *_KEEPALIVE,
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


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
