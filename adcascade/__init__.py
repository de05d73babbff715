"""AdCascade: a two-stage ad recommender. This is its front door: clients, and what they are given and give back.

    from adcascade import Client, Context, Event, User

    with Client("localhost:50050") as client:
        for one in client.recommend(User("u7", interests="trail running"), Context(device="phone"), k=3):
            print(one.ad.title, one.p_click)

Nothing is loaded before one of these names is used, and then grpcio and protobuf alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adcascade.client.asynchronous import AsyncClient
    from adcascade.client.blocking import Client
    from adcascade.client.errors import (
        AdCascadeError,
        Cancelled,
        DeadlineExceeded,
        FailedPrecondition,
        InvalidRequest,
        NotFound,
        NotOffered,
        PermissionDenied,
        ResourceExhausted,
        ServerFault,
        Unauthenticated,
        Unavailable,
    )
    from adcascade.client.values import (
        Ad,
        Ads,
        Candidate,
        Candidates,
        Context,
        Counter,
        CounterKind,
        Event,
        EventType,
        RankedAd,
        Ranking,
        Recommendation,
        Recommendations,
        StageTimings,
        Timing,
        User,
    )

__all__ = [
    "Ad",
    "AdCascadeError",
    "Ads",
    "AsyncClient",
    "Cancelled",
    "Candidate",
    "Candidates",
    "Client",
    "Context",
    "Counter",
    "CounterKind",
    "DeadlineExceeded",
    "Event",
    "EventType",
    "FailedPrecondition",
    "InvalidRequest",
    "NotFound",
    "NotOffered",
    "PermissionDenied",
    "RankedAd",
    "Ranking",
    "Recommendation",
    "Recommendations",
    "ResourceExhausted",
    "ServerFault",
    "StageTimings",
    "Timing",
    "Unauthenticated",
    "Unavailable",
    "User",
]

_ROOMS = (
    "adcascade.client.values",
    "adcascade.client.errors",
    "adcascade.client.blocking",
    "adcascade.client.asynchronous",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for room in _ROOMS:
            found: object = getattr(import_module(room), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
