"""What a server is told of identity and encryption, and what it makes of that. Refuses to be open by accident."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliImplicitFlag

from adcascade.serving.auth.access import AccessControl
from adcascade.serving.auth.authenticator import Authenticator
from adcascade.serving.auth.certificates import CertificateNames
from adcascade.serving.auth.identity import Quota
from adcascade.serving.auth.jwts import JwtRules, JwtTokens
from adcascade.serving.auth.loopback import is_loopback
from adcascade.serving.auth.revocations import Revocations
from adcascade.serving.auth.tokens import StaticTokens
from adcascade.serving.errors import StartupError


class AuthSettings(BaseSettings):
    """Settings of all servers that say who may call. All files are read again when they change."""

    tls_certificate: Path | None = Field(None, description="PEM certificate chain; with tls_key, all ports speak TLS.")
    tls_key: Path | None = Field(None, description="PEM private key of tls_certificate.")
    client_ca_certificate: Path | None = Field(
        None, description="PEM certificates of the authorities of callers; with it, each must present one (mTLS)."
    )
    client_certificates: Path | None = Field(
        None, description="What the names of client certificates may do; a line each: uri:NAME scopes=retrieve,rank."
    )
    tokens: Path | None = Field(None, description="Static bearer tokens, as `adcascade tokens` writes them.")
    jwt_keys: Path | None = Field(None, description="JWK Set of public keys; bearer tokens may then be JWTs.")
    jwt_issuer: str = Field("", description="The `iss` that JWTs must have.")
    jwt_audience: str = Field("", description="The `aud` that JWTs must have.")
    jwt_leeway_seconds: float = Field(30.0, ge=0, le=600, description="How far the clock of the issuer may differ.")
    revocations: Path | None = Field(
        None, description="What is no longer trusted; a line each: jti ID, sub NAME, or serial NUMBER."
    )
    quota_calls_per_second: float | None = Field(
        None, gt=0, description="Calls a second of one identity; more get RESOURCE_EXHAUSTED. Unset is no limit."
    )
    quota_concurrent: int | None = Field(None, ge=1, description="Calls at once of one identity. Unset is no limit.")
    anonymous_health: bool | None = Field(
        None, description="Whether health may be asked without an identity; by default on loopback alone."
    )
    connection_age_seconds: float = Field(
        3600.0,
        ge=1,
        description="A connection ends after so long, when its calls have, so that none outlives an authority.",
    )
    insecure: CliImplicitFlag[bool] = Field(
        False, description="Listen beyond this machine without TLS or without asking who calls."
    )

    @property
    def asks_who_calls(self) -> bool:
        """Whether callers need an identity."""
        return any((self.tokens, self.jwt_keys, self.client_certificates))


def access_control(settings: AuthSettings, host: str) -> AccessControl:
    """What the settings say, as the one who decides.

    Args:
        settings: Files and limits.
        host: Address that the server listens on.

    Raises:
        StartupError: Settings contradict each other, a file cannot be used, or the server would be open to others than
            this machine without knowing who they are.
    """
    _check_together(settings)
    on_loopback = is_loopback(host)
    if not on_loopback and not settings.insecure:
        _refuse_open_doors(settings, host)
    quota = Quota(settings.quota_calls_per_second, settings.quota_concurrent)
    anonymous_health = on_loopback if settings.anonymous_health is None else settings.anonymous_health
    return AccessControl(_authenticator(settings), quota=quota, anonymous_health=anonymous_health)


def _check_together(settings: AuthSettings) -> None:
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise StartupError("TLS needs both tls_certificate and tls_key")
    if settings.client_ca_certificate and not settings.tls_certificate:
        raise StartupError("client_ca_certificate needs TLS: set tls_certificate and tls_key as well")
    if bool(settings.client_ca_certificate) != bool(settings.client_certificates):
        raise StartupError(
            "client_ca_certificate (whose certificates are trusted) and client_certificates (what their names may do) "
            "go together; set both or neither"
        )
    if settings.jwt_keys and not (settings.jwt_issuer and settings.jwt_audience):
        raise StartupError("jwt_keys needs jwt_issuer and jwt_audience, or tokens made for others would be good here")
    if (settings.jwt_issuer or settings.jwt_audience) and not settings.jwt_keys:
        raise StartupError("jwt_issuer and jwt_audience say nothing without jwt_keys")
    if settings.revocations and not (settings.jwt_keys or settings.client_certificates):
        raise StartupError(
            "revocations are of JWTs and client certificates; set jwt_keys or client_certificates, and revoke static "
            "tokens with `adcascade tokens revoke`"
        )


def _refuse_open_doors(settings: AuthSettings, host: str) -> None:
    beyond = f"{host or 'all interfaces'} can be reached from other machines"
    if not settings.asks_who_calls:
        raise StartupError(
            f"{beyond}, and nobody would be asked who they are: set --tokens, --jwt-keys or --client-certificates "
            "(with TLS), listen on 127.0.0.1, or accept it with --insecure"
        )
    if not settings.tls_certificate:
        raise StartupError(
            f"{beyond}, and tokens would travel in the clear: set --tls-certificate and --tls-key (`adcascade certs "
            "dev` makes some to try), listen on 127.0.0.1, or accept it with --insecure"
        )


def _authenticator(settings: AuthSettings) -> Authenticator | None:
    if not settings.asks_who_calls:
        return None
    rules = JwtRules(settings.jwt_issuer, settings.jwt_audience, settings.jwt_leeway_seconds)
    return Authenticator(
        tokens=StaticTokens(settings.tokens) if settings.tokens else None,
        jwts=JwtTokens(settings.jwt_keys, rules) if settings.jwt_keys else None,
        certificates=CertificateNames(settings.client_certificates) if settings.client_certificates else None,
        revocations=Revocations(settings.revocations) if settings.revocations else None,
    )
