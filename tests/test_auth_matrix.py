"""Every method on every port, with every wrong identity: refused with the right status, before its message is read.

Real servers with the services of the wire contract, TLS, tokens and client certificates; servicers count who got in.
"""

import ssl
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import grpc
import pytest
from auth_files import AUDIENCE, ISSUER, Issuer, self_signed, write_pair
from cryptography import x509
from grpc_reflection.v1alpha import reflection_pb2

import pipeline.service
import ranking.service
import retrieval.service
from adcascade.serving.auth.authority import URI_PREFIX, DevAuthority
from adcascade.serving.auth.scopes import METRICS_READ, REFLECTION_READ, SCOPES
from adcascade.serving.auth.tokens import TokensFile
from adcascade.serving.server import Server
from adcascade.serving.settings import ServerSettings
from adcascade.v1 import ranking_pb2_grpc, recommend_pb2_grpc, retrieval_pb2_grpc

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
UNAVAILABLE, OK = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
SERVICES = {
    "gateway": (pipeline.service, recommend_pb2_grpc.add_RecommendServiceServicer_to_server),
    "retrieval": (retrieval.service, retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server),
    "ranking": (ranking.service, ranking_pb2_grpc.add_RankingServiceServicer_to_server),
}


class Doorkeeper:
    """A servicer that has every method and counts who got in."""

    def __init__(self):
        self.inside = Counter()

    def __getattr__(self, method):
        if method.startswith("_"):
            raise AttributeError(method)

        def answer(request, context):
            self.inside[method] += 1
            raise pipeline.service.FailedPrecondition("inside")

        return answer


@dataclass
class Target:
    """Something that can be asked of a server, and the scope that it needs ("" any identity)."""

    port: str
    method: str
    scope: str


@dataclass
class House:
    """The three servers, and who may come in."""

    folder: Path
    servers: dict
    doorkeeper: Doorkeeper
    ca: Path

    def targets(self):
        for port, (service, _) in SERVICES.items():
            for method, scope in service.SCOPES.items():
                yield Target(port, f"/{service.SERVICE_NAME}/{method}", scope)
            for method in ("Check", "Watch"):
                yield Target(port, f"/{HEALTH}/{method}", "")
            yield Target(port, f"/{REFLECTION}/ServerReflectionInfo", REFLECTION_READ)
            yield Target(port, "/metrics", METRICS_READ)

    def ask(self, target, who):
        """The status of one call; OK also where the servicer was reached."""
        if target.method == "/metrics":
            return self._page(target, who)
        channel = who.channel(self.servers[target.port].address, self.ca)
        metadata = tuple(("authorization", one) for one in who.authorization)
        try:
            if target.method.endswith("ServerReflectionInfo"):
                message = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
                next(iter(channel.stream_stream(target.method)(iter([message]), metadata=metadata, timeout=10)))
            elif target.method.endswith("Watch"):
                watch = channel.unary_stream(target.method)(b"", metadata=metadata, timeout=10)
                next(iter(watch))
                watch.cancel()
            else:
                # Nonsense for every request type: who may not come in must not learn even that.
                message = b"" if target.method.startswith(f"/{HEALTH}") else who.message
                channel.unary_unary(target.method)(message, metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            inside = error.code() is grpc.StatusCode.FAILED_PRECONDITION and error.details() == "inside"
            return OK if inside else error.code()
        return OK

    def _page(self, target, who):
        context = ssl.create_default_context(cafile=self.ca)
        if who.pair:
            context.load_cert_chain(*who.pair)
        scheme = "http" if who.plain else "https"
        page = f"{scheme}://{self.servers[target.port].metrics_address}/metrics"
        request = urllib.request.Request(page)
        for one in who.authorization:
            request.add_header("Authorization", one)
        try:
            with urllib.request.urlopen(request, timeout=10, context=None if who.plain else context) as reply:
                return OK if b"adcascade_calls_total" in reply.read() else None
        except urllib.error.HTTPError as error:
            return {401: UNAUTHENTICATED, 403: DENIED}[error.code]
        except OSError:  # no handshake
            return UNAVAILABLE


class Who:
    """A caller with what it presents."""

    def __init__(self, *authorization, pair=(), plain=False, message=b"\xff\xff"):
        self.authorization, self.pair, self.plain, self.message = authorization, pair, plain, message
        self._channels = {}

    def channel(self, address, ca):
        if address not in self._channels:
            if self.plain:
                self._channels[address] = grpc.insecure_channel(address)
            else:
                own = [self.pair[1].read_bytes(), self.pair[0].read_bytes()] if self.pair else []
                credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *own)
                self._channels[address] = grpc.secure_channel(address, credentials)
        return self._channels[address]

    def close(self):
        for channel in self._channels.values():
            channel.close()


@contextmanager
def house(folder, authority, **settings):
    ca = folder / "ca.pem"
    ca.write_bytes(authority.certificate)
    certificate, key = write_pair(folder, "server", authority.server())
    doorkeeper, servers = Doorkeeper(), {}
    with ExitStack() as stack:
        for name, (service, register) in SERVICES.items():
            server = Server(
                ServerSettings(
                    metrics_port=0, tls_certificate=certificate, tls_key=key, anonymous_health=False, **settings
                )
            )
            server.add(service.SERVICE_NAME, partial(register, doorkeeper), service.SCOPES)
            server.start()
            stack.callback(server.stop, 0)
            servers[name] = server
        yield House(folder, servers, doorkeeper, ca)


def matrix(house, people):
    """Asks everything as everybody, which must go as `people` says, and returns how often it asked."""
    wrong, asked = [], 0
    for name, (who, expected) in people.items():
        for target in house.targets():
            wanted = expected(target) if callable(expected) else expected
            got = house.ask(target, who)
            asked += 1
            if got is not wanted:
                wrong.append(f"{name}, {target.port} {target.method}: {got}, not {wanted}")
        who.close()
    assert not wrong, f"{len(wrong)} of {asked}:\n" + "\n".join(wrong)
    return asked


def only(*scopes):
    """What somebody with these scopes alone is answered."""
    return lambda target: OK if not target.scope or target.scope in scopes else DENIED


@pytest.fixture(scope="module")
def by_token(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-token")
    issuer = Issuer()
    TokensFile(folder / "tokens.txt").create("first", ["rank"])
    (folder / "revoked.txt").write_text("jti stolen\nsub sacked\n")
    settings = {
        "tokens": folder / "tokens.txt",
        "jwt_keys": issuer.write_keys(folder / "keys.json"),
        "jwt_issuer": ISSUER,
        "jwt_audience": AUDIENCE,
        "jwt_leeway_seconds": 1,
        "revocations": folder / "revoked.txt",
    }
    file = TokensFile(folder / "tokens.txt")
    made = {
        scope: file.create(f"one-{number}", [scope])[1]
        for number, scope in enumerate(SCOPES)  # a token for each scope alone
    }
    made["expired"] = file.create("late", list(SCOPES), expires=datetime.now(UTC) - timedelta(days=1))[1]
    made["revoked"] = file.create("lost", list(SCOPES))[1]
    file.revoke("lost")
    made["all"] = file.create("all", list(SCOPES))[1]
    with house(folder, DevAuthority(), **settings) as found:
        yield found, issuer, made


def test_by_token_every_wrong_identity_is_refused_by_every_method_of_every_port(by_token):
    house, issuer, tokens = by_token
    everything = " ".join(SCOPES)
    now = datetime.now(UTC).timestamp()
    wrong = {
        "nobody": [],
        "garbage": ["Bearer adct_garbage"],
        "an empty token": ["Bearer "],
        "no scheme": [tokens["all"]],
        "another scheme": [f"Basic {tokens['all']}"],
        "expired": [f"Bearer {tokens['expired']}"],
        "revoked": [f"Bearer {tokens['revoked']}"],
        "an expired JWT": [f"Bearer {issuer.token(scope=everything, exp=now - 60)}"],
        "a JWT of tomorrow": [f"Bearer {issuer.token(scope=everything, nbf=now + 60)}"],
        "a JWT of another authority": [f"Bearer {Issuer().token(scope=everything)}"],
        "a JWT of another issuer": [f"Bearer {issuer.token(scope=everything, iss='https://other.test')}"],
        "a JWT for others": [f"Bearer {issuer.token(scope=everything, aud='others')}"],
        "a revoked JWT": [f"Bearer {issuer.token(scope=everything, jti='stolen')}"],
        "a revoked subject": [f"Bearer {issuer.token(scope=everything, sub='sacked', jti='other')}"],
    }
    people = {name: (Who(*header), UNAUTHENTICATED) for name, header in wrong.items()}
    people["in plain"] = (Who(f"Bearer {tokens['all']}", plain=True), UNAVAILABLE)
    assert matrix(house, people) == len(people) * len(list(house.targets()))
    assert not house.doorkeeper.inside


def test_by_token_each_scope_opens_its_own_methods_and_no_other(by_token):
    house, issuer, tokens = by_token
    good = {"message": b""}
    people = {scope: (Who(f"Bearer {tokens[scope]}", **good), only(scope)) for scope in SCOPES}
    people["all"] = (Who(f"Bearer {tokens['all']}", **good), OK)
    people["a JWT for all"] = (Who(f"Bearer {issuer.token(scope=' '.join(SCOPES))}", **good), OK)
    people["a JWT for one"] = (Who(f"Bearer {issuer.token(scope='rank')}", **good), only("rank"))
    people["a JWT for nothing"] = (Who(f"Bearer {issuer.token(scope='')}", **good), only())
    assert matrix(house, people) == len(people) * len(list(house.targets()))


@pytest.fixture(scope="module")
def by_certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("by-certificate")
    authority = DevAuthority()
    issued = {name: authority.client(name) for name in ("all", "ranker", "stranger", "lost", "sacked")}
    issued["expired"] = authority.client("all", begins_in=timedelta(days=-2), days=1)
    issued["not yet valid"] = authority.client("all", begins_in=timedelta(days=1))
    issued["of another authority"] = DevAuthority().client("all")
    issued["self-signed"] = self_signed("all")
    issued["a server's"] = authority.server()
    lost = x509.load_pem_x509_certificate(issued["lost"].certificate).serial_number
    (folder / "revoked.txt").write_text(f"serial {lost:X}\n")
    everything = ",".join(SCOPES)
    (folder / "certificates.txt").write_text(
        f"uri:{URI_PREFIX}all scopes={everything}\nuri:{URI_PREFIX}lost scopes={everything}\n"
        f"uri:{URI_PREFIX}ranker scopes=rank\nuri:{URI_PREFIX}sacked scopes=rank revoked=2026-01-01T00:00:00Z\n"
    )
    _, token = TokensFile(folder / "tokens.txt").create("person", ["recommend"])
    settings = {
        "client_ca_certificate": folder / "ca.pem",
        "client_certificates": folder / "certificates.txt",
        "tokens": folder / "tokens.txt",
        "revocations": folder / "revoked.txt",
    }
    with house(folder, authority, **settings) as found:
        pairs = {name: write_pair(folder, name.replace(" ", "-"), one) for name, one in issued.items()}
        yield found, pairs, token


def test_by_certificate_every_wrong_identity_is_refused_by_every_method_of_every_port(by_certificate):
    house, pairs, token = by_certificate

    def without(target):
        """gRPC wants a certificate in the handshake; the metrics page takes a token instead of one, and none here."""
        return UNAUTHENTICATED if target.method == "/metrics" else UNAVAILABLE

    people = {
        "no certificate": (Who(), without),
        "no certificate, garbage": (Who("Bearer adct_garbage"), without),
        "in plain": (Who(plain=True), UNAVAILABLE),
        **{
            name: (Who(pair=pairs[name]), UNAVAILABLE)
            for name in ("expired", "not yet valid", "of another authority", "self-signed", "a server's")
        },
        **{name: (Who(pair=pairs[name]), UNAUTHENTICATED) for name in ("stranger", "lost", "sacked")},
        "a good one and a wrong token": (Who("Bearer adct_garbage", pair=pairs["all"]), UNAUTHENTICATED),
        "a revoked one and a good token": (Who(f"Bearer {token}", pair=pairs["lost"]), UNAUTHENTICATED),
    }
    matrix(house, people)
    assert not house.doorkeeper.inside


def test_by_certificate_its_scopes_or_those_of_the_token_beside_it_decide(by_certificate):
    house, pairs, token = by_certificate
    people = {
        "all": (Who(pair=pairs["all"], message=b""), OK),
        "ranker": (Who(pair=pairs["ranker"], message=b""), only("rank")),
        "a person through a proxy": (Who(f"Bearer {token}", pair=pairs["all"], message=b""), only("recommend")),
    }
    assert matrix(house, people) == len(people) * len(list(house.targets()))
