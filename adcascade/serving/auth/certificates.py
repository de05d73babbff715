"""Identity from the client certificate of a connection (mTLS), and what a file says that its name may do.

The handshake has verified the chain. What it cannot know is looked at for each call, because a connection outlives
what was true when it began: the end of the certificate's life, its name in the file, its revocation.
A line of the file is `KIND:NAME scopes=...`, KIND being `uri` (such as a SPIFFE id), `dns`, or `cn`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cachetools import LRUCache
from cryptography import x509
from cryptography.x509.oid import NameOID

from adcascade.serving.auth.grants import Grant, read_grants
from adcascade.serving.auth.identity import Identity
from adcascade.serving.auth.watched import WatchedFiles, text_of
from adcascade.serving.errors import StartupError

_KINDS = ("uri", "dns", "cn")
_REMEMBERED = 1024
_MAX_NAMES = 64


@dataclass(frozen=True)
class PeerCertificate:
    """What a certificate says, in words of the certificates file: names are "uri:...", "dns:...", "cn:..."."""

    names: Sequence[str]
    serial: str
    not_before: datetime
    not_after: datetime


def read_certificate(pem: bytes) -> PeerCertificate:
    """The first certificate of a PEM text. Raises ValueError if it is damaged.

    The common name counts only where there is no alternative name (RFC 6125, 6.4.4): an authority that checks the
    latter may have left the former to the applicant.
    """
    certificate = x509.load_pem_x509_certificate(pem)
    names: list[str] = []
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names = [f"cn:{one.value}" for one in common if isinstance(one.value, str)] if len(common) == 1 else []
    else:
        names += [f"uri:{name}" for name in alternative.get_values_for_type(x509.UniformResourceIdentifier)]
        names += [f"dns:{name}" for name in alternative.get_values_for_type(x509.DNSName)]
    return PeerCertificate(
        names=tuple(names[:_MAX_NAMES]),
        serial=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def parse_certificates(content: bytes) -> dict[str, Grant]:
    """The lines of a certificates file by name. Raises StartupError naming a line that is wrong."""
    found: dict[str, Grant] = {}
    for grant in read_grants(text_of(content, "certificates file"), "the certificates file"):
        if grant.name.partition(":")[0] not in _KINDS or grant.name.endswith(":"):
            raise StartupError(
                f"{grant.name!r} of the certificates file begins with none of uri:, dns: and cn:, "
                "which say where in the certificate the name stands"
            )
        if grant.name in found:
            raise StartupError(f"{grant.name!r} stands twice in the certificates file")
        found[grant.name] = grant
    return found


class CertificateNames:
    """Whose certificate it is, by a file that is read anew when it changes."""

    def __init__(self, path: Path, *, poll_seconds: float = 1.0) -> None:
        self._file = WatchedFiles((path,), parse_certificates, "certificates file", poll_seconds=poll_seconds)
        self._read: LRUCache[bytes, PeerCertificate] = LRUCache(_REMEMBERED)

    def certificate(self, pem: bytes) -> PeerCertificate | None:
        """What the certificate says; None if it cannot be read."""
        place = hashlib.sha256(pem).digest()
        found = self._read.get(place)
        if found is None:
            try:
                found = self._read[place] = read_certificate(pem)
            except ValueError:  # also x509.DuplicateExtension and the like
                return None
        return found

    def identify(self, certificate: PeerCertificate, now: datetime) -> tuple[Identity | None, str]:
        """Who presents it; None with why not, which is for the log alone."""
        if not certificate.not_before <= now < certificate.not_after:
            return None, f"certificate {certificate.serial} is outside its time"
        grants = self._file.get()
        grant = next((grants[name] for name in certificate.names if name in grants), None)
        if grant is None:
            return None, f"no name of certificate {certificate.serial} is in the certificates file"
        if grant.revoked is not None:
            return None, f"{grant.name} is revoked"
        if grant.expires is not None and now >= grant.expires:
            return None, f"the right of {grant.name} has expired"
        name = grant.name.partition(":")[2]
        return Identity(name, grant.scopes, grant.tenant, "certificate", grant.quota), ""
