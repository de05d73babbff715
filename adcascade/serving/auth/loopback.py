"""Whether an address can be reached from other machines."""

import ipaddress
import socket


def is_loopback(host: str) -> bool:
    """Whether an address, or each address of a name, is this machine's own. What cannot be resolved is not.

    ``127.0.0.1``, ``::1`` and ``localhost`` are; ``0.0.0.0``, ``::`` and ``""`` mean all interfaces, and are not.
    """
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return bool(found) and all(_is_loopback_address(str(where[4][0])) for where in found)
    except (OSError, ValueError):  # also UnicodeError, of a name that cannot be one
        return False


def _is_loopback_address(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])  # an IPv6 address may end in %interface
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
