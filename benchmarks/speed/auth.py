"""What it costs a call that its caller proves who it is: tokens, JWTs, TLS and client certificates, against none.

The same retrieval server in several processes, one for each way; one client asks them in turns. Retrieve is the
shortest of the calls that a page waits for, so the share that this adds is the largest there.
"""

import gc
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from adcascade.serving.auth.access import AccessControl
from adcascade.serving.auth.authenticator import Authenticator, Proofs
from adcascade.serving.auth.authority import write_dev_certificates
from adcascade.serving.auth.certificates import CertificateNames
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.auth.jwts import JwtRules, JwtTokens
from adcascade.serving.auth.scopes import RETRIEVE
from adcascade.serving.auth.tokens import StaticTokens, TokensFile
from adcascade.v1 import retrieval_pb2, types_pb2
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from adcascade.vectors.encoder import load_encoder
from benchmarks.speed.catalog import write_catalog
from benchmarks.speed.interleaved_timing import Contender, Progress, Turns
from benchmarks.speed.machine import describe
from benchmarks.speed.models import movielens_files
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.servers import served
from benchmarks.speed.texts import real_ads, recombined_ads
from index_builder.build import BuildOptions, build

NOBODY, TOKEN, JWT = "asks nobody", "token", "JWT (ES256)"
TLS, TLS_TOKEN, MTLS = "TLS alone", "TLS and token", "mTLS, certificate"
_CASES = {"Retrieve, 100 candidates": False, "Retrieve, 100 candidates with their texts": True}
_MOST = 1.03
_WARM_UP, _FIRST = 20, 100
_ISSUER, _AUDIENCE = "https://issuer.example", "adcascade"


@dataclass(frozen=True)
class AuthSettings:
    """How many ads are searched, and how often each contender is timed."""

    ads: int
    rounds: int


@dataclass(frozen=True)
class _Way:
    """What a server is told, and what its client shows."""

    name: str
    flags: Sequence[str]
    security: ClientSecurity


def bench_auth(settings: AuthSettings, folder: Path, progress: Progress) -> BenchResult:
    """Runs it.

    Args:
        settings: See there.
        folder: For the index, the keys and the logs; may be removed afterwards.
        progress: Told how far it is.
    """
    index = _made_index(folder, settings.ads)
    entries: list[Entry] = []
    verdicts: list[TargetResult] = []
    with ExitStack() as stack:
        stubs = {way.name: stack.enter_context(_asking(way, index, folder)) for way in _ways(folder)}
        for case, include_ads in _CASES.items():
            request = retrieval_pb2.RetrieveRequest(
                user=types_pb2.UserProfile(interests="drama thriller comedy 1995"), k=100, include_ads=include_ads
            )
            turns = _call_in_turns(_contenders(stubs, request), settings.rounds, progress)
            entries += [_entry(case, name, turns) for name in stubs]
            verdicts += [_verdict(case, name, turns) for name in stubs if name != NOBODY]
    return BenchResult(
        bench="auth",
        machine=describe(),
        settings={"ads": settings.ads, "rounds": settings.rounds, "encoder": "hashing:384"},
        entries=entries,
        verdicts=verdicts,
        remarks=_identity_steps(folder),
    )


def _identity_steps(folder: Path) -> list[str]:
    """Processor time of what is added to a call before its message is read, which a busy machine does not lengthen."""
    certificate = (folder / "certs" / "gateway.pem").read_bytes()
    names = CertificateNames(folder / "certs" / "certificates.txt")
    steps = {
        "a token": (Authenticator(tokens=StaticTokens(folder / "tokens.txt")), _bearer(folder / "token")),
        "a JWT that was met before": (_jwts(folder), _bearer(folder / "jwt")),
        "a certificate": (Authenticator(certificates=names), Proofs([], lambda: certificate)),
    }
    found = [
        f"identity by {name}: {_microseconds(AccessControl(who), proofs):.0f} microseconds of processor time"
        for name, (who, proofs) in steps.items()
    ]
    proofs, started = _bearer(folder / "jwt"), time.process_time()
    for _ in range(_FIRST):
        _jwts(folder).identify(proofs)
    return [*found, f"a JWT never met, its key set read for it: {_per_call(started, _FIRST):.0f} microseconds"]


def _microseconds(access: AccessControl, proofs: Proofs, calls: int = 2000) -> float:
    access.add("bench.Service", {"Call": RETRIEVE})
    started = time.process_time()
    for _ in range(calls):
        access.admit("/bench.Service/Call", proofs).end()
    return _per_call(started, calls)


def _per_call(started: float, calls: int) -> float:
    return 1e6 * (time.process_time() - started) / calls


def _bearer(file: Path) -> Proofs:
    return Proofs([f"Bearer {file.read_text()}"])


def _jwts(folder: Path) -> Authenticator:
    return Authenticator(jwts=JwtTokens(folder / "keys.json", JwtRules(_ISSUER, _AUDIENCE)))


def _call_in_turns(contenders: Sequence[Contender], rounds: int, progress: Progress) -> Turns:
    """As `interleave`, of calls so short that a collection of garbage between them would take most of the time.

    In an order that is drawn anew for each round: what one leaves behind would always meet the same next one.
    """
    orders = random.Random(0)
    seconds: dict[str, list[float]] = {one.name: [] for one in contenders}
    gc.collect()
    gc.disable()
    try:
        for number in range(-_WARM_UP, rounds):
            for one in orders.sample(contenders, len(contenders)):
                started = time.perf_counter()
                one.run()
                if number >= 0:
                    seconds[one.name].append(time.perf_counter() - started)
            progress(number + _WARM_UP, rounds + _WARM_UP)
    finally:
        gc.enable()
    return Turns(seconds)


def _contenders(stubs: Mapping[str, RetrievalServiceStub], request: retrieval_pb2.RetrieveRequest) -> list[Contender]:
    return [Contender(name, partial(stub.Retrieve, request, timeout=30)) for name, stub in stubs.items()]


def _made_index(folder: Path, ads: int) -> Path:
    catalog, root = folder / "ads.jsonl", folder / "index"
    write_catalog(catalog, recombined_ads(real_ads(movielens_files(folder).ads), ads))
    build(catalog, root, load_encoder("hashing:384"), BuildOptions())
    return root


def _ways(folder: Path) -> list[_Way]:
    certs = folder / "certs"
    write_dev_certificates(certs)
    token, signed, keys = folder / "token", folder / "jwt", folder / "keys.json"
    token.write_text(TokensFile(folder / "tokens.txt").create("caller", ["retrieve", "bids:read"])[1])
    _write_jwt(signed, keys)
    tls = ["--tls-certificate", f"{certs}/server.pem", "--tls-key", f"{certs}/server.key"]
    tokens = ["--tokens", f"{folder}/tokens.txt"]
    jwts = ["--jwt-keys", str(keys), "--jwt-issuer", _ISSUER, "--jwt-audience", _AUDIENCE]
    names = ["--client-ca-certificate", f"{certs}/ca.pem", "--client-certificates", f"{certs}/certificates.txt"]
    ca = certs / "ca.pem"
    return [
        _Way(NOBODY, [], ClientSecurity()),
        _Way(TOKEN, tokens, ClientSecurity(token_file=token)),
        _Way(JWT, jwts, ClientSecurity(token_file=signed)),
        _Way(TLS, tls, ClientSecurity(ca)),
        _Way(TLS_TOKEN, [*tls, *tokens], ClientSecurity(ca, token_file=token)),
        _Way(MTLS, [*tls, *names], ClientSecurity(ca, certs / "gateway.pem", certs / "gateway.key")),
    ]


def _write_jwt(signed: Path, keys: Path) -> None:
    key = generate_private_key(SECP256R1())
    public = json.loads(jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256).to_jwk(key.public_key()))
    keys.write_text(json.dumps({"keys": [{**public, "kid": "bench", "alg": "ES256"}]}))
    claims = {
        "iss": _ISSUER,
        "aud": _AUDIENCE,
        "sub": "caller",
        "exp": time.time() + 86_400,
        "scope": "retrieve bids:read",
    }
    signed.write_text(jwt.encode(claims, key, "ES256", headers={"kid": "bench"}))


@contextmanager
def _asking(way: _Way, index: Path, folder: Path) -> Iterator[RetrievalServiceStub]:
    where = folder / "servers" / way.name.replace(" ", "-")
    with served("retrieval", ["--index", str(index), *way.flags], where, way.security) as channel:
        yield RetrievalServiceStub(channel)


def _entry(case: str, name: str, turns: Turns) -> Entry:
    added = 0.0 if name == NOBODY else _added(name, turns)
    return Entry(
        case=case,
        contender=name,
        milliseconds=turns.milliseconds(name),
        times_faster=None if name == NOBODY else turns.times_faster(name, NOBODY),
        figures={"added to the median, %": round(100 * added, 2)},
    )


def _added(name: str, turns: Turns) -> float:
    """Of the median, as a share of the median of the server that asks nobody."""
    return turns.milliseconds(name).median / turns.milliseconds(NOBODY).median - 1


def _verdict(case: str, name: str, turns: Turns) -> TargetResult:
    added, most = _added(name, turns), _MOST - 1
    milliseconds = turns.milliseconds(name).median - turns.milliseconds(NOBODY).median
    return TargetResult(
        what=f"{case}: {name}",
        target=f"adds at most {most:.0%} to the p50",
        reached=f"{added:+.1%} ({milliseconds:+.3f} ms)",
        met=added <= most,
    )
