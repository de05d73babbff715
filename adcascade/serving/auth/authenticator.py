"""From what a caller presents to an identity. Knows nothing of gRPC or HTTP, nor of what the identity may do."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from adcascade.serving.auth.certificates import CertificateNames
from adcascade.serving.auth.identity import Identity
from adcascade.serving.auth.jwts import JwtTokens
from adcascade.serving.auth.revocations import Revocations
from adcascade.serving.auth.tokens import StaticTokens
from adcascade.serving.errors import Unauthenticated

# A longer one is nobody's, and costs as much to look at as its sender likes.
_MAX_TOKEN_CHARS = 8192


class NotProven(Unauthenticated):
    """The caller has not proven who it is.

    The message is the same whatever was wrong: what is wrong with a proof is told to the log (`reason`), not to whoever
    is trying proofs.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("who calls is not proven: present a client certificate or a bearer token that is good here")
        self.reason = reason


@dataclass(frozen=True)
class Proofs:
    """What came with a call.

    Attributes:
        authorization: Values of the `authorization` header.
        certificate: PEM of the client certificate that the handshake verified; None without one. Called only if asked
            for, since it costs more than a token.
    """

    authorization: Sequence[str | bytes]
    certificate: Callable[[], bytes | None] = lambda: None


class Authenticator:
    """Says who calls. Thread-safe.

    A bearer token goes before the certificate of the connection: the connection may be a proxy's. A proof that is
    presented and is not good is refused, even if the other would do. With mTLS a revoked or foreign certificate is
    refused also where a token is good.
    """

    def __init__(
        self,
        *,
        tokens: StaticTokens | None = None,
        jwts: JwtTokens | None = None,
        certificates: CertificateNames | None = None,
        revocations: Revocations | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._tokens, self._jwts, self._certificates = tokens, jwts, certificates
        self._revocations = revocations
        self._now = now
        self._lock = threading.Lock()

    def identify(self, proofs: Proofs) -> Identity:
        """The caller's identity. Raises NotProven; its `reason` is for the log alone."""
        with self._lock:  # what is remembered in there is not made for threads
            found, reason = self._identify(proofs, self._now())
        if found is None:
            raise NotProven(reason)
        return found

    def _identify(self, proofs: Proofs, now: datetime) -> tuple[Identity | None, str]:
        by_certificate, reason = self._by_certificate(proofs, now)
        if reason:
            return None, reason
        if proofs.authorization:
            return self._by_token(proofs.authorization, now)
        if by_certificate is None:
            return None, "nothing was presented"
        return by_certificate, ""

    def _by_certificate(self, proofs: Proofs, now: datetime) -> tuple[Identity | None, str]:
        """The identity, or why the certificate is refused; neither if there is none to look at."""
        if self._certificates is None:
            return None, ""
        pem = proofs.certificate()
        if pem is None:
            return None, ""
        certificate = self._certificates.certificate(pem)
        if certificate is None:
            return None, "the certificate cannot be read"
        if self._revoked("serial", certificate.serial):
            return None, f"certificate {certificate.serial} is revoked"
        return self._certificates.identify(certificate, now)

    def _by_token(self, authorization: Sequence[str | bytes], now: datetime) -> tuple[Identity | None, str]:
        if len(authorization) != 1:
            return None, "several authorization headers"
        header = authorization[0]
        if not isinstance(header, str) or len(header) > _MAX_TOKEN_CHARS or not header.isascii():
            return None, "the authorization header is too long, or no text"
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return None, "the authorization header is not a bearer token"
        if "." in token:  # which a static token never has, and a JWT always
            return self._by_jwt(token, now)
        if self._tokens is None:
            return None, "static tokens are not accepted here"
        return self._tokens.identify(token, now)

    def _by_jwt(self, token: str, now: datetime) -> tuple[Identity | None, str]:
        if self._jwts is None:
            return None, "JWTs are not accepted here"
        verified, reason = self._jwts.verify(token, now)
        if verified is None:
            return None, reason
        identity = verified.identity
        if self._revoked("jti", verified.token_id) or self._revoked("sub", identity.name):
            return None, f"the JWT of {identity.name} is revoked"
        return identity, ""

    def _revoked(self, kind: str, value: str) -> bool:
        return self._revocations is not None and self._revocations.revoked(kind, value)
