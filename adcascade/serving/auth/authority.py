"""A certificate authority to try things with: short-lived certificates for servers and callers on this machine.

Not for production: its key lies in a file, without a password, and nobody keeps a list of what it signed.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from adcascade.serving.auth import scopes
from adcascade.serving.errors import StartupError

URI_PREFIX = "spiffe://adcascade.dev/"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# Clocks differ; a certificate that begins now would be refused for a moment by a machine that is behind.
_CLOCK_SKEW = timedelta(minutes=5)
_FILE_MODE, _KEY_MODE = 0o644, 0o600

# Who there is in a pipeline of the three servers, and what each may do.
DEV_CALLERS: Mapping[str, Sequence[str]] = {
    "gateway": (scopes.RETRIEVE, scopes.RANK, scopes.MODELS_READ, scopes.BIDS_READ),
    "client": (scopes.RECOMMEND, scopes.RETRIEVE, scopes.RANK, scopes.MODELS_READ),
    "monitor": (scopes.METRICS_READ,),
}


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


class DevAuthority:
    """Makes a key of its own and signs with it.

    Args:
        days: How long what it signs is good, itself included.
    """

    def __init__(self, name: str = "AdCascade development authority", *, days: float = 30) -> None:
        self._days = days
        self._key = generate_private_key(SECP256R1())
        subject = _name(name)
        now = datetime.now(UTC)
        self._certificate = (
            _builder(subject, subject, self._key, now - timedelta(days=1), now + timedelta(days=max(days, 1)))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = self._certificate.public_bytes(Encoding.PEM)
        self.key = _pem(self._key)

    def server(self, hosts: Sequence[str] = LOCAL_HOSTS) -> Issued:
        """A server's certificate for host names and addresses."""
        return self._issue("server", [_host(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH)

    def client(self, name: str, *, begins_in: timedelta = -_CLOCK_SKEW, days: float | None = None) -> Issued:
        """A caller's certificate, named by the URI `URI_PREFIX` + name.

        Args:
            name: What the certificates file gives rights to.
            begins_in: From now until it is good.
            days: How long it is good from then on; default: as the authority.
        """
        uri = x509.UniformResourceIdentifier(URI_PREFIX + name)
        return self._issue(name, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, begins_in, days)

    def _issue(
        self,
        name: str,
        alternative: Sequence[x509.GeneralName],
        purpose: x509.ObjectIdentifier,
        begins_in: timedelta = -_CLOCK_SKEW,
        days: float | None = None,
    ) -> Issued:
        key, begins = generate_private_key(SECP256R1()), datetime.now(UTC) + begins_in
        ends = begins + timedelta(days=self._days if days is None else days)
        certificate = (
            _builder(_name(name), self._certificate.subject, key, begins, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Issued(certificate.public_bytes(Encoding.PEM), _pem(key))


def write_dev_certificates(folder: Path, hosts: Sequence[str] = LOCAL_HOSTS, days: float = 30) -> list[Path]:
    """A new authority with a server's certificate, one for each of `DEV_CALLERS`, and the certificates file.

    What is there from before is replaced, each file at once; running servers take it up.

    Raises:
        StartupError: The folder cannot be written.
    """
    authority = DevAuthority(days=days)
    issued = {"server": authority.server(hosts), **{name: authority.client(name) for name in DEV_CALLERS}}
    lines = [f"uri:{URI_PREFIX}{name} scopes={','.join(rights)}" for name, rights in DEV_CALLERS.items()]
    files: dict[str, tuple[bytes, int]] = {
        "ca.key": (authority.key, _KEY_MODE),
        "ca.pem": (authority.certificate, _FILE_MODE),
    }
    for name, pair in issued.items():
        files[f"{name}.key"] = pair.key, _KEY_MODE
        files[f"{name}.pem"] = pair.certificate, _FILE_MODE
    files["certificates.txt"] = ("\n".join(lines) + "\n").encode(), _FILE_MODE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return [_write(folder / name, content, mode) for name, (content, mode) in files.items()]
    except OSError as error:
        raise StartupError(f"cannot write into {folder}: {error.strerror}") from error


def _write(path: Path, content: bytes, mode: int) -> Path:
    beside = path.with_name(path.name + ".tmp")
    beside.unlink(missing_ok=True)  # its mode may be another
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    os.replace(beside, path)
    return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
