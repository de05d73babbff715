"""TLS and identities of the three servers that ``adcascade serve`` starts: one set of flags, checked before they start.

Knows the flags of the servers, not what becomes of them.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.auth.settings import AuthSettings, access_control
from adcascade.serving.errors import StartupError


def _flag(name: str) -> Any:
    """A flag of the same meaning as the servers' setting."""
    setting = AuthSettings.model_fields[name]
    return field(default=setting.default, metadata={"help": setting.description})


@dataclass(frozen=True)
class ServeSecurity(ClientSecurity):
    """What `adcascade serve` tells its servers, and shows to them: the flags of a client are the gateway's own."""

    tls_certificate: Path | None = _flag("tls_certificate")
    tls_key: Path | None = _flag("tls_key")
    client_ca_certificate: Path | None = _flag("client_ca_certificate")
    client_certificates: Path | None = _flag("client_certificates")
    tokens: Path | None = _flag("tokens")
    jwt_keys: Path | None = _flag("jwt_keys")
    jwt_issuer: str = _flag("jwt_issuer")
    jwt_audience: str = _flag("jwt_audience")
    revocations: Path | None = _flag("revocations")
    quota_calls_per_second: float | None = _flag("quota_calls_per_second")
    quota_concurrent: int | None = _flag("quota_concurrent")
    insecure: bool = _flag("insecure")

    def check_servers(self, host: str) -> None:
        """Raises StartupError if a server or the gateway would refuse these, so that nothing is started in vain."""
        given = {name: getattr(self, name) for name in _server_flags()}
        settings = AuthSettings.model_construct(**given)  # of these alone, whatever the environment says
        access_control(settings, host)
        self.check("localhost:0")
        if settings.tls_certificate and self.ca_certificate is None:
            raise StartupError(
                "with TLS, --ca-certificate says which authority the gateway and this command believe the servers by"
            )
        if self.ca_certificate and settings.tls_certificate is None:
            raise StartupError("--ca-certificate is for servers with TLS: give --tls-certificate and --tls-key as well")
        if settings.client_ca_certificate and self.certificate is None:
            raise StartupError("the servers will ask the gateway for a certificate: give --certificate and --key")
        if settings.asks_who_calls and self.certificate is None and self.token_file is None:
            raise StartupError(
                "the servers will ask the gateway who it is: give --token-file (a token with the scopes retrieve, rank "
                "and models:read, bids:read if its callers may see bids, and events:read with --events), or "
                "--certificate and --key"
            )

    def server_flags(self) -> list[str]:
        """Flags of each server. Paths and numbers alone: everybody on the machine can read a command line."""
        flags = []
        for name in _server_flags():
            value = getattr(self, name)
            if value is True:
                flags.append(f"--{name.replace('_', '-')}")
            elif value not in (None, "", False):
                flags += [f"--{name.replace('_', '-')}", str(value)]
        return flags

    def gateway_flags(self) -> list[str]:
        """Flags of the gateway beside those of each server."""
        flags = []
        for one in fields(ClientSecurity):
            value = getattr(self, one.name)
            if value:
                flags += [f"--{one.name.replace('_', '-')}", str(value)]
        return flags

    def client(self) -> ClientSecurity:
        """What this command itself shows when it asks for their health."""
        return ClientSecurity(self.ca_certificate, self.certificate, self.key, self.token_file, self.server_name)


def _server_flags() -> list[str]:
    own = {one.name for one in fields(ClientSecurity)}
    return [one.name for one in fields(ServeSecurity) if one.name not in own]


def reachable(address: str) -> str:
    """Where a client on this machine finds a server that listens on `address`, which may mean all interfaces."""
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"
