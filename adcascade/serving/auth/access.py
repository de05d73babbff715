"""Whether a call may be made: who calls, the scope that the method needs, the quota. Deny by default.

Knows names of methods, not what they do. Asked before a message is read and before a slot to work in is taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adcascade.serving.auth.authenticator import Authenticator, Proofs
from adcascade.serving.auth.identity import EVERYBODY, NOBODY, Identity, Quota
from adcascade.serving.auth.quotas import Quotas
from adcascade.serving.auth.scopes import ANY_IDENTITY, REFLECTION_READ, check_scopes
from adcascade.serving.errors import PermissionDenied, ServiceError

HEALTH_SERVICE = "grpc.health.v1.Health"
_HEALTH = {"Check": ANY_IDENTITY, "Watch": ANY_IDENTITY, "List": ANY_IDENTITY}
_REFLECTION = {
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": REFLECTION_READ},
    "grpc.reflection.v1.ServerReflection": {"ServerReflectionInfo": REFLECTION_READ},
}


def _nothing() -> None:
    """A call that no quota counts has nothing to give back."""


@dataclass(frozen=True)
class Admission:
    """A call that may be made; `end` is called once when it is over."""

    identity: Identity
    end: Callable[[], None] = _nothing


class AccessControl:
    """Admits calls of one server.

    Args:
        authenticator: Says who calls; None where a server asks nobody, and everybody may do everything.
        quota: Of identities without one of their own.
        anonymous_health: Whether health may be asked without an identity.
    """

    def __init__(
        self,
        authenticator: Authenticator | None = None,
        *,
        quota: Quota | None = None,
        anonymous_health: bool = True,
    ) -> None:
        self._authenticator = authenticator
        self._quotas = Quotas(quota or Quota())
        self._anonymous_health = anonymous_health
        self._needed: dict[str, str] = {}
        self.add(HEALTH_SERVICE, _HEALTH)
        for service, scopes in _REFLECTION.items():
            self.add(service, scopes)

    @property
    def asks(self) -> bool:
        """Whether callers must prove who they are."""
        return self._authenticator is not None

    def add(self, service: str, scopes: Mapping[str, str]) -> None:
        """Says which scope each method of a service needs. Raises StartupError if a scope does not exist."""
        check_scopes((scope for scope in scopes.values() if scope != ANY_IDENTITY), service)
        self._needed |= {f"/{service}/{method}": scope for method, scope in scopes.items()}

    def admit(self, method: str, proofs: Proofs) -> Admission:
        """Lets a call in.

        Args:
            method: Full name, such as ``/adcascade.v1.RankingService/Rank``.
            proofs: What came with the call.

        Raises:
            NotProven: As it says.
            PermissionDenied: The identity lacks the scope, or the method has none that could be given.
            ResourceExhausted: The identity has used its quota.
        """
        is_health = method.startswith(f"/{HEALTH_SERVICE}/")
        if is_health and self._anonymous_health and not proofs.authorization:
            return Admission(NOBODY)
        identity = self.identify(proofs)
        try:
            if self.asks:
                self._check_scope(method, identity)
            # Whoever watches over this server must hear from it also when its quota is used.
            return Admission(identity) if is_health else Admission(identity, self._quotas.begin(identity))
        except ServiceError as error:
            error.reason = f"called by {identity}"
            raise

    def identify(self, proofs: Proofs) -> Identity:
        """Who calls. Raises NotProven."""
        return EVERYBODY if self._authenticator is None else self._authenticator.identify(proofs)

    def check(self, scope: str, proofs: Proofs) -> Identity:
        """Who calls, where something else than a method needs a scope. Raises NotProven, PermissionDenied."""
        identity = self.identify(proofs)
        if not identity.may(scope):
            raise PermissionDenied(f"this identity needs the scope {scope!r}")
        return identity

    def _check_scope(self, method: str, identity: Identity) -> None:
        scope = self._needed.get(method)
        if scope is None:
            raise PermissionDenied("no identity may call this method here")
        if scope != ANY_IDENTITY and not identity.may(scope):
            raise PermissionDenied(f"this identity needs the scope {scope!r} to call {method}")
