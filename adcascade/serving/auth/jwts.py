"""Bearer tokens that another party signs: JWTs (RFC 7519, claims of RFC 9068), against a local set of public keys.

Keys are never fetched: an address inside a token (`jku`, `x5u`) or an issuer's well-known page is not looked at.
"""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jwt
from cachetools import LRUCache

from adcascade.serving.auth.grants import check_name
from adcascade.serving.auth.identity import Identity
from adcascade.serving.auth.scopes import SCOPES
from adcascade.serving.auth.watched import WatchedFiles, text_of
from adcascade.serving.errors import StartupError

# Asymmetric alone. With HS256 on the list a public key would be a password (RFC 8725, 3.1), and `none` is no proof.
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
# A key without `alg` verifies what its type is usually used for, and nothing else.
_BY_CURVE = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_MIN_RSA_BITS = 2048
_REQUIRED = ["exp", "iss", "aud", "sub"]
# Verified tokens that are remembered by hash, so that a caller's next call costs no signature check: under 1 MiB.
_REMEMBERED = 4096


@dataclass(frozen=True)
class JwtRules:
    """What a token must say.

    Attributes:
        issuer, audience: Its `iss`, and one of its `aud`.
        leeway_seconds: How far clocks may differ, for `exp`, `nbf` and `iat`.
    """

    issuer: str
    audience: str
    leeway_seconds: float = 30.0


@dataclass(frozen=True)
class VerifiedJwt:
    """A token whose signature and claims held; times in seconds since 1970."""

    identity: Identity
    token_id: str
    not_before: float
    expires: float


def parse_keys(content: bytes) -> dict[str, jwt.PyJWK]:
    """Public keys of a JWK Set (RFC 7517) by `kid`.

    Raises:
        StartupError: It is none, or a key could not be trusted to verify: without `kid`, symmetric, private, too short,
            for an algorithm that is not allowed. Keys are named by place; their content is never quoted.
    """
    try:
        document = json.loads(text_of(content, "key set"))
        keys = document["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StartupError('the key set is not a JSON document with a list "keys" (RFC 7517)') from error
    if not isinstance(keys, list) or not all(isinstance(key, dict) for key in keys):
        raise StartupError('"keys" of the key set is not a list of keys')
    found: dict[str, jwt.PyJWK] = {}
    for place, key in enumerate(keys):
        if key.get("use", "sig") != "sig":  # for encryption: signs nothing
            continue
        where = f"key {place} of the key set"
        kid = key.get("kid")
        if not isinstance(kid, str) or not kid:
            raise StartupError(f"{where} has no kid")
        if kid in found:
            raise StartupError(f"{where} has the kid of an earlier key")
        found[kid] = _public_key(key, where)
    if not found:
        raise StartupError("the key set holds no key that signs")
    return found


def _public_key(key: dict[str, Any], where: str) -> jwt.PyJWK:
    if "d" in key or "k" in key:
        raise StartupError(f"{where} is a private or a shared secret; a server needs public keys alone")
    algorithm = key.get("alg") or ("RS256" if key.get("kty") == "RSA" else _BY_CURVE.get(str(key.get("crv")), ""))
    if algorithm not in ALGORITHMS:
        raise StartupError(f"{where} is not for one of {', '.join(sorted(ALGORITHMS))}")
    try:
        public = jwt.PyJWK(key, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
        raise StartupError(f"{where} cannot be used: it is damaged, or not of the kind that its alg says") from error
    bits = getattr(public.key, "key_size", None)
    if key.get("kty") == "RSA" and (bits is None or bits < _MIN_RSA_BITS):
        raise StartupError(f"{where} is an RSA key of fewer than {_MIN_RSA_BITS} bits")
    return public


class JwtTokens:
    """Verifies tokens against a file of keys, which is read anew when it changes."""

    def __init__(self, keys: Path, rules: JwtRules, *, poll_seconds: float = 1.0) -> None:
        self._keys = WatchedFiles((keys,), parse_keys, "key set", poll_seconds=poll_seconds)
        self._rules = rules
        self._remembered: LRUCache[tuple[int, bytes], VerifiedJwt] = LRUCache(_REMEMBERED)

    def verify(self, token: str, now: datetime) -> tuple[VerifiedJwt | None, str]:
        """The token as verified; None with why not, which is for the log alone."""
        keys, generation = self._keys.value_and_generation()
        place = generation, hashlib.sha256(token.encode()).digest()
        verified = self._remembered.get(place)
        if verified is None:
            verified, reason = self._decode(token, keys)
            if verified is None:
                return None, reason
            self._remembered[place] = verified
        now_s, leeway = now.timestamp(), self._rules.leeway_seconds
        if now_s >= verified.expires + leeway:
            return None, "the JWT has expired"
        if now_s < verified.not_before - leeway:
            return None, "the JWT is not valid yet"
        return verified, ""

    def _decode(self, token: str, keys: dict[str, jwt.PyJWK]) -> tuple[VerifiedJwt | None, str]:
        try:
            header = jwt.get_unverified_header(token)
            key = keys.get(str(header.get("kid")))
            if key is None:
                return None, "the JWT is signed with a key that is not in the key set"
            if header.get("alg") != key.algorithm_name:
                return None, "the JWT's alg is not that of its key"
            claims = jwt.decode(
                token,
                key=key,
                algorithms=[key.algorithm_name],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=self._rules.leeway_seconds,
                options={"require": _REQUIRED},
            )
            return _verified(claims), ""
        except Exception as error:  # noqa: BLE001 - a stranger's bytes: whatever breaks on them, they are no identity
            return None, f"the JWT is refused: {type(error).__name__}"


def _verified(claims: dict[str, Any]) -> VerifiedJwt:
    scopes = claims.get("scope", claims.get("scp", ""))
    words = scopes.split() if isinstance(scopes, str) else [str(one) for one in scopes]
    tenant = claims.get("tenant", "")
    return VerifiedJwt(
        identity=Identity(
            name=check_name(claims["sub"], "sub"),
            scopes=frozenset(words) & SCOPES.keys(),  # an issuer may serve others, too, whose scopes mean nothing here
            tenant=check_name(tenant, "tenant") if tenant else "",
            proof="jwt",
        ),
        token_id=str(claims.get("jti", "")),
        not_before=float(claims.get("nbf", 0)),
        expires=float(claims["exp"]),
    )
