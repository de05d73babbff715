"""What all attacks of ``adcascade bench attack`` share: settings, what they find, and what an ordinary client asks."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import grpc

from adcascade.v1 import ranking_pb2, recommend_pb2, retrieval_pb2
from benchmarks.speed.hostile import method_of
from benchmarks.speed.open_loop import Start
from benchmarks.speed.results import Entry, TargetResult
from benchmarks.speed.stages import K, Servers

CANDIDATES = 100
TIMEOUT_SECONDS = 30.0
# How much longer another client may wait while somebody attacks.
P99_TIMES = 3.0
# Which server answers a method.
SERVER_OF = {"Retrieve": "retrieval", "Rank": "ranking", "Recommend": "pipeline"}


@dataclass(frozen=True)
class AttackSettings:
    """How the benchmark is run.

    Attributes:
        ads: in the index.
        seconds: how long normal calls are measured, without an attack and with it.
        rate: normal calls a second.
        calls_at_once: costly calls that the attacker keeps under way.
        flood_calls: of each kind of flood.
        silent_calls: calls without a message that the attacker keeps open on one connection; as many connections with
            two such calls each.
        idle_connections: connections without a call.
        outage_rate: calls a second to the gateway while a server behind it stands still or is gone.
        outage_seconds: how long a server that was killed stays away, before it is started again.
        parts: of `attack.PARTS`; all if empty.
    """

    ads: int = 20_000
    seconds: float = 30.0
    rate: float = 5.0
    calls_at_once: int = 4
    flood_calls: int = 2000
    silent_calls: int = 80
    idle_connections: int = 1200
    outage_rate: float = 16.0
    outage_seconds: float = 120.0
    parts: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """What one way of attacking showed."""

    entries: Sequence[Entry]
    verdicts: Sequence[TargetResult]


def address_of(servers: Servers, name: str) -> str:
    """Where the server of that name answers."""
    return str(json.loads(servers.process(name).address_file.read_bytes())["address"])


def normal_call(servers: Servers, method: str, number: int) -> Any:
    """What an ordinary client asks: a hundred candidates for one of the users who are there."""
    return _asked(servers, method, number, _known_ids(servers) if method == "Rank" else [])


def _known_ids(servers: Servers) -> list[str]:
    ids = dict.fromkeys(event.ad_id for request in servers.requests for event in request.user.history)
    return list(ids)[:CANDIDATES]


def _asked(servers: Servers, method: str, number: int, ids: Sequence[str]) -> Any:
    """`ids` are the candidates to rank."""
    user = servers.requests[number % len(servers.requests)].user
    if method == "Recommend":
        return recommend_pb2.RecommendRequest(user=user, k=K, candidates=CANDIDATES)
    if method == "Retrieve":
        return retrieval_pb2.RetrieveRequest(user=user, k=CANDIDATES)
    candidates = [ranking_pb2.RankCandidate(ad_id=ad_id) for ad_id in ids]
    return ranking_pb2.RankRequest(user=user, candidates=candidates)


def normal_calls(servers: Servers, method: str, channel: grpc.Channel) -> Start:
    """Calls of an ordinary client, of the users in turns."""
    call, numbers = method_of(method, channel), count()
    ids = _known_ids(servers)
    requests = [_asked(servers, method, number, ids) for number in range(len(servers.requests))]
    return lambda: call.future(requests[next(numbers) % len(requests)], timeout=TIMEOUT_SECONDS)
