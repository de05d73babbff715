"""What an identity may be allowed to do. The one list of words; which method needs which is said where the method is.

A scope implies no other: `admin` does not include `recommend`.
"""

from collections.abc import Iterable, Mapping

from adcascade.serving.errors import StartupError

RECOMMEND = "recommend"
RETRIEVE = "retrieve"
RANK = "rank"
MODELS_READ = "models:read"
BIDS_READ = "bids:read"
METRICS_READ = "metrics:read"
REFLECTION_READ = "reflection:read"
EVENTS_WRITE = "events:write"
EVENTS_READ = "events:read"
EVENTS_ERASE = "events:erase"
# No method needs these yet. They are words already, so that a token made today can be given them.
CATALOG_WRITE = "catalog:write"
ADMIN = "admin"

SCOPES: Mapping[str, str] = {
    RECOMMEND: "call the gateway",
    RETRIEVE: "ask the retrieval server for candidates and interest vectors",
    RANK: "ask the ranking server for click probabilities",
    MODELS_READ: "see which index and model version answers, and its figures",
    BIDS_READ: "see the bids and the attributes of ads in answers",
    METRICS_READ: "read the metrics page",
    REFLECTION_READ: "list the services of a server (gRPC reflection)",
    EVENTS_WRITE: "send events to the event store",
    EVENTS_READ: "read histories, totals and the log of the event store",
    EVENTS_ERASE: "erase a user from the event store",
    CATALOG_WRITE: "change the catalog; kept for later",
    ADMIN: "change the server itself; kept for later",
}

# Health has no scope of its own: any identity may ask, or anybody where `anonymous_health` is on.
ANY_IDENTITY = ""


def check_scopes(names: Iterable[str], where: str) -> frozenset[str]:
    """The scopes as a set. Raises StartupError naming one that does not exist."""
    found = frozenset(names)
    unknown = sorted(found - SCOPES.keys())
    if unknown:
        raise StartupError(f"{where}: there is no scope {unknown[0][:64]!r}; there are {', '.join(SCOPES)}")
    return found
