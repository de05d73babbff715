"""TLS of a server's ports, with files that are read again when they change. Knows nothing of who calls."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from adcascade.serving.auth.settings import AuthSettings
from adcascade.serving.auth.watched import WatchedFiles
from adcascade.serving.errors import StartupError

T = TypeVar("T")


@dataclass(frozen=True)
class TlsFiles:
    """PEM texts. `client_ca` is empty where callers need no certificate."""

    certificate: bytes
    key: bytes
    client_ca: bytes = b""


def grpc_credentials(settings: AuthSettings) -> grpc.ServerCredentials | None:
    """Credentials of a gRPC port, None without TLS. Each handshake takes the files as they are then.

    Raises:
        StartupError: The files cannot be used together.
    """
    files = _watch(settings, _checked)
    if files is None:
        return None
    first, used = files.value_and_generation()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        current, generation = files.value_and_generation()
        if generation == used:
            return None  # as before
        used = generation
        return _configuration(current)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(first),
        fetch,  # type: ignore[arg-type]  # None is allowed, which the stubs do not say
        require_client_authentication=bool(first.client_ca),
    )


def http_context(settings: AuthSettings) -> ssl.SSLContext | None:
    """The same for an HTTP port. There a client certificate may be missing: a token may stand for it.

    Raises:
        StartupError: The files cannot be used together.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None

    def made_of(*contents: bytes) -> ssl.SSLContext:
        files = _checked(*contents)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            made.load_cert_chain(certificate, key)  # which reads files alone
            if files.client_ca:
                made.load_verify_locations(cadata=files.client_ca.decode("ascii"))
                made.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ValueError) as error:
            raise StartupError("the TLS certificate, key or authority cannot be used") from error
        return made

    contexts = _watch(settings, made_of)
    if contexts is None:
        return None
    first = contexts.get()

    def use_current(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in each handshake, with or without a server name."""
        connection.context = contexts.get()

    first.sni_callback = use_current
    return first


def _watch(settings: AuthSettings, parse: Callable[..., T]) -> WatchedFiles[T] | None:
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    paths = [settings.tls_certificate, settings.tls_key]
    if settings.client_ca_certificate is not None:
        paths.append(settings.client_ca_certificate)
    return WatchedFiles(tuple(paths), parse, "TLS certificate, key or authority")


def _checked(certificate: bytes, key: bytes, client_ca: bytes = b"") -> TlsFiles:
    """The same, once it is sure that a handshake can use it: gRPC would tell only the log, at each handshake."""
    try:
        chain = x509.load_pem_x509_certificates(certificate)
        private = load_pem_private_key(key, None)
        if client_ca:
            x509.load_pem_x509_certificates(client_ca)
    except (ValueError, TypeError) as error:
        raise StartupError("the TLS certificate, key or authority is damaged, encrypted or not PEM") from error
    if chain[0].public_key() != private.public_key():
        raise StartupError("the TLS key is not the one of the TLS certificate")
    return TlsFiles(certificate, key, client_ca)


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(files.key, files.certificate)], root_certificates=files.client_ca or None
    )
