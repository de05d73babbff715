"""A server that asks who calls: when it asks, what it logs, quotas, renewal without a restart, doors that stay shut."""

import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from auth_files import AUDIENCE, ISSUER, Issuer, write_pair
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from grpc_health.v1 import health_pb2

from adcascade.serving.auth.authority import URI_PREFIX, DevAuthority
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.auth.identity import current_identity
from adcascade.serving.auth.tokens import TokensFile
from adcascade.serving.channel import health_of, is_serving, open_channel, open_channel_in_loop
from adcascade.serving.errors import StartupError
from adcascade.serving.loop import run_in_loop
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings

SERVICE, ECHO = "test.Echo", "/test.Echo/Echo"
UNAUTHENTICATED, EXHAUSTED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED


def whoami(_request, _context):
    return str(current_identity.get()).encode()


@contextmanager
def serve(behaviour=whoami, scope="rank", **settings):
    server = Server(ServerSettings(**settings))

    def register(methods):
        handler = grpc.unary_unary_rpc_method_handler(behaviour, bytes, bytes)
        methods.add_registered_method_handlers(SERVICE, {"Echo": handler})

    server.add(SERVICE, register, {"Echo": scope})
    server.start()
    server.set_serving(True)
    try:
        yield server
    finally:
        server.stop(0)


def call(channel, token="", message=b"", timeout=10.0):
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return channel.unary_unary(ECHO)(message, metadata=metadata, timeout=timeout)


def status_of(channel, token=""):
    try:
        call(channel, token)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def soon(condition, seconds=15.0):
    """Waits until it holds: files are looked at about once a second."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.05)


@pytest.fixture
def tokens(tmp_path):
    return TokensFile(tmp_path / "tokens.txt")


@pytest.fixture
def token(tokens):
    return tokens.create("shop", ["rank"])[1]


# --- when it asks ---


def test_nobody_is_refused_before_the_message_is_there_and_takes_no_slot(tmp_path, token):
    entered, leave = threading.Event(), threading.Event()

    def slow(_request, _context):
        entered.set()
        leave.wait(30)
        return b""

    with (
        serve(slow, max_concurrent=1, tokens=tmp_path / "tokens.txt") as server,
        open_channel(server.address) as channel,
        ThreadPoolExecutor() as pool,
    ):
        working = pool.submit(call, channel, token)
        assert entered.wait(10)
        assert status_of(channel, token) is EXHAUSTED  # the one slot is taken
        assert status_of(channel) is UNAUTHENTICATED  # which nobody learns
        never = threading.Event()

        def silence():
            never.wait(30)
            yield b""

        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as refused:
            channel.stream_unary(ECHO)(silence(), timeout=20)
        assert refused.value.code() is UNAUTHENTICATED
        assert time.monotonic() - started < 10
        never.set()
        leave.set()
        assert working.result(10) == b""


def test_a_stranger_is_told_the_same_of_methods_that_are_not_there_and_a_caller_with_a_name_is_told(tmp_path, token):
    with serve(tokens=tmp_path / "tokens.txt") as server, open_channel(server.address) as channel:
        for method in ("/test.Echo/Other", "/other.Service/Method"):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(b"", timeout=10)
            assert refused.value.code() is UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as missing:
                channel.unary_unary(method)(b"", metadata=(("authorization", f"Bearer {token}"),), timeout=10)
            assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_log_names_peer_identity_and_reason_and_the_wire_none_of_them(tmp_path, tokens, token, caplog):
    caplog.set_level(logging.DEBUG)
    lost = tokens.create("lost", ["rank"])[1]
    tokens.revoke("lost")
    with serve(tokens=tmp_path / "tokens.txt") as server, open_channel(server.address) as channel:
        assert call(channel, token, b"secret wishes") == b"token:shop"
        with pytest.raises(grpc.RpcError) as refused:
            call(channel, lost, b"secret wishes")
    assert "revoked" not in refused.value.details()
    lines = [line for line in caplog.messages if ECHO in line]
    assert "from ipv4:127.0.0.1:" in lines[0]
    assert lines[0].endswith("as token:shop")
    assert "UNAUTHENTICATED" in lines[1]
    assert "is revoked" in lines[1]
    with (
        serve(tokens=tmp_path / "tokens.txt", scope="admin") as server,
        open_channel(server.address) as channel,
        pytest.raises(grpc.RpcError),
    ):
        call(channel, token, b"secret wishes")
    assert "PERMISSION_DENIED" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("called by token:shop")
    for secret in (token, lost, "secret wishes"):
        assert secret not in caplog.text


def test_an_identity_does_not_outlive_its_call(tmp_path, token):
    with serve(tokens=tmp_path / "tokens.txt", max_concurrent=1, anonymous_health=True) as server:
        with open_channel(server.address) as channel:
            for _ in range(5):
                assert call(channel, token) == b"token:shop"
                assert status_of(channel) is UNAUTHENTICATED
        with open_channel(server.address) as channel:
            assert is_serving(channel)  # without a token, on the same thread of the event loop


# --- quotas ---


def test_the_rate_of_one_identity_is_bounded_and_others_are_not_in_its_way(tmp_path, tokens, token):
    other = tokens.create("other", ["rank"])[1]
    with (
        serve(tokens=tmp_path / "tokens.txt", quota_calls_per_second=0.001) as server,
        open_channel(server.address) as channel,
    ):
        assert status_of(channel, token) is grpc.StatusCode.OK
        for _ in range(3):
            assert status_of(channel, token) is EXHAUSTED
        assert status_of(channel, other) is grpc.StatusCode.OK
        assert is_serving(open_channel(server.address))


def test_calls_at_once_are_counted_until_their_work_ends_not_until_the_caller_leaves(tmp_path, tokens, token):
    other = tokens.create("other", ["rank"])[1]
    entered, leave = threading.Event(), threading.Event()

    def slow(_request, _context):
        entered.set()
        leave.wait(30)
        return b""

    with (
        serve(slow, tokens=tmp_path / "tokens.txt", quota_concurrent=1) as server,
        open_channel(server.address) as channel,
    ):
        with pytest.raises(grpc.RpcError) as late:
            call(channel, token, timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert entered.is_set()
        assert status_of(channel, token) is EXHAUSTED  # the thread still works for it
        leave.set()
        soon(lambda: status_of(channel, token) is grpc.StatusCode.OK)
        assert status_of(channel, other) is grpc.StatusCode.OK


def test_a_call_refused_for_another_reason_gives_its_quota_back(tmp_path, token):
    with (
        serve(tokens=tmp_path / "tokens.txt", quota_concurrent=1, message_seconds=0.3) as server,
        open_channel(server.address) as channel,
    ):
        never = threading.Event()

        def silence():
            never.wait(30)
            yield b""

        for _ in range(2):
            with pytest.raises(grpc.RpcError) as late:
                channel.stream_unary(ECHO)(silence(), metadata=(("authorization", f"Bearer {token}"),), timeout=20)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()
        assert status_of(channel, token) is grpc.StatusCode.OK


# --- renewal without a restart ---


def test_tokens_and_keys_are_taken_up_and_dropped_while_the_server_runs(tmp_path, tokens, token):
    issuer = Issuer()
    keys = issuer.write_keys(tmp_path / "keys.json")
    settings = {"jwt_keys": keys, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "tokens": tmp_path / "tokens.txt"}
    with serve(**settings) as server, open_channel(server.address) as channel:
        old = issuer.token(scope="rank")
        assert call(channel, token) == b"token:shop"
        assert call(channel, old) == b"jwt:shop"
        second = tokens.create("shop-2", ["rank"])[1]
        tokens.revoke("shop")
        issuer.keys = {"k2": generate_private_key(SECP256R1())}
        issuer.write_keys(keys)
        new = issuer.token("k2", scope="rank")
        soon(lambda: status_of(channel, second) is grpc.StatusCode.OK)
        soon(lambda: status_of(channel, new) is grpc.StatusCode.OK)
        assert status_of(channel, token) is UNAUTHENTICATED
        assert status_of(channel, old) is UNAUTHENTICATED


class Pki:
    """An authority's files of a server and a client, which can be replaced by another authority's."""

    def __init__(self, folder):
        self.folder = folder
        self.renew()
        (folder / "certificates.txt").write_text(f"uri:{URI_PREFIX}shop scopes=rank,metrics:read\n")

    def renew(self):
        self.authority = DevAuthority()
        (self.folder / "ca.pem").write_bytes(self.authority.certificate)
        self.server = write_pair(self.folder, "server", self.authority.server())
        self.client = write_pair(self.folder, "client", self.authority.client("shop"))

    @property
    def settings(self):
        return {
            "tls_certificate": self.server[0],
            "tls_key": self.server[1],
            "client_ca_certificate": self.folder / "ca.pem",
            "client_certificates": self.folder / "certificates.txt",
        }

    @property
    def security(self):
        return ClientSecurity(self.folder / "ca.pem", *self.client)

    def fresh_credentials(self):
        certificate, key = self.client
        return grpc.ssl_channel_credentials(self.authority.certificate, key.read_bytes(), certificate.read_bytes())


def page(server, pki):
    context = ssl.create_default_context(cadata=pki.authority.certificate.decode())
    context.load_cert_chain(*pki.client)
    with urllib.request.urlopen(f"https://{server.metrics_address}/metrics", context=context, timeout=10) as reply:
        return reply.status


def test_server_client_and_authority_certificates_are_replaced_while_both_run(tmp_path):
    pki = Pki(tmp_path)
    with (
        serve(metrics_port=0, **pki.settings) as server,
        open_channel(server.address, security=pki.security) as channel,
    ):
        assert call(channel) == f"certificate:{URI_PREFIX}shop".encode()
        assert page(server, pki) == 200
        before = grpc.secure_channel(server.address, pki.fresh_credentials())
        assert status_of(before) is grpc.StatusCode.OK
        stale = pki.fresh_credentials()
        pki.renew()

        def new_callers_come_in():
            with grpc.secure_channel(server.address, pki.fresh_credentials()) as fresh:
                return status_of(fresh) is grpc.StatusCode.OK

        soon(new_callers_come_in)
        with grpc.secure_channel(server.address, stale) as late:  # of the authority that was replaced
            assert status_of(late) is grpc.StatusCode.UNAVAILABLE
        soon(lambda: status_of(channel) is grpc.StatusCode.OK)  # the client has taken up its own files
        soon(lambda: page(server, pki) == 200)
        (tmp_path / "certificates.txt").write_text(f"uri:{URI_PREFIX}other scopes=rank\n")
        soon(lambda: status_of(channel) is UNAUTHENTICATED)  # on a connection that stands
        assert status_of(before) is UNAUTHENTICATED
        before.close()


def test_half_of_a_new_certificate_does_not_close_the_port(tmp_path, caplog):
    pki = Pki(tmp_path)
    with serve(**pki.settings) as server:
        credentials = pki.fresh_credentials()
        pki.server[0].write_bytes(DevAuthority().server().certificate)  # whose key is not there yet
        soon(lambda: any("keeping the TLS certificate" in line for line in caplog.messages))
        with grpc.secure_channel(server.address, credentials) as channel:
            assert status_of(channel) is grpc.StatusCode.OK


def test_the_oldest_connection_of_a_removed_authority_ends_by_its_age(tmp_path):
    pki = Pki(tmp_path)
    with (
        serve(connection_age_seconds=1, **pki.settings) as server,
        grpc.secure_channel(server.address, pki.fresh_credentials()) as channel,
    ):
        assert status_of(channel) is grpc.StatusCode.OK
        pki.renew()
        soon(lambda: status_of(channel) is grpc.StatusCode.UNAVAILABLE)


def test_a_client_presents_the_token_that_is_in_its_file_now(tmp_path, tokens, token):
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    with (
        serve(tokens=tmp_path / "tokens.txt") as server,
        open_channel(server.address, security=ClientSecurity(token_file=file)) as channel,
    ):
        assert call(channel) == b"token:shop"
        assert channel.unary_unary(ECHO).future(b"", timeout=10).result() == b"token:shop"
        file.write_text(tokens.create("next", ["rank"])[1])
        soon(lambda: call(channel) == b"token:next")


def awaited(channel):
    """What the server says on a channel whose calls are awaited, and None if it does not let us in."""

    async def ask():
        try:
            return await channel.unary_unary(ECHO)(b"", timeout=10)
        except grpc.aio.AioRpcError:
            return None

    return run_in_loop(ask())


def test_a_channel_of_the_loop_presents_the_token_that_is_in_its_file_now(tmp_path, tokens, token):
    file = tmp_path / "token"
    file.write_text(token)
    with (
        serve(tokens=tmp_path / "tokens.txt") as server,
        open_channel_in_loop(server.address, security=ClientSecurity(token_file=file)) as channel,
    ):
        assert awaited(channel) == b"token:shop"
        file.write_text(tokens.create("next", ["rank"])[1])
        soon(lambda: awaited(channel) == b"token:next")


def test_a_channel_of_the_loop_takes_up_new_certificates(tmp_path):
    pki = Pki(tmp_path)
    with (
        serve(**pki.settings) as server,
        open_channel_in_loop(server.address, security=pki.security) as channel,
    ):
        shop = f"certificate:{URI_PREFIX}shop".encode()
        assert awaited(channel) == shop
        before = channel.current()
        pki.renew()
        soon(lambda: awaited(channel) == shop and channel.current() is not before)
    with pytest.raises(grpc.aio.UsageError):  # both are closed
        run_in_loop(asking(before))


async def asking(channel):
    return await channel.unary_unary(ECHO)(b"", timeout=10)


# --- doors that stay shut ---

OPEN_HOSTS = ["0.0.0.0", "::", "", "0", "::ffff:0.0.0.0", socket.gethostname() + ".invalid"]


@pytest.mark.parametrize("host", OPEN_HOSTS)
def test_a_server_that_others_can_reach_does_not_start_without_identities_and_tls(tmp_path, host, token):
    server = Server(ServerSettings(host=host))
    with pytest.raises(StartupError, match="nobody would be asked who they are"):
        server.start()
    assert server.address == ""
    with pytest.raises(StartupError, match="in the clear"):
        Server(ServerSettings(host=host, tokens=tmp_path / "tokens.txt")).start()
    pki = Pki(tmp_path)
    with pytest.raises(StartupError, match="nobody would be asked"):
        Server(ServerSettings(host=host, tls_certificate=pki.server[0], tls_key=pki.server[1])).start()


def test_it_starts_with_both_or_when_told_so_and_health_then_needs_an_identity(tmp_path, tokens, token):
    pki = Pki(tmp_path)
    with (
        serve(host="0.0.0.0", insecure=True) as server,
        open_channel(server.address.replace("0.0.0.0", "127.0.0.1")) as channel,
    ):
        assert call(channel) == b"-"
    tls = {"tls_certificate": pki.server[0], "tls_key": pki.server[1], "tokens": tmp_path / "tokens.txt"}
    file = tmp_path / "token"
    file.write_text(token)
    with serve(host="0.0.0.0", **tls) as server:
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        with open_channel(address, security=ClientSecurity(tmp_path / "ca.pem", token_file=file)) as channel:
            assert call(channel) == b"token:shop"
            assert is_serving(channel)
        with open_channel(address, ca_certificate=tmp_path / "ca.pem") as channel:
            assert not is_serving(channel)
    with (
        serve(host="0.0.0.0", anonymous_health=True, **tls) as server,
        open_channel(server.address.replace("0.0.0.0", "127.0.0.1"), ca_certificate=tmp_path / "ca.pem") as channel,
    ):
        assert is_serving(channel)
        assert status_of(channel) is UNAUTHENTICATED


def test_the_command_ends_with_exit_code_2_and_says_what_to_do():
    command = [sys.executable, "-m", "pipeline", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 0.0.0.0 can be reached from other machines")
    assert "--insecure" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client_ca_certificate": "ca.pem", "client_certificates": "certificates.txt"}, "needs TLS"),
        ({"tls_certificate": "server.pem", "tls_key": "server.key", "client_ca_certificate": "ca.pem"}, "go together"),
        ({"client_certificates": "certificates.txt"}, "go together"),
        ({"jwt_keys": "keys.json"}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_keys": "keys.json", "jwt_issuer": ISSUER}, "needs jwt_issuer and jwt_audience"),
        ({"jwt_issuer": ISSUER}, "say nothing without jwt_keys"),
        ({"tokens": "tokens.txt", "revocations": "none"}, "revocations are of JWTs"),
        ({"tokens": "missing.txt"}, "missing.txt"),
        ({"tls_certificate": "server.pem", "tls_key": "client.key"}, "not the one of the TLS certificate"),
        ({"tls_certificate": "server.pem", "tls_key": "locked.key"}, "damaged, encrypted or not PEM"),
        ({"tls_certificate": "tokens.txt", "tls_key": "server.key"}, "damaged, encrypted or not PEM"),
    ],
)
def test_settings_that_do_not_fit_are_said_before_a_port_is_bound(tmp_path, token, settings, message):
    pki = Pki(tmp_path)
    Issuer().write_keys(tmp_path / "keys.json")
    locked = generate_private_key(SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
    )
    (tmp_path / "locked.key").write_bytes(locked)
    paths = {name: value if name.startswith("jwt_iss") else tmp_path / value for name, value in settings.items()}
    server = Server(ServerSettings(**paths))
    with pytest.raises(StartupError, match=message) as caught:
        server.start()
    assert pki.server[1].read_text() not in str(caught.value)


def test_a_server_that_does_not_know_who_asks_for_its_health_is_there_all_the_same(tmp_path, token):
    with (
        serve(tokens=tmp_path / "tokens.txt", anonymous_health=False) as server,
        open_channel(server.address) as channel,
    ):
        assert health_of(channel) == health_pb2.HealthCheckResponse.UNKNOWN  # None would have it restarted
        assert not is_serving(channel)


# --- the client's side ---


def test_a_client_does_not_send_a_token_in_the_clear_to_another_machine(tmp_path):
    file = tmp_path / "token"
    file.write_text("adct_x")
    for address in (
        "192.0.2.1:1",
        "[2001:db8::1]:1",
        "ads.example.invalid:1",
        "unix:/tmp/socket",
        "dns:///192.0.2.1:1",
    ):
        with pytest.raises(StartupError, match="in the clear"):
            open_channel(address, security=ClientSecurity(token_file=file))
    for address in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        open_channel(address, security=ClientSecurity(token_file=file)).close()


def test_a_client_is_told_which_of_its_files_it_cannot_use(tmp_path):
    pki = Pki(tmp_path)
    ca, (certificate, key) = tmp_path / "ca.pem", pki.client
    wrong = {
        "needs its key": ClientSecurity(ca, certificate),
        "needs TLS": ClientSecurity(None, certificate, key),
        "key is another certificate's": ClientSecurity(ca, certificate, pki.server[1]),
        "not PEM": ClientSecurity(key),
        "No such file": ClientSecurity(tmp_path / "missing.pem"),
        "something else than one token": ClientSecurity(token_file=certificate),
    }
    for message, security in wrong.items():
        with pytest.raises(StartupError, match=message) as caught:
            open_channel("localhost:1", security=security)
        assert "BEGIN" not in str(caught.value)


def test_a_client_does_not_believe_a_server_of_another_authority_or_of_another_name(tmp_path):
    pki = Pki(tmp_path)
    other = tmp_path / "other.pem"
    other.write_bytes(DevAuthority().certificate)
    named = write_pair(tmp_path, "named", pki.authority.server(["ads.example"]))
    settings = {**pki.settings, "tls_certificate": named[0], "tls_key": named[1]}
    with (
        serve(**pki.settings) as server,
        open_channel(server.address, security=ClientSecurity(other, *pki.client)) as channel,
    ):
        assert status_of(channel) is grpc.StatusCode.UNAVAILABLE
    with serve(**settings) as server:
        with open_channel(server.address, security=pki.security) as channel:
            assert status_of(channel) is grpc.StatusCode.UNAVAILABLE
        security = ClientSecurity(tmp_path / "ca.pem", *pki.client, server_name="ads.example")
        with open_channel(server.address, security=security) as channel:
            assert status_of(channel) is grpc.StatusCode.OK


def test_a_client_needs_no_cryptography(tmp_path):
    code = (
        "import sys\nfor name in ('cryptography', 'jwt', 'torch', 'pydantic_settings'): sys.modules[name] = None\n"
        "from adcascade.serving.auth.client import ClientSecurity, SecureChannel\n"
        "import grpc\nSecureChannel(ClientSecurity(), lambda _: grpc.insecure_channel('localhost:1')).close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env={**os.environ})
