"""Who calls, and what they may do. Knows nothing of how that was proven."""

from contextvars import ContextVar
from dataclasses import dataclass

from adcascade.serving.auth.scopes import SCOPES


@dataclass(frozen=True)
class Quota:
    """How much one identity may ask; None is no limit.

    Attributes:
        calls_per_second: Sustained rate; as many calls as one second allows (at least one) may come at once.
        concurrent: Calls at the same time.
    """

    calls_per_second: float | None = None
    concurrent: int | None = None


@dataclass(frozen=True)
class Identity:
    """A caller with a name.

    Attributes:
        name: Of the token, the JWT's subject, or the certificate's name; shown in the access log.
        scopes: What it may do, see `adcascade.serving.auth.scopes`.
        tenant: Whose data it acts on; "" if the owner does not tell tenants apart.
        proof: "token", "jwt" or "certificate"; "" of a caller who proved nothing.
        quota: Its own quota; None takes the server's.
    """

    name: str
    scopes: frozenset[str]
    tenant: str = ""
    proof: str = ""
    quota: Quota | None = None

    def may(self, scope: str) -> bool:
        """Whether it has this scope."""
        return scope in self.scopes

    def __str__(self) -> str:
        return f"{self.proof}:{self.name}" if self.proof else self.name


# A caller without any proof, and what everybody is where a server asks for none.
NOBODY = Identity("-", frozenset())
EVERYBODY = Identity("-", frozenset(SCOPES))

# Of the call that this thread or task answers. Outside of a server nobody asks, and nobody may see what is private.
current_identity: ContextVar[Identity] = ContextVar("identity", default=NOBODY)
