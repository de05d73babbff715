"""What is taken for an identity and what is not: static tokens, JWTs, certificates, revocations; quotas."""

import base64
import hashlib
import hmac
import json
import os
import stat
import threading
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from adcascade.serving.auth.access import AccessControl
from adcascade.serving.auth.authenticator import Authenticator, NotProven, Proofs
from adcascade.serving.auth.authority import DevAuthority, write_dev_certificates
from adcascade.serving.auth.certificates import CertificateNames
from adcascade.serving.auth.identity import EVERYBODY, NOBODY, Identity, Quota, current_identity
from adcascade.serving.auth.jwts import JwtRules, JwtTokens, parse_keys
from adcascade.serving.auth.loopback import is_loopback
from adcascade.serving.auth.quotas import Quotas
from adcascade.serving.auth.revocations import Revocations
from adcascade.serving.auth.scopes import SCOPES
from adcascade.serving.auth.tokens import PREFIX, StaticTokens, TokensFile
from adcascade.serving.errors import NotFound, PermissionDenied, ResourceExhausted, StartupError
from tests.auth_files import AUDIENCE, ISSUER, Issuer

RULES = JwtRules(ISSUER, AUDIENCE, leeway_seconds=5)
UNKNOWN = "who calls is not proven: present a client certificate or a bearer token that is good here"


def bearer(token):
    return Proofs([f"Bearer {token}"])


def refused(authenticator, proofs):
    """Why, as the log hears it; the caller hears the same of every wrong proof."""
    with pytest.raises(NotProven) as caught:
        authenticator.identify(proofs)
    assert str(caught.value) == UNKNOWN
    return caught.value.reason


@pytest.fixture
def tokens_file(tmp_path):
    return tmp_path / "tokens.txt"


def static(path, **options):
    return Authenticator(tokens=StaticTokens(path, poll_seconds=0), **options)


# --- static tokens ---


def test_a_token_is_shown_once_and_kept_as_a_hash_in_a_file_of_its_owner_alone(tokens_file):
    stored, token = TokensFile(tokens_file).create("shop", ["recommend", "models:read"], tenant="acme")
    text = tokens_file.read_text()
    assert token.startswith(PREFIX)
    assert len(base64.urlsafe_b64decode(token.removeprefix(PREFIX) + "=")) == 32
    assert token not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert stat.S_IMODE(tokens_file.stat().st_mode) == 0o600
    found = static(tokens_file).identify(bearer(token))
    assert found == Identity("shop", frozenset({"recommend", "models:read"}), "acme", "token", None)
    assert str(found) == "token:shop"
    assert stored.name == "shop"


def test_what_is_not_a_token_of_the_file_is_nobodys(tokens_file):
    stored, token = TokensFile(tokens_file).create("shop", ["recommend"])
    authenticator = static(tokens_file)
    wrong = ["", "x", token[:-1], token + "a", token.upper(), stored.sha256, stored.token_id, "shop", "a.b.c", "." * 9]
    for text in wrong:
        assert refused(authenticator, bearer(text))
        assert token not in refused(authenticator, bearer(text))
    for header in (token, f"Basic {token}", f"Bearer\t{token}", "Bearer", "Bearer " + "x" * 9000, "Bearer caf\u00e9"):
        assert refused(authenticator, Proofs([header]))
    assert refused(authenticator, Proofs([f"Bearer {token}".encode()]))
    assert refused(authenticator, Proofs([f"Bearer {token}", f"Bearer {token}"])) == "several authorization headers"
    assert refused(authenticator, Proofs([])) == "nothing was presented"
    assert authenticator.identify(Proofs([f"bearer  {token} "])).name == "shop"


def test_a_token_ends_at_its_time_and_when_it_is_revoked_and_another_of_the_name_goes_on(tokens_file):
    file = TokensFile(tokens_file)
    now = [datetime.now(UTC)]
    _, old = file.create("shop", ["recommend"], expires=now[0] + timedelta(hours=1))
    second, new = file.create("shop", ["recommend"])
    authenticator = static(tokens_file, now=lambda: now[0])
    assert authenticator.identify(bearer(old)).name == authenticator.identify(bearer(new)).name == "shop"
    now[0] += timedelta(hours=1)
    assert "expired" in refused(authenticator, bearer(old))
    assert [one.token_id for one in file.revoke(second.token_id)] == [second.token_id]
    assert "revoked" in refused(authenticator, bearer(new))
    with pytest.raises(NotFound):
        file.revoke(second.token_id)
    assert len(file.revoke("shop")) == 1
    assert len(file.tokens()) == 2


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("a b", ["rank"], "a name is"),
        ("", ["rank"], "a name is"),
        ("x\ny", ["rank"], "a name is"),
        ("#x", ["rank"], "a name is"),
        ("x" * 300, ["rank"], "a name is"),
        ("shop", ["ranks"], "there is no scope 'ranks'"),
        ("shop", [], "needs a scope"),
    ],
)
def test_a_token_that_could_not_stand_in_the_file_is_not_made(tokens_file, name, scopes, message):
    with pytest.raises(StartupError, match=message):
        TokensFile(tokens_file).create(name, scopes)
    assert not tokens_file.exists()


@pytest.mark.parametrize(
    "line",
    [
        "t-1",
        "t-1 name=a scopes=rank",
        "t-1 name=a scopes=rank sha256=abc",
        f"t-1 name=a sha256={'0' * 64}",
        f"t-1 name=a scopes=fly sha256={'0' * 64}",
        f"t-1 name=a scopes=rank sha256={'0' * 64} expires=soon",
        f"t-1 name=a scopes=rank sha256={'0' * 64} rate=fast",
        f"t-1 name=a scopes=rank sha256={'0' * 64} rate=nan",
        f"t-1 name=a scopes=rank sha256={'0' * 64} concurrent=0",
        f"t-1 name=a scopes=rank sha256={'0' * 64} scopes=admin",
        f"t-1 name=a scopes=rank sha256={'0' * 64} colour=red",
        f"t-1 name=a scopes=rank sha256={'0' * 64}\nt-2 name=b scopes=rank sha256={'0' * 64}",
        f"t-1 name=a scopes=rank sha256={'0' * 64}\nt-1 name=b scopes=rank sha256={'1' * 64}",
        "\xff",
    ],
)
def test_a_wrong_line_of_the_tokens_file_is_an_error_that_quotes_no_hash(tokens_file, line):
    tokens_file.write_bytes(line.encode("latin-1"))
    with pytest.raises(StartupError, match="tokens file") as caught:
        StaticTokens(tokens_file)
    assert "000" not in str(caught.value)


def test_many_who_create_tokens_at_once_lose_none(tokens_file):
    made = []

    def create(number):
        made.append(TokensFile(tokens_file).create(f"n{number}", ["rank"])[1])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    authenticator = static(tokens_file)
    assert sorted(authenticator.identify(bearer(token)).name for token in made) == sorted(f"n{n}" for n in range(12))


# --- files that change ---


def test_a_changed_file_is_read_anew_a_broken_one_is_not_and_the_log_says_so_once(tokens_file, caplog):
    _, first = TokensFile(tokens_file).create("first", ["rank"])
    authenticator = static(tokens_file)
    _, second = TokensFile(tokens_file).create("second", ["rank"])
    assert authenticator.identify(bearer(second)).name == "second"
    good = tokens_file.read_bytes()
    tokens_file.write_text("half of a li")
    for _ in range(3):
        assert authenticator.identify(bearer(first)).name == "first"
    tokens_file.unlink()
    assert authenticator.identify(bearer(first)).name == "first"
    assert sum("keeping the tokens file" in message for message in caplog.messages) == 2
    tokens_file.write_bytes(good.splitlines()[1] + b"\n")
    assert refused(authenticator, bearer(first))
    assert authenticator.identify(bearer(second)).name == "second"


def test_a_file_swapped_by_a_link_is_read_anew_and_one_that_is_too_large_is_not(tmp_path, tokens_file):
    _, token = TokensFile(tokens_file).create("first", ["rank"])
    link = tmp_path / "link"
    link.symlink_to(tokens_file)
    authenticator = static(link)
    _, other = TokensFile(tmp_path / "other.txt").create("second", ["rank"])
    beside = tmp_path / "beside"
    beside.symlink_to(tmp_path / "other.txt")
    os.replace(beside, link)
    assert refused(authenticator, bearer(token))
    assert authenticator.identify(bearer(other)).name == "second"
    with (tmp_path / "other.txt").open("ab") as file:
        file.truncate(100_000_000)
    assert authenticator.identify(bearer(other)).name == "second"
    with pytest.raises(StartupError, match="larger"):
        StaticTokens(link)


# --- JWTs ---


@pytest.fixture
def issuer():
    return Issuer()


@pytest.fixture
def jwts(issuer, tmp_path):
    return Authenticator(jwts=JwtTokens(issuer.write_keys(tmp_path / "keys.json"), RULES, poll_seconds=0))


def test_a_jwt_of_the_issuer_is_an_identity_and_foreign_scopes_mean_nothing(issuer, jwts):
    found = jwts.identify(bearer(issuer.token(scope="rank profile email bids:read", tenant="acme")))
    assert found == Identity("shop", frozenset({"rank", "bids:read"}), "acme", "jwt", None)
    assert jwts.identify(bearer(issuer.token(scope=None, scp=["rank"]))).scopes == {"rank"}
    assert jwts.identify(bearer(issuer.token(scope=None))).scopes == frozenset()
    assert jwts.identify(bearer(issuer.token(aud=["other", AUDIENCE]))).name == "shop"
    assert jwts.identify(bearer(issuer.token(exp=time.time() - 2))).name == "shop"  # clocks differ


def wrong_jwts(issuer):
    now = time.time()
    stranger = Issuer()
    good = issuer.token()
    header, payload, signature = good.split(".")
    public = json.dumps(json.loads(jwt.algorithms.ECAlgorithm("").to_jwk(issuer.keys["k1"].public_key())))

    def unsigned(**fields):
        return base64.urlsafe_b64encode(json.dumps(fields).encode()).rstrip(b"=").decode()

    def with_secret(secret):
        signed = f"{unsigned(alg='HS256', kid='k1', typ='JWT')}.{payload}"
        mac = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    return {
        "expired": issuer.token(exp=now - 60),
        "not yet valid": issuer.token(nbf=now + 60),
        "issued in the future": issuer.token(iat=now + 60),
        "another issuer": issuer.token(iss="https://evil.test"),
        "another audience": issuer.token(aud="other"),
        "no audience": issuer.token(aud=None),
        "no end": issuer.token(exp=None),
        "no issuer": issuer.token(iss=None),
        "no subject": issuer.token(sub=None),
        "a subject with a line break": issuer.token(sub="a\nb"),
        "an empty subject": issuer.token(sub=""),
        "a subject that is no text": jwt.encode(
            {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "sub": 5}, issuer.keys["k1"], "ES256", {"kid": "k1"}
        ),
        "an end without end": issuer.token(exp="never"),
        "an infinite end": issuer.token(exp=1e400),
        "another authority's key": stranger.token(),
        "a kid that is not in the set": issuer.token(headers={"kid": "k2"}),
        "no kid": jwt.encode({"iss": ISSUER, "aud": AUDIENCE, "exp": now + 60, "sub": "a"}, issuer.keys["k1"], "ES256"),
        "a critical extension": issuer.token(headers={"crit": ["exp"], "exp": 1}),
        "alg none": f"{unsigned(alg='none', kid='k1')}.{payload}.",
        "alg none with a signature": f"{unsigned(alg='None', kid='k1')}.{payload}.{signature}",
        "the public key as a secret": with_secret(public.encode()),
        "an empty secret": with_secret(b""),
        "another payload": f"{header}.{unsigned(iss=ISSUER, aud=AUDIENCE, sub='root', exp=now + 60)}.{signature}",
        "no signature": f"{header}.{payload}.",
        "another signature": f"{header}.{payload}.{signature[:-6]}AAAAAA",
        "four parts": f"{good}.x",
        "deep nesting": f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.{payload}.{signature}",
        "no JSON": "a.b.c",
        "no base64": "!.!.!",
        "a key by address": issuer.token(headers={"kid": "k9", "jku": "https://evil.test/keys"}),
        "a key in the token": issuer.token(headers={"kid": "k9", "jwk": json.loads(public)}),
        "too long": issuer.token(padding="x" * 9000),
    }


def test_every_wrong_jwt_is_refused(issuer, jwts):
    for name, token in wrong_jwts(issuer).items():
        reason = refused(jwts, bearer(token))
        assert reason, name
        assert token not in reason


def test_a_jwt_that_was_good_is_refused_once_it_is_over_or_its_key_is_gone(issuer, tmp_path):
    now = [datetime.now(UTC)]
    path = issuer.write_keys(tmp_path / "keys.json")
    authenticator = Authenticator(jwts=JwtTokens(path, RULES, poll_seconds=0), now=lambda: now[0])
    token = issuer.token()
    assert authenticator.identify(bearer(token)).name == "shop"
    now[0] += timedelta(seconds=306)
    assert refused(authenticator, bearer(token)) == "the JWT has expired"
    now[0] -= timedelta(seconds=306)
    issuer.keys["k2"] = generate_private_key(SECP256R1())
    issuer.write_keys(path)
    assert authenticator.identify(bearer(token)).name == "shop"
    assert authenticator.identify(bearer(issuer.token("k2"))).name == "shop"
    del issuer.keys["k1"]
    issuer.write_keys(path)
    assert "not in the key set" in refused(authenticator, bearer(token))
    assert authenticator.identify(bearer(issuer.token("k2"))).name == "shop"


def key_of(**changes):
    public = json.loads(jwt.algorithms.ECAlgorithm("").to_jwk(generate_private_key(SECP256R1()).public_key()))
    return {name: value for name, value in {**public, "kid": "a", **changes}.items() if value is not None}


def rsa_key(bits):
    public = rsa.generate_private_key(65537, bits).public_key()
    return {**json.loads(jwt.algorithms.RSAAlgorithm("").to_jwk(public)), "kid": "a"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([key_of(kid=None)], "key 0 of the key set has no kid"),
        ([key_of(), key_of()], "key 1 of the key set has the kid of an earlier key"),
        ([key_of(d="c2VjcmV0")], "private or a shared secret"),
        ([{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}], "private or a shared secret"),
        ([key_of(alg="HS256")], "is not for one of"),
        ([key_of(alg="none")], "is not for one of"),
        ([key_of(alg="RS256")], "cannot be used"),
        ([key_of(x="AA")], "cannot be used"),
        ([rsa_key(1024)], "fewer than 2048 bits"),
        ([key_of(use="enc")], "no key that signs"),
        ([], "no key that signs"),
        ("k", "not a list"),
        ([5], "not a list of keys"),
    ],
)
def test_a_key_that_proves_nothing_is_an_error_that_does_not_quote_it(keys, message):
    with pytest.raises(StartupError, match=message) as caught:
        parse_keys(json.dumps({"keys": keys}).encode())
    assert "c2VjcmV0" not in str(caught.value)


def test_a_key_set_that_is_none_is_an_error():
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(StartupError, match="key set"):
            parse_keys(content)


# --- certificates ---


def proofs_of(issued, *authorization):
    return Proofs(authorization, certificate=lambda: issued.certificate)


def names(tmp_path, text):
    path = tmp_path / "certificates.txt"
    path.write_text(text)
    return CertificateNames(path, poll_seconds=0)


SHOP = "uri:spiffe://adcascade.dev/shop scopes=recommend tenant=acme rate=5\n"


def test_a_certificate_is_the_identity_that_the_file_gives_its_name(tmp_path):
    authority = DevAuthority()
    authenticator = Authenticator(certificates=names(tmp_path, SHOP))
    found = authenticator.identify(proofs_of(authority.client("shop")))
    assert found == Identity(
        "spiffe://adcascade.dev/shop", frozenset({"recommend"}), "acme", "certificate", Quota(5.0, None)
    )
    assert "no name" in refused(authenticator, proofs_of(authority.client("other")))
    assert "outside its time" in refused(authenticator, proofs_of(authority.client("shop", days=0.001)))
    later = authority.client("shop", begins_in=timedelta(hours=1))
    assert "outside its time" in refused(authenticator, proofs_of(later))
    assert (
        refused(authenticator, Proofs([], certificate=lambda: b"-----BEGIN nothing"))
        == "the certificate cannot be read"
    )


def test_the_kind_of_a_name_counts_and_the_common_name_only_where_there_is_no_other(tmp_path):
    authority = DevAuthority()
    by_common_name = Authenticator(certificates=names(tmp_path, "cn:shop scopes=recommend\ndns:shop scopes=rank\n"))
    assert "no name" in refused(by_common_name, proofs_of(authority.client("shop")))  # it has a URI beside
    by_host = Authenticator(certificates=names(tmp_path, "dns:localhost scopes=rank\n"))
    assert by_host.identify(proofs_of(authority.server())).scopes == {"rank"}


@pytest.mark.parametrize("line", ["shop scopes=rank", "ip:1.2.3.4 scopes=rank", "uri: scopes=rank", SHOP + SHOP])
def test_a_wrong_line_of_the_certificates_file_is_an_error(tmp_path, line):
    with pytest.raises(StartupError, match="certificates file"):
        names(tmp_path, line)


def test_what_is_revoked_is_refused_while_its_connection_stands(tmp_path, issuer):
    revoked = tmp_path / "revoked.txt"
    revoked.write_text("# nothing yet\n\n")
    authenticator = Authenticator(
        jwts=JwtTokens(issuer.write_keys(tmp_path / "keys.json"), RULES),
        certificates=names(tmp_path, SHOP),
        revocations=Revocations(revoked, poll_seconds=0),
    )
    shop = DevAuthority().client("shop")
    serial = format(authenticator._certificates.certificate(shop.certificate).serial.upper())
    for proofs in (proofs_of(shop), bearer(issuer.token())):
        authenticator.identify(proofs)
    revoked.write_text(f"serial 0x{serial}  # lost\njti j-1\n")
    assert "is revoked" in refused(authenticator, proofs_of(shop))
    assert "is revoked" in refused(authenticator, bearer(issuer.token()))
    assert authenticator.identify(bearer(issuer.token(jti="j-2"))).name == "shop"
    revoked.write_text("sub shop\n")
    assert "is revoked" in refused(authenticator, bearer(issuer.token(jti="j-2")))
    revoked.write_text(f"serial {serial}\n")
    assert "is revoked" in refused(authenticator, proofs_of(shop, f"Bearer {issuer.token()}"))
    revoked.write_text("sub a\nserial\n")
    with pytest.raises(StartupError, match="line 2"):
        Revocations(revoked)


def test_of_a_certificate_and_a_token_the_token_is_who_calls_and_both_must_be_good(tmp_path, issuer):
    authenticator = Authenticator(
        jwts=JwtTokens(issuer.write_keys(tmp_path / "keys.json"), RULES), certificates=names(tmp_path, SHOP)
    )
    authority = DevAuthority()
    token = f"Bearer {issuer.token(sub='person')}"
    assert authenticator.identify(proofs_of(authority.client("shop"), token)).name == "person"
    assert refused(authenticator, proofs_of(authority.client("shop"), "Bearer garbage"))
    assert refused(authenticator, proofs_of(authority.client("other"), token))
    assert authenticator.identify(proofs_of(authority.client("shop"))).name.endswith("shop")


def test_development_keys_are_readable_by_their_owner_alone_and_can_be_made_again(tmp_path):
    folder = tmp_path / "dev"
    for _ in range(2):
        written = write_dev_certificates(folder)
        assert {
            path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in written if path.suffix == ".key"
        } == dict.fromkeys(("ca.key", "server.key", "gateway.key", "client.key", "monitor.key"), "0o600")
    assert not list(folder.glob("*.tmp"))
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot write"):
        write_dev_certificates(tmp_path / "file")


# --- access ---


def test_a_method_is_open_to_its_scope_alone_and_one_without_a_scope_to_nobody(tokens_file):
    _, token = TokensFile(tokens_file).create("shop", ["rank", "admin"])
    access = AccessControl(static(tokens_file), anonymous_health=False)
    access.add("a.Service", {"Rank": "rank", "Read": "models:read"})
    assert access.admit("/a.Service/Rank", bearer(token)).identity.name == "shop"
    for method in (
        "/a.Service/Read",
        "/a.Service/Other",
        "/other.Service/Rank",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ):
        with pytest.raises(PermissionDenied):
            access.admit(method, bearer(token))
        with pytest.raises(NotProven):
            access.admit(method, Proofs([]))
    assert access.admit("/grpc.health.v1.Health/Check", bearer(token)).identity.name == "shop"
    with pytest.raises(NotProven):
        access.admit("/grpc.health.v1.Health/Check", Proofs([]))
    with pytest.raises(StartupError, match="no scope 'fly'"):
        access.add("b.Service", {"Fly": "fly"})


def test_health_without_an_identity_is_answered_where_it_is_allowed_but_not_with_a_wrong_one(tokens_file):
    TokensFile(tokens_file).create("shop", ["rank"])
    access = AccessControl(static(tokens_file), anonymous_health=True)
    assert access.admit("/grpc.health.v1.Health/Check", Proofs([])).identity == NOBODY
    with pytest.raises(NotProven):
        access.admit("/grpc.health.v1.Health/Check", bearer("adct_garbage"))
    with pytest.raises(NotProven):
        access.admit("/grpc.health.v1.Healthy/Check", Proofs([]))


def test_a_server_that_asks_nobody_lets_everybody_do_everything():
    access = AccessControl()
    identity = access.admit("/a.Service/Anything", Proofs(["Bearer whatever"])).identity
    assert identity == EVERYBODY
    assert all(identity.may(scope) for scope in SCOPES)
    assert not current_identity.get().may("bids:read")  # outside of a call


# --- quotas ---

SHOP_IDENTITY = Identity("shop", frozenset(), proof="token")


def test_a_bucket_empties_and_fills_again_for_each_identity_alone():
    now = [100.0]
    quotas = Quotas(Quota(2.0, None), clock=lambda: now[0])
    for _ in range(2):
        quotas.begin(SHOP_IDENTITY)()
    with pytest.raises(ResourceExhausted, match="2 calls a second"):
        quotas.begin(SHOP_IDENTITY)
    quotas.begin(Identity("other", frozenset(), proof="token"))()
    quotas.begin(Identity("shop", frozenset(), proof="jwt"))()  # another proof: another caller
    now[0] += 0.5
    quotas.begin(SHOP_IDENTITY)()
    with pytest.raises(ResourceExhausted):
        quotas.begin(SHOP_IDENTITY)
    now[0] += 3600
    for _ in range(2):
        quotas.begin(SHOP_IDENTITY)()
    with pytest.raises(ResourceExhausted):
        quotas.begin(SHOP_IDENTITY)


def test_calls_at_once_are_counted_until_they_end_and_a_refused_call_takes_nothing():
    quotas = Quotas(Quota(None, 2))
    first, second = quotas.begin(SHOP_IDENTITY), quotas.begin(SHOP_IDENTITY)
    for _ in range(3):
        with pytest.raises(ResourceExhausted, match="2 calls at once"):
            quotas.begin(SHOP_IDENTITY)
    first()
    third = quotas.begin(SHOP_IDENTITY)
    with pytest.raises(ResourceExhausted):
        quotas.begin(SHOP_IDENTITY)
    second()
    third()
    own = Identity("shop", frozenset(), proof="token", quota=Quota(None, 3))
    ends = [quotas.begin(own) for _ in range(3)]
    with pytest.raises(ResourceExhausted, match="3 calls at once"):
        quotas.begin(own)
    assert len(ends) == 3


def test_a_rate_below_one_a_second_lets_a_first_call_through():
    now = [0.0]
    quotas = Quotas(Quota(0.1, None), clock=lambda: now[0])
    quotas.begin(SHOP_IDENTITY)()
    with pytest.raises(ResourceExhausted):
        quotas.begin(SHOP_IDENTITY)
    now[0] += 10.1
    quotas.begin(SHOP_IDENTITY)()


def test_no_number_of_identities_takes_more_memory_than_ten_thousand_of_them():
    quotas = Quotas(Quota(1.0, 1))
    running = quotas.begin(SHOP_IDENTITY)
    for number in range(12_000):
        quotas.begin(Identity(f"n{number}", frozenset(), proof="jwt"))()
    assert len(quotas._accounts) == 10_000
    with pytest.raises(ResourceExhausted):  # still counted, though it called longest ago
        quotas.begin(SHOP_IDENTITY)
    running()


# --- where a server listens ---


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_known(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "", "0", "::ffff:0.0.0.0", "10.0.0.1", "192.0.2.1", "nonesuch.invalid", "[::1]", "unix:/tmp/x"],
)
def test_whatever_is_not_surely_loopback_is_taken_for_open(host):
    assert not is_loopback(host)
