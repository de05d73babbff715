"""Python imports this first in every process whose PYTHONPATH names its folder: looking up or reaching a host other
than this one fails and is written down, and so is writing into the home directory.

An audit hook sees every socket and file that Python code opens, whichever library's, and cannot be taken out again.
"""

import ipaddress
import os
import sys
import traceback

_RECORD = os.environ["CONFINED_RECORD"]
_HOME = os.environ["HOME"]
_DEVNULL = os.devnull
_OPENS_A_HOST = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
_WRITES = {"os.mkdir", "os.rename", "os.symlink", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_write, _open, _close = os.write, os.open, os.close
_inside = False


def _is_local(host: object) -> bool:
    if host is None or host in {"", "localhost", b"localhost"}:
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else str(host)).is_loopback
    except ValueError:
        return False


def _host(event: str, arguments: tuple[object, ...]) -> object:
    if event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        return arguments[0]
    address = arguments[1]
    return address[0] if isinstance(address, tuple) else None  # a path: a socket of this machine


def _note(what: str) -> None:
    record = _open(_RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _write(record, (what + "\n" + "".join(traceback.format_stack(limit=12)[:-3]) + "\n").encode())
    _close(record)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    global _inside
    if _inside:
        return
    _inside = True
    try:
        if event in _OPENS_A_HOST and not _is_local(_host(event, arguments)):
            _note(f"{event} {arguments[0] if 'get' in event else arguments[1]!r} by {sys.argv}")
            raise OSError(f"confined: {event} to another host")
        opened_to_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if (opened_to_write or event in _WRITES) and str(arguments[0]).startswith(_HOME + os.sep):
            _note(f"{event} {arguments[0]} by {sys.argv}")
    finally:
        _inside = False


sys.addaudithook(_watch)
