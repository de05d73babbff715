"""``adcascade bench attack``: what a hostile client costs the others, and how much memory it can make servers take.

Each part attacks in one way, and says what it measured as entries and verdicts; `PARTS` names them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil

from benchmarks.speed.arrivals import Answered, Start, arrive, one_by_one
from benchmarks.speed.contest import Progress, Spread
from benchmarks.speed.hostile import COSTLY, channel_to, floods, method_of
from benchmarks.speed.machine import describe
from benchmarks.speed.memory import own_mib
from benchmarks.speed.results import BenchResult, Entry, Verdict
from benchmarks.speed.stages import K, Servers, as_entry, serving
from protos import ranking_pb2, recommend_pb2, retrieval_pb2
from records.errors import InputError

_CANDIDATES = 100
_WARM_UP, _AFTER_DEADLINES = 20, 10
_P99_TIMES, _LATE_MS, _DEADLINE_SECONDS = 3.0, 100.0, 0.3
_TIMEOUT_SECONDS = 30.0
# What a process may still grow by once its caches are full: what allocators keep, in MiB.
_FULL_GROWTH_MIB = 32.0
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
        parts: of `PARTS`; all if empty.
    """

    ads: int = 20_000
    seconds: float = 30.0
    rate: float = 5.0
    calls_at_once: int = 4
    flood_calls: int = 2000
    parts: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """What one way of attacking showed."""

    entries: Sequence[Entry]
    verdicts: Sequence[Verdict]


def bench_attack(
    settings: AttackSettings, folder: Path, kept: Path, progress: Progress = lambda *_: None
) -> BenchResult:
    """Attacks three servers in every way that is asked for.

    See `stages.serving` for `folder`, `kept` and what else is raised. Raises InputError for a part that there is not.
    """
    _check_parts(settings.parts)
    with serving(settings.ads, settings.seed, folder, kept) as servers:
        return attack_of(servers, settings, progress)


def attack_of(servers: Servers, settings: AttackSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """The same of servers that run already. Raises StartupError if they never come to rest."""
    _check_parts(settings.parts)
    servers.wait_until_idle()
    machine = describe()
    parts = []
    names = settings.parts or tuple(PARTS)
    for name in names:
        parts.append(PARTS[name](servers, settings))
        progress(len(parts), len(names))
    return BenchResult(
        bench="attack",
        machine=machine,
        settings=asdict(settings) | {"parts": ", ".join(names)},
        entries=[entry for part in parts for entry in part.entries],
        verdicts=[verdict for part in parts for verdict in part.verdicts],
    )


def _check_parts(names: Sequence[str]) -> None:
    for name in names:
        if name not in PARTS:
            raise InputError(f"there is no attack {name!r}; choose of {', '.join(PARTS)}")


def address_of(servers: Servers, name: str) -> str:
    """Where the server of that name answers."""
    (process,) = [one for one in servers.processes if one.name == name]
    return str(json.loads(process.address_file.read_bytes())["address"])


def normal_call(servers: Servers, method: str, number: int) -> Any:
    """What an ordinary client asks: a hundred candidates for one of the users who are there."""
    user = servers.requests[number % len(servers.requests)].user
    if method == "Recommend":
        return recommend_pb2.RecommendRequest(user=user, k=K, candidates=_CANDIDATES)
    if method == "Retrieve":
        return retrieval_pb2.RetrieveRequest(user=user, k=_CANDIDATES)
    ids = dict.fromkeys(event.ad_id for request in servers.requests for event in request.user.history)
    candidates = [ranking_pb2.RankCandidate(ad_id=ad_id) for ad_id in list(ids)[:_CANDIDATES]]
    return ranking_pb2.RankRequest(user=user, candidates=candidates)


@contextmanager
def attacked(method: str, address: str, calls_at_once: int) -> Iterator[None]:
    """The costliest calls of a method, from a process of their own, until the block ends."""
    command = [sys.executable, "-m", "benchmarks.speed.hostile", method, address, str(calls_at_once)]
    attacker = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert attacker.stdin is not None
    try:
        time.sleep(2)  # so that its calls are under way
        if attacker.poll() is not None:
            raise RuntimeError(f"the attacker ended with exit code {attacker.returncode}")
        yield
    finally:
        attacker.stdin.close()
        attacker.wait()


def heaviest_calls(servers: Servers, settings: AttackSettings) -> Part:
    """One client sends the costliest calls; another one sends normal ones, and waits how much longer?"""
    entries, verdicts = [], []
    for method in COSTLY:
        address = address_of(servers, SERVER_OF[method])
        with channel_to(address) as channel:
            start = _normal_calls(servers, method, channel)
            one_by_one(start, _WARM_UP)
            alone = arrive(start, settings.rate, settings.seconds, settings.seed)
            with attacked(method, address, settings.calls_at_once):
                beside = arrive(start, settings.rate, settings.seconds, settings.seed)
            entries += [
                as_entry(f"normal {method}, {settings.rate:g} a second", alone),
                as_entry(f"the same while another client sends the heaviest {method}", beside),
            ]
            verdicts.append(_of_neighbour(method, alone, beside))
            verdicts.append(_of_deadlines(method, channel, start))
    return Part(entries, verdicts)


def _normal_calls(servers: Servers, method: str, channel: grpc.Channel) -> Start:
    """Calls of an ordinary client, of the users in turns."""
    call, numbers = method_of(method, channel), count()
    requests = [normal_call(servers, method, number) for number in range(len(servers.requests))]
    return lambda: call.future(requests[next(numbers) % len(requests)], timeout=_TIMEOUT_SECONDS)


def _of_neighbour(method: str, alone: Answered, beside: Answered) -> Verdict:
    before, after = alone.percentile(99), beside.percentile(99)
    return Verdict(
        what=f"p99 of another client's normal {method} while one sends the heaviest",
        target=f"at most {_P99_TIMES:g} times that without it, none refused",
        reached=f"{after / before:.1f} times ({after:.0f} ms, {before:.0f} ms without), {beside.refused:.0%} refused",
        met=after <= _P99_TIMES * before and not beside.refused,
    )


def _of_deadlines(method: str, channel: grpc.Channel, start: Start) -> Verdict:
    """Of heavy calls whose deadline passed: how much longer the next call takes than without one."""
    usual = one_by_one(start, _AFTER_DEADLINES)
    taken: list[float] = []
    for number in range(_AFTER_DEADLINES):
        heavy = method_of(method, channel).future(
            COSTLY[method](f"late {os.getpid()} {number}"), timeout=_DEADLINE_SECONDS
        )
        heavy.exception()  # waits until it is late
        taken.append(one_by_one(start, 1).percentile(50))  # infinity if it got no answer
    more = np.array(taken) - np.median(usual.milliseconds)
    return Verdict(
        what=f"a call right after a heavy {method} whose deadline of {_DEADLINE_SECONDS:g} s passed",
        target=f"takes at most {_LATE_MS:g} ms more",
        reached=f"{np.median(more):.0f} ms more (median of {len(more)}; the worst {more.max():.0f} ms)",
        met=bool(np.median(more) <= _LATE_MS),
    )


def cache_floods(servers: Servers, settings: AttackSettings) -> Part:
    """Values that nobody sent before, of every kind that a cache might be keyed by."""
    entries, verdicts = [], []
    for what, (server, request) in floods().items():
        process = psutil.Process(next(one.process.pid for one in servers.processes if one.name == server))
        name = "Retrieve" if server == "retrieval" else "Rank"
        grown = [own_mib(process)]
        milliseconds: list[float] = []
        with channel_to(address_of(servers, server)) as channel:
            call = method_of(name, channel)
            for part in range(3):  # caches fill in the first, and are full in the last
                for number in range(part * settings.flood_calls // 3, (part + 1) * settings.flood_calls // 3):
                    started = time.perf_counter()
                    call(request(f"{os.getpid()} {number} "), timeout=_TIMEOUT_SECONDS)
                    milliseconds.append(1000 * (time.perf_counter() - started))
                grown.append(own_mib(process))
        figures = {f"MiB after {share}": mib for share, mib in zip(("none", "1/3", "2/3", "all"), grown, strict=True)}
        entries.append(
            Entry(case=f"flood: {what}", contender="AdCascade", milliseconds=Spread.of(milliseconds), figures=figures)
        )
        verdicts.append(
            Verdict(
                what=f"memory of {server} under {settings.flood_calls:,} distinct {what}",
                target=f"grows by at most {_FULL_GROWTH_MIB:g} MiB in the last third",
                reached=f"{grown[3] - grown[2]:+.0f} MiB (in all {grown[3] - grown[0]:+.0f} MiB)",
                met=grown[3] - grown[2] <= _FULL_GROWTH_MIB,
            )
        )
    return Part(entries, verdicts)


# What may be asked for by name; each takes the servers and the settings, and leaves the servers running.
PARTS: dict[str, Callable[[Servers, AttackSettings], Part]] = {
    "heaviest-calls": heaviest_calls,
    "cache-floods": cache_floods,
}
