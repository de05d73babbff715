"""Real keys, tokens and certificates for tests of identity, made in milliseconds (EC P-256)."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from adcascade.serving.auth.authority import DevAuthority, Issued

ISSUER, AUDIENCE = "https://issuer.test", "adcascade"


def pem(key: Any) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass
class Issuer:
    """Signs JWTs; `keys` go into the key set."""

    keys: dict[str, EllipticCurvePrivateKey] = field(default_factory=lambda: {"k1": generate_private_key(SECP256R1())})

    def write_keys(self, path: Path) -> Path:
        algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
        public = [
            {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", "alg": "ES256"}
            for kid, key in self.keys.items()
        ]
        path.write_text(json.dumps({"keys": public}))
        return path

    def token(self, kid: str = "k1", headers: Mapping[str, Any] | None = None, **claims: Any) -> str:
        now = time.time()
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": now + 300, "scope": "recommend", "jti": "j-1"}
        merged = {name: value for name, value in {**good, **claims}.items() if value is not None}
        return jwt.encode(merged, self.keys[kid], "ES256", headers={"kid": kid, **(headers or {})})


def write_pair(folder: Path, name: str, issued: Issued) -> tuple[Path, Path]:
    """The certificate's and the key's file."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    key.write_bytes(issued.key)
    certificate.write_bytes(issued.certificate)
    return certificate, key


def self_signed(name: str) -> Issued:
    """A caller's certificate of an authority that nobody knows."""
    return DevAuthority("nobody").client(name)
