"""Client channels: proxies, limits, and how soon a server that comes back, or does not answer, is noticed."""

import re
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import serving_server

from adcascade.client.address import is_this_machine
from adcascade.serving.channel import health_of, is_serving, open_channel
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings

ROOT = Path(__file__).parent.parent
PACKAGES = (
    "benchmarks",
    "pipeline",
    "retrieval",
    "ranking",
    "index_builder",
    "adcascade",
)
OPENED = re.compile(r"grpc(\.aio)?\.(in)?secure_channel\(")
# What attacks a server is held to none of it.
HOSTILE = {"benchmarks/speed/hostile.py", "benchmarks/speed/silent.py"}
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.mark.parametrize(
    "address",
    [
        "localhost:1",
        "LOCALHOST:50051",
        "api.localhost:1",
        "127.0.0.1:50051",
        "127.1.2.3:1",
        "[::1]:50051",
        "[::ffff:127.0.0.1]:1",
        "0.0.0.0:50050",
        "[::]:50050",
        "dns:localhost:1",
        "dns:///127.0.0.1:1",
        "dns://8.8.8.8/localhost:1",
        "ipv4:127.0.0.1:1",
        "ipv6:[::1]:1",
        "unix:/tmp/socket",
        "unix:///tmp/socket",
        "localhost",
    ],
)
def test_this_machine_is_recognised(address):
    assert is_this_machine(address)


@pytest.mark.parametrize(
    "address",
    [
        "example.org:443",
        "198.51.100.7:1",
        "[2001:db8::1]:1",
        "localhost.example.org:1",
        "dns:///example.org:1",
        "a",
        "",
    ],
)
def test_other_machines_are_not(address):
    assert not is_this_machine(address)


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that everything is told to use, and what has come to it."""
    came = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in PROXIES:
            monkeypatch.setenv(name, address)
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                came.append(connection.recv(4096))
                connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield came


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_reached_without_the_proxy(proxy, host):
    with (
        serving_server("any", lambda _: None) as (server, _),
        open_channel(f"{host}:{server.address.rpartition(':')[2]}") as channel,
    ):
        assert is_serving(channel, timeout_seconds=10)
    assert proxy == []


def test_another_machine_is_reached_through_the_proxy(proxy):
    with open_channel("adcascade.invalid:50051") as channel:
        assert health_of(channel, timeout_seconds=5) is None
    assert b"CONNECT adcascade.invalid:50051" in proxy[0]


def test_a_server_that_listens_on_all_interfaces_is_reached_without_the_proxy(proxy):
    server = Server(ServerSettings(host="0.0.0.0", port=0, insecure=True))
    server.start()
    server.set_serving(True)
    with open_channel(server.address) as channel:
        assert is_serving(channel, timeout_seconds=10)
    server.stop(0)
    assert proxy == []


def test_a_port_that_refuses_is_tried_again_within_a_second_however_long_it_has_refused():
    """Without a bound of their own the pauses would be 1, 1.6, 2.6, 4.1 s and so on."""
    times = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return
                times.append(time.monotonic())

        threading.Thread(target=accept, daemon=True).start()
        with open_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
            end = time.monotonic() + 6
            while time.monotonic() < end:
                assert health_of(channel, timeout_seconds=0.5) is None
                time.sleep(0.05)
    late = [time for time in times if time > times[0] + 3]
    assert len(late) >= 3


@contextmanager
def server_on(port):
    server = Server(ServerSettings(port=port))
    server.start()
    server.set_serving(True)
    yield
    server.stop(0)


@pytest.mark.slow
def test_after_a_long_outage_a_server_is_used_again_at_once(free_port):
    with open_channel(f"127.0.0.1:{free_port}") as channel:
        with server_on(free_port):
            assert is_serving(channel, timeout_seconds=10)
        end = time.monotonic() + 20  # gRPC's own next attempts would be at about 16 s and 26 s
        while time.monotonic() < end:
            assert not is_serving(channel)
            time.sleep(0.2)
        with server_on(free_port):
            back = time.monotonic()
            while not is_serving(channel):
                assert time.monotonic() < back + 4
                time.sleep(0.05)


class Relay:
    """Carries bytes between a client and a server; connections that are `frozen` stay open and carry none."""

    def __init__(self, port):
        self._port, self._frozen = port, []
        self.sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                return
            self.sockets += [client, server]
            frozen = threading.Event()
            self._frozen.append(frozen)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(one, other, frozen), daemon=True).start()

    @staticmethod
    def _carry(source, target, frozen):
        try:
            while data := source.recv(65536):
                if not frozen.is_set():
                    target.sendall(data)
        except OSError:
            return

    def freeze(self):
        for frozen in self._frozen:
            frozen.set()

    def close(self):
        self._listener.close()
        for one in self.sockets:
            one.close()


@pytest.mark.slow
def test_a_connection_that_has_died_without_a_word_is_noticed_and_replaced():
    with serving_server("any", lambda _: None) as (server, _):
        relay = Relay(int(server.address.rpartition(":")[2]))
        with open_channel(relay.address) as channel:
            assert is_serving(channel, timeout_seconds=10)
            relay.freeze()
            assert not is_serving(channel, timeout_seconds=1)
            frozen = time.monotonic()
            while not is_serving(channel):  # gRPC's own limits would never notice
                assert time.monotonic() < frozen + 40
        relay.close()


def test_no_channel_is_opened_elsewhere():
    """Proxies, limits and reconnecting are settled in one place, `adcascade.client.address`."""
    files = (path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] in PACKAGES)
    found = [str(path.relative_to(ROOT)) for path in files if OPENED.search(path.read_text())]
    assert set(found) - HOSTILE == {"adcascade/serving/channel.py", "adcascade/client/connection.py"}
